"""What photos' sources add to their labels."""

from __future__ import annotations

import numpy as np
import pytest
from sources import fit, without_source


def test_fit_finds_the_weights() -> None:
    """Of plenty of rows, whatever the unit of each column."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)) * (1, 10, 0.1)
    weights = fit(features, features @ np.array([1.0, 0.2, -5.0]) + 7)
    np.testing.assert_allclose(weights * (1, 10, 0.1), np.array([1.0, 2.0, -0.5]) * 3 / 4, rtol=0.05)


def test_labels_lose_what_their_source_adds() -> None:
    """Two sources that differ in their mean quality and, beyond that, by a constant: the constant goes."""
    rng = np.random.default_rng(1)
    sources = np.array(["a", "b"])[rng.integers(0, 2, 4000)]
    quality = rng.normal(0.5, 0.05, 4000) + 0.1 * (sources == "b")
    features = np.column_stack([quality, *rng.normal(size=(2, 4000))])
    # Half of the variance is within the sources, so the penalty shrinks the slope to (1/2) / (1/2 + 1/3) = 0.6;
    # what that leaves of the difference in quality counts as an effect.
    expected = 0.2 + 0.4 * 0.1
    labels = quality + 0.2 * (sources == "b")
    for share in (0.0, 0.5, 1.0):
        changed = without_source(features, labels, sources, share)
        moved = (changed - labels)[sources == "a"].mean() - (changed - labels)[sources == "b"].mean()
        assert moved == pytest.approx(share * expected, abs=0.01)
        assert labels.min() <= changed.min() and changed.max() <= labels.max()
