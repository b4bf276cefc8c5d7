"""Correlations, the logistic fit and the bootstrap, against SciPy where it has them."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from grmp_score.trainer.metrics import (
    bootstrap_interval,
    fit_logistic,
    krcc,
    plcc,
    plcc_logistic,
    plcc_rows,
    rmse,
    srcc,
    srcc_rows,
)

#: Few different values, so that most lists have ties.
tied = st.integers(-3, 3).map(float)
wide = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
pairs = st.lists(st.tuples(tied, tied), min_size=2, max_size=40) | st.lists(
    st.tuples(wide, wide), min_size=2, max_size=40
)


def scipys(function: object, x: list[float], y: list[float]) -> float:
    """SciPy's coefficient, without its warning about constant input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(function(x, y).statistic)  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_srcc_equals_scipy_with_ties(values: list[tuple[float, float]]) -> None:
    """Spearman's coefficient is SciPy's, ties and constant sides included."""
    x, y = (list(side) for side in zip(*values, strict=True))
    assert srcc(x, y) == pytest.approx(scipys(stats.spearmanr, x, y), abs=1e-9, nan_ok=True)


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_plcc_equals_scipy(values: list[tuple[float, float]]) -> None:
    """Pearson's coefficient is SciPy's."""
    x, y = (list(side) for side in zip(*values, strict=True))
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert plcc(x, y) == pytest.approx(scipys(stats.pearsonr, x, y), abs=1e-7)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1 / 3, 1e9])
@pytest.mark.parametrize("n", [2, 3, 7, 10])
@pytest.mark.parametrize("function", [plcc, srcc, krcc])
def test_constant_input_is_nan(function: object, constant: float, n: int) -> None:
    """A constant side has no correlation, whatever rounding makes of its mean."""
    assert math.isnan(function([constant] * n, range(n)))  # type: ignore[operator]
    assert math.isnan(function(range(n), [constant] * n))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc, krcc])
def test_too_few_values_are_nan(function: object) -> None:
    """Nothing, and one pair, have no correlation."""
    assert math.isnan(function([], []))  # type: ignore[operator]
    assert math.isnan(function([1.0], [2.0]))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc, krcc])
def test_nan_is_not_ranked(function: object) -> None:
    """A NaN on either side gives NaN; it is not taken as the best or the worst."""
    assert math.isnan(function([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]))  # type: ignore[operator]
    assert math.isnan(function([1.0, 2.0, 3.0], [math.nan, 2.0, 3.0]))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc, krcc])
def test_direction_and_limits(function: object) -> None:
    """Agreement is 1 and its opposite -1, exactly within -1..1."""
    x = np.random.default_rng(0).normal(size=50)
    assert function(x, 3 * x + 1) == pytest.approx(1.0) and function(x, -x) == pytest.approx(-1.0)  # type: ignore[operator]
    assert function(x, -x) >= -1 and function(x, 3 * x + 1) <= 1  # type: ignore[operator]


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]]), (1.0, 2.0)])
def test_vectors_of_one_length_are_needed(x: object, y: object) -> None:
    """Other shapes are refused with both shapes named."""
    for function in (plcc, srcc, krcc, rmse, fit_logistic):
        with pytest.raises(ValueError, match="two vectors of one length"):
            function(x, y)  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(pairs)
def test_krcc_equals_scipy_with_ties(values: list[tuple[float, float]]) -> None:
    """Kendall's tau-b is SciPy's, ties and constant sides included."""
    x, y = (list(side) for side in zip(*values, strict=True))
    assert krcc(x, y) == pytest.approx(scipys(stats.kendalltau, x, y), abs=1e-9, nan_ok=True)


def test_krcc_of_ten_thousand() -> None:
    """Long vectors with ties, where products of all pairs would not fit in memory."""
    rng = np.random.default_rng(0)
    x = rng.random(10_000)
    y = np.round(x + rng.normal(0, 0.3, len(x)), 2)
    assert krcc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_rmse() -> None:
    """The root of the mean squared difference; NaN for nothing."""
    assert rmse([1.0, 2.0, 3.0], [1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(3))
    assert math.isnan(rmse([], []))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1))
def test_rows_are_taken_one_by_one(rows: int, n: int, ties: bool, seed: int) -> None:
    """The row-wise forms are the plain ones of every row."""
    x, y = np.random.default_rng(seed).integers(0, 3 if ties else 1000, (2, rows, n)).astype(float)
    np.testing.assert_allclose(plcc_rows(x, y), [plcc(a, b) for a, b in zip(x, y, strict=True)], atol=1e-12)
    np.testing.assert_allclose(srcc_rows(x, y), [srcc(a, b) for a, b in zip(x, y, strict=True)], atol=1e-12)


# ----------------------------------------------------------------- logistic fit


def logistic(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    """The field's curve, written down once more."""
    return (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4))) + b2


def squares(curve: np.ndarray, y: np.ndarray) -> float:
    """Sum of squared differences."""
    return float(np.sum((curve - y) ** 2))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.floats(-50, 50), st.floats(-50, 50)).filter(lambda b: abs(b[0] - b[1]) > 5),
    st.floats(0.3, 0.7),
    st.floats(0.05, 0.2),
    st.integers(0, 2**32 - 1),
)
def test_the_fit_is_as_good_as_scipys(ends: tuple[float, float], b3: float, b4: float, seed: int) -> None:
    """On noisy logistic data, rising or falling, the sum of squares is at most that of scipy.optimize.curve_fit."""
    rng = np.random.default_rng(seed)
    x = rng.random(80)
    y = logistic(x, *ends, b3, b4) + rng.normal(0, 0.5, len(x))
    fit = fit_logistic(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, _ = optimize.curve_fit(logistic, x, y, [*ends, b3, b4], maxfev=10_000)
    assert fit.kind == "logistic"
    assert squares(fit(x), y) <= squares(logistic(x, *reference), y) * (1 + 1e-4)
    assert fit.rising == (ends[0] > ends[1])
    np.testing.assert_allclose(fit(x), logistic(x, *fit.parameters), atol=1e-8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(wide, wide), min_size=5, max_size=40) | pairs)
def test_the_fit_is_monotone_and_no_worse_than_a_line(values: list[tuple[float, float]]) -> None:
    """On any data: finite, monotone, and not above the squares of the least-squares line."""
    x, y = (np.array(side) for side in zip(*values, strict=True))
    fit = fit_logistic(x, y)
    curve = fit(np.sort(x))
    steps = np.diff(curve) if fit.rising else -np.diff(curve)
    size = np.abs(curve).max() + 1
    assert np.isfinite(curve).all() and (steps >= -1e-9 * size).all()
    if len(set(x)) > 1:
        line = np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())
        assert squares(fit(x), y) <= squares(line, y) * (1 + 1e-4) + 1e-9 * size**2


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_fit_does_not_depend_on_units(unit: float) -> None:
    """Scaling and shifting either side scales the curve with it."""
    rng = np.random.default_rng(1)
    x = rng.random(60)
    y = logistic(x, 5, 1, 0.5, 0.1) + rng.normal(0, 0.2, 60)
    np.testing.assert_allclose(fit_logistic(x, unit * y + unit)(x), unit * fit_logistic(x, y)(x) + unit, rtol=1e-5)
    np.testing.assert_allclose(fit_logistic(unit * x - unit, y)(unit * x - unit), fit_logistic(x, y)(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "kind"),
    [
        ([], [], "mean"),
        ([0.5], [3.0], "mean"),
        ([0.5] * 9, range(9), "mean"),
        (range(9), [2.0] * 9, "mean"),
        ([0.1] * 9, [0.3] * 9, "mean"),
        ([0.1, 0.2], [1.0, 3.0], "linear"),
        ([0.1, 0.2, 0.3, 0.4], [1.0, 3.0, 2.0, 5.0], "linear"),
        ([0.0, 1.0] * 10, range(20), "linear"),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 3.0, 2.0, 5.0, 4.0], "logistic"),
        ([0.1, math.nan, 0.3, math.inf], [1.0, 2.0, 3.0, 4.0], "linear"),
        ([math.nan] * 6, range(6), "mean"),
        ([1e300, -1e300, 0.0, 1.0, 2.0, 3.0], range(6), "mean"),
        ([5e-324, 0.0, 0.0, 0.0, 0.0, 0.0], range(6), "mean"),
    ],
)
def test_the_fit_falls_back_and_says_so(x: object, y: object, kind: str) -> None:
    """Too few or constant values give a line or the mean, never an error."""
    fit = fit_logistic(list(x), list(y))  # type: ignore[call-overload]
    assert fit.kind == kind
    assert len(fit.parameters) == {"mean": 1, "linear": 2, "logistic": 4}[kind]
    assert fit([0.2, 0.7]).shape == (2,)


def test_a_fallback_line_is_the_least_squares_line() -> None:
    """Slope and intercept are polyfit's."""
    x, y = [0.1, 0.2, 0.3, 0.4], [1.0, 3.0, 2.0, 5.0]
    assert fit_logistic(x, y).parameters == pytest.approx(np.polyfit(x, y, 1))


def test_plcc_after_the_logistic() -> None:
    """A curved relation becomes a straight one; predictions that are the wrong way round stay negative."""
    x = np.linspace(0, 1, 40)
    y = logistic(x, 5, 1, 0.5, 0.03)
    assert plcc(x, y) < 0.97 and plcc_logistic(x, y) == pytest.approx(1, abs=1e-6)
    assert plcc_logistic(1 - x, y) == pytest.approx(-1, abs=1e-6)
    assert math.isnan(plcc_logistic(x, np.ones(40)))


# -------------------------------------------------------------------- bootstrap


def test_the_interval_covers_the_true_correlation() -> None:
    """Of 200 samples from a normal law with correlation 0.6, some 95 % have it in their interval."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 80).T
        low, high = bootstrap_interval(plcc_rows, x, y, resamples=200)
        inside += low <= 0.6 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_the_interval_is_that_of_plain_resampling() -> None:
    """The row-wise bootstrap is a loop over resamples, in chunks that do not show."""
    rng = np.random.default_rng(3)
    x = rng.random(700)
    y = x + rng.normal(0, 0.5, 700)
    draws = np.random.default_rng(7)
    rows = np.concatenate([draws.integers(0, 700, (part, 700)) for part in (714, 286)])
    values = [srcc(x[r], y[r]) for r in rows]
    assert bootstrap_interval(srcc_rows, x, y, seed=7) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_the_interval_repeats_by_seed() -> None:
    """Same seed, same interval; any statistic of two vectors can be used."""
    x, y = np.random.default_rng(0).random((2, 30))
    assert bootstrap_interval(srcc_rows, x, y, seed=4) == bootstrap_interval(srcc_rows, x, y, seed=4)
    assert bootstrap_interval(srcc_rows, x, y, seed=4) != bootstrap_interval(srcc_rows, x, y, seed=5)
    low, high = bootstrap_interval(np.vectorize(krcc, signature="(n),(n)->()"), x, y, resamples=50)
    assert low < krcc(x, y) < high


def test_degenerate_resamples_are_left_out() -> None:
    """Of two rows, resamples of one row twice have no correlation; a constant side leaves no interval."""
    assert bootstrap_interval(plcc_rows, [0.0, 1.0], [0.0, 1.0]) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap_interval(srcc_rows, [0.0] * 5, range(5)))
    assert all(math.isnan(end) for end in bootstrap_interval(srcc_rows, [], []))
