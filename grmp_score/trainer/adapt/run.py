"""An adaptation from start to finish: a scorer and somebody's labels in, a new scorer and honest figures out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_score.errors import ConfigError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt.checkpoint import Checkpoint, identity_of
from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow, Progress
from grmp_score.trainer.adapt.features import (
    Activations,
    CropReader,
    compute_activations,
    native_precision,
    teacher_of,
)
from grmp_score.trainer.adapt.folds import Fold, all_rows, join_held_out, make_folds
from grmp_score.trainer.adapt.measure import Contenders, Predictions, mean_p_high
from grmp_score.trainer.adapt.optimizer import stages_of
from grmp_score.trainer.adapt.parameters import closed_form_names, set_values, values_of
from grmp_score.trainer.adapt.ridge import fit_ridge
from grmp_score.trainer.adapt.train import Trainer, Validation, summary
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.splits import divide
from grmp_score.trainer.evaluation import MIN_ROWS
from grmp_score.weights.folder import Weights, adapter_of, load_base


@dataclass(frozen=True, eq=False)
class Adapted:
    """What `adapt` made.

    Attributes:
        scorer: the new scorer; its config holds label scale, provenance (``training["stage_2"]``, and in
            ``training["stage_2_earlier"]``, oldest first, that of adaptations the start model is itself the result
            of) and ``results``.
        results: JSON-ready, the same as ``scorer.config.results``.  ``before``, ``ridge`` and ``after`` are
            `evaluation.Agreement.as_dict` of the un-adapted scorer, of the ridge regression on its image features
            and of the new scorer, all on the rows that ``measured_on`` names: ``"test"``, or
            ``"cross-validation"`` (too few rows left for testing: out-of-fold predictions for the shots; the number
            of epochs was chosen on the same folds, so ``after`` flatters a little), or None (neither; the three
            are None).  Further ``cross_validation`` (``srcc_mean``, ``srcc_std``, ``plcc_mean`` and ``plcc_std`` at
            the chosen epochs, ``folds``, the same four for ``before`` and ``ridge``, in ``curves`` the mean SRCC by
            phase at each look, and in ``looked_at`` after how many epochs these were; None without folds),
            ``chosen`` (epochs by phase: ``head``, ``text``, ``all``), ``qgr`` (of `qgr_figures`; None without QGR),
            ``n_test``, ``shots``, ``seed``, ``unscored`` (unreadable test images: file name, row, error),
            ``left_out`` (file names of images not tested on, since they are versions of what was trained on),
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
        test: rows to measure on instead of those of ``labels`` that are not drawn.  Where both have references,
            versions of what is trained on are left out; either way `divide` says which rows are used.
        work: folder for the checkpoint and, where needed, the activations' file; None keeps no checkpoint.
        resume: continue from the checkpoint in ``work``, if there is one, to the same weights as a run that was
            never stopped.
        progress: called after every image and every step; what it raises stops the run like Ctrl-C.
        activations: of all rows of ``labels``, then all of ``test``, and this scorer, from
            `features.compute_activations`, where many draws from the same images are to be compared; no image is
            read then.

    Raises:
        DataError: a training image cannot be read (file and row are named), there are too few labels, or they seem
            to go the other way (`Labels.check_direction`).
        ConfigError: a setting, or the checkpoint is of another run.
        TrainingDivergedError: the loss became NaN or infinite; fold and step are named.
        GrmpScoreError: there is no room for the activations.
    """
    if resume and work is None:
        raise ConfigError("a run without a work folder has no checkpoint to continue from")
    if activations is not None:
        activations.check(len(labels) + (0 if test is None else len(test)), config)
    report = progress or (lambda _: None)
    folder = None if work is None else Path(work)

    # 1. Rows to train on, rows to test on, and the folds of a cross-validation on the former.
    division = divide(labels, config.shots, config.seed, test)
    drawn, tested = division.drawn, division.tested
    enough = len(tested) >= MIN_ROWS or (test is not None and not len(division.left_out))
    rest = tested if test is None else tested + len(labels)  # positions in the activations
    left_out = [path.name for path in (labels if test is None else test).take(division.left_out).paths]
    test = (labels if test is None else test).take(tested) if enough else None
    shots = labels.take(drawn)
    folds, everything = make_folds(shots, config.folds, config.seed), all_rows(shots)

    # 2. A copy of the model, and what the parts of it that stay frozen make of the images.
    weights = dataclasses.replace(
        scorer.weights, config=dataclasses.replace(scorer.config, preprocess=scorer.preprocess)
    )
    model = weights.build().to(scorer.device).requires_grad_(False)
    precision = native_precision(scorer.device) if config.precision == "auto" else config.precision
    stages = stages_of(model, config)
    trained = [
        *(closed_form_names(model) if config.fits_head else []),
        *(n for stage in stages for n in stage.names),
    ]
    start = values_of(model, trained)
    reader = CropReader.of(scorer)
    identity = {}
    if folder is not None:
        computing = {**reader.settings, "precision": precision, "device": scorer.device.type}
        identity = identity_of(config, shots, model.state_dict(), computing)
    checkpoint = Checkpoint(folder, identity, config.checkpoint_seconds, resume=resume)
    teacher, teacher_name = None, None
    if config.uses_qgr:
        teacher, teacher_name = teacher_of(weights, None if config.teacher is None else load_base(config.teacher))
    if activations is None:
        images = itertools.count(1)
        kept = compute_activations(
            model,
            shots,
            reader if config.crops_per_image is None else reader.with_patches(config.crops_per_image),
            teacher=None if teacher is None else teacher.to(scorer.device),
            flips=config.flips,
            keep_tokens=any(stage.image_side for stage in stages),
            keep_pooled=config.fits_head,
            dtype=getattr(torch, config.cache_dtype),
            precision=precision,
            cache_bytes=config.cache_bytes,
            folder=folder,
            progress=lambda _: report(Progress("reading", next(images), len(shots))),
        )
    else:
        kept, teacher_name = activations.take(drawn), "given with the activations"

    # 3. Training: on the folds, to choose the number of epochs, then on everything.
    before = mean_p_high(model, kept.features[:, : kept.plain])
    shots.check_direction(before)
    trainer = Trainer(model, start, kept, config, checkpoint, precision=precision, report=report)
    cross_validation, predictions = None, None
    if folds:
        validation = trainer.cross_validate(folds, stages)
        stages = validation.stages
        cross_validation, predictions = _validated(validation, folds, shots, kept.mean_features, before)
    values = trainer.train(everything, stages)
    adapter = _finish(model, values, scorer.weights)

    # 4. Figures, on the test part if there is one: it is read now, when everything is fixed.
    results: dict[str, Any] = {"measured_on": None if predictions is None else "cross-validation", "n_test": 0}
    results |= {"unscored": [], "left_out": left_out, "measured_in": precision, "checked": None}
    if test is not None:
        contenders = Contenders(scorer.model, model, fit_ridge(kept.mean_features, everything.targets))
        if activations is None:
            images, n = itertools.count(1), len(test)
            predictions, how = contenders.read_and_predict(
                test, reader, precision, lambda: report(Progress("testing", next(images), n))
            )
        else:
            predictions, how = contenders.predict(test, activations.take(rest))
        results |= {"measured_on": "test", "n_test": len(predictions.labels), **how}
    figures = (
        dict.fromkeys(("before", "ridge", "after")) if predictions is None else predictions.figures(config.seed)
    )
    results |= {
        **figures,
        "cross_validation": cross_validation,
        "chosen": {**({"head": 1} if config.fits_head else {}), **{stage.name: stage.stop for stage in stages}},
        "qgr": qgr_figures(checkpoint.history, config.qgr_lambda),
        "shots": len(shots),
        "seed": config.seed,
        "precision": precision,
    }

    # 5. The new scorer.
    provenance = {
        "method": _method(config),
        "start": scorer.config.name,
        "labels": shots.source.name,
        "shots": len(shots),
        "seed": config.seed,
        "teacher": teacher_name,
        "trained_parameters": sum(value.numel() for value in start.values()),
        "settings": dataclasses.asdict(config),
    }
    new_config = dataclasses.replace(
        weights.config,
        name=f"{scorer.config.name}-adapted",
        label_scale=shots.scale,
        opinion=None,  # that of the un-adapted model, like the percentiles
        reference_percentiles={},
        training=_with_stage_2(scorer.config.training, provenance),
        results=results,
    )
    adapted = dataclasses.replace(weights, config=new_config, adapter=adapter, origin=new_config.name)
    # The number of patches is now the weights' own.
    new_scorer = Scorer(adapted, dataclasses.replace(scorer.options, patches=None))
    return Adapted(new_scorer, results, checkpoint.history, predictions)


def _validated(
    validation: Validation, folds: Sequence[Fold], shots: Labels, features: np.ndarray, before: np.ndarray
) -> tuple[dict[str, Any], Predictions]:
    """Figures of a cross-validation, and its out-of-fold predictions for all shots.

    Args:
        validation: what it gave.
        folds: its folds.
        shots: all rows.
        features: un-adapted image features [n, D].
        before: p(high) [n] by the un-adapted model.
    """
    ridge = [fit_ridge(features[f.rows], f.targets[f.rows])(features[f.held_out]) for f in folds]
    figures = {
        **summary(validation.held_out, folds),
        "folds": len(folds),
        "before": summary([before[fold.held_out] for fold in folds], folds),
        "ridge": summary(ridge, folds),
        "curves": validation.curves,
        "looked_at": validation.looked_at,
    }
    joined = [join_held_out(of_folds, folds, shots) for of_folds in (ridge, validation.held_out)]
    return figures, Predictions(shots, before, *joined)


def qgr_figures(history: Sequence[HistoryRow], qgr_lambda: float) -> dict[str, Any] | None:
    """How eqs. (7) and (8) went in the final run, or on the folds where that took no step; None without QGR.

    Returns:
        ``semantic_loss`` (L_kl in nats: ``first``, ``last``, ``greatest``), and over the steps the means ``angle``
        (degrees, of those that have one), ``projected`` (share of the tensors) and ``lowered`` (share of the steps
        in which lambda was lowered).
    """
    rows = [row for row in history if row.semantic_loss is not None]
    rows = [row for row in rows if row.fold is None] or rows
    if not rows:
        return None
    losses = [row.semantic_loss for row in rows if row.semantic_loss is not None]
    angles = [row.angle for row in rows if row.angle is not None]
    return {
        "semantic_loss": {"first": losses[0], "last": losses[-1], "greatest": max(losses)},
        "angle": float(np.mean(angles)) if angles else None,
        "projected": float(np.mean([row.projected or 0.0 for row in rows])),
        "lowered": float(np.mean([row.qgr_lambda != qgr_lambda for row in rows])),
    }


def _finish(model: QualityCLIP, values: Mapping[str, Tensor], start: Weights) -> dict[str, Tensor]:
    """Puts the trained values into the model and returns its adapter.

    Trained blocks are stored in float32: next to float16's steps many of SGD's changes are too small to survive.
    Big tensors of the start model's own adapter that were not trained stay part of it.
    """
    set_values(model, values)
    model.refresh_text()
    kept = {name: tensor for name, tensor in start.adapter.items() if name.startswith("clip.")}
    blocks = [name for name in values if name.startswith("clip.")]
    return {**kept, **adapter_of(model, blocks, dtype=torch.float32)}


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
