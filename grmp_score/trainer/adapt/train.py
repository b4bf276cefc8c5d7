"""Training on folds and on all rows: the closed form, gradient descent, or one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from grmp_score.files import finite_or_none
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.adapt.checkpoint import Checkpoint, Trained
from grmp_score.trainer.adapt.closed_form import fit_closed_form
from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow, Precision, Progress
from grmp_score.trainer.adapt.features import Activations
from grmp_score.trainer.adapt.folds import Array, Fold
from grmp_score.trainer.adapt.gradient_descent import GradientDescent
from grmp_score.trainer.adapt.measure import mean_p_high
from grmp_score.trainer.adapt.optimizer import Stage
from grmp_score.trainer.adapt.parameters import SHIFT, set_values
from grmp_score.trainer.metrics import plcc, srcc


@dataclass(frozen=True, eq=False)
class Validation:
    """What a cross-validation gave.

    Attributes:
        stages: of gradient descent, each with the best number of epochs as its ``stop``.
        held_out: p(high) of every fold's held-out rows after them.
        curves: by phase (``"head"`` and the stages) mean SRCC over folds, at each look.
        looked_at: by phase the numbers of epochs after which these were.
    """

    stages: list[Stage]
    held_out: list[Array]
    curves: dict[str, list[float]]
    looked_at: dict[str, list[int]]


class Trainer:
    """Trains one model in place, from the same start on any fold.

    Attributes:
        start: values of everything that is trained, as they were.
        activations: of all rows, by the un-adapted model.
    """

    def __init__(
        self,
        model: QualityCLIP,
        start: Mapping[str, Tensor],
        activations: Activations,
        config: FewShotConfig,
        checkpoint: Checkpoint,
        *,
        precision: Precision,
        report: Callable[[Progress], None],
    ) -> None:
        self.model, self.start, self.activations, self.config = model, start, activations, config
        self.checkpoint, self.precision, self.report = checkpoint, precision, report

    def cross_validate(self, folds: Sequence[Fold], stages: Sequence[Stage]) -> Validation:
        """Trains on every fold.

        The stages of gradient descent are settled one after another; each starts from the best epoch of those
        before, and all its looks are compared, epoch 0 included.  The closed form is not put to the test: it keeps
        to the un-adapted model by itself as far as the labels do not speak against it, and some thirty held-out
        images cannot judge it better.
        """
        steps = _Steps("cross-validation", self.report)
        steps.total = len(folds) * self.config.fits_head + steps_to_come(folds, stages, self.config)
        curves: dict[str, list[float]] = {}
        looked_at: dict[str, list[int]] = {"head": [0, 1]} if self.config.fits_head else {}
        held_out: list[Array] = []
        starts = [_Start(dict(self.start), self.activations) for _ in folds]
        if self.config.fits_head:
            starts = [self._fit(fold, steps) for fold in folds]
            curves["head"] = best_epoch([start.looks for start in starts], folds)[1]
            held_out = [start.looks[-1] for start in starts]
        settled: list[Stage] = []
        for at, stage in enumerate(stages):
            trained = [
                self._descend(f"{stage.name}-{fold.number}", fold, [*settled, stage], start, steps)
                for fold, start in zip(folds, starts, strict=True)
            ]
            looks = [[np.array(look) for look in training.looks[stage.name]] for training in trained]
            best, curves[stage.name] = best_epoch(looks, folds)
            looked_at[stage.name] = stage.looks
            held_out = [looks_of_fold[best] for looks_of_fold in looks]
            settled.append(dataclasses.replace(stage, stop=stage.looks[best]))
            to_come = [*settled, *stages[at + 1 :]]
            steps.total = len(folds) * self.config.fits_head + steps_to_come(folds, to_come, self.config)
        return Validation(settled, held_out, curves, looked_at)

    def train(self, fold: Fold, stages: Sequence[Stage]) -> dict[str, Tensor]:
        """Values of everything that is trained, from the rows of a fold."""
        steps = _Steps("training", self.report)
        steps.total = self.config.fits_head + fold.steps_per_epoch(self.config) * sum(
            stage.stop for stage in stages
        )
        start = _Start(dict(self.start), self.activations)
        if self.config.fits_head:
            start = self._fit(fold, steps)
        if not stages:
            return start.values
        return self._descend("final", fold, stages, start, steps, keep=True).values

    @torch.no_grad()
    def _fit(self, fold: Fold, steps: _Steps) -> _Start:
        """The closed form, on the training rows of a fold."""
        model, kept, rows = self.model, self.activations, torch.from_numpy(fold.rows)
        assert kept.pooled is not None
        set_values(model, self.start)
        before = self._predict(kept.features[fold.held_out])
        values = fit_closed_form(model, kept.pooled[rows], fold.targets[fold.rows])
        set_values(model, values)
        features = self._project_again(values[SHIFT] - self.start[SHIFT])  # [n, C, D]
        after = self._predict(features[fold.held_out])
        loss = self._loss(features[rows], torch.from_numpy(fold.targets)[rows])
        history = [HistoryRow(fold.number, "head", 1, 1, loss=loss)]
        if len(fold.held_out):
            looks = [srcc(p, fold.held_out_targets) for p in (before, after)]
            history.insert(0, HistoryRow(fold.number, "head", 0, 0, validation_srcc=looks[0]))
            history.append(HistoryRow(fold.number, "head", 1, 1, validation_srcc=looks[1]))
        for row in history:
            self.checkpoint.record(dataclasses.replace(row, seconds=self.checkpoint.clock()))
            steps(row, row.step)
        steps.finished += 1
        return _Start({**self.start, **values}, dataclasses.replace(kept, features=features), [before, after])

    def _project_again(self, shift: Tensor) -> Tensor:
        """Image features [n, C, D] of all rows by the current projection, with ``shift`` [F] added before it."""
        assert self.activations.pooled is not None
        pooled = self.activations.pooled.to(shift.device, torch.float32)  # [n, C, F]
        return self.model.image.project(pooled + shift).cpu()

    def _predict(self, features: Tensor) -> Array:
        """p(high) [V] by the current texts, from features [V, C, D]: mean over the crops as cut for scoring."""
        return mean_p_high(self.model, features[:, : self.activations.plain], self.model.encode_quality())

    def _loss(self, features: Tensor, targets: Tensor) -> float:
        """L_ce (eq. 3), mean over all crops: features [n, C, D], targets [n]."""
        text = self.model.encode_quality()
        logits = self.model.quality_logits(features.flatten(0, 1).to(text.device), text)  # [n C, 2]
        return quality_loss(logits, targets.to(text.device).repeat_interleave(features.shape[1])).item()

    def _descend(
        self, name: str, fold: Fold, stages: Sequence[Stage], start: _Start, steps: _Steps, *, keep: bool = False
    ) -> Trained:
        def make() -> GradientDescent:
            return GradientDescent(
                self.model,
                start.values,
                start.activations,
                fold,
                stages,
                self.config,
                precision=self.precision,
                clock=self.checkpoint.clock,
            )

        trained = self.checkpoint.run(name, make, steps, keep=keep)
        steps.finished += trained.steps
        return trained


@dataclass(frozen=True, eq=False)
class _Start:
    """Where gradient descent starts.

    Attributes:
        values: of everything that is trained.
        activations: with the image features by these values.
        looks: p(high) of the held-out rows before and after the closed form.
    """

    values: dict[str, Tensor]
    activations: Activations
    looks: list[Array] = dataclasses.field(default_factory=list)


class _Steps:
    """Reports how far trainings have come; call it with every row and the steps that its training has taken."""

    def __init__(self, stage: Literal["cross-validation", "training"], report: Callable[[Progress], None]) -> None:
        self.stage, self._report = stage, report
        self.total = self.finished = 0

    def __call__(self, row: HistoryRow, done: int) -> None:
        self._report(Progress(self.stage, self.finished + done, self.total, row))


def best_epoch(looks: Sequence[Sequence[Array]], folds: Sequence[Fold]) -> tuple[int, list[float]]:
    """Number of the look with the best mean SRCC over folds, the earliest of equals, and all means.

    Args:
        looks: of every fold, one after another, p(high) of the held-out rows; equal ones count as uncorrelated.
        folds: which rows these are.
    """
    table = np.array(
        [[srcc(p, fold.held_out_targets) for p in of_fold] for of_fold, fold in zip(looks, folds, strict=True)]
    )  # [folds, 1 + epochs]
    means = np.nan_to_num(table, nan=0.0).mean(axis=0)
    return int(np.argmax(means)), [float(m) for m in means]


def steps_to_come(folds: Sequence[Fold], stages: Sequence[Stage], config: FewShotConfig) -> int:
    """Steps of gradient descent in a whole cross-validation.

    To settle a stage those before it are repeated on every fold, up to their ``stop``.
    """
    epochs = sum(sum(earlier.stop for earlier in stages[:at]) + stage.epochs for at, stage in enumerate(stages))
    return epochs * sum(fold.steps_per_epoch(config) for fold in folds)


def summary(predictions: Sequence[Array], folds: Sequence[Fold]) -> dict[str, Any]:
    """Mean and spread (n - 1) over folds of SRCC and PLCC between predictions for held-out rows and labels."""
    figures: dict[str, Any] = {}
    for name, statistic in (("srcc", srcc), ("plcc", plcc)):
        values = [statistic(p, fold.held_out_targets) for p, fold in zip(predictions, folds, strict=True)]
        figures[f"{name}_mean"] = finite_or_none(float(np.mean(values)))
        figures[f"{name}_std"] = finite_or_none(float(np.std(values, ddof=1)))
    return figures
