"""The ridge baseline against a straightforward solve."""

from __future__ import annotations

import numpy as np
import pytest

from grmp_score.trainer.adapt.ridge import STRENGTHS, fit_ridge


def data(n: int, d: int, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, d)) @ rng.normal(0, 1, (d, d)) + rng.normal(0, 3, d)
    return x, x @ rng.normal(0, 1, d) / d + 7 + noise * rng.normal(0, 1, n)


def solve(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, float]:
    """Minimises ||y - X w - b||^2 + strength ||w||^2 by its normal equations, b not penalised."""
    design = np.hstack([x, np.ones((len(x), 1))])
    penalty = np.diag([strength] * x.shape[1] + [0.0])
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    return solution[:-1], float(solution[-1])


@pytest.mark.parametrize(("n", "d"), [(40, 6), (20, 50), (5, 3)])
def test_it_solves_the_normal_equations(n: int, d: int) -> None:
    """Weights and intercept for the chosen strength, with more rows than features and with fewer."""
    x, y = data(n, d)
    ridge = fit_ridge(x, y)
    weights, intercept = solve(x, y, ridge.strength)
    np.testing.assert_allclose(ridge.weights, weights, rtol=1e-6, atol=1e-8)
    assert ridge.intercept == pytest.approx(intercept, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(ridge(x), x @ weights + intercept, rtol=1e-6)


@pytest.mark.parametrize(("n", "d", "noise"), [(40, 6, 0.3), (20, 50, 0.3), (20, 50, 20.0)])
def test_the_strength_has_the_least_leave_one_out_error(n: int, d: int, noise: float) -> None:
    """Fitting n times without one row each finds the same strength and error."""
    x, y = data(n, d, noise)
    ridge = fit_ridge(x, y)
    squares = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    errors = []
    for strength in STRENGTHS * squares.mean():
        left_out = []
        for i in range(n):
            others = np.arange(n) != i
            weights, intercept = solve(x[others], y[others], strength)
            left_out.append(y[i] - x[i] @ weights - intercept)
        errors.append(np.sqrt(np.mean(np.square(left_out))))
    best = int(np.argmin(errors))
    assert ridge.strength == pytest.approx(STRENGTHS[best] * squares.mean())
    assert ridge.loo_rmse == pytest.approx(errors[best], rel=1e-5)


def test_noise_alone_is_not_fitted() -> None:
    """Targets that do not depend on the features are answered with nearly their mean."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1, (30, 100)), rng.normal(5, 1, 30)
    assert np.std(fit_ridge(x, y)(x)) < 0.7 * np.std(y)


def test_equal_features_predict_the_mean() -> None:
    """No division by zero."""
    ridge = fit_ridge(np.full((6, 4), 0.1), np.arange(6.0))
    np.testing.assert_allclose(ridge(np.zeros((2, 4))), 2.5)
    assert ridge.loo_rmse == pytest.approx(np.sqrt(np.mean((np.arange(6) - 2.5) ** 2)) * 6 / 5)


def test_a_shift_of_features_or_targets_only_shifts() -> None:
    """Predictions do not depend on where the features' origin lies, and follow the targets' unit."""
    x, y = data(25, 10)
    base = fit_ridge(x, y)(x)
    np.testing.assert_allclose(fit_ridge(x + 100, y)(x + 100), base, rtol=1e-5)
    np.testing.assert_allclose(fit_ridge(x, 3 * y - 1)(x), 3 * base - 1, rtol=1e-6)
