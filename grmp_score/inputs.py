"""From what a user names to the list of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What is looked for in folders.  Files named one by one are tried whatever they are called.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
    | {".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


def find_images(paths: Iterable[str]) -> Iterator[str]:
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
