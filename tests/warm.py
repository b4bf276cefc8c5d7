"""Real processes that begin with torch and open_clip imported.

Importing the two takes several seconds of processor time, far more than what most tests then do with them.  So
Python's own fork server imports them once and forks for every `run`.  What a process is otherwise stays: memory,
folder, environment, standard streams and signals of its own, and an exit status.  What an interpreter says while it
starts is not seen (`cli_tools.process` is for that), and functions registered with `atexit` are not run.

    def test_it(warm):
        done = warm.run("import sys; print(sys.argv[1])", "x")
        assert (done.returncode, done.stdout) == (0, b"x\\n")
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

PRELOADED = ["torch", "open_clip", "PIL.Image", "rich.console"]
#: What libraries read from the environment when they are imported: the same for all processes.
FIXED = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

#: Makes of a forked process what `python -c code arguments` is.
BEGIN = """
import os, sys
for number, path in enumerate(streams):
    descriptor = os.open(path, os.O_RDWR)
    os.dup2(descriptor, number)
    os.close(descriptor)
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
sys.argv[:] = ["-c", *arguments]
exec(code, {"__name__": "__main__"})
"""


class Warm:
    """Starts processes."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def run(
        self, code: str, *args: str | Path, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> CompletedProcess[bytes]:
        """`python -c code args`, to its end; the status is minus the signal's number where one ended it."""
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as errors:
            given = {
                "streams": (os.devnull, out.name, errors.name),
                "environment": {**os.environ, **(env or {}), **FIXED},
                "folder": os.fspath(cwd or Path.cwd()),
                "arguments": [os.fspath(arg) for arg in args],
                "code": code,
            }
            process = self._context.Process(target=exec, args=(BEGIN, given))
            with mock.patch.dict(os.environ, FIXED):  # the first start is that of the server, too
                process.start()
            process.join()
            assert process.exitcode is not None
            return CompletedProcess(code, process.exitcode, out.read(), errors.read())
