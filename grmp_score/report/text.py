"""Names and numbers as people read them, and what texts are made with: console, tables, templates."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from grmp_score.display import html_templates, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from rich.console import Console
    from rich.table import Table

    from grmp_score.trainer.data.labels import Labels

#: The folder of templates, style and script.
TEMPLATES = Path(__file__).parent / "templates"


def shared_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, to be left out where they are shown; empty for none."""
    folders = {os.path.dirname(p) for p in paths}
    if len(paths) < 2 or len({os.path.isabs(f) for f in folders}) > 1:
        return ""
    shared = os.path.commonpath([f or "." for f in folders])
    return "" if shared == os.path.dirname(shared) else shared  # without the root a path would look relative


def short_name(path: str, folder: str) -> str:
    """A path without that folder, if it lies in it; unprintable characters made visible."""
    short = os.path.relpath(path, folder) if folder else path
    return printable(path if short.startswith(os.pardir) else short)


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the folder they all share; unprintable characters made visible."""
    folder = shared_folder(paths)
    return [short_name(path, folder) for path in paths]


def number(value: float | None, span: float = 1.0) -> str:
    """A number to a thousandth of the range it lives in, or better; ``-`` for none and NaN."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{max(0, 3 - math.floor(math.log10(span)))}f}"


def interval(ends: Sequence[float | None], span: float | None = None) -> str:
    """The ends of an interval; without a span those of correlations, to a hundredth: a bootstrap is no better."""
    low, high = ends
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "-"
    return f"{low:.2f} .. {high:.2f}" if span is None else f"{number(low, span)} .. {number(high, span)}"


def ends(labels: Labels) -> str:
    """The best and the worst of some labels, by which a person sees whether their direction is right."""
    best, worst = (f"{printable(labels.paths[i].name)!r} {labels.scores[i]:g}" for i in labels.ends)
    return f"best {best}, worst {worst}"


def direction(higher_is_better: bool) -> str:
    """In words, which way a scale of labels goes."""
    return "higher is better" if higher_is_better else "lower is better"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2,000 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def console_on(stream: IO[str], *, highlight: bool = True) -> Console:
    """A rich console that writes to a stream.

    Rich's own ends the program with status 1 when the reader of its output has gone; this one raises
    `BrokenPipeError` as every other way of writing does.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Plain(file=stream, highlight=highlight)


def plain_table(first: str, *figures: str) -> Table:
    """A table without lines: a column of names, and columns of figures.  Headings are markup of rich."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def templates() -> Environment:
    """The templates of pages and cards."""
    return html_templates(TEMPLATES)
