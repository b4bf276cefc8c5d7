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
import json, os, sys, threading
print("said", file=sys.stderr)
print(json.dumps({
    "args": sys.argv, "cwd": os.getcwd(), "pid": os.getpid(), "session": os.getsid(0),
    "threads": threading.active_count(), "env": dict(os.environ), "loaded": sorted(sys.modules),
    "input": sys.stdin.read(), "name": __name__,
    "open": sorted(map(int, os.listdir("/dev/fd"))),
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
    assert seen["pid"] == seen["session"] != os.getsid(0) and seen["threads"] == 1
    assert set(PRELOADED) <= set(seen["loaded"]) and "grmp_score" not in seen["loaded"]
    assert (seen["input"], seen["name"]) == ("", "__main__")
    assert seen["open"][:3] == [0, 1, 2] and len(seen["open"]) == 5  # and the pipe that it holds, and this listing


@pytest.mark.parametrize(
    ("code", "status", "errors"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(130)", 130, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import threading as t, sys; t.Timer(0.01, lambda: print('last', file=sys.stderr)).start()", 0, "last"),
    ],
)
def test_it_ends_as_a_process_does(warm: Warm, code: str, status: int, errors: str) -> None:
    """Exit status, traceback, exit functions and signals are the interpreter's own."""
    done = warm.run(code)
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout) == (status, b"") == (plain.returncode, plain.stdout)
    last = [text.decode().splitlines()[-1:] for text in (done.stderr, plain.stderr)]
    assert last == [[errors] if errors else []] * 2


def test_it_is_talked_to_and_killed(warm: Warm) -> None:
    """Pipes work while it runs, beside another one, and SIGKILL reaches it alone."""
    code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    with warm.start(code) as one, warm.start(code) as other:
        for process in (one, other):
            process.stdin.write(b"here\n")
            assert process.stdout.readline() == b"HERE\n"
        one.send_signal(signal.SIGKILL)
        assert one.wait(timeout=60) == -signal.SIGKILL and one.stdout.read() == b""
        other.stdin.close()
        assert (other.stdout.read(), other.wait(timeout=60), other.stderr.read()) == (b"", 0, b"")


def test_a_program_in_a_shell(warm: Warm, tmp_path: Path) -> None:
    """Arguments, pipes and exit status pass through."""
    warm.program(tmp_path / "shout", "import sys; print(sys.argv[1] + sys.stdin.read().upper()); sys.exit(5)")
    line = "echo world | ./shout 'hello ' | tr O 0; exit ${PIPESTATUS[1]}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (5, ["hello", "W0RLD"], "")
