"""The cells of a protocol as a table: median and spread of each method by the number of shots."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from grmp_score.report.text import console_on, count, number, plain_table


@dataclass(frozen=True)
class Spread:
    """One figure over the splits: median, least and largest; NaN where no split has it."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Of the values that there are."""
        known = [value for value in values if value is not None]
        if not known:
            return cls(float("nan"), float("nan"), float("nan"))
        return cls(statistics.median(known), min(known), max(known))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.least)} .. {number(self.largest)})"


@dataclass(frozen=True)
class Row:
    """What one method gave with one number of shots: number of splits, and SRCC, PLCC over them."""

    shots: int
    method: str
    splits: int
    srcc: Spread
    plcc: Spread


def rows_of(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """By shots, then by method in the order of the cells."""
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        found.setdefault((cell["shots"], cell["method"]), []).append(cell)
    return [
        Row(shots, method, len(group), *(Spread.of(c[name] for c in group) for name in ("srcc", "plcc")))
        for (shots, method), group in sorted(
            found.items(), key=lambda item: item[0][0]
        )  # stable: methods as they come
    ]


def write_table(stream: IO[str], cells: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Writes one row per number of shots and method."""
    from rich.markup import escape

    console = console_on(stream, highlight=False)
    rows = rows_of(cells)
    tested = sorted({cell["n_test"] for cell in cells})
    table = plain_table("shots", "method", "SRCC", "PLCC", "splits")
    table.columns[1].justify = "left"
    for i, row in enumerate(rows):
        shots = str(row.shots) if not i or rows[i - 1].shots != row.shots else ""
        table.add_row(shots, row.method, str(row.srcc), str(row.plcc), str(row.splits))
    console.print(f"[bold]{escape(title)}[/]")
    console.print(table)
    images = (
        count(tested[0], "image") if len(tested) == 1 else f"{tested[0]} to {tested[-1]} images" if tested else ""
    )
    console.print(
        f"[dim]median (least .. largest) over the splits; {images} to test on in each; -1 .. 1, 1 is perfect[/]"
    )
