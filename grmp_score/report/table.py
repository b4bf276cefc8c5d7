"""Scores for people: a table with bars and words."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Literal

from grmp_score.report.console import console_on
from grmp_score.report.rows import Model, printable, shared_folder, short_name
from grmp_score.score import WORST, AnyScore, FailedScore

if TYPE_CHECKING:
    from rich.table import Table


#: Rows that are held, and share their columns' widths, where nobody looks on.
PAGE = 1000

#: Colour of a bar by its verdict; without verdicts a bar says how much, and not whether that is good.
_COLOURS = {"excellent": "green", "good": "green", "fair": "yellow", "poor": "red", WORST: "red"}
_NEUTRAL = "cyan"

_NAME = 30  # narrowest column of names, unless all are shorter


class TableWriter:
    """A table in the order in which scores come.

    Where it is looked at while it grows (``live``), every row appears at once, under names as they were given, in
    columns that fill the screen.  Otherwise rows are held in pages, the first of which decides how wide columns
    are and which folder goes without saying.
    """

    def __init__(self, stream: IO[str], model: Model, *, live: bool = False) -> None:
        self._console, self._model, self._live = console_on(stream), model, live
        self._page: list[AnyScore] = []
        self._folder, self._longest, self._begun = "", 0, False
        self._bar = 20 if self._console.width >= 100 else 10

    def write(self, score: AnyScore) -> None:
        self._page.append(score)
        if len(self._page) >= (1 if self._live else PAGE):
            self._print_page()

    def close(self) -> None:
        from rich.markup import escape

        self._print_page()
        model = self._model
        scale = model.label_scale
        lines = [f"p(high quality): 0 bad .. 1 good; model {escape(printable(model.name))}"]
        if scale is not None:
            better = "higher" if scale.higher_is_better else "lower"
            lines.append(f"label: {scale.minimum:g} .. {scale.maximum:g}, {better} is better")
        if model.thresholds:
            words = ", ".join(f"{word} from {limit:.2f}" for word, limit in model.thresholds)
            lines.append(f"{words} (against reference photos)")
        for line in lines:
            self._console.print(f"[dim]{line}[/]", highlight=False)

    def _print_page(self) -> None:
        from rich.cells import cell_len

        if not self._page and self._begun:
            return
        paths = [score.path or "" for score in self._page]
        if not self._begun and not self._live:
            self._folder = shared_folder(paths)
        names = [short_name(path, self._folder) for path in paths]
        if not self._begun:
            self._longest = max((cell_len(name) for name in names), default=0)
        failed = self._live and self._begun and isinstance(self._page[0], FailedScore)
        table = self._failure_table() if failed else self._table()
        for name, score in zip(names, self._page, strict=True):
            table.add_row(*self._cells(name, score)[: len(table.columns)])
        self._console.print(table)
        self._page, self._begun = [], True

    def _table(self) -> Table:
        from rich.table import Table

        others: list[tuple[str, int]] = [("score", 5), ("", self._bar)]
        others.append(("± std. error" if self._bar > 10 else "±", 5))
        if self._model.label_scale is not None:
            others.append(("label", 7))
        if self._model.thresholds:
            others.append(("verdict", 9))
        others.append(("pixels", 11 if self._live else 9))
        table = Table(box=None, pad_edge=False, show_header=not self._begun)
        room = self._console.width - sum(max(width, len(title)) + 2 for title, width in others)
        if self._live:
            table.add_column("image", overflow="fold", width=max(room, 12))
        else:
            # Long reasons of errors must not squeeze the names; very long names still fold.  Later pages keep the
            # column of the first.
            width = min(self._longest, max(room, _NAME)) if self._begun else None
            table.add_column("image", overflow="fold", min_width=min(_NAME, self._longest), width=width)
        for title, width in others:
            side: Literal["left", "right"] = "left" if title in ("", "verdict") else "right"
            # The bar's column wraps: the reasons of errors stand in it.
            table.add_column(title, justify=side, no_wrap=title != "", min_width=max(width, len(title)))
        return table

    def _failure_table(self) -> Table:
        """The columns of a row that has a reason in the place of all that comes after the score."""
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(overflow="fold", width=self._table().columns[0].width)
        table.add_column(justify="right", no_wrap=True, min_width=5)
        table.add_column()
        return table

    def _cells(self, name: str, score: AnyScore) -> list[str]:
        from rich.markup import escape

        word = None if isinstance(score, FailedScore) else score.verdict
        colour = _NEUTRAL if word is None else _COLOURS[word]
        if isinstance(score, FailedScore):
            cells = [escape(name), "[red]error[/]", f"[red]{escape(printable(score.error))}[/]", ""]
            label, pixels = None, ""
        else:
            filled = round(score.value * self._bar)
            bar = f"[{colour}]{'█' * filled}[/][dim]{'░' * (self._bar - filled)}[/]"
            spread = "" if score.standard_error is None else f"{score.standard_error:.3f}"
            cells = [escape(name), f"{score.value:.3f}", bar, spread]
            label, pixels = score.label, f"{score.width}x{score.height}"
        if self._model.label_scale is not None:
            cells.append("" if label is None else f"{label:.2f}")
        if self._model.thresholds:
            cells.append("" if word is None else f"[{colour}]{word}[/]")
        return [*cells, pixels]
