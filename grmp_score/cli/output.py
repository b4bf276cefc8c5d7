"""Where results go: the screen, or the file of -o."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click


@contextlib.contextmanager
def destination(output: Path | None) -> Iterator[IO[str]]:
    """A text stream to write results to."""
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # File names are passed on byte by byte; where the screen cannot show a letter, its code.
            utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        yield sys.stdout
        return
    try:
        with open(output, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from error
