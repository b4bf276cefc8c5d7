"""Processes that begin with torch imported are processes: streams, environment, folder, signals, exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .warm import FIXED, PRELOADED, Warm

LOOK = """
import json, os, sys
print("said", file=sys.stderr)
print(json.dumps({
    "args": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ), "loaded": sorted(sys.modules),
    "input": sys.stdin.read(), "name": __name__,
}))
sys.exit(3)
"""


def test_it_is_a_process_of_its_own(warm: Warm, tmp_path: Path) -> None:
    """With what it was given, torch imported, and nothing of this package yet."""
    done = warm.run(LOOK, "a b", tmp_path, env={"COLOUR": "red"}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, b"said\n")
    seen = json.loads(done.stdout)
    assert seen["args"] == ["-c", "a b", str(tmp_path)] and seen["cwd"] == str(tmp_path)
    assert seen["env"] == {**os.environ, "COLOUR": "red", **FIXED}
    assert set(PRELOADED) <= set(seen["loaded"]) and "grmp_score" not in seen["loaded"]
    assert (seen["input"], seen["name"]) == ("", "__main__")


@pytest.mark.parametrize(
    ("code", "status", "errors"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(130)", 130, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import threading as t, sys; t.Timer(0.01, lambda: print('last', file=sys.stderr)).start()", 0, "last"),
    ],
)
def test_it_ends_as_a_process_does(warm: Warm, code: str, status: int, errors: str) -> None:
    """Exit status, traceback, threads and signals are the interpreter's own."""
    done = warm.run(code)
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout) == (status, b"") == (plain.returncode, plain.stdout)
    last = [text.decode().splitlines()[-1:] for text in (done.stderr, plain.stderr)]
    assert last == [[errors] if errors else []] * 2
