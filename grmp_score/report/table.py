"""Scores for people: a table with bars and words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

from grmp_score.display import printable
from grmp_score.report.rows import WeightsInfo
from grmp_score.report.text import console_on, direction, shared_folder, short_name
from grmp_score.score import AnyScore, FailedScore, Score

if TYPE_CHECKING:
    from rich.table import Table

#: Rows that are held, and share their columns' widths, where nobody looks on.
HELD_ROWS = 1000

#: Colours of the five verdicts, best first, and of a bar without one: it says how much, and not whether that is
#: good.
_COLOURS, _NO_VERDICT = ("green", "green", "yellow", "red", "red"), "cyan"

_NAME_WIDTH = 30  # narrowest column of names, unless all are shorter


@dataclass(frozen=True)
class _Column:
    """A column after that of the names: its heading, its least width, and what it says of a score."""

    heading: str
    width: int
    cell: Callable[[Score], str]
    justify: Literal["left", "right"] = "right"


class TableWriter:
    """A table in the order in which scores come.

    Where it is looked at while it grows (``live``), every row appears at once, under names as they were given, in
    columns that fill the screen.  Otherwise rows are held in groups of `HELD_ROWS`, the first of which decides how
    wide columns are and which folder is left out of the names.
    """

    def __init__(self, stream: IO[str], weights: WeightsInfo, *, live: bool = False) -> None:
        self._console, self._weights, self._live = console_on(stream), weights, live
        self._held: list[AnyScore] = []
        self._folder, self._longest_name, self._begun = "", 0, False
        self._bar_width = 20 if self._console.width >= 100 else 10
        self._colours: dict[str | None, str] = {None: _NO_VERDICT}
        for (word, _), colour in zip(weights.verdict_limits, _COLOURS, strict=False):
            self._colours[word] = colour
        self._columns = self._make_columns()

    def write(self, score: AnyScore) -> None:
        self._held.append(score)
        if len(self._held) >= (1 if self._live else HELD_ROWS):
            self._print_held()

    def close(self) -> None:
        from rich.markup import escape

        self._print_held()
        weights = self._weights
        scale = weights.label_scale
        lines = [f"p(high quality): 0 bad .. 1 good; model {escape(printable(weights.name))}"]
        if scale is not None:
            lines.append(f"label: {scale.minimum:g} .. {scale.maximum:g}, {direction(scale.higher_is_better)}")
        if weights.verdict_limits:
            words = ", ".join(f"{word} from {limit:.2f}" for word, limit in weights.verdict_limits[:-1])
            opinion = weights.opinion
            if opinion is None:
                lines.append(f"{words} (against reference photos)")
            else:
                lines.append(f"{words}; nine in ten are within {opinion.within_90:.2f} of people's mean opinion")
        for line in lines:
            self._console.print(f"[dim]{line}[/]", highlight=False)

    def _make_columns(self) -> list[_Column]:
        columns = [
            _Column("score", 5, lambda score: f"{score.value:.3f}"),
            _Column("", self._bar_width, self._bar, "left"),
            _Column("± std. error" if self._bar_width > 10 else "±", 5, _spread),
        ]
        if self._weights.label_scale is not None:
            columns.append(_Column("label", 7, lambda score: "" if score.label is None else f"{score.label:.2f}"))
        if self._weights.verdict_limits:
            columns.append(_Column("verdict", 9, self._verdict, "left"))
        pixels = 11 if self._live else 9
        return [*columns, _Column("pixels", pixels, lambda score: f"{score.width}x{score.height}")]

    def _bar(self, score: Score) -> str:
        filled = round(score.value * self._bar_width)
        return f"[{self._colours[score.verdict]}]{'█' * filled}[/][dim]{'░' * (self._bar_width - filled)}[/]"

    def _verdict(self, score: Score) -> str:
        return f"[{self._colours[score.verdict]}]{score.verdict}[/]" if score.verdict else ""

    def _print_held(self) -> None:
        from rich.cells import cell_len
        from rich.markup import escape

        if not self._held and self._begun:
            return
        paths = [score.path or "" for score in self._held]
        if not self._begun and not self._live:
            self._folder = shared_folder(paths)
        names = [short_name(path, self._folder) for path in paths]
        if not self._begun:
            self._longest_name = max((cell_len(name) for name in names), default=0)
        failed = self._live and self._begun and isinstance(self._held[0], FailedScore)
        table = self._failure_table() if failed else self._table()
        for name, score in zip(names, self._held, strict=True):
            if isinstance(score, FailedScore):
                table.add_row(escape(name), "[red]error[/]", f"[red]{escape(printable(score.error))}[/]")
            else:
                table.add_row(escape(name), *(column.cell(score) for column in self._columns))
        self._console.print(table)
        self._held, self._begun = [], True

    def _table(self) -> Table:
        from rich.table import Table

        widths = [max(column.width, len(column.heading)) for column in self._columns]
        table = Table(box=None, pad_edge=False, show_header=not self._begun)
        room = self._console.width - sum(width + 2 for width in widths)
        if self._live:
            table.add_column("image", overflow="fold", width=max(room, 12))
        else:
            # Long reasons of errors must not squeeze the names; very long names still fold.  Later groups of rows
            # keep the column of the first.
            width = min(self._longest_name, max(room, _NAME_WIDTH)) if self._begun else None
            least = min(_NAME_WIDTH, self._longest_name)
            table.add_column("image", overflow="fold", min_width=least, width=width)
        for column, width in zip(self._columns, widths, strict=True):
            # The bar's column, which has no heading, wraps: the reasons of errors stand in it.
            wraps = column.heading == ""
            table.add_column(column.heading, justify=column.justify, no_wrap=not wraps, min_width=width)
        return table

    def _failure_table(self) -> Table:
        """The columns of a row that has a reason in the place of all that comes after the score."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(overflow="fold", width=self._table().columns[0].width)
        table.add_column(justify="right", no_wrap=True, min_width=5)
        table.add_column()
        return table


def _spread(score: Score) -> str:
    return "" if score.standard_error is None else f"{score.standard_error:.3f}"
