"""Cross-validation on the training rows: how many epochs to train, and predictions for rows not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grmp_score.errors import DataError
from grmp_score.trainer.adapt.phases import Phase
from grmp_score.trainer.adapt.tuning import Array, Curves, Indices
from grmp_score.trainer.data.labels import Labels, folds
from grmp_score.trainer.evaluation import or_none
from grmp_score.trainer.metrics import plcc, srcc

#: Phases with the epochs of each.
Plan = list[tuple[Phase, int]]


class Fold:
    """Rows to train on and rows held out, and the scale that the former set.

    Attributes:
        number: from 0; None for the final run on all rows.
        rows: to train on.
        held_out: to look at.
        scale: of the labels of ``rows`` alone.
        targets: y of eq. (3) of all rows; only held-out ones can leave 0..1.
    """

    def __init__(self, number: int | None, rows: Indices, held_out: Indices, labels: Labels) -> None:
        self.number, self.rows, self.held_out = number, rows, held_out
        scores = labels.scores[rows]
        if scores.min() == scores.max():
            raise DataError(
                f"all {len(rows)} scores to train on are {scores[0]:g}, expected scores that differ",
                path=labels.source,
            )
        self.scale = labels.take(rows).scale
        self.targets = self.scale.to_unit(labels.scores)

    @property
    def held_out_targets(self) -> Array:
        """Targets of the held-out rows."""
        return self.targets[self.held_out]


def make_folds(shots: Labels, count: int, seed: int) -> list[Fold]:
    """Stratified folds, as many as asked for but with two held-out rows at least; none when 0 are asked for.

    Raises:
        DataError: fewer than four rows.
    """
    if not count:
        return []
    count = min(count, len(shots) // 2)
    if count < 2:
        raise DataError(
            f"{len(shots)} training rows are too few for cross-validation, expected at least 4",
            path=shots.source,
            hint="Label more images, or switch the folds off",
        )
    divided = folds(shots.scores, count, seed)
    return [Fold(i, rows, held_out, shots) for i, (rows, held_out) in enumerate(divided)]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a cross-validation chose.

    Attributes:
        plan: phases with the chosen number of epochs.
        held_out: p(high) of every fold's held-out rows after them.
        curves: by phase and epoch, mean SRCC over folds.
    """

    plan: Plan
    held_out: list[Array]
    curves: dict[str, list[float]]


def choose_epochs(
    parts: Sequence[Fold], phases: Sequence[Phase], train: Callable[[Fold, Plan, Phase], Curves]
) -> Choice:
    """Settles the phases one after another; each starts from the chosen epoch of those before.

    Args:
        parts: the folds.
        phases: in order; all their epochs are tried, 0 included.  One in closed form is not: it keeps to the
            un-adapted model by itself as far as the labels do not speak against it, and some thirty held-out
            images cannot judge it better.
        train: trains on a fold by a plan, whose last phase is the one being settled.
    """
    choice = Choice([], [], {})
    targets = [fold.held_out_targets for fold in parts]
    for phase in phases:
        tried = [*choice.plan, (phase, phase.epochs)]
        curves = [train(fold, tried, phase)[phase.name] for fold in parts]
        epochs, means = best_epoch(curves, targets)
        if phase.optimizer == "exact":
            epochs = phase.epochs
        choice = Choice(
            [*choice.plan, (phase, epochs)],
            [np.array(curve[epochs]) for curve in curves],
            {**choice.curves, phase.name: means},
        )
    return choice


def best_epoch(curves: Sequence[Sequence[Sequence[float]]], targets: Sequence[Array]) -> tuple[int, list[float]]:
    """The epoch with the best mean SRCC over folds, the earliest of equals, and all means.

    Args:
        curves: of every fold and epoch, p(high) of the held-out rows; equal ones count as uncorrelated.
        targets: of every fold, labels that grow with quality.
    """
    table = np.array([[srcc(p, t) for p in curve] for curve, t in zip(curves, targets, strict=True)])
    means = np.nan_to_num(table, nan=0.0).mean(axis=0)
    return int(np.argmax(means)), [float(m) for m in means]


def steps_to_come(parts: Sequence[Fold], phases: Sequence[Phase], settled: Plan, batch_size: int) -> int:
    """Training steps of a whole cross-validation, if the phases that are not settled yet keep all their epochs."""
    epochs = [count for _, count in settled] + [phase.epochs for phase in phases[len(settled) :]]
    total = 0
    for fold in parts:
        per_epoch = [phase.steps_per_epoch(len(fold.rows), batch_size) for phase in phases]
        for at, phase in enumerate(phases):  # settling a phase repeats those before it
            total += sum(e * s for e, s in zip(epochs[:at], per_epoch, strict=False)) + phase.epochs * per_epoch[at]
    return total


def summary(predictions: Sequence[Array], parts: Sequence[Fold]) -> dict[str, Any]:
    """Mean and spread (n - 1) over folds of SRCC and PLCC between predictions for held-out rows and labels."""
    figures: dict[str, Any] = {}
    for name, statistic in (("srcc", srcc), ("plcc", plcc)):
        values = [statistic(p, fold.held_out_targets) for p, fold in zip(predictions, parts, strict=True)]
        figures[f"{name}_mean"] = or_none(float(np.mean(values)))
        figures[f"{name}_std"] = or_none(float(np.std(values, ddof=1)))
    return figures


def join(predictions: Sequence[Array], parts: Sequence[Fold], shots: Labels) -> Array:
    """Predictions for the held-out rows of every fold as p(high) [n] on the scale of all shots."""
    joined = np.empty(len(shots))
    for fold, p in zip(parts, predictions, strict=True):
        joined[fold.held_out] = shots.scale.to_unit(fold.scale.to_label(p))
    return joined
