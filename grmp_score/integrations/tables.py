"""Scores as columns next to the rows of other tools; images as cells of their tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from grmp_score.errors import ConfigError
from grmp_score.images import ImageSource
from grmp_score.score import AnyScore, FailedScore

#: Columns that are added to the rows of other tools; the names are those of the command line's outputs.
COLUMNS = ("score", "standard_error", "label", "percentile", "error")


def check_columns(names: Sequence[object], column: str, prefix: str) -> None:
    """Raises `ConfigError` when the column of images is missing, or a new one would replace an old one."""
    if column not in names:
        raise ConfigError(
            f"there is no column {column!r}; there are {', '.join(map(repr, names)) or 'none'}",
            hint="Name the column that holds the images",
        )
    if list(names).count(column) > 1:
        raise ConfigError(f"there are several columns {column!r}", hint="Rename all but one of them")
    taken = [f"{prefix}{name}" for name in COLUMNS if f"{prefix}{name}" in names]
    if taken:
        raise ConfigError(
            f"there is a column {taken[0]!r} already", hint="Drop it, or choose a prefix for the new columns"
        )


def columns_of(scores: Sequence[AnyScore], prefix: str = "") -> dict[str, list[Any]]:
    """`COLUMNS` as lists, one entry for each score, None where a score has none."""
    rows = [
        (None, None, None, None, score.error)
        if isinstance(score, FailedScore)
        else (score.value, score.standard_error, score.label, score.percentile, None)
        for score in scores
    ]
    return {f"{prefix}{name}": [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def image_of_cell(value: Any, base: str | None = None) -> tuple[str | None, ImageSource]:
    """The name and the image of a cell of a table.

    Args:
        value: whatever `Scorer.score` takes; nested lists of whole numbers 0..255 or of floats 0..1; a dictionary
            with ``bytes`` and ``path``, as data sets of Hugging Face hold images; or a null of any kind.
        base: folder that relative paths start from; None for the current one.

    A null becomes empty bytes, which every reader refuses as an empty file.
    """
    if isinstance(value, (str, os.PathLike)):
        name = os.fspath(value)
        return name, name if base is None or "://" in name else os.path.join(base, name)
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        data, path = value.get("bytes"), value.get("path")
        name, source = image_of_cell(path, base) if isinstance(path, str) else (None, b"")
        return name, source if data is None else data
    if isinstance(value, list):
        value = _array_of(value)
    # NaN and pandas.NA are nulls too; that of pandas is known by its name, since pandas may not be installed.
    missing = value is None or isinstance(value, float) or type(value).__name__ in ("NAType", "NaTType")
    return None, b"" if missing else value


def _array_of(values: list[Any]) -> Any:
    """Nested lists as an array; as they are where they make none, which every reader refuses with the reason."""
    try:
        array = np.asarray(values)
    except ValueError:  # of different lengths
        return values
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array if array.dtype.kind in "iufb" else values
