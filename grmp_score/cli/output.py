"""Where results go: the screen, or a file that appears when it is complete."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click


@contextlib.contextmanager
def destination(output: Path | None) -> Iterator[IO[str]]:
    """A text stream to write results to; a file is replaced when all has been written (see `results_file`)."""
    if output is not None:
        with results_file(output) as path, append_text(path) as file:
            yield file
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names are passed on byte by byte; where the screen cannot show a letter, its code.
        utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    yield sys.stdout


def append_text(path: Path) -> IO[str]:
    """The end of a file of results, for writing; names keep the bytes that are no UTF-8."""
    return open(path, "a", newline="", encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def results_file(output: Path, *, resume: bool = False) -> Iterator[Path]:
    """The file that results are written to: ``FILE.partial``, which takes the place of ``output`` at the end.

    Unlike `grmp_score.files.replacing`, which leaves nothing behind, it is for what may have taken hours: whatever
    goes wrong, Ctrl-C and kill -9 too, ``output`` stays as it was and the results so far stay beside it.  A link is
    followed, permissions are kept, pipes and devices are written to as they are.

    Args:
        output: the file named by the user.
        resume: go on with what a stopped run left in ``FILE.partial``, or else with ``output`` itself, in place.
            Otherwise the file that is yielded is empty.

    Raises:
        click.UsageError: it cannot be written, or another run is writing it.
    """
    target = Path(os.path.realpath(output))
    if target.exists() and not target.is_file():
        yield target
        return
    partial = target.with_name(f"{target.name}.partial")
    work = target if resume and not partial.is_file() else partial
    try:
        work.touch()
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from error
    with _locked(target, output):
        if not resume:
            os.truncate(work, 0)
        try:
            yield work
        except BaseException as error:
            if isinstance(error, OSError) and error.filename is None:
                error.filename = os.fspath(work)  # which of the disks is full
            if not work.stat().st_size:
                work.unlink()
            elif not resume:
                click.echo(f"What was done is in {work}", err=True)
            raise
        if work != target:
            if target.exists():
                shutil.copymode(target, work)
            os.replace(work, target)


@contextlib.contextmanager
def _locked(target: Path, output: Path) -> Iterator[None]:
    """Keeps other runs from writing the same results, by a lock on a hidden file next to them."""
    from filelock import FileLock, Timeout

    file = target.with_name(f".{target.name}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise click.UsageError(f"cannot write {output}: another run is writing it") from error
    except (OSError, NotImplementedError):
        pass  # a file system without locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows, and newer versions of filelock, remove it themselves
            file.unlink()
        lock.release()
