"""Scores next to the rows of other tools: pandas frames, and PyTorch's `DataLoader`.

Neither pandas nor anything else beyond the package's own dependencies is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from grmp_score.errors import ConfigError, MissingExtraError
from grmp_score.images.read import ImageSource
from grmp_score.pipeline.prepare import Prepared, Preparer
from grmp_score.score import Score
from grmp_score.scorer import Scorer

if TYPE_CHECKING:
    import pandas

#: Columns that are added to the rows of other tools; the names are those of the command line's outputs.
COLUMNS = ("score", "standard_error", "label", "percentile", "error")


def score_frame(
    df: pandas.DataFrame, column: str = "path", *, scorer: Scorer | None = None, prefix: str = ""
) -> pandas.DataFrame:
    """Scores the images that a pandas frame names or holds.

    Args:
        df: a frame with a column of paths, encoded images (bytes), or arrays as `Scorer.score` takes them.
        column: the column of images.
        scorer: what scores; None makes one of the bundled model.
        prefix: put before the names of the new columns.

    Returns:
        A copy with the same index and columns, and score (p(high quality), 0..1, higher is better), standard_error,
        label and percentile (float64, NaN where there is none) and error (text or None).  An image that cannot be
        read has the reason in error; so has a row without an image.

    Raises:
        MissingExtraError: pandas is not installed.
        ConfigError: the column of images is missing, or one of the new columns is there already.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("score_frame", "pandas", "pandas") from error
    check_columns(list(df.columns), column, prefix)
    scorer = scorer or Scorer()
    scores = scorer.score_many(source for _, source in (named_source(value) for value in df[column]))
    new = {
        name: pandas.Series(values, index=df.index, dtype=object if name == f"{prefix}error" else "float64")
        for name, values in columns_of(list(scores), prefix).items()
    }
    return pandas.concat([df, pandas.DataFrame(new, index=df.index)], axis=1)


def check_columns(names: Sequence[object], column: str, prefix: str) -> None:
    """Raises `ConfigError` when the column of images is missing, or a new one would replace an old one."""
    if column not in names:
        raise ConfigError(
            f"there is no column {column!r}; there are {', '.join(map(repr, names)) or 'none'}",
            hint="Name the column that holds the images",
        )
    taken = [f"{prefix}{name}" for name in COLUMNS if f"{prefix}{name}" in names]
    if taken:
        raise ConfigError(
            f"there is a column {taken[0]!r} already", hint="Drop it, or choose a prefix for the new columns"
        )


def columns_of(scores: Sequence[Score], prefix: str = "") -> dict[str, list[Any]]:
    """`COLUMNS` as lists, one entry for each score, None where a score has none."""
    values: dict[str, list[Any]] = {
        "score": [s.value for s in scores],
        "standard_error": [s.standard_error for s in scores],
        "label": [s.label for s in scores],
        "percentile": [s.percentile for s in scores],
        "error": [s.error for s in scores],
    }
    return {f"{prefix}{name}": values[name] for name in COLUMNS}


def named_source(value: Any, base: str | None = None) -> tuple[str | None, ImageSource]:
    """The name and the image of a cell of a table.

    Args:
        value: whatever `Scorer.score` takes, nested lists of 8-bit numbers, or a null of any kind.
        base: folder that relative paths start from; None for the current one.

    A null becomes empty bytes, which every reader refuses as an empty file.
    """
    if isinstance(value, (str, os.PathLike)):
        name = os.fspath(value)
        return name, name if base is None or "://" in name else os.path.join(base, name)
    if isinstance(value, list):
        value = np.asarray(value, dtype=np.uint8)
    # NaN and pandas.NA are nulls too; that of pandas is known by its name, since pandas may not be installed.
    missing = value is None or isinstance(value, float) or type(value).__name__ in ("NAType", "NaTType")
    return None, b"" if missing else value


class PatchDataset(IterableDataset["Prepared | Score"]):
    """Reads and cuts images in the worker processes of a `DataLoader`; the main process scores them.

    Use ``batch_size=None``: there is nothing to collate, since an image's patches are a batch already.  The order
    is that of ``images`` for any number of workers.

    Example:
        >>> loader = DataLoader(PatchDataset(paths, scorer), batch_size=None, num_workers=4)  # doctest: +SKIP
        >>> for score in score_prepared(loader, scorer): ...  # doctest: +SKIP
    """

    def __init__(self, images: Iterable[ImageSource], scorer: Scorer) -> None:
        """Keeps what is needed for reading; the model does not go to the workers.

        Args:
            images: paths, bytes or arrays; every worker goes through all of them and reads its share.
            scorer: whose preprocessing is used.
        """
        self.images = images
        self._preparer = Preparer(scorer.config, scorer.preprocess, scorer.background, scorer.max_pixels)

    def __iter__(self) -> Iterator[Prepared | Score]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        # The loader asks its workers in turn, so every n-th image for each gives the order of the input.
        return map(self._preparer.try_prepare, islice(self.images, first, None, step))


def score_prepared(items: Iterable[Prepared | Score], scorer: Scorer) -> Iterator[Score]:
    """Scores what a `PatchDataset` gives, in order, one `Score` for each image; the same as `Scorer.score_many`."""
    stream = iter(items)
    while batch := list(islice(stream, scorer.batch_size)):
        scored = iter(scorer._forward([item for item in batch if isinstance(item, Prepared)]))
        yield from (next(scored) if isinstance(item, Prepared) else item for item in batch)


__all__ = ["COLUMNS", "PatchDataset", "score_frame", "score_prepared"]
