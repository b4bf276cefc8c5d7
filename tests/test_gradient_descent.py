"""Gradient descent from kept activations: the weights are those of the straightforward loop."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, TrainingDivergedError
from grmp_score.images.read import read_image
from grmp_score.model.patches import make_patches
from grmp_score.model.quality_clip import quality_loss
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import FewShotConfig, adapt, gradient_descent
from grmp_score.trainer.adapt.features import CropReader, compute_activations, teacher_of
from grmp_score.trainer.adapt.folds import all_rows
from grmp_score.trainer.adapt.gradient_descent import GradientDescent
from grmp_score.trainer.adapt.optimizer import stages_of
from grmp_score.trainer.adapt.parameters import trained_names, values_of
from grmp_score.trainer.adapt.qgr import project, semantic_loss
from grmp_score.trainer.data.labels import Labels
from grmp_score.weights.folder import Weights

from .conftest import random_weights
from .fewshot_data import PLAIN, farthest, make_labels, make_scorer


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Eighteen pictures."""
    return make_labels(tmp_path / "pictures", 18)


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """The tiny model."""
    return make_scorer(tiny_weights)


def make_training(scorer: Scorer, labels: Labels, config: FewShotConfig) -> GradientDescent:
    """A training on all these labels, with the activations kept in float32."""
    model = scorer.weights.build().requires_grad_(False)
    teacher = teacher_of(scorer.weights)[0] if config.uses_qgr else None
    kept = compute_activations(
        model, labels, CropReader(scorer.preprocess), teacher=teacher, flips=config.flips, dtype=torch.float32
    )
    start = values_of(model, trained_names(model, config))
    stages = stages_of(model, config)
    return GradientDescent(model, start, kept, all_rows(labels), stages, config, precision="float32")


def straightforward(
    scorer: Scorer, labels: Labels, config: FewShotConfig, training: GradientDescent
) -> tuple[dict[str, Tensor], list[tuple[float, float | None]]]:
    """The same training without anything kept: images read, trunk and teacher run in every step, one forward and
    one backward pass for each loss.  Only the choice of images and crops is taken from `training`."""
    model = scorer.weights.build().requires_grad_(False)
    teacher, _ = teacher_of(scorer.weights)
    named, targets = dict(model.named_parameters()), labels.scale.to_unit(labels.scores)
    losses: list[tuple[float, float | None]] = []
    for stage in stages_of(model, config):
        parameters = {n: named[n].requires_grad_() for n in stage.names}
        if stage.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters.values(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(parameters.values(), lr=1.0, weight_decay=config.weight_decay)
        steps = math.ceil(len(labels) / config.batch_size)
        for step in range(stage.epochs * steps):
            images, crops = training.batch(stage, step)
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
                g, *_ = project(g, dict(zip(parameters, g_sem, strict=True)), config.qgr_lambda, config.qgr_form)
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(step, steps)
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
    monkeypatch.setattr(gradient_descent, "CHUNK", 4)
    # Adam makes steps of gradients that are rounding noise; at 40 times the default rate they stay below 1e-5.
    config = dataclasses.replace(PLAIN, **{"lr": 2e-4, **settings})
    training = make_training(scorer, labels, config)
    start = training.values()
    rows = list(training.run())
    expected, losses = straightforward(scorer, labels, config, make_training(scorer, labels, config))
    tuned = training.values()
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
    parameters = [named[n].requires_grad_() for n in training.stages[0].names]
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    extra = {"momentum": config.momentum} if optimizer == "sgd" else {}
    plain = kind(parameters, lr=1.0, weight_decay=0.0, **extra)
    tokens, (stage,) = training.activations.tokens, training.stages
    assert tokens is not None
    for step in range(config.epochs * training.steps_per_epoch):
        images, crops = training.batch(stage, step)
        images, crops = images.repeat_interleave(crops.shape[1]), crops.flatten()
        features = model.image.head(tokens[images, crops])
        loss = quality_loss(model.quality_logits(features, model.encode_quality()), training.targets[images])
        plain.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in plain.param_groups:
            group["lr"] = stage.learning_rate(step, training.steps_per_epoch)
        plain.step()
    rows = list(training.run())
    assert all(row.semantic_loss is None and row.angle is None for row in rows)
    for name, value in training.values().items():
        assert torch.equal(value, named[name].detach()), name


def test_lambda_changes_the_weights(scorer: Scorer, labels: Labels) -> None:
    """QGR is at work by default, and its angle and loss are recorded."""
    results = {}
    for strength in (0.0, 1.0, 5.0):
        training = make_training(scorer, labels, dataclasses.replace(PLAIN, qgr_lambda=strength))
        rows = list(training.run())
        results[strength] = training.values()
        if strength:
            assert all(r.angle is not None and 0 <= r.angle <= 180 for r in rows)
            assert all(r.semantic_loss is not None and r.semantic_loss >= 0 for r in rows)
    assert farthest(results[0.0], results[1.0]) > 1e-4 and farthest(results[1.0], results[5.0]) > 1e-4


def test_text_first_leaves_the_image_tower(scorer: Scorer, labels: Labels) -> None:
    """Its parameters move in the second stage only."""
    training = make_training(scorer, labels, PLAIN)
    start = training.values()
    rows = training.run()
    for _ in range(training.steps_per_epoch * 2):
        assert next(rows).phase == "text"
    middle = training.values()
    moved = {n for n in start if not torch.equal(start[n], middle[n])}
    assert moved == {n for n in start if not n.startswith("clip.visual.")}
    assert next(rows).phase == "all"
    assert all(not torch.equal(training.values()[n], middle[n]) for n in start if n.startswith("clip.visual."))


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
        before = training.values()["visual_prompts.tokens"]
        list(training.run())
        after = training.values()["visual_prompts.tokens"]
        assert torch.equal(before[:1], after[:1]) and training.model.image.trunk_blocks == 1
        assert bool((before[1:] != after[1:]).any(-1).all())


@pytest.mark.parametrize("broken", ["loss", "semantic", "gradient"])
def test_what_is_not_finite_names_fold_and_step(
    scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The parameters are still those before the step."""
    training = make_training(scorer, labels, PLAIN)
    training.fold.number = 2
    rows = training.run()
    for _ in range(3):
        next(rows)
    before, gradients = training.values(), training.gradients

    def spoil(*args: Any) -> Any:
        loss, semantic, g_qua, g_sem = gradients(*args)
        if broken == "gradient":
            g_qua["text_prompt.ctx"][0, 0] = float("inf")
        nan = float("nan")
        return nan if broken == "loss" else loss, nan if broken == "semantic" else semantic, g_qua, g_sem

    monkeypatch.setattr(training, "gradients", spoil)
    with pytest.raises(TrainingDivergedError, match="not finite in fold 3, phase 'text', step 4"):
        next(rows)
    assert farthest(before, training.values()) == 0


def test_visual_prompts_that_are_not_there_cannot_train(tiny_config: ModelConfig, labels: Labels) -> None:
    """The library says so before anything is read."""
    prompts = dataclasses.replace(tiny_config.prompts, n_visual=0)
    bare = Scorer(random_weights(dataclasses.replace(tiny_config, prompts=prompts)), device="cpu")
    for train in ("blocks", "prompts"):
        config = FewShotConfig(train=train, train_visual_prompts=True, text_first_epochs=0)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="'tiny' has no visual prompts to train") as caught:
            adapt(bare, labels, config)
        assert "Turn it off" in str(caught.value.hint)
