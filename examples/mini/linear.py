"""Linear readings of pooled features: what a photo's source adds to its label, and quality in the early blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.closed_form import quality_direction, write_margin
from grmp_score.trainer.adapt.parameters import PROJECTION, SHIFT, set_values, values_of

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


@torch.no_grad()
def add_early_blocks(model: QualityCLIP, pooled: Tensor, labels: Array, *, early: int, share: float) -> None:
    """Gives a share of a fine-tuned model's quality margin to a ridge regression on blocks that were not tuned.

    The regression's margin gets the mean and spread that the model's own has, and the sum of both is written into
    the projection, so nothing is added to the model.

    Args:
        model: changed in place.
        pooled: [n, C, F], what ``model.image.pool`` gives for C crops of each photo.
        labels: [n].
        early: the first ``early`` of the F numbers are those of blocks that were not tuned.
        share: of the regression, 0..1.
    """
    projection, direction = model.clip.visual.proj.double(), quality_direction(model)
    features, means = [], []
    for crops in pooled:
        z = crops.double()  # [C, F]
        f = z @ projection  # [C, D]
        features.append(f)
        means.append((z / f.norm(dim=1, keepdim=True)).mean(dim=0))
    over_length = torch.stack(means)  # [n, F]: mean of z / |f|
    own = over_length @ (projection @ direction)  # [n]
    weights = torch.from_numpy(fit(over_length[:, :early].numpy(), labels))
    read = over_length[:, :early] @ weights  # [n]
    weights *= own.std() / read.std()
    constant = float(own.mean() - over_length[:, :early].mean(dim=0) @ weights)
    margin = (1 - share) * (projection @ direction)
    margin[:early] += share * weights
    made = write_margin(
        projection,
        margin,
        share * constant,
        features=torch.cat(features).numpy(),
        axis=direction,
        scenes=model.encode_scenes(),
    )
    shift = values_of(model, [SHIFT])[SHIFT] + made.shift
    set_values(model, {PROJECTION: made.proj, SHIFT: shift})
    model.refresh_text()
