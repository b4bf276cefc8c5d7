"""The real client over a real connection: a server on this machine that speaks the Hub's protocol (HF_ENDPOINT)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from grmp_score.weights import Weights, load

from .hub_server import STORAGE, HubServer, httpx

MAIN = "from grmp_score.cli.main import main; main()"


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the Hub in memory; its storage host is this one by another name."""

    hub: HubServer

    def do_GET(self) -> None:
        host, path = "https://huggingface.co", self.path
        if path.startswith("/storage/"):
            host, path = STORAGE, path.removeprefix("/storage")
        answer = self.hub.answer(httpx.Request(self.command, host + path, headers=dict(self.headers)))
        elsewhere = f"http://localhost:{self.server.server_address[1]}/storage"  # another host by its name
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            self.send_header(name, value.replace(STORAGE, elsewhere))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer.content)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


def test_a_model_is_downloaded_by_a_process_of_its_own(tiny_weights: Weights, tmp_path: Path) -> None:
    """`grmp-score download`, with nothing replaced inside of it; large files come by a redirect."""
    hub = HubServer()
    folder = tiny_weights.save(tmp_path / "w")
    hub.add_repo("owner/name", {path.name: path.read_bytes() for path in folder.iterdir()})
    Handler.hub = hub
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            done = subprocess.run(
                [sys.executable, "-c", MAIN, "download", "owner/name", "-o", str(tmp_path / "copy")],
                env={
                    **os.environ,
                    "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                    "HF_HOME": str(tmp_path / "home"),
                    "HF_HUB_OFFLINE": "0",
                    "NO_PROXY": "127.0.0.1,localhost",
                },
                capture_output=True,
                text=True,
            )
        finally:
            server.shutdown()
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "copy").checksum() == tiny_weights.checksum()
