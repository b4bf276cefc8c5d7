"""Stage 2: the same weights by the straightforward loop, from any stop, and figures that are what they say."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grmp_score.config import LabelScale, ModelConfig
from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.images.read import read_image
from grmp_score.model.patches import make_patches
from grmp_score.model.quality_clip import quality_loss
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import crossval, measure, tuning
from grmp_score.trainer.adapt.activations import compute_activations, teacher_of
from grmp_score.trainer.adapt.crossval import best_epoch, make_folds, steps_to_come
from grmp_score.trainer.adapt.phases import phases_of, trained_names
from grmp_score.trainer.adapt.qgr import project, semantic_loss
from grmp_score.trainer.adapt.ridge import fit_ridge
from grmp_score.trainer.adapt.run import Adapted, FewShotConfig, HistoryRow, Progress, adapt
from grmp_score.trainer.adapt.session import CHECKPOINT
from grmp_score.trainer.adapt.tuning import Training
from grmp_score.trainer.data.labels import Labels, draw_shots, read_labels
from grmp_score.trainer.evaluation import evaluate
from grmp_score.trainer.metrics import srcc
from grmp_score.weights.folder import Weights

from .conftest import random_weights
from .fewshot_data import make_labels, make_scorer
from .warm import Warm

#: Exact, and quick: 12 images, 2 phases, 2 folds.
FAST = FewShotConfig(
    shots=12,
    train="blocks",
    epochs=2,
    head_first=False,
    text_first_epochs=2,
    batch_size=5,
    lr=1e-3,
    folds=2,
    precision="float32",
    cache_dtype="float32",
    warm_up_epochs=0,
)
#: No cross-validation, so that all epochs are trained.
PLAIN = dataclasses.replace(FAST, folds=0)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Eighteen pictures."""
    return make_labels(tmp_path / "pictures", 18)


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """The tiny model."""
    return make_scorer(tiny_weights)


@pytest.fixture
def all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cross-validation always chooses the last epoch, so that the final run has something to do."""
    original = crossval.best_epoch
    monkeypatch.setattr(crossval, "best_epoch", lambda curves, t: (len(curves[0]) - 1, original(curves, t)[1]))


def checksum(scorer: Scorer) -> str:
    """Of the adapter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(scorer.weights.adapter.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest absolute difference of any value."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)


def changed(adapted: Adapted, scorer: Scorer) -> set[str]:
    """Names of the tensors that differ from the start model's."""
    new, old = adapted.scorer.model.state_dict(), scorer.model.state_dict()
    return {name for name in old if not torch.equal(old[name], new[name])}


# ------------------------------------------------------- the straightforward loop


def make_training(scorer: Scorer, labels: Labels, config: FewShotConfig) -> Training:
    """A training on all these labels, with the activations kept in float32."""
    model = scorer.weights.build().requires_grad_(False)
    teacher = teacher_of(scorer.weights)[0] if config.uses_qgr else None
    frozen = compute_activations(
        model, labels, scorer.preprocess, teacher=teacher, flips=config.flips, dtype=torch.float32
    )
    start = {n: p.detach().clone() for n, p in model.named_parameters() if n in trained_names(model, config)}
    everything = np.arange(len(labels))
    return Training(
        model,
        start,
        frozen,
        labels.scale.to_unit(labels.scores),
        config,
        fold=None,
        rows=everything,
        held_out=everything[:0],
        plan=[(phase, phase.epochs) for phase in phases_of(model, config)],
        precision="float32",
    )


def straightforward(
    scorer: Scorer, labels: Labels, config: FewShotConfig, training: Training
) -> tuple[dict[str, Tensor], list[tuple[float, float | None]]]:
    """The same training without anything kept: images read, trunk and teacher run in every step, one forward and
    one backward pass for each loss.  Only the choice of images and crops is taken from `training`."""
    model = scorer.weights.build().requires_grad_(False)
    teacher, _ = teacher_of(scorer.weights)
    named, targets = dict(model.named_parameters()), labels.scale.to_unit(labels.scores)
    losses: list[tuple[float, float | None]] = []
    for phase in phases_of(model, config):
        parameters = {n: named[n].requires_grad_() for n in phase.names}
        if phase.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters.values(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters.values(), lr=1.0, weight_decay=config.weight_decay)
        steps = math.ceil(len(labels) / config.batch_size)
        for step in range(phase.epochs * steps):
            training._step = step
            images, crops = training._batch(phase)
            patches = []
            for image, chosen in zip(images, crops, strict=True):
                cut = make_patches(read_image(labels.paths[image]), scorer.preprocess)
                cut = torch.cat([cut, cut.flip(-1)]) if config.flips else cut
                patches.append(cut[chosen])
            x = torch.cat(patches)
            y = torch.tensor(targets, dtype=torch.float32)[images].repeat_interleave(crops.shape[1])
            quality = quality_loss(model.quality_logits(model.image(x), model.encode_quality()), y)
            g_qua = torch.autograd.grad(quality, list(parameters.values()), allow_unused=True)
            g = {n: v for n, v in zip(parameters, g_qua, strict=True) if v is not None}
            semantic = None
            if config.uses_qgr:
                with torch.no_grad():
                    p_sem = teacher.scene_logits(teacher.image(x)).softmax(-1)
                semantic = semantic_loss(model.scene_logits(model.image(x), model.encode_scenes()), p_sem)
                g_sem = torch.autograd.grad(semantic, list(parameters.values()), allow_unused=True)
                g, _ = project(g, dict(zip(parameters, g_sem, strict=True)), config.qgr_lambda, config.qgr_form)
            for group in optimizer.param_groups:
                group["lr"] = phase.rate(step, steps, config.warm_up_lr)
            for name, parameter in parameters.items():
                parameter.grad = g.get(name)
            optimizer.step()
            losses.append((quality.item(), None if semantic is None else semantic.item()))
        model.requires_grad_(False)
    return {n: named[n].detach() for n in trained_names(model, config)}, losses


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "sgd", "lr": 3e-2, "text_first_epochs": 0, "warm_up_epochs": 1},
        {"qgr_form": "global", "flips": True, "crops_per_step": 3},
        {"qgr_lambda": 0.0},
        {"train": "prompts", "text_first_epochs": 0, "optimizer": "sgd", "lr": 0.1},
    ],
    ids=lambda s: ",".join(s) or "default",
)
def test_cached_training_equals_the_straightforward_loop(
    scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Weights to 1e-5 and losses, in float32, with a batch in several parts."""
    monkeypatch.setattr(tuning, "CHUNK", 4)
    # Adam makes steps of gradients that are rounding noise; at 40 times the default rate they stay below 1e-5.
    config = dataclasses.replace(PLAIN, **{"lr": 2e-4, **settings})
    training = make_training(scorer, labels, config)
    start = training.tensors()
    rows = list(training.run())
    expected, losses = straightforward(scorer, labels, config, make_training(scorer, labels, config))
    tuned = training.tensors()
    assert farthest(tuned, start) > 5e-4
    for tensors in (tuned, expected):
        for name, value in tensors.items():
            if name.endswith("in_proj_bias"):
                # The softmax does not see a key bias: its gradient is rounding noise, which Adam makes into steps.
                value[len(value) // 3 : 2 * len(value) // 3] = 0
    assert farthest(tuned, expected) < 1e-5
    assert len(rows) == len(losses)
    for row, (quality, semantic) in zip(rows, losses, strict=True):
        assert row.loss == pytest.approx(quality, abs=1e-5)
        assert row.semantic_loss == (None if semantic is None else pytest.approx(semantic, abs=1e-5))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lambda_0_is_plain_tuning_bit_for_bit(scorer: Scorer, labels: Labels, optimizer: Any) -> None:
    """The weights of the last blocks equal those of torch's own backward pass and optimizer, to the last bit."""
    config = dataclasses.replace(
        PLAIN, qgr_lambda=0.0, text_first_epochs=0, optimizer=optimizer, batch_size=7, weight_decay=0.0
    )
    training = make_training(scorer, labels, config)
    model = copy.deepcopy(training.model)
    named = dict(model.named_parameters())
    parameters = [named[n].requires_grad_() for n in training.plan[0][0].names]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    extra = {"momentum": config.momentum} if optimizer == "sgd" else {}
    plain = kind(parameters, lr=1.0, weight_decay=0.0, **extra)
    tokens, phase = training.activations.tokens, training.plan[0][0]
    assert tokens is not None
    for step in range(training.steps):
        training._step = step
        images, crops = training._batch(phase)
        images, crops = images.repeat_interleave(crops.shape[1]), crops.flatten()
        features = model.image.head(tokens[images, crops])
        loss = quality_loss(model.quality_logits(features, model.encode_quality()), training.targets[images])
        plain.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in plain.param_groups:
            group["lr"] = phase.rate(step, training.steps_per_epoch(phase), config.warm_up_lr)
        plain.step()
    training._step = 0
    rows = list(training.run())
    assert all(row.semantic_loss is None and row.angle is None for row in rows)
    for name, value in training.tensors().items():
        assert torch.equal(value, named[name].detach()), name


def test_lambda_changes_the_weights(scorer: Scorer, labels: Labels) -> None:
    """QGR is at work by default, and its angle and loss are recorded."""
    results = {}
    for strength in (0.0, 1.0, 5.0):
        training = make_training(scorer, labels, dataclasses.replace(PLAIN, qgr_lambda=strength))
        rows = list(training.run())
        results[strength] = training.tensors()
        if strength:
            assert all(r.angle is not None and 0 <= r.angle <= 180 for r in rows)
            assert all(r.semantic_loss is not None and r.semantic_loss >= 0 for r in rows)
    assert farthest(results[0.0], results[1.0]) > 1e-4 and farthest(results[1.0], results[5.0]) > 1e-4


def test_text_first_leaves_the_image_tower(scorer: Scorer, labels: Labels) -> None:
    """Its parameters move in the second phase only."""
    training = make_training(scorer, labels, PLAIN)
    start = training.tensors()
    rows = training.run()
    for _ in range(training.steps_per_epoch(training.plan[0][0]) * 2):
        assert next(rows).phase == "text"
    middle = training.tensors()
    moved = {n for n in start if not torch.equal(start[n], middle[n])}
    assert moved == {n for n in start if not n.startswith("clip.visual.")}
    assert next(rows).phase == "all"
    assert all(not torch.equal(training.tensors()[n], middle[n]) for n in start if n.startswith("clip.visual."))


def test_the_learning_rate_warms_up_and_decays(scorer: Scorer, labels: Labels) -> None:
    """Constant for the warm-up, then half a cosine to nearly zero."""
    config = dataclasses.replace(PLAIN, epochs=5, warm_up_epochs=1, text_first_epochs=0, lr=1e-3, batch_size=18)
    rates = [row.learning_rate for row in make_training(scorer, labels, config).run()]
    expected = [1e-5] + [1e-3 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx(expected)
    tiny = dataclasses.replace(config, lr=1e-6)
    assert next(make_training(scorer, labels, tiny).run()).learning_rate == 1e-6


def test_only_the_visual_prompts_of_adapted_blocks_train(scorer: Scorer, labels: Labels) -> None:
    """Those of the frozen trunk stay bit for bit, weight decay or not."""
    for train in ("blocks", "prompts"):
        config = dataclasses.replace(
            PLAIN, train=train, train_visual_prompts=True, text_first_epochs=0, weight_decay=0.1
        )
        training = make_training(scorer, labels, config)
        before = training.tensors()["visual_prompts.tokens"]
        list(training.run())
        after = training.tensors()["visual_prompts.tokens"]
        assert torch.equal(before[:1], after[:1]) and training.model.image.trunk_blocks == 1
        assert bool((before[1:] != after[1:]).any(-1).all())


@pytest.mark.parametrize("broken", ["loss", "semantic", "gradient"])
def test_what_is_not_finite_names_fold_and_step(
    scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The parameters are still those before the step."""
    training = make_training(scorer, labels, PLAIN)
    training.fold = 2
    rows = training.run()
    for _ in range(3):
        next(rows)
    before, gradients = training.tensors(), training.gradients

    def spoil(*args: Any) -> Any:
        loss, semantic, g_qua, g_sem = gradients(*args)
        if broken == "gradient":
            g_qua["text_prompt.ctx"][0, 0] = float("inf")
        nan = float("nan")
        return nan if broken == "loss" else loss, nan if broken == "semantic" else semantic, g_qua, g_sem

    monkeypatch.setattr(training, "gradients", spoil)
    with pytest.raises(GrmpScoreError, match="not finite in fold 3, phase 'text', step 4"):
        next(rows)
    assert farthest(before, training.tensors()) == 0


# ------------------------------------------------------------------ a whole run


def test_a_run_learns_what_the_labels_say(scorer: Scorer, tmp_path: Path) -> None:
    """Brightness is learned from 30 pictures and found again in 10 others; loss and figures say so."""
    labels = make_labels(tmp_path / "more", 40)
    adapted = adapt(scorer, labels, dataclasses.replace(FAST, shots=30, epochs=14, lr=1e-2, crops_per_step=4))
    results = adapted.results
    assert results["measured_on"] == "test" and results["n_test"] == 10 and results["chosen"]["all"] > 0
    assert results["after"]["srcc"] > max(0.6, results["before"]["srcc"] + 0.3)
    assert results["cross_validation"]["srcc_mean"] > results["cross_validation"]["before"]["srcc_mean"]
    losses = [r.loss for r in adapted.history if r.fold is None and r.loss is not None]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.usefixtures("all_epochs")
def test_the_figures_are_what_scorers_give(scorer: Scorer, labels: Labels) -> None:
    """Before and after equal `evaluate` on the test rows, ridge a regression on the features of the shots."""
    adapted = adapt(scorer, labels, FAST)
    drawn, rest = draw_shots(labels.scores, 12, FAST.seed)
    test, shots = labels.take(rest), labels.take(drawn)
    for name, made in (("before", scorer), ("after", adapted.scorer)):
        overall = evaluate(made, test).overall.as_dict()
        for figure in ("n", "srcc", "krcc", "plcc", "rmse"):
            assert adapted.results[name][figure] == pytest.approx(overall[figure], abs=1e-5), (name, figure)
    predictions = adapted.test_predictions
    assert predictions is not None and predictions.labels.paths == test.paths
    values = [s.value for s in adapted.scorer.score_many(test.paths)]
    np.testing.assert_allclose(predictions.after, np.array(values, dtype=np.float64), atol=1e-6)

    def features(part: Labels) -> np.ndarray:
        cuts = [make_patches(read_image(p), scorer.preprocess) for p in part.paths]
        with torch.no_grad():
            return np.stack([scorer.model.image(c).mean(0).double().numpy() for c in cuts])

    scale = shots.scale
    ridge = fit_ridge(features(shots), scale.to_unit(shots.scores))
    np.testing.assert_allclose(predictions.ridge, ridge(features(test)), atol=1e-4)
    assert json.loads(json.dumps(adapted.results, allow_nan=False)) == adapted.results
    assert adapted.results["ridge"]["rmse"] > 0 and adapted.results["checked"] is None


def test_the_history_of_an_adapted_model_stays(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Adapted again and again, the weights keep how every step was made, oldest first, on the disk too."""
    quick = dataclasses.replace(PLAIN, epochs=1, text_first_epochs=0, train="prompts")
    stages, current = [], scorer
    for seed in range(3):
        current = adapt(current, labels, dataclasses.replace(quick, seed=seed)).scorer
        assert current.config.training.get("stage_2_earlier", []) == stages
        stages.append(current.config.training["stage_2"])
    assert [stage["seed"] for stage in stages] == [0, 1, 2]
    assert [stage["start"] for stage in stages] == ["tiny", "tiny-adapted", "tiny-adapted-adapted"]
    again = Scorer.from_pretrained(current.save_pretrained(tmp_path / "out"), device="cpu")
    assert again.config.training == current.config.training and "stage_2" not in scorer.config.training


@pytest.mark.usefixtures("all_epochs")
def test_the_new_weights_say_how_they_came_about(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Label scale of the training rows, provenance, results; saved and loaded they score the same."""
    adapted = adapt(scorer, labels, FAST)
    config = adapted.scorer.config
    shots = labels.take(draw_shots(labels.scores, 12, 0)[0])
    assert config.label_scale == shots.scale != labels.scale
    stage = config.training["stage_2"]
    assert stage["start"] == "tiny" and stage["shots"] == 12 and stage["seed"] == 0
    assert stage["settings"] == dataclasses.asdict(FAST) and stage["method"] == "fine-tuning with QGR"
    assert stage["teacher"] == "start model without visual prompts"
    assert config.results == adapted.results and config.name == "tiny-adapted"
    assert config.reference_percentiles == {}
    again = Scorer.from_pretrained(adapted.scorer.save_pretrained(tmp_path / "out"), device="cpu")
    assert again.config.results == adapted.results
    for path in labels.paths[:3]:
        assert again.score(path).patch_values == adapted.scorer.score(path).patch_values


def test_the_start_scorer_stays_as_it_was(scorer: Scorer, labels: Labels) -> None:
    """Tensors, configuration and scores."""
    state, config = copy.deepcopy(scorer.model.state_dict()), scorer.config
    score = scorer.score(labels.paths[0])
    adapted = adapt(scorer, labels, PLAIN)
    assert all(torch.equal(state[k], v) for k, v in scorer.model.state_dict().items())
    assert scorer.config == config and scorer.score(labels.paths[0]) == score
    assert not any(p.requires_grad for p in scorer.model.parameters())
    assert not any(p.requires_grad for p in adapted.scorer.model.parameters())
    assert changed(adapted, scorer) >= {"text_prompt.ctx", "text_features", "clip.visual.ln_post.weight"}
    assert not any("resblocks.0." in name for name in changed(adapted, scorer) if "visual" in name)


@pytest.mark.usefixtures("all_epochs")
def test_a_seed_fixes_everything(scorer: Scorer, labels: Labels) -> None:
    """The same seed gives the same bits, figures and history; another seed another draw."""
    one, two = adapt(scorer, labels, FAST), adapt(scorer, labels, FAST)
    assert checksum(one.scorer) == checksum(two.scorer) and one.results == two.results
    assert [dataclasses.replace(r, seconds=0) for r in one.history] == [
        dataclasses.replace(r, seconds=0) for r in two.history
    ]
    other = adapt(scorer, labels, dataclasses.replace(PLAIN, seed=1))
    assert checksum(other.scorer) != checksum(adapt(scorer, labels, PLAIN).scorer)


@pytest.mark.usefixtures("all_epochs")
def test_the_test_part_changes_nothing_but_figures(scorer: Scorer, labels: Labels) -> None:
    """With other test labels, other test images, or none, the weights and the cross-validation are the same."""
    drawn, rest = draw_shots(labels.scores, 12, 0)
    shots, test = labels.take(drawn), labels.take(rest)
    config = dataclasses.replace(FAST, shots=None)
    runs = [
        adapt(scorer, shots, config, test=part)
        for part in (test, dataclasses.replace(test, scores=test.scores[::-1].copy()), shots, None)
    ]
    assert len({checksum(run.scorer) for run in runs}) == 1
    assert all(run.results["cross_validation"] == runs[0].results["cross_validation"] for run in runs)
    assert runs[0].results["after"]["srcc"] != runs[1].results["after"]["srcc"]
    whole = adapt(scorer, labels, FAST)
    assert checksum(whole.scorer) == checksum(runs[0].scorer) and whole.results["after"] == runs[0].results["after"]


@pytest.mark.usefixtures("all_epochs")
def test_the_test_part_is_read_at_the_end(scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test image is opened before the last step, and each is opened once."""
    events: list[str] = []
    original = measure.read_ahead

    def watched(paths: Any, *args: Any) -> Any:
        events.append(f"test x{len(paths)}")
        return original(paths, *args)

    monkeypatch.setattr(measure, "read_ahead", watched)
    adapt(scorer, labels, FAST, progress=lambda p: events.append(p.stage))
    assert events.count("test x6") == 1
    assert set(events[: events.index("test x6")]) == {"reading", "cross-validation", "training"}
    assert set(events[events.index("test x6") + 1 :]) == {"testing"}


@pytest.mark.usefixtures("all_epochs")
def test_progress_counts_to_its_end(scorer: Scorer, labels: Labels) -> None:
    """Every stage rises by ones to its total; rows come with the stages that take steps."""
    seen: dict[str, list[Progress]] = {}
    config = dataclasses.replace(FAST, checkpoint_seconds=1e-9)
    adapted = adapt(scorer, labels, config, progress=lambda p: seen.setdefault(p.stage, []).append(p))
    assert list(seen) == ["reading", "cross-validation", "training", "testing"]
    for stage, reports in seen.items():
        done = [p.done for p in reports if p.row is None or p.row.loss is not None]
        assert done == list(range(1, len(done) + 1))
        assert reports[-1].done == reports[-1].total
        assert all((p.row is not None) == (stage in ("cross-validation", "training")) for p in reports)
    chosen = adapted.results["chosen"]
    assert seen["training"][-1].total == 3 * (chosen["text"] + chosen["all"])


def test_the_history_tells_every_step_once(scorer: Scorer, labels: Labels) -> None:
    """Per fold and phase: steps in order, a look before the first and after every epoch; the final run at last."""
    rows = adapt(scorer, labels, FAST).history
    for fold in (0, 1):
        for phase in ("text", "all"):
            part = [r for r in rows if r.fold == fold and r.phase == phase]
            assert [r.step for r in part if r.loss is not None] == [1, 2, 3, 4]
            assert [(r.epoch, r.step) for r in part if r.validation_srcc is not None] == [(0, 0), (1, 2), (2, 4)]
    assert all(r.validation_srcc is None for r in rows if r.fold is None)
    seconds = [r.seconds for r in rows if r.fold == 0]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert len({(r.fold, r.phase, r.step, r.loss is None) for r in rows}) == len(rows)


def test_epochs_are_chosen_by_the_folds(scorer: Scorer, labels: Labels) -> None:
    """The mean curve's best epoch is trained, as the history of the folds says."""
    adapted = adapt(scorer, labels, FAST)
    curves, chosen = adapted.results["cross_validation"]["curves"], adapted.results["chosen"]
    for phase in ("text", "all"):
        looks = [
            [r.validation_srcc for r in adapted.history if r.fold == f and r.phase == phase and r.loss is None]
            for f in (0, 1)
        ]
        np.testing.assert_allclose(curves[phase], np.mean(np.array(looks, dtype=float), axis=0))
        assert chosen[phase] == int(np.argmax(curves[phase]))
        final = [r for r in adapted.history if r.fold is None and r.phase == phase]
        assert len(final) == chosen[phase] * 3
    assert curves["all"][0] == pytest.approx(curves["text"][chosen["text"]])
    assert adapted.results["cross_validation"]["srcc_mean"] == pytest.approx(max(curves["all"]))


def test_without_test_rows_the_folds_are_measured(scorer: Scorer, labels: Labels) -> None:
    """Out-of-fold predictions for all shots, each by a training that did not see it."""
    config = dataclasses.replace(FAST, shots=None)
    adapted = adapt(scorer, labels, config)
    results, predictions = adapted.results, adapted.test_predictions
    assert results["measured_on"] == "cross-validation" and results["n_test"] == 0 and predictions is not None
    assert predictions.labels.paths == labels.paths and results["after"]["n"] == len(labels)
    assert results["before"]["srcc"] == pytest.approx(evaluate(scorer, labels).overall.srcc, abs=1e-6)
    first = make_folds(labels, 2, config.seed)[0]
    training = make_training(scorer, labels, config)
    fold_training = Training(
        training.model,
        training.tensors(),
        training.activations,
        first.targets,
        config,
        fold=0,
        rows=first.rows,
        held_out=first.held_out,
        plan=[(phase, results["chosen"][phase.name]) for phase, _ in training.plan],
        precision="float32",
    )
    list(fold_training.run())
    expected = first.scale.to_label(np.array(fold_training.curves["all"][-1]))
    np.testing.assert_allclose(labels.scale.to_label(predictions.after[first.held_out]), expected, atol=1e-5)


def test_without_folds_and_test_rows_nothing_is_claimed(scorer: Scorer, labels: Labels) -> None:
    """All epochs are trained, and there are no figures."""
    adapted = adapt(scorer, labels, dataclasses.replace(PLAIN, shots=None))
    results = adapted.results
    assert results["measured_on"] is None and adapted.test_predictions is None
    assert results["before"] is results["ridge"] is results["after"] is results["cross_validation"] is None
    assert results["chosen"] == {"text": 2, "all": 2}


def test_rows_too_few_for_figures_are_not_a_test_part(scorer: Scorer, labels: Labels) -> None:
    """Four rows left: the cross-validation is measured instead."""
    assert adapt(scorer, labels, dataclasses.replace(FAST, shots=14)).results["measured_on"] == "cross-validation"
    assert adapt(scorer, labels, dataclasses.replace(FAST, shots=13)).results["n_test"] == 5


def test_lower_may_be_better(scorer: Scorer, labels: Labels) -> None:
    """Mirrored labels give the same weights and correlations, and a scale that says so."""
    mirrored = dataclasses.replace(labels, scores=20 - labels.scores, higher_is_better=False)
    drawn = draw_shots(labels.scores, 12, 0)[0]
    rest = np.setdiff1d(np.arange(18), drawn)
    config = dataclasses.replace(PLAIN, shots=None)
    one, other = (adapt(scorer, part.take(drawn), config, test=part.take(rest)) for part in (labels, mirrored))
    assert farthest(dict(one.scorer.weights.adapter), dict(other.scorer.weights.adapter)) < 1e-4
    for name in ("before", "ridge", "after"):
        assert one.results[name]["srcc"] == pytest.approx(other.results[name]["srcc"], abs=1e-6)
    scale = other.scorer.config.label_scale
    assert isinstance(scale, LabelScale) and not scale.higher_is_better


def test_a_test_image_that_cannot_be_read_is_left_out(scorer: Scorer, labels: Labels) -> None:
    """It is named in the results; the others are measured."""
    rest = draw_shots(labels.scores, 12, 0)[1]
    labels.paths[rest[2]].write_bytes(b"no image")
    adapted = adapt(scorer, labels, PLAIN)
    assert adapted.results["n_test"] == adapted.results["after"]["n"] == 5
    (unscored,) = adapted.results["unscored"]
    assert unscored["path"] == labels.paths[rest[2]].name and unscored["row"] == labels.rows[rest[2]]
    assert adapted.test_predictions is not None and len(adapted.test_predictions.labels) == 5


@pytest.mark.parametrize("tolerance", [1.0, 1e-9])
def test_bfloat16_figures_are_checked(
    scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch, tolerance: float
) -> None:
    """Scores off float32's by more than the tolerance are all computed in float32 instead."""
    monkeypatch.setattr(measure, "TOLERANCE", tolerance)
    monkeypatch.setattr(measure, "CHECKED", 3)
    config = dataclasses.replace(PLAIN, precision="bfloat16")
    adapted = adapt(scorer, labels, config)
    assert adapted.results["precision"] == "bfloat16" and adapted.test_predictions is not None
    values = [s.value for s in adapted.scorer.score_many(adapted.test_predictions.labels.paths)]
    difference = float(np.abs(adapted.test_predictions.after - np.array(values, dtype=np.float64)).max())
    if tolerance < 1e-6:
        assert adapted.results["measured_in"] == "float32" and adapted.results["checked"] is None
        assert difference < 1e-6
    else:
        assert adapted.results["measured_in"] == "bfloat16"
        assert 1e-6 < difference < 0.02 and 0 < adapted.results["checked"] < 0.02


def test_a_prompts_adapter_is_small(tiny_config: ModelConfig, labels: Labels) -> None:
    """Only the context and the stored text features change; with a pristine start it is all there is."""
    tuned = random_weights(tiny_config)
    base = {**dict(tuned.backbone), **{k[5:]: v for k, v in tuned.adapter.items() if k.startswith("clip.")}}  # type: ignore[arg-type]
    small = {k: v for k, v in tuned.adapter.items() if not k.startswith("clip.")}
    start = make_scorer(dataclasses.replace(tuned, backbone=base, adapter=small))
    config = dataclasses.replace(PLAIN, train="prompts", text_first_epochs=0, lr=1e-2)
    adapted = adapt(start, labels, config)
    assert changed(adapted, start) == {"text_prompt.ctx", "text_features"}
    assert set(adapted.scorer.weights.adapter) == set(small)
    assert adapted.scorer.config.training["stage_2"]["trained_parameters"] == 4 * 32
    assert adapted.scorer.config.training["stage_2"]["teacher"] is None
    bigger = adapt(make_scorer(tuned), labels, config)  # big tensors of the start's own adapter stay in it
    assert set(bigger.scorer.weights.adapter) == set(tuned.adapter)


def test_crops_and_precision_of_the_cache_are_settings(scorer: Scorer, labels: Labels) -> None:
    """More crops in training do not change how the new scorer cuts images."""
    config = dataclasses.replace(PLAIN, crops_per_image=6, cache_dtype="float16", cache_bytes=0, flips=True)
    adapted = adapt(scorer, labels, config)
    assert adapted.scorer.preprocess == scorer.preprocess
    in_memory = adapt(scorer, labels, dataclasses.replace(config, cache_bytes=2**30))
    assert checksum(adapted.scorer) == checksum(in_memory.scorer)


def test_the_scorers_own_number_of_patches_is_kept(tiny_weights: Weights, labels: Labels) -> None:
    """A scorer made with another number trains, measures and saves with that."""
    start = Scorer(tiny_weights, device="cpu", patches=2)
    adapted = adapt(start, labels, PLAIN)
    assert adapted.scorer.preprocess == start.preprocess == adapted.scorer.config.preprocess
    assert adapted.results["before"]["srcc"] == pytest.approx(
        evaluate(start, labels.take(draw_shots(labels.scores, 12, 0)[1])).overall.srcc
    )


# ------------------------------------------------------------- stopped and resumed


class Stop(Exception):
    """Raised by a progress callback."""


def stopping_at(step: int, kind: type[BaseException] = Stop) -> Callable[[Progress], None]:
    """A progress callback that raises at its n-th report of a step or look."""
    seen = 0

    def report(progress: Progress) -> None:
        nonlocal seen
        seen += progress.row is not None
        if seen == step and progress.row is not None:
            raise kind

    return report


@pytest.mark.usefixtures("all_epochs")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    scorer: Scorer, labels: Labels, tmp_path: Path, optimizer: Any
) -> None:
    """Stopped in either phase of any fold or of the final run, also several times, it ends in the same bits."""
    config = dataclasses.replace(FAST, optimizer=optimizer)
    whole = adapt(scorer, labels, config)
    folds = 2 * (3 + 4) + 2 * (3 + 4) * 2  # looks and steps
    for stops in ((1,), (13, 4), (30, 2), (folds - 3, 5), (folds + 2,), (folds + 12,)):
        work = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(Stop):
                adapt(scorer, labels, config, work=work, resume=True, progress=stopping_at(stop))
        done: list[Progress] = []
        resumed = adapt(scorer, labels, config, work=work, resume=True, progress=done.append)
        assert checksum(resumed.scorer) == checksum(whole.scorer)
        assert resumed.results == whole.results
        assert [dataclasses.replace(r, seconds=0) for r in resumed.history] == [
            dataclasses.replace(r, seconds=0) for r in whole.history
        ]
        assert [p.name for p in work.iterdir()] == [CHECKPOINT]


@pytest.mark.usefixtures("all_epochs")
def test_a_kill_between_checkpoints_costs_only_time(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """From a checkpoint older than the moment of the stop the same bits come out."""
    whole = adapt(scorer, labels, FAST)
    copies: list[bytes] = []

    def keep(progress: Progress) -> None:
        if progress.row is not None and (tmp_path / "work" / CHECKPOINT).is_file():
            copies.append((tmp_path / "work" / CHECKPOINT).read_bytes())

    config = dataclasses.replace(FAST, checkpoint_seconds=1e-9)
    adapt(scorer, labels, config, work=tmp_path / "work", progress=keep)
    distinct = list(dict.fromkeys(copies))
    assert len(distinct) > 20
    for content in distinct[::9]:
        (tmp_path / "work" / CHECKPOINT).write_bytes(content)
        again = adapt(scorer, labels, config, work=tmp_path / "work", resume=True)
        assert checksum(again.scorer) == checksum(whole.scorer)


@pytest.mark.usefixtures("all_epochs")
def test_ctrl_c_leaves_a_checkpoint(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """The interrupt reaches the caller; what was done is kept, and a finished run resumes to the same."""
    with pytest.raises(KeyboardInterrupt):
        adapt(scorer, labels, FAST, work=tmp_path, progress=stopping_at(20, KeyboardInterrupt))
    assert (tmp_path / CHECKPOINT).is_file()
    rows: list[Progress] = []
    resumed = adapt(scorer, labels, FAST, work=tmp_path, resume=True, progress=rows.append)
    steps = [p for p in rows if p.row is not None]
    whole: list[Progress] = []
    once_more = adapt(scorer, labels, FAST, work=tmp_path, resume=True, progress=whole.append)
    assert len(steps) > 0 and not [p for p in whole if p.row is not None]
    assert checksum(once_more.scorer) == checksum(resumed.scorer) and once_more.results == resumed.results


def test_a_step_that_was_cut_in_two_is_not_saved(
    scorer: Scorer, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while parameters are being changed leaves the checkpoint before."""
    whole = adapt(scorer, labels, PLAIN)
    step, calls = torch.optim.AdamW.step, 0

    def interrupted(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(7.0)
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapt(scorer, labels, dataclasses.replace(PLAIN, checkpoint_seconds=1e-9), work=tmp_path)
    resumed = adapt(scorer, labels, PLAIN, work=tmp_path, resume=True)
    assert checksum(resumed.scorer) == checksum(whole.scorer)


SCRIPT_CONFIG = dataclasses.replace(FAST, checkpoint_seconds=1e-9)
SCRIPT = """
    import os, signal, sys, torch
    from pathlib import Path
    torch.set_num_threads(1)
    from grmp_score.scorer import Scorer
    from grmp_score.trainer.adapt import crossval
    from grmp_score.trainer.adapt.run import FewShotConfig, adapt
    from grmp_score.trainer.data.labels import read_labels

    original = crossval.best_epoch
    crossval.best_epoch = lambda curves, t: (len(curves[0]) - 1, original(curves, t)[1])
    folder, stop = Path(sys.argv[1]), int(sys.argv[2])
    seen = 0

    def report(progress):
        global seen
        seen += progress.row is not None
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    scorer = Scorer.from_pretrained(folder / "start", device="cpu")
    labels = read_labels(folder / "pictures" / "labels.csv")
    config = FewShotConfig(%s)
    adapted = adapt(scorer, labels, config, work=folder / "work", resume=True, progress=report)
    adapted.scorer.save_pretrained(folder / "work" / "out")
""" % ", ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(SCRIPT_CONFIG).items())  # noqa: UP031


@pytest.mark.usefixtures("all_epochs")
def test_kill_9_and_resume(scorer: Scorer, labels: Labels, tmp_path: Path, warm: Warm) -> None:
    """A process killed three times without warning ends with the same weights as a run left alone."""
    scorer.save_pretrained(tmp_path / "start")
    lines = [f"{p.name},{s!r}" for p, s in zip(labels.paths, labels.scores.tolist(), strict=True)]
    labels.source.write_text("\n".join(["image,mos", *lines]) + "\n")
    for stop in [*np.random.default_rng(0).integers(8, 22, size=3).tolist(), -1]:
        done = warm.run(textwrap.dedent(SCRIPT), tmp_path, str(stop))
        assert done.returncode == (0 if stop < 0 else -signal.SIGKILL)
    killed = Scorer.from_pretrained(tmp_path / "work" / "out", device="cpu")
    start = Scorer.from_pretrained(tmp_path / "start", device="cpu")
    quiet = adapt(start, read_labels(labels.source), SCRIPT_CONFIG)
    assert checksum(killed) == checksum(quiet.scorer) != checksum(start)
    assert killed.config.results == quiet.results


@pytest.mark.parametrize("what", ["settings", "labels", "weights", "precision"])
def test_a_checkpoint_of_another_run_is_refused(
    scorer: Scorer, labels: Labels, tiny_config: ModelConfig, tmp_path: Path, what: str
) -> None:
    """The error names what differs; settings that do not matter may differ."""
    with pytest.raises(Stop):
        adapt(scorer, labels, FAST, work=tmp_path, progress=stopping_at(3))
    config, words = FAST, what
    if what == "settings":
        config, words = dataclasses.replace(FAST, lr=2e-3, batch_size=6), "batch_size, lr"
    elif what == "labels":
        labels = dataclasses.replace(labels, scores=labels.scores * 2)
    elif what == "weights":
        scorer = make_scorer(random_weights(tiny_config, seed=3))
    else:
        config = dataclasses.replace(FAST, precision="bfloat16")
    with pytest.raises(ConfigError, match=f"other {words}") as caught:
        adapt(scorer, labels, config, work=tmp_path, resume=True)
    assert caught.value.path == str(tmp_path / CHECKPOINT)


def test_idle_settings_may_differ(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Where the cache lies and how often is saved do not matter to a checkpoint; without resume it is replaced."""
    with pytest.raises(Stop):
        adapt(scorer, labels, PLAIN, work=tmp_path, progress=stopping_at(3))
    other = dataclasses.replace(PLAIN, cache_bytes=0, checkpoint_seconds=5)
    resumed = adapt(scorer, labels, other, work=tmp_path, resume=True)
    anew = adapt(scorer, labels, dataclasses.replace(PLAIN, lr=2e-3), work=tmp_path)
    assert checksum(resumed.scorer) == checksum(adapt(scorer, labels, PLAIN).scorer) != checksum(anew.scorer)


def test_a_spoilt_checkpoint_is_an_error(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """One line with the file."""
    for content in (b"", b"no checkpoint", b"PK\x03\x04 half a zip"):
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(ConfigError, match="not a readable checkpoint"):
            adapt(scorer, labels, PLAIN, work=tmp_path, resume=True)


def test_after_nan_the_last_good_checkpoint_stays(
    scorer: Scorer, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is not saved over it."""
    config = dataclasses.replace(PLAIN, checkpoint_seconds=1e-9)
    with pytest.raises(Stop):
        adapt(scorer, labels, config, work=tmp_path, progress=stopping_at(4))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(tuning, "quality_loss", lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(GrmpScoreError, match="not finite in the final run, phase 'text', step 5"):
        adapt(scorer, labels, config, work=tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


# --------------------------------------------------------------- mistakes, small parts


@pytest.mark.parametrize(
    "settings",
    [
        {"shots": 1},
        {"seed": -1},
        {"epochs": -1},
        {"epochs": 0, "head_first": False, "train": "blocks"},
        {"train": "prompts", "epochs": 0},
        {"train": "head", "text_first_epochs": 2},
        {"batch_size": 0},
        {"crops_per_image": 0},
        {"crops_per_step": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"text_first_lr": -1.0},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"qgr_lambda": -1.0},
        {"qgr_lambda": float("inf")},
        {"folds": 1},
        {"checkpoint_seconds": 0.0},
        {"train": "prompts", "text_first_epochs": 3},
        {"train": "everything"},
        {"optimizer": "adam"},
        {"precision": "float16"},
        {"qgr_form": "local"},
        {"cache_dtype": "int8"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """With the name of the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings)) if "train" not in settings else "train|text"):
        FewShotConfig(**settings)


def test_too_few_labels_are_said(scorer: Scorer, labels: Labels) -> None:
    """For the draw, for the folds, and scores that are all equal."""
    with pytest.raises(DataError, match="cannot draw 40 training rows from 18"):
        adapt(scorer, labels, dataclasses.replace(FAST, shots=40))
    with pytest.raises(DataError, match="3 training rows are too few for cross-validation"):
        adapt(scorer, labels, dataclasses.replace(FAST, shots=3))
    same = dataclasses.replace(labels, scores=np.full(18, 2.5))
    with pytest.raises(DataError, match=r"all 12 scores to train on are 2\.5"):
        adapt(scorer, same, PLAIN)


def test_resume_needs_a_folder(scorer: Scorer, labels: Labels) -> None:
    """There is nothing to continue from."""
    with pytest.raises(ConfigError, match="no checkpoint"):
        adapt(scorer, labels, FAST, resume=True)


def test_the_best_epoch_is_the_earliest_of_equals() -> None:
    """Means over folds; constant predictions count as uncorrelated."""
    targets = [np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0])]
    up, down, flat = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5, 0.5, 0.5]
    assert best_epoch([[down, up, up], [down, up, up]], targets) == (1, [-1.0, 1.0, 1.0])
    assert best_epoch([[flat, up], [flat, down]], targets) == (0, [0.0, 0.0])
    assert best_epoch([[up, flat], [flat, up]], targets)[1] == [0.5, 0.5]


def test_steps_to_come_count_repeated_phases(scorer: Scorer, labels: Labels) -> None:
    """Folds of 6 and batches of 5: two steps an epoch; the second phase repeats the first as settled."""
    parts = make_folds(labels.take(range(12)), 2, 0)
    phases = phases_of(scorer.model, dataclasses.replace(FAST, text_first_epochs=3, epochs=4))
    assert steps_to_come(parts, phases, [], 5) == 4 * (3 + 3 + 4)
    assert steps_to_come(parts, phases, [(phases[0], 1)], 5) == 4 * (3 + 1 + 4)


def test_history_rows_are_plain_data() -> None:
    """They go through JSON and back, as the checkpoint needs."""
    row = HistoryRow(None, "all", 1, 2, 0.5, 0.1, 90.0, None, 1e-3, 2.0)
    assert HistoryRow(**json.loads(json.dumps(dataclasses.asdict(row)))) == row
    assert srcc([1, 2, 3], [1, 2, 3]) == 1.0


def test_visual_prompts_that_are_not_there_cannot_train(tiny_config: ModelConfig, labels: Labels) -> None:
    """The library says so before anything is read."""
    prompts = dataclasses.replace(tiny_config.prompts, n_visual=0)
    bare = Scorer(random_weights(dataclasses.replace(tiny_config, prompts=prompts)), device="cpu")
    for train in ("blocks", "prompts"):
        config = FewShotConfig(train=train, train_visual_prompts=True, text_first_epochs=0)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="'tiny' has no visual prompts to train") as caught:
            adapt(bare, labels, config)
        assert "Turn it off" in str(caught.value.hint)
