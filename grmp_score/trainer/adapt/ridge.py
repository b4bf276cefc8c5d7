"""Ridge regression on frozen image features: the baseline that fine-tuning has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: Strengths that are tried, as multiples of the mean squared singular value of the centred features.
STRENGTHS = np.logspace(-4, 3, 71)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted regression; call it with features [m, D] for predictions [m] in the unit of its targets.

    Attributes:
        weights: [D].
        intercept: not penalised.
        strength: the chosen lambda of ||y - X w - b||^2 + lambda ||w||^2.
        loo_rmse: root mean squared leave-one-out error, in the unit of the targets.
    """

    weights: Array
    intercept: float
    strength: float
    loo_rmse: float

    def __call__(self, features: ArrayLike) -> Array:
        return np.asarray(np.asarray(features, dtype=np.float64) @ self.weights + self.intercept)


def fit_ridge(features: ArrayLike, targets: ArrayLike) -> Ridge:
    """Fits in closed form; lambda has the least leave-one-out error among `STRENGTHS`, known in closed form too.

    The error of row i when it is left out is e_i / (1 - h_i), with e its residual and h the diagonal of the hat
    matrix (Allen's PRESS), so every row is a fold of its own and nothing but the n rows is looked at.

    Args:
        features: [n, D], n >= 2.
        targets: [n].
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    centre, middle = x.mean(axis=0), float(y.mean())
    u, s, vt = np.linalg.svd(x - centre, full_matrices=False)  # u [n, r], s [r], vt [r, D]
    squares = s**2
    if squares[0] <= 1e-24 * max(1.0, float(np.sum(x**2))):  # all rows alike
        error = (y - middle) / (1 - 1 / len(y))
        return Ridge(np.zeros(x.shape[1]), middle, float("inf"), float(np.sqrt(np.mean(error**2))))
    strengths = STRENGTHS * squares.mean()
    along = u.T @ (y - middle)
    shrink = squares / (squares + strengths[:, None])  # [L, r]
    residuals = (y - middle) - (shrink * along) @ u.T  # [L, n]
    hat = shrink @ (u**2).T + 1 / len(y)  # the intercept's share is 1/n
    with np.errstate(divide="ignore", invalid="ignore"):
        press = np.mean((residuals / (1 - hat)) ** 2, axis=1)
    best = int(np.argmin(np.where(np.isfinite(press), press, np.inf)))
    weights = vt.T @ (s / (squares + strengths[best]) * along)
    return Ridge(weights, middle - float(centre @ weights), float(strengths[best]), float(np.sqrt(press[best])))
