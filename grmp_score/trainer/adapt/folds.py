"""The folds of a cross-validation, each with the scale of its own training rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grmp_score.errors import DataError
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.data.labels import Indices, Labels
from grmp_score.trainer.data.splits import folds

Array = NDArray[np.float64]


class Fold:
    """Rows to train on and rows held out, and the scale that the former set.

    Attributes:
        number: from 0; None for the final run on all rows.
        rows: to train on.
        held_out: to look at; may be empty.
        scale: of the labels of ``rows`` alone.
        targets: y of eq. (3) of all rows, float32 as the loss takes them; only held-out ones can leave 0..1.
    """

    def __init__(self, number: int | None, rows: Indices, held_out: Indices, labels: Labels) -> None:
        self.number, self.rows, self.held_out = number, rows, held_out
        scores = labels.scores[rows]
        if scores.min() == scores.max():
            same = int((labels.scores == scores[0]).sum())
            raise DataError(
                f"{same} of {len(labels)} images have the score {scores[0]:g}, too many to learn from the others",
                path=labels.source,
                hint="Label more images with other scores" + ("" if number is None else ", or use no folds"),
            )
        self.scale = labels.take(rows).scale
        self.targets = self.scale.to_unit(labels.scores).astype(np.float32)

    @property
    def held_out_targets(self) -> NDArray[np.float32]:
        """Targets of the held-out rows."""
        return self.targets[self.held_out]

    def steps_per_epoch(self, config: FewShotConfig) -> int:
        """Batches in an epoch, in which every training row comes up ``crops_per_epoch`` times."""
        return math.ceil(len(self.rows) * config.crops_per_epoch / config.batch_size)


def all_rows(shots: Labels) -> Fold:
    """The final run: everything is trained on, nothing held out."""
    return Fold(None, np.arange(len(shots)), np.arange(0), shots)


def make_folds(shots: Labels, count: int, seed: int) -> list[Fold]:
    """Stratified folds, as many as asked for but with two held-out rows at least; none when 0 are asked for.

    Versions of one photo are in one fold, so that there are no more folds than photos.

    Raises:
        DataError: fewer than four rows, or all are versions of one photo.
    """
    if not count:
        return []
    count, groups = min(count, len(shots) // 2), shots.groups
    if count < 2:
        raise DataError(
            f"{len(shots)} training rows are too few for cross-validation, expected at least 4",
            path=shots.source,
            hint="Label more images, or switch the folds off",
        )
    if groups is not None:
        photos = len(set(groups.tolist()))
        if photos < 2:
            raise DataError(
                f"the {len(shots)} training rows are versions of one photo: too few for cross-validation",
                path=shots.source,
                hint="Label versions of other photos, or switch the folds off",
            )
        count = min(count, photos)
    divided = folds(shots.scores, count, seed, groups)
    return [Fold(i, rows, held_out, shots) for i, (rows, held_out) in enumerate(divided)]


def join_held_out(predictions: Sequence[Array], parts: Sequence[Fold], shots: Labels) -> Array:
    """Predictions for the held-out rows of every fold as p(high) [n] on the scale of all shots."""
    joined = np.empty(len(shots))
    for fold, p in zip(parts, predictions, strict=True):
        joined[fold.held_out] = shots.scale.to_unit(fold.scale.to_label(p))
    return joined
