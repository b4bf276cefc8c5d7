"""Agreement between predictions and labels, as the field reports it.

Correlations assume that both sides grow with quality: negate DMOS, where lower is better, before calling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kendalltau, rankdata

Array = NDArray[np.float64]


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

    It is the share of pairs in the same order minus the share in opposite order.
    """
    x, y = _vectors(predictions, labels)
    if len(x) < 2 or np.isnan(x).any() or np.isnan(y).any():
        return float("nan")
    return float(np.clip(kendalltau(x, y).statistic, -1.0, 1.0))


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
    return plcc_rows(rankdata(predictions, axis=-1), rankdata(labels, axis=-1))  # a NaN makes all ranks NaN


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
        return np.asarray((b1 - b2) * expit((x - b3) / abs(b4)) + b2)

    @property
    def rising(self) -> bool:
        """Whether larger predictions mean larger labels."""
        return self.kind == "mean" or self.parameters[0] > (self.parameters[1] if self.kind == "logistic" else 0)


def fit_logistic(predictions: ArrayLike, labels: ArrayLike) -> Fit:
    """Least-squares fit of the field's 4-parameter logistic (VQEG; Sheikh et al. 2006).

    f(x) = (b1 - b2) / (1 + exp(-(x - b3) / abs(b4))) + b2

    The search begins at the best of a grid of b3 and b4: from the usual start (b1, b2: largest and smallest label,
    b3: mean, b4: a quarter of the standard deviation) it often ends in a bad local minimum.  b4 stays within 1/100
    and 100 standard deviations of the predictions and b3 within 10 of their mean: beyond, the curve is a step or a
    straight line and the parameters mean nothing.

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
            b1, b2, b3, b4 = _fit_standardised(zx, zy)
            numbers = (middle + height * b1, middle + height * b2, centre + spread * b3, spread * b4)
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


def _fit_standardised(x: Array, y: Array) -> Array:
    """b1, b2, b3, b4 of least squares for standardised x, y [n].

    b1 and b2 enter linearly and are solved for at every step, so the search is one over b3 and log b4.
    """

    def squares(at: Array) -> tuple[float, Array]:
        """Sum of squares with the best b1 and b2, and its gradient."""
        b1, b2 = _solve_ends(at, x, y)
        z = (x - at[0]) / np.exp(at[1])
        curve = expit(z)
        residual = (b1 - b2) * curve + b2 - y
        slope = (b1 - b2) * curve * (1 - curve)  # d curve / dz
        return float(residual @ residual), -2 * np.array([residual @ slope / np.exp(at[1]), residual @ (slope * z)])

    bounds = [(-10.0, 10.0), (np.log(0.01), np.log(100.0))]
    options = {"ftol": 1e-13, "gtol": 1e-9}
    end = minimize(squares, _best_of_grid(x, y), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return np.array([*_solve_ends(end, x, y), end[0], np.exp(end[1])])


def _solve_ends(at: Array, x: Array, y: Array) -> tuple[float, float]:
    """b1 and b2 of least squares for given b3 and log b4."""
    curve = expit((x - at[0]) / np.exp(at[1]))
    shape = curve - curve.mean()
    rise = float(shape @ y) / max(float(shape @ shape), 1e-300)
    low = float(y.mean() - rise * curve.mean())
    return low + rise, low


def _best_of_grid(x: Array, y: Array) -> Array:
    """b3 and log b4 with the least squares over a grid of both."""
    b3 = np.quantile(x, np.linspace(0.02, 0.98, 41))  # [G]
    best, least = np.zeros(2), np.inf
    for b4 in (0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 100.0):
        curves = expit((x - b3[:, None]) / b4)  # [G, n]
        shapes = curves - curves.mean(axis=1, keepdims=True)
        rises = shapes @ y / np.maximum((shapes**2).sum(axis=1), 1e-300)  # b1 - b2
        errors = ((y - y.mean() - rises[:, None] * shapes) ** 2).sum(axis=1)
        k = int(np.argmin(errors))
        if errors[k] < least:
            best, least = np.array([b3[k], np.log(b4)]), errors[k]
    return best


def _standard(values: Array) -> tuple[float, float]:
    return (float(values.mean()), float(values.std())) if len(values) else (float("nan"), float("nan"))


def _vectors(predictions: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two vectors of one length, got {x.shape} and {y.shape}")
    return x, y
