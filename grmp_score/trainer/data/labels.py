"""A user's own labels: a CSV of images and scores, and how it is divided for training and testing."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grmp_score.config import LabelScale
from grmp_score.errors import DataError
from grmp_score.trainer.data.raters import RATER_COLUMN, read_ratings
from grmp_score.trainer.data.tables import Table, read_table, shown

IMAGE_COLUMNS = ("image", "path", "file", "filename")
SCORE_COLUMNS = ("mos", "score", "rating", "quality", "label", "dmos")

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """Images with opinion scores, in the order of the file.

    Attributes:
        source: the CSV.
        paths: image files [n].
        rows: number of each image's (first) row in the CSV [n].
        scores: float64 [n] in the file's own unit; with several raters the mean opinion.
        score_column: name of the column they come from.
        higher_is_better: False for DMOS-like scores.
        columns: the other columns by name, n cells each; with several raters those that do not differ among the
            rows of one image.
        raters: their names [R]; empty when the file has no such column.
        ratings: float64 [n, R] behind ``scores``, NaN where a rater did not see the image.
    """

    source: Path
    paths: tuple[Path, ...]
    rows: tuple[int, ...]
    scores: NDArray[np.float64]
    score_column: str = "mos"
    higher_is_better: bool = True
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    raters: tuple[str, ...] = ()
    ratings: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def scale(self) -> LabelScale:
        """Range and direction of these labels; for training that of the training part, `take`\\ n first."""
        return LabelScale(float(self.scores.min()), float(self.scores.max()), self.higher_is_better)

    def take(self, indices: Sequence[int] | Indices) -> Labels:
        """The labels at these positions, in that order."""
        positions = [int(i) for i in indices]
        return Labels(
            self.source,
            tuple(self.paths[i] for i in positions),
            tuple(self.rows[i] for i in positions),
            self.scores[positions],
            self.score_column,
            self.higher_is_better,
            {name: tuple(cells[i] for i in positions) for name, cells in self.columns.items()},
            self.raters,
            None if self.ratings is None else self.ratings[positions],
        )

    def column(self, name: str) -> tuple[str, ...]:
        """The cells of one of the other columns, found without regard to case."""
        wanted = name.strip().casefold()
        for column, cells in self.columns.items():
            if column.casefold() == wanted:
                return cells
        offer = ", ".join(self.columns) or "none besides image and score"
        raise DataError(f"no column {shown(name)} to group by; there are: {offer}", path=self.source)


def read_labels(
    path: str | Path,
    *,
    images: str | Path | None = None,
    image_column: str | None = None,
    score_column: str | None = None,
    lower_is_better: bool | None = None,
    minimum: int = 5,
) -> Labels:
    """Reads labels from a CSV with a header.

    Args:
        path: the CSV: commas, semicolons or tabs; UTF-8 with or without BOM.  A column `RATER_COLUMN` makes it one
            row per image and rater, and the label of an image the mean of its ratings as they are.
        images: folder that relative image paths start from; None for the CSV's.
        image_column: None finds the one of `IMAGE_COLUMNS`, without regard to case.
        score_column: None finds the one of `SCORE_COLUMNS`.
        lower_is_better: direction of the scores; None: lower is better for a column named dmos only.
        minimum: fewest images to be of use.

    Raises:
        DataError: one line with file, row, value, what was expected, and the remedy.
    """
    named = [name for name in (image_column, score_column) if name is not None]
    table = read_table(path, {*IMAGE_COLUMNS, *SCORE_COLUMNS, RATER_COLUMN, *named})
    image_at = _column(table, "image", image_column, IMAGE_COLUMNS)
    score_at = _column(table, "score", score_column, SCORE_COLUMNS)
    rater_at = table.find(RATER_COLUMN)
    if len(table.rows) < minimum:
        raise DataError(f"{len(table.rows)} rows of labels, expected at least {minimum}", path=table.path)
    scores = [_number(cells[score_at], number, table) for number, cells in table.rows]
    keys = _find_images(table, image_at, Path(images) if images is not None else table.path.parent)
    found: dict[object, list[int]] = {}
    for i, (key, _) in enumerate(keys):
        found.setdefault(key, []).append(i)
    raters: tuple[str, ...] = ()
    ratings, values = None, np.array(scores)
    if rater_at is None:
        _refuse_duplicates(table, image_at, found)
    else:
        raters, ratings = read_ratings(table, image_at, rater_at, scores, list(found.values()))
        values = np.nanmean(ratings, axis=1)
    if len(found) < minimum:
        raise DataError(f"labels of {len(found)} images, expected at least {minimum}", path=table.path)
    column = table.header[score_at]
    if (values == values[0]).all():
        raise DataError(
            f"all scores are {values[0]:g}, expected scores that differ",
            path=table.path,
            hint=f"Is {shown(column)} the right column (score_column=...)?",
        )
    columns = {}
    for at, name in enumerate(table.header):
        if name and at not in (image_at, score_at):
            cells = [{table.rows[i][1][at] for i in group} for group in found.values()]
            if all(len(distinct) == 1 for distinct in cells):
                columns[name] = tuple(distinct.pop() for distinct in cells)
    return Labels(
        source=table.path,
        paths=tuple(keys[group[0]][1] for group in found.values()),
        rows=tuple(table.rows[group[0]][0] for group in found.values()),
        scores=values,
        score_column=column,
        higher_is_better=column.casefold() != "dmos" if lower_is_better is None else not lower_is_better,
        columns=columns,
        raters=raters,
        ratings=ratings,
    )


def draw_shots(scores: ArrayLike, shots: int, seed: int) -> tuple[Indices, Indices]:
    """Draws training rows evenly over the score range.

    The rows, sorted by score, are cut into ``shots`` bins of equal count (plus or minus one); one row is drawn from
    each.  Equal scores are put in random order first.  The same seed draws the same rows.

    Returns:
        Ascending indices of the drawn rows [shots] and of all others.
    """
    order, rng = _by_score(scores, seed)
    if not 1 <= shots <= len(order):
        raise DataError(f"cannot draw {shots} training rows from {len(order)} labels")
    drawn = np.array([rng.choice(part) for part in np.array_split(order, shots)], dtype=np.int64)
    rest = np.setdiff1d(np.arange(len(order), dtype=np.int64), drawn)
    return np.sort(drawn), rest


def folds(scores: ArrayLike, k: int, seed: int) -> list[tuple[Indices, Indices]]:
    """Stratified k-fold: every fold covers the whole score range, sizes differ by at most one.

    The rows, sorted by score, are dealt out to the k folds in groups of k, each group in random order.

    Returns:
        For every fold the ascending indices of its training rows and of its held-out rows.
    """
    order, rng = _by_score(scores, seed)
    if not 2 <= k <= len(order):
        raise DataError(f"cannot make {k} folds of {len(order)} labels")
    fold = np.empty(len(order), dtype=np.int64)
    for start in range(0, len(order), k):
        group = order[start : start + k]
        fold[group] = rng.permutation(k)[: len(group)]
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]


def _by_score(scores: ArrayLike, seed: int) -> tuple[Indices, np.random.Generator]:
    values, rng = np.asarray(scores, dtype=np.float64), np.random.default_rng(seed)
    shuffled = rng.permutation(len(values))
    return shuffled[np.argsort(values[shuffled], kind="stable")], rng


def _column(table: Table, role: str, named: str | None, names: tuple[str, ...]) -> int:
    """Position of the image or score column."""
    has = f"the header has {shown(table.header, 80)}"
    if named is not None:
        at = table.find(named)
        if at is None:
            raise DataError(f"no column {shown(named)}, {has}", path=table.path)
        return at
    present = [at for name in names if (at := table.find(name)) is not None]
    if not present:
        raise DataError(
            f"no {role} column: expected one of {', '.join(names)}; {has}",
            path=table.path,
            hint=f"Say which it is ({role}_column=...)",
        )
    if len(present) > 1:
        candidates = " and ".join(shown(table.header[at]) for at in sorted(present))
        raise DataError(
            f"{len(present)} columns could be the {role}: {candidates}",
            path=table.path,
            hint=f"Say which it is ({role}_column=...)",
        )
    return present[0]


def _number(text: str, row: int, table: Table) -> float:
    """A finite number in plain notation."""
    if not text:
        raise DataError(f"row {row}: the score is empty, expected a number", path=table.path)
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        raise DataError(
            f"row {row}: the score {shown(text)} has a decimal comma, expected a decimal point", path=table.path
        )
    if re.fullmatch(r"[-+]?(nan|inf|infinity)", text, re.IGNORECASE):
        raise DataError(f"row {row}: the score is {text}, expected a finite number", path=table.path)
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, re.IGNORECASE | re.ASCII):
        raise DataError(f"row {row}: the score {shown(text)} is not a number", path=table.path)
    value = float(text)
    if abs(value) > 1e100:  # its square would be infinite
        raise DataError(f"row {row}: the score {shown(text)} is too large", path=table.path)
    return value


def _find_images(table: Table, at: int, folder: Path) -> list[tuple[object, Path]]:
    """For every row what identifies its image file, whatever its spelling, and its path."""
    found: list[tuple[object, Path]] = []
    missing = []
    for row, cells in table.rows:
        if not cells[at]:
            raise DataError(f"row {row}: the image is empty, expected a path", path=table.path)
        path = folder / cells[at]
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: a path that no file can have
            missing.append((row, cells[at]))
            continue
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"row {row}: {shown(cells[at])} is a folder, expected an image", path=table.path)
        found.append(((status.st_dev, status.st_ino), path))
    if missing:
        row, name = missing[0]
        others = f" ({len(missing)} of {len(table.rows)} rows have no image)" if len(missing) > 1 else ""
        raise DataError(
            f"row {row}: no such image file {shown(name)} in {folder}{others}",
            path=table.path,
            hint="Name the folder that the paths start from (images=...)",
        )
    return found


def _refuse_duplicates(table: Table, image_at: int, found: dict[object, list[int]]) -> None:
    for group in found.values():
        if len(group) > 1:
            (first, cells), (second, again) = table.rows[group[0]], table.rows[group[1]]
            raise DataError(
                f"row {second}: the image {shown(again[image_at])} is already in row {first} as "
                f"{shown(cells[image_at])}",
                path=table.path,
                hint=f"Keep one row; for scores of several people add a column {RATER_COLUMN!r}",
            )
