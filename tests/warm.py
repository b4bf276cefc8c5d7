"""Real processes that begin with torch and open_clip imported, for tests that start many.

Importing the two takes several seconds of processor time, far more than what most tests then do with them.  Here
one process imports them once and forks for every request.  What a process is otherwise stays: memory, folder,
environment, standard streams and signals of its own, an exit status, and death by SIGKILL.  What an interpreter
says while it imports and at its very end is not seen; `cli_tools.process`, `test_odd_files` and `test_readme` look
at that.

    def test_it(warm):
        done = warm.run("import sys; print(sys.argv[1])", "x")
        assert (done.returncode, done.stdout) == (0, b"x\\n")

This file is also the program of the forking process and of what stands in a shell for a command (`Warm.program`),
so it imports nothing but the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

PRELOADED = ("torch", "open_clip", "PIL.Image", "rich.console")
#: What libraries read from the environment once, when they are imported: the same for all processes.
FIXED = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
HEADER = 8

# ------------------------------------------------------------------ asking


class Started:
    """A process that runs; of `subprocess.Popen` what tests need, with pipes in bytes."""

    def __init__(self, address: str, request: dict[str, Any]) -> None:
        ends = [os.pipe() for _ in range(3)]
        inside = [ends[0][0], ends[1][1], ends[2][1]]
        self.stdin: BinaryIO = os.fdopen(ends[0][1], "wb", buffering=0)
        self.stdout: BinaryIO = os.fdopen(ends[1][0], "rb")
        self.stderr: BinaryIO = os.fdopen(ends[2][0], "rb")
        self.returncode: int | None = None
        self._connection = ask(address, request, inside)
        for descriptor in inside:
            os.close(descriptor)
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, which must not have been waited for."""
        assert self.returncode is None
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; minus the signal's number where one ended the process."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        self.wait(timeout=300)
        self._answers.close()
        self._connection.close()


class Warm:
    """Starts processes; a context manager that keeps the forking process from entry to exit."""

    def __enter__(self) -> Warm:
        self._folder = tempfile.mkdtemp(prefix="warm")
        self._address = os.path.join(self._folder, "socket")
        environment = {**os.environ, **FIXED}
        command = [sys.executable, __file__, self._address]
        self._server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._server.stdout is not None and self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()
        shutil.rmtree(self._folder)

    def start(
        self, code: str, *args: str | Path, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> Started:
        """`python -c code args`, running."""
        return Started(self._address, request_of(code, args, {**os.environ, **(env or {})}, cwd))

    def run(
        self, code: str, *args: str | Path, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """`python -c code args`, to its end."""
        with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            request = request_of(code, args, {**os.environ, **(env or {})}, cwd)
            status = run(self._address, request, [f.fileno() for f in (nothing, out, errors)])
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(code, status, out.read(), errors.read())

    def program(self, path: Path, code: str) -> None:
        """Writes a program that does what `code` does, for shells; its streams are those of the shell."""
        path.write_text(
            f"#!{sys.executable} -IS\nimport os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import warm\nrequest = warm.request_of({code!r}, sys.argv[1:], os.environ, None)\n"
            f"status = warm.run({self._address!r}, request, [0, 1, 2])\n"
            "sys.exit(status if status >= 0 else 128 - status)\n"
        )
        path.chmod(0o755)


def request_of(code: str, args: Any, environment: Mapping[str, str], cwd: str | Path | None) -> dict[str, Any]:
    """What is sent to the forking process; paths need not be text."""
    words = [os.fsdecode(arg) for arg in args]
    settings = {**environment, **FIXED}
    return {"code": code, "args": words, "env": settings, "cwd": os.fspath(cwd) if cwd else os.getcwd()}


def ask(address: str, request: dict[str, Any], descriptors: list[int]) -> socket.socket:
    """Sends a request; the answer is a line with the process's id, and one with its status when it has ended."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    message = json.dumps(request).encode()
    socket.send_fds(connection, [len(message).to_bytes(HEADER, "big")], descriptors)
    connection.sendall(message)
    return connection


def run(address: str, request: dict[str, Any], descriptors: list[int]) -> int:
    """Waits for the end; the exit status as of `Started.wait`."""
    with ask(address, request, descriptors) as connection, connection.makefile("r") as answers:
        return int(answers.readlines()[1])


# ----------------------------------------------------------------- forking


def serve(address: str) -> dict[str, Any]:
    """Forks for every request until stdin ends; returns only in the new processes, with their request."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    ours: dict[int, socket.socket] = {}  # connections by the pipe that ends with their process
    pids: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    os._exit(0)
                elif key.fileobj is not listener:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    status = os.waitpid(pids.pop(key.fd), 0)[1]
                    with ours.pop(key.fd) as connection:
                        tell(connection, os.waitstatus_to_exitcode(status))
                else:
                    connection, _ = listener.accept()
                    header, descriptors, *_ = socket.recv_fds(connection, HEADER, 3)
                    with connection.makefile("rb") as file:
                        request: dict[str, Any] = json.loads(file.read(int.from_bytes(header, "big")))
                    watch, held = os.pipe()  # ends with the process: nobody else holds its other end
                    pid = os.fork()
                    if pid == 0:
                        for other in (listener, connection, *ours.values()):
                            other.close()
                        for watched in (watch, *pids):
                            os.close(watched)
                        become(request, descriptors)
                        return request
                    for descriptor in (held, *descriptors):
                        os.close(descriptor)
                    selector.register(watch, selectors.EVENT_READ)
                    ours[watch], pids[watch] = connection, pid
                    tell(connection, pid)


def tell(connection: socket.socket, number: int) -> None:
    """One line; whoever asked may have gone."""
    try:
        connection.sendall(b"%d\n" % number)
    except OSError as error:
        print(f"nobody waits for {number}: {error}", file=sys.stderr)


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Streams, environment, folder and arguments as of a new process, in a session of its own."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv[:] = ["-c", *request["args"]]
    sys.path[0] = ""


def perform(code: str) -> int:
    """Runs a program as the interpreter does; the exit status."""
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def main() -> None:
    """The forking process, and what becomes of its copies."""
    for library in PRELOADED:
        importlib.import_module(library)
    status = perform(serve(sys.argv[1])["code"])
    # What the interpreter does at its end, but for taking torch's half a million objects apart: that takes seconds.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
