"""Progress on stderr: a bar on a terminal, nothing in a log file."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, total: int, *, unit: str, streaming: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances the bar; the bar vanishes when it is done.

    ``streaming``: results go to stdout meanwhile.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    # Results on the same terminal would be torn apart by a live bar above them, so it is only shown when
    # stdout goes elsewhere or is held back until the end (tables).
    hidden = not sys.stderr.isatty() or (streaming and sys.stdout.isatty())
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda n: progress.update(task, advance=n)
