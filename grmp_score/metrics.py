"""Agreement between predictions and labels, as the field reports it.  Pure NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks 1..n of values [n], smallest first; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def plcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's linear correlation, -1..1, 1 is best.

    NaN when a side is constant, has under 2 values, or holds a NaN.
    """
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two vectors of one length, got {x.shape} and {y.shape}")
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():  # the mean of equal values is not exactly theirs
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else float("nan")


def srcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's rank correlation with ties averaged, -1..1, 1 is best; NaN as for `plcc`."""
    if np.isnan(predictions).any() or np.isnan(labels).any():
        return float("nan")
    return plcc(average_ranks(predictions), average_ranks(labels))
