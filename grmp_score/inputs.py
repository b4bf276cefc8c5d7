"""From what a user names to the list of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

#: What is looked for in folders.  Files named one by one are tried whatever they are called.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
    | {".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


def find_images(paths: Iterable[str], *, patterns: bool = True) -> Iterator[str]:
    """Expands folders (recursively, sorted, hidden entries skipped) and passes everything else through.

    A path that does not exist is passed through too: it becomes an error row of its own.
    """
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                    yield os.path.join(folder, name)


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Names from a list, separated by newlines, or by NULs if there is one in the first bytes."""
    read = getattr(stream, "read1", stream.read)
    rest: bytes = read(1 << 16)
    end = b"\0" if b"\0" in rest else b"\n"
    while True:
        *names, rest = rest.split(end)
        yield from (os.fsdecode(name) for name in names if name)
        more = read(1 << 16)
        if not more:
            if rest:
                yield os.fsdecode(rest)
            return
        rest += more
