"""Scores as rows: a table for people, CSV and JSON lines for programs."""

from __future__ import annotations

import csv
import json
import os
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the scorer imports torch, which --help and wrong usage should not wait for
    from grmp_score.scorer import Score

FORMATS = ("table", "csv", "jsonl")

#: Columns of the machine-readable formats.
FIELDS = ("path", "score", "standard_error", "std", "patches", "width", "height", "model", "error")


class Writer(Protocol):
    """Takes scores one by one."""

    def write(self, score: Score) -> None: ...

    def close(self) -> None: ...


def make_writer(output_format: str, stream: IO[str], *, model: str) -> Writer:
    """A writer for one of `FORMATS`; ``model`` is the name of the weights, kept in every row."""
    kinds: dict[str, type[TableWriter | CsvWriter | JsonLinesWriter]] = {
        "table": TableWriter,
        "csv": CsvWriter,
        "jsonl": JsonLinesWriter,
    }
    return kinds[output_format](stream, model)


def row(score: Score, model: str) -> dict[str, str | float | int | None]:
    """One score as a flat record with the columns of `FIELDS`; numbers keep their full precision."""
    return {
        "path": score.path,
        "score": score.value,
        "standard_error": score.standard_error,
        "std": score.std,
        "patches": len(score.patch_values) or None,
        "width": score.width,
        "height": score.height,
        "model": model,
        "error": score.error,
    }


class CsvWriter:
    """Comma-separated values with a header; an error leaves the score empty."""

    def __init__(self, stream: IO[str], model: str) -> None:
        self._stream, self._model = stream, model
        self._csv = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        self._csv.writeheader()

    def write(self, score: Score) -> None:
        self._csv.writerow(row(score, self._model))
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class JsonLinesWriter:
    """One JSON object per line."""

    def __init__(self, stream: IO[str], model: str) -> None:
        self._stream, self._model = stream, model

    def write(self, score: Score) -> None:
        self._stream.write(json.dumps(row(score, self._model)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class TableWriter:
    """A table for people, in the order of the inputs."""

    def __init__(self, stream: IO[str], model: str) -> None:
        self._stream, self._model = stream, model
        self._scores: list[Score] = []

    def write(self, score: Score) -> None:
        self._scores.append(score)

    def close(self) -> None:
        from rich.cells import cell_len
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, pad_edge=False, title_justify="left", caption_justify="left")
        names = short_names([s.path or "" for s in self._scores])
        # Long reasons of errors must not squeeze the names; very long names still fold.
        table.add_column("image", overflow="fold", min_width=min(30, max((cell_len(n) for n in names), default=0)))
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("", min_width=20)  # a bar, or a reason that wraps
        table.add_column("± std. error", justify="right", no_wrap=True)
        table.add_column("pixels", justify="right", no_wrap=True)
        for name, s in zip(names, self._scores, strict=True):
            if s.value is None or s.standard_error is None:
                table.add_row(escape(name), "[red]error[/]", f"[red]{escape(s.error or '')}[/]", "", "")
            else:
                size = f"{s.width}x{s.height}"
                table.add_row(escape(name), f"{s.value:.3f}", _bar(s.value), f"{s.standard_error:.3f}", size)
        console = Console(file=self._stream)
        console.print(table)
        console.print(f"[dim]p(high quality): 0 bad .. 1 good; model {escape(self._model)}[/]")


def _bar(value: float) -> str:
    filled = round(value * 20)
    colour = "green" if value >= 2 / 3 else "yellow" if value >= 1 / 3 else "red"
    return f"[{colour}]{'█' * filled}[/][dim]{'░' * (20 - filled)}[/]"


def short_names(paths: list[str]) -> list[str]:
    """Paths without the folder they all share; unprintable characters made visible."""
    folders = {os.path.dirname(p) for p in paths}
    shared = os.path.commonpath([f or "." for f in folders]) if len(folders) and not _mixed(folders) else ""
    names = [os.path.relpath(p, shared) if shared and len(paths) > 1 else p for p in paths]
    return [printable(n) for n in names]


def printable(name: str) -> str:
    """A file's name with characters that cannot be shown written as codes."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def _mixed(folders: set[str]) -> bool:
    return len({os.path.isabs(f) for f in folders}) > 1
