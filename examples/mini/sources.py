"""What a photo's source adds to its label, by linear regression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Ridge penalty per row, for columns of unit variance.
PENALTY = 1 / 3


def fit(features: Array, targets: Array, groups: NDArray[Any] | None = None) -> Array:
    """Ridge regression: weights [F] of features [n, F]; with ``groups`` [n] each group has its own intercept."""
    scale = features.std(axis=0) + 1e-6
    rows, values = features / scale, np.array(targets, dtype=np.float64)
    groups = np.zeros(len(values)) if groups is None else groups
    for group in np.unique(groups):
        of_group = groups == group
        rows[of_group] -= rows[of_group].mean(axis=0)
        values[of_group] -= values[of_group].mean()
    penalty = PENALTY * len(rows) * np.eye(len(scale))
    return np.asarray(np.linalg.solve(rows.T @ rows + penalty, rows.T @ values) / scale)


def without_source(features: Array, labels: Array, sources: NDArray[Any], share: float) -> Array:
    """Labels less a share of what photos of one source have over those of another that look the same.

    Sources differ in their mean label, and a model trained on the labels as they are earns by recognising them,
    which is worth nothing for photos from elsewhere.

    Args:
        features: [n, F].
        labels: [n].
        sources: name of each photo's source [n].
        share: of the sources' intercepts in a regression that has one for each; 0 leaves the labels as they are.

    Returns:
        Labels [n], of the same mean, and within the same ends of the scale.
    """
    left = labels - features @ fit(features, labels, sources)
    effects = {source: left[sources == source].mean() - left.mean() for source in np.unique(sources)}
    changed = labels - share * np.array([effects[source] for source in sources])
    return np.clip(changed, labels.min(), labels.max())
