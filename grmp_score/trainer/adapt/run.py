"""Stage 2 from start to finish: a scorer and somebody's labels in, a new scorer and honest numbers out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from grmp_score.errors import ConfigError
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt.activations import (
    Activations,
    Precision,
    compute_activations,
    native_precision,
    teacher_of,
)
from grmp_score.trainer.adapt.crossval import Fold, Plan, choose_epochs, join, make_folds, steps_to_come, summary
from grmp_score.trainer.adapt.fewshot import FewShotConfig as FewShotConfig
from grmp_score.trainer.adapt.fewshot import HistoryRow as HistoryRow
from grmp_score.trainer.adapt.fewshot import Progress as Progress
from grmp_score.trainer.adapt.measure import Predictions as Predictions
from grmp_score.trainer.adapt.measure import TestPart, mean_p_high, measure_kept, measure_test_part
from grmp_score.trainer.adapt.phases import Phase, phases_of
from grmp_score.trainer.adapt.ridge import Ridge, fit_ridge
from grmp_score.trainer.adapt.session import Result, Session, identity_of
from grmp_score.trainer.adapt.tuning import Array, Curves, Training
from grmp_score.trainer.data.labels import Labels, draw_shots
from grmp_score.trainer.evaluation import MIN_ROWS
from grmp_score.weights.folder import adapter_of


@dataclass(frozen=True, eq=False)
class Adapted:
    """What `adapt` made.

    Attributes:
        scorer: the new scorer; its config holds label scale, provenance (``training["stage_2"]``, and in
            ``training["stage_2_earlier"]``, oldest first, that of adaptations the start model is itself the result
            of) and ``results``.
        results: JSON-ready, the same as ``scorer.config.results``.  ``before``, ``ridge`` and ``after`` are
            `protocol.Agreement.as_dict` of the un-adapted scorer, of the ridge regression on its image features
            and of the new scorer, all on the rows that ``measured_on`` names: ``"test"``, or
            ``"cross-validation"`` (too few rows left for testing: out-of-fold predictions for the shots; the number
            of epochs was chosen on the same folds, so ``after`` flatters a little), or None (neither; the three
            are None).  Further ``cross_validation`` (``srcc_mean``, ``srcc_std``, ``plcc_mean`` and ``plcc_std`` at
            the chosen epochs, ``folds``, the same four for ``before`` and ``ridge``, and in ``curves`` the mean
            SRCC by phase and epoch; None without folds), ``chosen`` (epochs by phase: ``head``, ``text``, ``all``),
            ``n_test``, ``shots``, ``seed``, ``unscored`` (unreadable test images: file name, row, error),
            ``precision`` (of the training; ``measured_in`` of the figures, with ``checked`` the largest
            difference from float32 that was seen in p(high)).
        history: one row per training step and per look at held-out rows, in the order they were taken.
        test_predictions: behind the figures; None when nothing was measured.
    """

    scorer: Scorer
    results: dict[str, Any]
    history: tuple[HistoryRow, ...]
    test_predictions: Predictions | None


def adapt(
    scorer: Scorer,
    labels: Labels,
    config: FewShotConfig = FewShotConfig(),  # noqa: B008 (frozen)
    *,
    test: Labels | None = None,
    work: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    activations: Activations | None = None,
) -> Adapted:
    """Fine-tunes a copy of a scorer's model to labels (METHOD section 3) and measures it.

    The number of epochs is chosen by cross-validation on the training rows; the test part is read once, after
    everything is fixed.  The scorer is left as it is.

    Args:
        scorer: where to start.
        labels: images and opinion scores.
        config: settings.
        test: rows to measure on instead of those of ``labels`` that are not drawn.
        work: folder for the checkpoint and, where needed, the activations' file; None keeps no checkpoint.
        resume: continue from the checkpoint in ``work``, if there is one, to the same weights as a run that was
            never stopped.
        progress: called after every image and every step; what it raises stops the run like Ctrl-C.
        activations: of all rows of ``labels`` and this scorer, from `activations.compute_activations`, where many
            draws from the same labels are to be compared; no image is read then.

    Raises:
        DataError: a training image cannot be read (file and row are named), or there are too few labels.
        ConfigError: a setting, or the checkpoint is of another run.
        GrmpScoreError: the loss became NaN or infinite; fold and step are named.
    """
    if resume and work is None:
        raise ConfigError("a run without a work folder has no checkpoint to continue from")
    if activations is not None and test is not None:
        raise ConfigError("activations are those of the labels, not of a test part of its own")
    folder = None if work is None else Path(work)
    return _Run(scorer, labels, config, test, folder, progress or (lambda _: None), activations).adapt(resume)


class _Run:
    """One call of `adapt`: what its steps share."""

    def __init__(
        self,
        scorer: Scorer,
        labels: Labels,
        config: FewShotConfig,
        test: Labels | None,
        work: Path | None,
        report: Callable[[Progress], None],
        kept: Activations | None,
    ) -> None:
        self.scorer, self.config, self.work, self.report = scorer, config, work, report
        chosen, rest, self.kept = np.arange(len(labels)), np.arange(0), kept
        if config.shots is not None:
            chosen, rest = draw_shots(labels.scores, config.shots, config.seed)
            test = labels.take(rest) if test is None and len(rest) >= MIN_ROWS else test
        self.shots, self.test = labels.take(chosen), test
        self.rows = {"shots": chosen, "test": rest}
        self.folds = make_folds(self.shots, config.folds, config.seed)
        self.start = dataclasses.replace(
            scorer.weights, config=dataclasses.replace(scorer.config, preprocess=scorer.preprocess)
        )
        self.model = self.start.build().to(scorer.device).requires_grad_(False)
        self.phases = phases_of(self.model, config)
        names = {name for phase in self.phases for name in phase.names}
        self.start_values = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in names}
        self._cv_steps = self._steps_finished = 0
        self.precision: Precision = (
            native_precision(scorer.device) if config.precision == "auto" else config.precision
        )

    def adapt(self, resume: bool) -> Adapted:
        session = self._session(resume)
        frozen, teacher = self._read()
        features = frozen.features[:, : frozen.plain].double().mean(dim=1).numpy()  # [n, D]
        device = self.scorer.device
        before = np.array([mean_p_high(self.model, f[: frozen.plain].to(device)) for f in frozen.features])
        plan: Plan = [(phase, phase.epochs) for phase in self.phases]
        cross_validation, predictions = None, None
        if self.folds:
            plan, cross_validation, predictions = self._cross_validate(session, frozen, features, before)
        everything = Fold(None, np.arange(len(self.shots)), np.arange(0), self.shots)
        adapter = self._finish(self._train(session, frozen, everything, plan, "final").parameters)
        results: dict[str, Any] = {"measured_on": None, "before": None, "ridge": None, "after": None}
        results |= {"n_test": 0, "unscored": [], "measured_in": self.precision, "checked": None}
        if self.test is not None:
            part = self._test(fit_ridge(features, everything.targets))
            predictions = part.predictions
            results |= {
                "measured_on": "test",
                "n_test": len(predictions.labels),
                "unscored": part.unscored,
                "measured_in": part.precision,
                "checked": part.checked,
            }
        elif predictions is not None:
            results["measured_on"] = "cross-validation"
        if predictions is not None:
            results |= predictions.figures(self.config.seed)
        results |= {
            "cross_validation": cross_validation,
            "chosen": {phase.name: epochs for phase, epochs in plan},
            "shots": len(self.shots),
            "seed": self.config.seed,
            "precision": self.precision,
        }
        old = self.start.config
        config = dataclasses.replace(
            old,
            name=f"{old.name}-adapted",
            label_scale=everything.scale,
            reference_percentiles={},  # those of the un-adapted model
            training=_with_stage_2(old.training, self._provenance(teacher)),
            results=results,
        )
        return Adapted(
            Scorer(
                dataclasses.replace(self.start, config=config, adapter=adapter, origin=config.name),
                device=str(self.scorer.device),
                batch_size=self.scorer.batch_size,
                workers=self.scorer.workers,
            ),
            results,
            _without_repetitions(session.history),
            predictions,
        )

    # ------------------------------------------------------------------ before

    def _session(self, resume: bool) -> Session:
        where = {"precision": self.precision, "device": self.scorer.device.type}
        preprocess = dataclasses.asdict(self.scorer.preprocess)
        return Session(
            self.work,
            identity_of(self.config, self.shots, self.model.state_dict(), {**where, "preprocess": preprocess}),
            resume=resume,
            checkpoint_seconds=self.config.checkpoint_seconds,
            on_row=self._on_row,
        )

    def _read(self) -> tuple[Activations, str | None]:
        """Activations of the shots, and what the semantic teacher is."""
        teacher, kind = None, None
        if self.kept is not None:
            return self.kept.take(self.rows["shots"]), "given with the activations"
        if self.config.uses_qgr:
            teacher, original = teacher_of(self.start)
            teacher = teacher.to(self.scorer.device)
            kind = "original backbone" if original else "start model without visual prompts"
        preprocess = self.scorer.preprocess
        if self.config.crops_per_image is not None:
            preprocess = preprocess.with_patches(self.config.crops_per_image)
        frozen = compute_activations(
            self.model,
            self.shots,
            preprocess,
            teacher=teacher,
            flips=self.config.flips,
            keep_tokens=any(phase.image_side for phase in self.phases if phase.name == "all"),
            keep_pooled=self.config.fits_head,
            dtype=getattr(torch, self.config.cache_dtype),
            precision=self.precision,
            cache_bytes=self.config.cache_bytes,
            folder=self.work,
            workers=self.scorer.workers,
            progress=self._counter("reading", len(self.shots)),
        )
        return frozen, kind

    # ---------------------------------------------------------------- training

    def _train(self, session: Session, frozen: Activations, fold: Fold, plan: Plan, name: str) -> Result:
        def make(seconds: float) -> Training:
            return Training(
                self.model,
                self.start_values,
                frozen,
                fold.targets,
                self.config,
                fold=fold.number,
                rows=fold.rows,
                held_out=fold.held_out,
                plan=plan,
                precision=self.precision,
                seconds=seconds,
            )

        self._steps_finished = sum(row.loss is not None for row in session.history)
        return session.run(name, make, keep=fold.number is None)

    def _cross_validate(
        self, session: Session, frozen: Activations, features: Array, before: Array
    ) -> tuple[Plan, dict[str, Any], Predictions]:
        """How many epochs of every phase to train, the figures of it, and the out-of-fold predictions."""

        def train(fold: Fold, plan: Plan, phase: Phase) -> Curves:
            self._cv_steps = steps_to_come(self.folds, self.phases, plan[:-1], self.config.batch_size)
            return self._train(session, frozen, fold, plan, f"{phase.name}-{fold.number}").curves

        choice = choose_epochs(self.folds, self.phases, train)
        ridge = [fit_ridge(features[f.rows], f.targets[f.rows])(features[f.held_out]) for f in self.folds]
        figures = {
            **summary(choice.held_out, self.folds),
            "folds": len(self.folds),
            "before": summary([before[fold.held_out] for fold in self.folds], self.folds),
            "ridge": summary(ridge, self.folds),
            "curves": choice.curves,
        }
        joined = [join(of_folds, self.folds, self.shots) for of_folds in (ridge, choice.held_out)]
        return choice.plan, figures, Predictions(self.shots, before, *joined)

    # ------------------------------------------------------------------- after

    @torch.no_grad()
    def _finish(self, tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Puts the tuned values into the model and returns the adapter.

        Trained blocks are stored in float32: next to float16's steps many of SGD's changes are too small to
        survive.  Big tensors of the start model's own adapter that were not trained stay part of it.
        """
        blocks = [name for name in tuned if name.startswith("clip.")]
        for name, parameter in self.model.named_parameters():
            if name in tuned:
                parameter.copy_(tuned[name])
        self.model.refresh_text()
        kept = {k: v for k, v in self.start.adapter.items() if k.startswith("clip.")}
        return {**kept, **adapter_of(self.model, blocks, dtype=torch.float32)}

    def _test(self, ridge: Ridge) -> TestPart:
        assert self.test is not None
        if self.kept is not None:
            return measure_kept(self.scorer.model, self.model, ridge, self.test, self.kept.take(self.rows["test"]))
        return measure_test_part(
            self.scorer.model,
            self.model,
            ridge,
            self.test,
            self.scorer.preprocess,
            precision=self.precision,
            workers=self.scorer.workers,
            progress=self._counter("testing", len(self.test)),
        )

    def _provenance(self, teacher: str | None) -> dict[str, Any]:
        return {
            "method": _method(self.config),
            "start": self.start.config.name,
            "labels": self.shots.source.name,
            "shots": len(self.shots),
            "seed": self.config.seed,
            "teacher": teacher,
            "trained_parameters": sum(value.numel() for value in self.start_values.values()),
            "settings": dataclasses.asdict(self.config),
        }

    # ---------------------------------------------------------------- progress

    def _counter(self, stage: Literal["reading", "testing"], total: int) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.report(Progress(stage, done, total))

        return count

    def _on_row(self, training: Training, row: HistoryRow) -> None:
        if row.fold is None:
            self.report(Progress("training", training.steps_done, training.steps, row))
        else:
            done = self._steps_finished + training.steps_done
            self.report(Progress("cross-validation", done, self._cv_steps, row))


def _with_stage_2(training: Mapping[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """Provenance with one adaptation more; those that led to the start model stay, oldest first."""
    earlier = list(training.get("stage_2_earlier", ()))
    if "stage_2" in training:
        earlier.append(training["stage_2"])
    return {**training, **({"stage_2_earlier": earlier} if earlier else {}), "stage_2": stage}


def _method(config: FewShotConfig) -> str:
    """In words."""
    descent = "fine-tuning with QGR" if config.uses_qgr else "fine-tuning"
    if not config.fits_head:
        return descent
    exact = "Bayesian regression of the quality direction"
    return exact if config.train == "head" or not config.epochs else f"{exact}, then {descent}"


def _without_repetitions(rows: list[HistoryRow]) -> tuple[HistoryRow, ...]:
    """The cross-validation of a phase repeats those before it; rows of it that were there already are left out."""
    first: dict[tuple[object, ...], HistoryRow] = {}
    for row in rows:
        first.setdefault((row.fold, row.phase, row.step, row.loss is None), row)
    return tuple(first.values())
