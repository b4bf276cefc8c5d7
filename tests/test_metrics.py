"""Correlations against SciPy."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grmp_score.metrics import average_ranks, plcc, srcc

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


@given(st.lists(tied, max_size=30))
def test_average_ranks_equal_scipy(values: list[float]) -> None:
    """Ranks are SciPy's average ranks."""
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values))


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1 / 3, 1e9])
@pytest.mark.parametrize("n", [2, 3, 7, 10])
@pytest.mark.parametrize("function", [plcc, srcc])
def test_constant_input_is_nan(function: object, constant: float, n: int) -> None:
    """A constant side has no correlation, whatever rounding makes of its mean."""
    assert math.isnan(function([constant] * n, range(n)))  # type: ignore[operator]
    assert math.isnan(function(range(n), [constant] * n))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc])
def test_too_few_values_are_nan(function: object) -> None:
    """Nothing, and one pair, have no correlation."""
    assert math.isnan(function([], []))  # type: ignore[operator]
    assert math.isnan(function([1.0], [2.0]))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc])
def test_nan_is_not_ranked(function: object) -> None:
    """A NaN on either side gives NaN; it is not taken as the best or the worst."""
    assert math.isnan(function([1.0, math.nan, 3.0], [1.0, 2.0, 3.0]))  # type: ignore[operator]
    assert math.isnan(function([1.0, 2.0, 3.0], [math.nan, 2.0, 3.0]))  # type: ignore[operator]


@pytest.mark.parametrize("function", [plcc, srcc])
def test_direction_and_limits(function: object) -> None:
    """Agreement is 1 and its opposite -1, exactly within -1..1."""
    x = np.random.default_rng(0).normal(size=50)
    assert function(x, 3 * x + 1) == pytest.approx(1.0) and function(x, -x) == pytest.approx(-1.0)  # type: ignore[operator]
    assert function(x, -x) >= -1 and function(x, 3 * x + 1) <= 1  # type: ignore[operator]


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2, 3]), ([[1, 2]], [[1, 2]]), (1.0, 2.0)])
def test_vectors_of_one_length_are_needed(x: object, y: object) -> None:
    """Other shapes are refused with both shapes named."""
    with pytest.raises(ValueError, match="two vectors of one length"):
        plcc(x, y)  # type: ignore[arg-type]
