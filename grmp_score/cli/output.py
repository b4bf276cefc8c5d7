"""Where results go: the screen, a file that appears when it is complete, or the end of an earlier one."""

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

from grmp_score.report.resume import Earlier, read_earlier


@contextlib.contextmanager
def destination(output: Path | None) -> Iterator[IO[str]]:
    """A text stream to write results to; a file is replaced when all has been written (see `replacing`)."""
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # File names are passed on byte by byte; where the screen cannot show a letter, its code.
            utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        yield sys.stdout
        return
    with replacing(output) as path, open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield file


def partial_of(path: Path) -> Path:
    """Where results are written that are to become this file."""
    return path.with_name(f"{path.name}.partial")


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A file next to ``output`` that takes its place at the end.

    If anything goes wrong, Ctrl-C too, ``output`` stays as it was and what was written stays in `partial_of` it;
    the same holds when the process is killed.  Pipes and devices are written to as they are.
    """
    target = Path(os.path.realpath(output))  # a link is followed, not replaced
    if target.exists() and not target.is_file():
        yield target
        return
    partial = partial_of(target)
    with _locked(partial, output) as handle:
        os.ftruncate(handle, 0)
        try:
            yield partial
        except BaseException:
            if partial.stat().st_size:
                click.echo(f"What was done is in {partial}", err=True)
            else:
                partial.unlink()
            raise
        if target.exists():
            shutil.copymode(target, partial)
        os.replace(partial, target)


@contextlib.contextmanager
def continuing(output: Path, output_format: str) -> Iterator[tuple[IO[str], Earlier]]:
    """What an earlier run wrote, and a stream that adds to it; rows are in the file as soon as they are written.

    The file is the one named, or what a stopped run with ``-o`` left in `partial_of` it; then it takes its place at
    the end.

    Raises:
        ResultsError: the file holds something else.
    """
    target = Path(os.path.realpath(output))
    partial = partial_of(target)
    work = partial if partial.is_file() else target
    with _locked(work, output):
        try:
            with open(work, "r+b") as raw:
                earlier = read_earlier(raw, output_format, path=str(work))
            with open(work, "r+", newline="", encoding="utf-8", errors="surrogateescape") as file:
                file.seek(0, os.SEEK_END)
                yield _Appending(file, earlier.size), earlier  # type: ignore[misc]
            if work == partial:
                os.replace(partial, target)
        finally:
            if work.is_file() and not work.stat().st_size:
                work.unlink()


class _Appending:
    """Cuts the torn end off only when there is something to write: a run that is refused changes nothing."""

    def __init__(self, file: IO[str], size: int) -> None:
        self._file, self._size, self._cut = file, size, False

    def write(self, text: str) -> int:
        if not self._cut:
            self._file.truncate(self._size)
            self._file.seek(0, os.SEEK_END)
            self._cut = True
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _locked(path: Path, output: Path) -> Iterator[int]:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from error
    try:
        _lock(handle, output)
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int, output: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise click.UsageError(f"cannot write {output}: another run is writing it") from error
    except OSError:  # a file system without locks
        return
