"""A user's own labels: a CSV of images and scores, or a folder of rated images."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grmp_score.config import LabelScale
from grmp_score.errors import DataError
from grmp_score.trainer.data.raters import RATER_COLUMN, read_ratings
from grmp_score.trainer.data.tables import Table, read_table, shown
from grmp_score.trainer.metrics import srcc

IMAGE_COLUMNS = ("image", "path", "file", "filename", "image_name", "image name", "dist_img")
SCORE_COLUMNS = ("mos", "score", "rating", "quality", "label", "dmos")
#: By these the table of KADID-10k is known.
KADID10K_COLUMNS = {"dist_img", "ref_img", "dmos"}
#: Correlation with a model below which the direction of the labels is doubted.
AGAINST = -0.3
#: Column with the name of the photo that an image is a version of, the first of these that there is.
REFERENCE_COLUMNS = ("ref", "reference", "group", "ref_img")

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Labels:
    """Images with opinion scores, in the order of the file.

    Attributes:
        source: the CSV, or the folder (see `grmp_score.trainer.data.folders`).
        paths: image files [n].
        rows: number of each image's (first) row in the CSV [n]; of the image, in a folder.
        scores: float64 [n] in the file's own unit; with several raters the mean opinion.
        score_column: name of the column they come from, or ``"stars"``, ``"pick"``, ``"good"``.
        higher_is_better: False for DMOS-like scores.
        direction_given: whether somebody said so, and not only the name of the column.
        columns: the other columns by name, n cells each; with several raters those that do not differ among the
            rows of one image.
        raters: their names [R]; empty when the file has no such column.
        ratings: float64 [n, R] behind ``scores``, NaN where a rater did not see the image.
        references: name of the photo that each image is a version of [n]; an image whose name is empty is a version
            of nothing else.  Versions of one photo are never trained and tested on (`splits`).  Empty when nothing
            is known.
        notes: what was found in a folder and what was ignored, a sentence each.
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
    references: tuple[str, ...] = ()
    direction_given: bool = True
    notes: tuple[str, ...] = ()

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
            tuple(self.references[i] for i in positions) if self.references else (),
            self.direction_given,
            self.notes,
        )

    @property
    def ends(self) -> tuple[int, int]:
        """Positions of the best and of the worst image by these labels."""
        best = int(self.scores.argmax() if self.higher_is_better else self.scores.argmin())
        return best, int(self.scores.argmin() if self.higher_is_better else self.scores.argmax())

    def check_direction(self, predicted: ArrayLike) -> None:
        """Stops where a model that knows good photos from bad ones says the opposite of these labels.

        Grades of which 1 is the best look like scores.  Nothing is said where the direction was given.

        Args:
            predicted: scores [n] of the images by a model that has not learned from the labels.

        Raises:
            DataError: the correlation is below `AGAINST`, and below 0 by twice its standard error.
        """
        if self.direction_given or not len(self):
            return
        agreement = srcc(predicted, self.scores if self.higher_is_better else -self.scores)
        if not agreement < min(AGAINST, -2 / len(self) ** 0.5):
            return
        way = "higher" if self.higher_is_better else "lower"
        best, worst = (f"{self.paths[i].name!r} ({self.scores[i]:g})" for i in self.ends)
        raise DataError(
            f"{shown(self.score_column)} is taken to be {way} for better images, the best being {best} and the "
            f"worst {worst}; the model says the opposite (SRCC {agreement:.2f} on {len(self)} images)",
            path=self.source,
            hint="Say which it is: --lower-is-better or --higher-is-better (lower_is_better=True or False)",
        )

    @property
    def groups(self) -> Indices | None:
        """A number for every image [n], the same for versions of one photo; None without ``references``."""
        if not self.references:
            return None
        names = [(name, -1) if name else ("", i) for i, name in enumerate(self.references)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return np.array([numbers[name] for name in names], dtype=np.int64)

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
    reference_column: str | None = None,
    minimum: int = 5,
) -> Labels:
    """Reads labels from a CSV with a header, or takes the ratings of the images in a folder.

    Args:
        path: the CSV: commas, semicolons or tabs; UTF-8 with or without BOM.  A column `RATER_COLUMN` makes it one
            row per image and rater, and the label of an image the mean of its ratings as they are.  Or a folder,
            whose images' ratings in XMP and EXIF are the labels (see `read_rated_folder`; nothing else is given).
        images: folder that relative image paths start from; None for the CSV's.
        image_column: None finds the one of `IMAGE_COLUMNS`, without regard to case.
        score_column: None finds the one of `SCORE_COLUMNS`.
        lower_is_better: direction of the scores; None: lower is better for a column named dmos only, but for
            KADID-10k's, in which 5 is best.
        reference_column: None finds the one of `REFERENCE_COLUMNS`, if there is one.
        minimum: fewest images to be of use.

    Raises:
        DataError: one line with file, row, value, what was expected, and the remedy.
    """
    named = [name for name in (image_column, score_column, reference_column) if name is not None]
    if os.path.isdir(path):
        from grmp_score.trainer.data.folders import read_rated_folder

        if named or images is not None or lower_is_better is not None:
            raise DataError(
                "is a folder of rated images, and has no columns",
                path=path,
                hint="Name a CSV, or leave out what says how to read one",
            )
        return read_rated_folder(path, minimum=minimum)
    table = read_table(path, {*IMAGE_COLUMNS, *SCORE_COLUMNS, RATER_COLUMN, *named})
    image_at = _column(table, "image", image_column, IMAGE_COLUMNS)
    score_at = _column(table, "score", score_column, SCORE_COLUMNS)
    rater_at = table.find(RATER_COLUMN)
    reference_at = _reference_column(table, reference_column, (image_at, score_at))
    if len(table.rows) < minimum:
        raise DataError(f"{len(table.rows)} rows of labels, expected at least {minimum}", path=table.path)
    percent = all(cells[score_at].endswith("%") for _, cells in table.rows)  # one scale: the sign says nothing
    scores = [
        _number(cells[score_at].removesuffix("%" if percent else ""), number, table) for number, cells in table.rows
    ]
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
    kadid10k = {name.casefold() for name in table.header} >= KADID10K_COLUMNS
    higher = kadid10k or column.casefold() != "dmos"
    columns = {}
    for at, name in enumerate(table.header):
        if name and at not in (image_at, score_at):
            cells = [{table.rows[i][1][at] for i in group} for group in found.values()]
            if all(len(distinct) == 1 for distinct in cells):
                columns[name] = tuple(distinct.pop() for distinct in cells)
    references: tuple[str, ...] = ()
    if reference_at is not None:
        if table.header[reference_at] not in columns:
            raise DataError(
                f"the column {shown(table.header[reference_at])} differs among the rows of one image",
                path=table.path,
            )
        references = columns[table.header[reference_at]]
    return Labels(
        source=table.path,
        paths=tuple(keys[group[0]][1] for group in found.values()),
        rows=tuple(table.rows[group[0]][0] for group in found.values()),
        scores=values,
        score_column=column,
        higher_is_better=higher if lower_is_better is None else not lower_is_better,
        columns=columns,
        raters=raters,
        ratings=ratings,
        references=references,
        direction_given=lower_is_better is not None or kadid10k,
    )


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


def _reference_column(table: Table, named: str | None, taken: tuple[int, int]) -> int | None:
    """Position of the column of references; None where there is none, and none was named."""
    if named is not None:
        return _column(table, "reference", named, ())
    found = (table.find(name) for name in REFERENCE_COLUMNS)
    return next((at for at in found if at is not None and at not in taken), None)


def _number(text: str, row: int, table: Table) -> float:
    """A finite number in plain notation."""
    if not text:
        raise DataError(f"row {row}: the score is empty, expected a number", path=table.path)
    if table.delimiter != "," and re.fullmatch(r"[-+]?\d+,\d+", text):
        text = text.replace(",", ".")
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
        # The same letters may be written in two ways, and file systems keep the one that a file was made with.
        spellings = dict.fromkeys([cells[at], *(unicodedata.normalize(form, cells[at]) for form in ("NFC", "NFD"))])
        status = None
        for spelling in spellings:
            path = folder / spelling
            with contextlib.suppress(OSError, ValueError):  # ValueError: a path that no file can have
                status = os.stat(path)
                break
        if status is None:
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
