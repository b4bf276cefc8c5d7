"""Agreement between predictions and labels, as the field reports it.  Pure NumPy.

Correlations assume that both sides grow with quality; who has DMOS negates them first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def average_ranks(values: ArrayLike) -> Array:
    """Ranks 1..n of values [..., n] along the last axis, smallest first; equal values share the mean of theirs."""
    array = np.asarray(values)
    order = np.argsort(array, axis=-1, kind="stable")
    ordered = np.take_along_axis(array, order, axis=-1)
    position = np.arange(array.shape[-1])
    begins, ends = np.ones_like(ordered, dtype=bool), np.ones_like(ordered, dtype=bool)
    begins[..., 1:] = ends[..., :-1] = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(begins, position, 0), axis=-1)
    last = np.minimum.accumulate(np.where(ends, position, array.shape[-1])[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(array.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def plcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's linear correlation, -1..1, 1 is best.

    NaN when a side is constant, has under 2 values, or holds a NaN.
    """
    return float(plcc_rows(*_vectors(predictions, labels)))


def srcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's rank correlation with ties averaged, -1..1, 1 is best; NaN as for `plcc`."""
    return float(srcc_rows(*_vectors(predictions, labels)))


def krcc(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Kendall's rank correlation tau-b (ties corrected), -1..1, 1 is best; NaN as for `plcc`.

    It is the share of pairs in the same order minus the share in opposite order.  Takes O(n log n).
    """
    x, y = _vectors(predictions, labels)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    order = np.lexsort((y, x))  # within equal predictions by label, so that no tied pair counts as reversed
    x, y = x[order], y[order]
    total = len(x) * (len(x) - 1) // 2
    tied_x, tied_y, tied = _tied_pairs(x[:, None]), _tied_pairs(y[:, None]), _tied_pairs(np.stack([x, y], axis=1))
    if total in (tied_x, tied_y):
        return float("nan")
    difference = total - tied_x - tied_y + tied - 2 * _reversed_pairs(np.unique(y, return_inverse=True)[1])
    return float(np.clip(difference / np.sqrt(total - tied_x) / np.sqrt(total - tied_y), -1.0, 1.0))


def rmse(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Root of the mean squared difference, in the labels' unit, 0 is best; NaN for no values."""
    x, y = _vectors(predictions, labels)
    return float(np.sqrt(np.mean((x - y) ** 2))) if len(x) else float("nan")


def plcc_rows(predictions: Array, labels: Array) -> Array:
    """`plcc` of every row: two arrays [..., n] -> [...]."""
    x, y = predictions, labels
    if x.shape[-1] < 2:
        return np.full(x.shape[:-1], np.nan)
    constant = (x == x[..., :1]).all(-1) | (y == y[..., :1]).all(-1)  # their mean is not exactly their value
    with np.errstate(all="ignore"):
        x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
        scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
        value = np.clip((x * y).sum(-1) / scale, -1.0, 1.0)
    return np.where(constant | ~(scale > 0), np.nan, value)


def srcc_rows(predictions: Array, labels: Array) -> Array:
    """`srcc` of every row: two arrays [..., n] -> [...]."""
    unknown = np.isnan(predictions).any(-1) | np.isnan(labels).any(-1)
    return np.where(unknown, np.nan, plcc_rows(average_ranks(predictions), average_ranks(labels)))


def bootstrap_interval(
    statistic: Callable[[Array, Array], Array],
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over rows (Efron 1979).

    Args:
        statistic: takes two arrays [R, n], one resample per row, and returns [R], as `plcc_rows` and `srcc_rows`
            do; a statistic of two vectors becomes one by ``np.vectorize(krcc, signature="(n),(n)->()")``.
        predictions, labels: [n].
        seed: of the resamples; the same seed gives the same interval.
        resamples: how often n rows are drawn with replacement.
        confidence: share of the resampled statistics inside.

    Returns:
        Lower and upper end.  Resamples on which the statistic is NaN (one side drawn constant) are left out; both
        ends are NaN when none is left.
    """
    x, y = _vectors(predictions, labels)
    if not len(x):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    chunk = max(1, 500_000 // len(x))  # a few megabytes at a time
    parts = []
    for start in range(0, resamples, chunk):
        rows = rng.integers(0, len(x), (min(chunk, resamples - start), len(x)))
        parts.append(statistic(x[rows], y[rows]))
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Fit:
    """A monotone curve from predictions to labels; call it with predictions of any shape.

    Attributes:
        kind: ``"logistic"``, or what it fell back to: ``"linear"`` (fewer than five different predictions do not
            determine four parameters), ``"mean"`` (a constant side, or nothing to fit).
        parameters: b1, b2, b3, b4 of `fit_logistic`; slope, intercept; the mean.
    """

    kind: Literal["logistic", "linear", "mean"]
    parameters: tuple[float, ...]

    def __call__(self, predictions: ArrayLike) -> Array:
        x = np.asarray(predictions, dtype=np.float64)
        if self.kind == "mean":
            return np.full(x.shape, self.parameters[0])
        if self.kind == "linear":
            return np.asarray(self.parameters[0] * x + self.parameters[1])
        b1, b2, b3, b4 = self.parameters
        return np.asarray((b1 - b2) * _sigmoid((x - b3) / abs(b4)) + b2)

    @property
    def rising(self) -> bool:
        """Whether larger predictions mean larger labels."""
        return self.kind == "mean" or self.parameters[0] > (self.parameters[1] if self.kind == "logistic" else 0)


def fit_logistic(predictions: ArrayLike, labels: ArrayLike) -> Fit:
    """Least-squares fit of the field's 4-parameter logistic (VQEG; Sheikh et al. 2006).

    f(x) = (b1 - b2) / (1 + exp(-(x - b3) / abs(b4))) + b2

    Levenberg-Marquardt from the usual start (b1, b2: largest and smallest label, b3: mean, b4: a quarter of the
    standard deviation) and from the best of a coarse grid; the better end counts, so the usual start's bad local
    minima do no harm.  b4 stays within 1/100 and 100 standard deviations of the predictions and b3 within 10 of
    their mean: beyond, the curve is a step or a straight line and the parameters mean nothing.

    Pairs with NaN or infinity are left out.  Never raises on values; `Fit.kind` says what could be fitted.
    """
    x, y = _vectors(predictions, labels)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    with np.errstate(all="ignore"):
        mean = Fit("mean", (float(np.mean(y)) if len(y) else float("nan"),))
        centre, spread = _standard(x)
        middle, height = _standard(y)
        if len(x) < 2 or not (0 < spread < np.inf and 0 < height < np.inf) or np.ptp(x) == 0 or np.ptp(y) == 0:
            return mean
        zx, zy = (x - centre) / spread, (y - middle) / height
        if len(np.unique(x)) < 5:
            slope = height / spread * float(zx @ zy) / float(zx @ zx)
            fit = Fit("linear", (slope, middle - slope * centre))
        else:
            b1, b2, b3, b4 = min((_descend(start, zx, zy) for start in _starts(zx, zy)), key=lambda end: end[1])[0]
            numbers = (middle + height * b1, middle + height * b2, centre + spread * b3, spread * np.exp(b4))
            fit = Fit("logistic", (float(numbers[0]), float(numbers[1]), float(numbers[2]), float(numbers[3])))
        return fit if np.isfinite(fit.parameters).all() else mean


def plcc_logistic(predictions: ArrayLike, labels: ArrayLike, fit: Fit | None = None) -> float:
    """`plcc` between labels and predictions after `fit_logistic`, -1..1, 1 is best.

    A falling curve makes good use of predictions that are the wrong way round; its correlation is given a minus
    sign, so that it is not mistaken for agreement.  NaN as for `plcc`, and when only the mean could be fitted.

    Args:
        predictions, labels: [n].
        fit: a curve fitted before, possibly on other rows; None fits these.
    """
    fit = fit_logistic(predictions, labels) if fit is None else fit
    value = plcc(fit(predictions), labels)
    return value if fit.rising else -value


_LOWEST = np.array([-np.inf, -np.inf, -10.0, np.log(0.01)])
_HIGHEST = np.array([np.inf, np.inf, 10.0, np.log(100.0)])


def _starts(x: Array, y: Array) -> list[Array]:
    """Start values b1, b2, b3, log b4 for standardised x, y [n]: the usual ones, and the best of a grid."""
    falling = float(x @ y) < 0
    usual = [y.min(), y.max()] if falling else [y.max(), y.min()]
    best, least = np.zeros(4), np.inf
    for b3 in np.quantile(x, [0.1, 0.3, 0.5, 0.7, 0.9]):
        for b4 in (0.05, 0.25, 1.0, 4.0, 100.0):
            curve = _sigmoid((x - b3) / b4)
            shape = curve - curve.mean()
            rise = float(shape @ y) / max(float(shape @ shape), 1e-300)  # b1 and b2 enter linearly: solved
            b2 = float(y.mean() - rise * curve.mean())
            error = float(np.sum((y - rise * curve - b2) ** 2))
            if error < least:
                best, least = np.array([b2 + rise, b2, b3, np.log(b4)]), error
    return [np.array([*usual, 0.0, np.log(0.25)]), best]


def _descend(b: Array, x: Array, y: Array) -> tuple[Array, float]:
    """Levenberg-Marquardt; returns the parameters and their sum of squares, never above that of the start."""
    damping, curve = 1e-3, _sigmoid((x - b[2]) / np.exp(b[3]))
    residual = y - (b[0] - b[1]) * curve - b[1]
    error = float(residual @ residual)
    for _ in range(200):
        slope = (b[0] - b[1]) * curve * (1 - curve)
        jacobian = np.stack([curve, 1 - curve, -slope / np.exp(b[3]), -slope * (x - b[2]) / np.exp(b[3])], axis=1)
        normal = jacobian.T @ jacobian
        damped = normal + damping * np.diag(np.diag(normal) + 1e-9)
        if not np.isfinite(damped).all():
            break
        new = np.clip(b + np.linalg.lstsq(damped, jacobian.T @ residual, rcond=None)[0], _LOWEST, _HIGHEST)
        new_curve = _sigmoid((x - new[2]) / np.exp(new[3]))
        new_residual = y - (new[0] - new[1]) * new_curve - new[1]
        new_error = float(new_residual @ new_residual)
        if new_error < error:
            done = error - new_error < 1e-12 * error
            b, curve, residual, error, damping = new, new_curve, new_residual, new_error, damping / 5
            if done:
                break
        elif damping > 1e9:
            break
        else:
            damping *= 4
    return b, error


def _sigmoid(z: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * z))  # does not overflow


def _standard(values: Array) -> tuple[float, float]:
    return (float(values.mean()), float(values.std())) if len(values) else (float("nan"), float("nan"))


def _vectors(predictions: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two vectors of one length, got {x.shape} and {y.shape}")
    return x, y


def _tied_pairs(rows: Array) -> int:
    """Number of pairs of equal rows [n, k]."""
    counts = np.unique(rows, axis=0, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _reversed_pairs(ranks: NDArray[np.int64]) -> int:
    """Number of pairs i < j with ranks[i] > ranks[j]; ranks [n] are integers from 0 on.

    Two ranks differ first in one bit: a pair is counted at it, inside the group that shares the bits above.
    """
    count = 0
    for bit in reversed(range(int(ranks.max()).bit_length())):
        group, one = ranks >> (bit + 1), (ranks >> bit) & 1  # sorted by group from the turn before
        ones = np.cumsum(one)
        start = np.searchsorted(group, group)
        before = ones - ones[start] + one[start]
        count += int(before[one == 0].sum())
        ranks = ranks[np.argsort(ranks >> bit, kind="stable")]
    return count
