"""The images that a command is told to look at: arguments, lists, standard input."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from grmp_score.cli.progress import Progress
from grmp_score.images.find import find_images, read_list

STDIN = "-"


def named_images(paths: Sequence[str], lists: Sequence[Path]) -> Iterator[str]:
    """The images behind arguments (``-``: a list on standard input) and in lists, one by one as they are found."""
    for path in paths:
        if path == STDIN:
            yield from find_images(read_list(cast(BinaryIO, sys.stdin.buffer)), patterns=False)
        else:
            yield from find_images([path])
    for file in lists:
        with open(file, "rb") as stream:
            yield from find_images(read_list(stream), patterns=False)


def count_ahead(paths: Sequence[str], lists: Sequence[Path], progress: Progress, *, less: int = 0) -> None:
    """Counts the images in the background, for a progress display that knows its end.

    What can only be read once (standard input, pipes) or is far away (addresses) is not counted, nor is anything
    where nobody would see it.

    Args:
        paths, lists: as for `named_images`.
        progress: its ``total`` is set when the number is known.
        less: images that need no work.
    """
    if not progress.shown or STDIN in paths or any("://" in path for path in paths):
        return
    if not all(file.is_file() for file in lists):
        return

    def count() -> None:
        try:
            progress.total = max(0, sum(1 for _ in named_images(paths, lists)) - less)
        except Exception:
            return  # the same failure meets the images themselves, and is told there

    threading.Thread(target=count, name="grmp-score-count", daemon=True).start()
