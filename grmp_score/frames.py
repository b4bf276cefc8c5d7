"""Scores next to the rows of other tools: pandas frames, and PyTorch's `DataLoader`.

Neither pandas nor anything else beyond the package's own dependencies is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from grmp_score.config import Preprocess
from grmp_score.errors import ConfigError, ImageReadError, MissingExtraError
from grmp_score.images import ImageSource, read_image, source_name
from grmp_score.model import p_high
from grmp_score.patches import make_patches
from grmp_score.scorer import Score, Scorer

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
        "label": [getattr(s, "label", None) for s in scores],
        "percentile": [getattr(s, "percentile", None) for s in scores],
        "error": [s.error for s in scores],
    }
    return {f"{prefix}{name}": values[name] for name in COLUMNS}


def named_source(value: Any, base: str | None = None) -> tuple[str | None, ImageSource]:
    """The name and the image of a cell of a table.

    Args:
        value: path, encoded bytes, array, nested lists of 8-bit numbers, or a null of any kind.
        base: folder that relative paths start from; None for the current one.

    A null becomes empty bytes, which every reader refuses as an empty file.
    """
    if isinstance(value, (str, os.PathLike)):
        name = os.fspath(value)
        return name, name if base is None or "://" in name else os.path.join(base, name)
    if isinstance(value, list):
        value = np.asarray(value, dtype=np.uint8)
    missing = value is None or not isinstance(value, (bytes, bytearray, memoryview, np.ndarray))
    return None, b"" if missing else bytes(value) if isinstance(value, memoryview) else value


@dataclass(frozen=True)
class CutImage:
    """An image that a `DataLoader` worker has read and cut.

    Attributes:
        patches: float32 [P, 3, S, S], normalised; None when ``error`` is set.
        path: its name, if it has one.
        width: pixels, upright; 0 when ``error`` is set.
        height: pixels, upright; 0 when ``error`` is set.
        error: why it could not be read, or None.
    """

    patches: Tensor | None
    path: str | None
    width: int = 0
    height: int = 0
    error: str | None = None


class PatchDataset(IterableDataset[CutImage]):
    """Reads and cuts images in the worker processes of a `DataLoader`; the main process scores them.

    Use ``batch_size=None``: there is nothing to collate, since an image's patches are a batch already.  The order
    is that of ``images`` for any number of workers.

    Example:
        >>> loader = DataLoader(PatchDataset(paths, scorer.preprocess), batch_size=None, num_workers=4)
        >>> for score in score_cut_images(loader, scorer): ...  # doctest: +SKIP
    """

    def __init__(self, images: Iterable[ImageSource], preprocess: Preprocess) -> None:
        """Args:
        images: paths, bytes or arrays; every worker goes through all of them and reads its share.
        preprocess: that of the scorer, `Scorer.preprocess`.
        """
        self.images, self.preprocess = images, preprocess

    def __iter__(self) -> Iterator[CutImage]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for i, image in enumerate(self.images):
            # The loader asks its workers in turn, so every n-th image each gives the order of the input.
            if i % step == first:
                yield self._cut(image)

    def _cut(self, source: ImageSource) -> CutImage:
        try:
            image = read_image(source)
        except ImageReadError as error:
            return CutImage(None, error.path or source_name(source), error=error.reason)
        return CutImage(make_patches(image, self.preprocess), source_name(source), image.width, image.height)


@torch.inference_mode()
def score_cut_images(cut: Iterable[CutImage], scorer: Scorer) -> Iterator[Score]:
    """Scores what a `PatchDataset` gives, in order, one `Score` for each image; the same as `Scorer.score_many`."""
    for item in cut:
        if item.patches is None:
            yield Score(None, path=item.path, error=item.error)
            continue
        values = p_high(scorer.model(item.patches.to(scorer.device)).cpu().double()).tolist()
        yield Score.from_patches(tuple(values), path=item.path, width=item.width, height=item.height)


__all__ = ["COLUMNS", "CutImage", "PatchDataset", "score_cut_images", "score_frame"]
