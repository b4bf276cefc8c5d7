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
from grmp_score.model.quality_clip import quality_loss
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import FewShotConfig, adapt, gradient_descent
from grmp_score.trainer.adapt.features import CropReader, compute_activations, teacher_of
from grmp_score.trainer.adapt.folds import all_rows
from grmp_score.trainer.adapt.gradient_descent import GradientDescent
from grmp_score.trainer.adapt.optimizer import plateaus, stages_of
from grmp_score.trainer.adapt.parameters import trained_names, values_of
from grmp_score.trainer.adapt.qgr import NOISE, project, semantic_loss
from grmp_score.trainer.data.labels import Labels
from grmp_score.weights.folder import Weights

from .conftest import patch_tensor, random_weights
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
                cut = patch_tensor(read_image(labels.paths[image]), scorer.preprocess)
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


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_the_other_schedules(scorer: Scorer, labels: Labels, schedule: Any) -> None:
    """One stays; the other falls to three tenths after ten epochs whose loss was not the least."""
    config = dataclasses.replace(
        PLAIN,
        epochs=30,
        text_first_epochs=0,
        batch_size=9,
        crops_per_step=4,
        lr=1e-30,
        schedule=schedule,
        qgr_lambda=0.0,
    )
    rates = [row.learning_rate for row in make_training(scorer, labels, config).run()]
    stays = [1e-30] * 60
    # Nothing moves, and every crop is used, so the loss of all epochs is the same.
    falls = [1e-30] * 22 + [0.3e-30] * 20 + [0.09e-30] * 18
    assert rates == pytest.approx(stays if schedule == "constant" else falls)


def test_a_plateau_is_ten_epochs_without_a_new_least_loss() -> None:
    """Of whole epochs of two steps each; a fall by less than a ten-thousandth is none."""
    falling = [1.0 - 0.01 * i for i in range(40)]
    assert plateaus(falling, 2) == 0
    assert plateaus([1.0] * 21, 2) == 0 and plateaus([1.0] * 22, 2) == 1 and plateaus([1.0] * 42, 2) == 2
    assert plateaus([1.0, 1.0] + [1 - 5e-5] * 20, 2) == 1
    assert plateaus([1.0] * 20 + [0.9, 0.9] + [1.0] * 18, 2) == 0


def test_every_image_comes_up_as_often_as_asked_for(scorer: Scorer, labels: Labels) -> None:
    """Ten times in an epoch, in random order, with a crop each time."""
    config = dataclasses.replace(PLAIN, crops_per_epoch=10, crops_per_step=1, text_first_epochs=0, batch_size=7)
    training = make_training(scorer, labels, config)
    assert training.steps_per_epoch == 26  # 180 in batches of 7
    for epoch in range(2):
        batches = [training.batch(training.stages[0], 26 * epoch + step) for step in range(26)]
        images = torch.cat([images for images, _ in batches])
        assert torch.equal(images.bincount(), torch.full((18,), 10))
        assert {crops.shape[1] for _, crops in batches} == {1}
        assert set(torch.cat([crops for _, crops in batches]).flatten().tolist()) == {0, 1, 2, 3}


def test_visual_prompts_drop_out_in_steps_alone(scorer: Scorer, labels: Labels) -> None:
    """Drawn anew in every step, the same for the same seed; predictions and the text side first are without."""
    config = dataclasses.replace(PLAIN, prompt_dropout=0.5)
    training, again, without = (
        make_training(scorer, labels, dataclasses.replace(config, prompt_dropout=rate)) for rate in (0.5, 0.5, 0.0)
    )
    losses = [[row.loss for row in t.run()] for t in (training, again, without)]
    text = 2 * training.steps_per_epoch
    assert losses[0] == losses[1] and losses[0][:text] == losses[2][:text] and losses[0][text] != losses[2][text]
    still = dataclasses.replace(config, text_first_epochs=0, lr=1e-30, batch_size=18, crops_per_step=4, epochs=3)
    found = {row.loss for row in make_training(scorer, labels, still).run()}  # the same crops in every step
    assert len(found) == 3 and max(found) - min(found) > 1e-3  # type: ignore[type-var, operator]
    prompts = training.model.visual_prompts
    assert prompts is not None and not prompts.training and prompts.dropout.p == 0.1


def test_a_share_of_the_tokens_is_drawn_anew_in_every_step(scorer: Scorer, labels: Labels) -> None:
    """CLS and as many image tokens as asked for; all tokens where nothing is asked for, and at looks."""
    config = dataclasses.replace(PLAIN, train="blocks", text_first_epochs=0, token_share=0.5)
    training = make_training(scorer, labels, config)
    stage, tokens = training.stages[-1], training.activations.tokens
    assert tokens is not None
    drawn = [training._kept_tokens(stage, number) for number in (0, 0, 1)]
    assert all(kept is not None and kept[0] == 0 for kept in drawn)
    share = 1 + round((tokens.shape[2] - 1) / 2)
    assert [len(kept) for kept in drawn if kept is not None] == [share] * 3
    seen: list[int] = []
    head = training.model.image.head
    training.model.image.head = lambda x: (seen.append(x.shape[1]), head(x))[1]  # type: ignore[method-assign,func-returns-value]
    images, crops = training.batch(stage, 0)
    training.gradients(stage, images, crops)
    training._features(images[:1], crops[0, :1], changed=True)
    assert seen[:-1] == [share] * (len(seen) - 1) and seen[-1] == tokens.shape[2]
    assert make_training(scorer, labels, PLAIN)._kept_tokens(stage, 0) is None


# ----------------------------------------------------------------------------- QGR


@pytest.fixture
def own_teacher(tiny_config: ModelConfig) -> Scorer:
    """A model without visual prompts that holds no other original than itself."""
    prompts = dataclasses.replace(tiny_config.prompts, n_visual=0)
    return make_scorer(random_weights(dataclasses.replace(tiny_config, prompts=prompts)))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float16), ("bfloat16", torch.float16)])
def test_rounding_noise_is_not_projected_on(
    own_teacher: Scorer, labels: Labels, precision: Any, dtype: torch.dtype
) -> None:
    """Where the start model is its own teacher the first step is that of plain tuning, bit for bit; later ones are
    regularised."""
    trained = {}
    for strength in (5.0, 0.0):
        config = dataclasses.replace(PLAIN, qgr_lambda=strength, text_first_epochs=0, lr=0.02, optimizer="sgd")
        model, teacher = own_teacher.weights.build().requires_grad_(False), teacher_of(own_teacher.weights)[0]
        kept = compute_activations(
            model, labels, CropReader(own_teacher.preprocess), teacher=teacher, dtype=dtype, precision=precision
        )
        start, stages = values_of(model, trained_names(model, config)), stages_of(model, config)
        training = GradientDescent(model, start, kept, all_rows(labels), stages, config, precision=precision)
        rows = training.run()
        first = next(rows)
        trained[strength] = training.values()
        if strength:
            assert first.semantic_loss is not None and abs(first.semantic_loss) < NOISE[precision]  # type: ignore[index]
            assert first.angle is None and first.projected == 0
            assert any(row.projected and row.angle is not None for row in rows)
    assert all(torch.equal(trained[5.0][name], value) for name, value in trained[0.0].items())


def test_lambda_is_lowered_while_l_kl_is_above_the_bound(scorer: Scorer, labels: Labels) -> None:
    """To 1, and with a bound that is never reached not at all; a lambda below 1 stays."""
    found = {}
    for bound, strength in ((None, 5.0), (1e-9, 5.0), (1e9, 5.0), (None, 1.0), (1e-9, 0.5), (None, 0.5)):
        config = dataclasses.replace(PLAIN, qgr_max_kl=bound, qgr_lambda=strength, text_first_epochs=0)
        training = make_training(scorer, labels, config)
        found[bound, strength] = {row.qgr_lambda for row in training.run()}, training.values()
    assert found[None, 5.0][0] == found[1e9, 5.0][0] == {5.0} and found[1e-9, 5.0][0] == {1.0}
    assert found[1e-9, 0.5][0] == {0.5}
    for one, other in (((None, 5.0), (1e9, 5.0)), ((1e-9, 5.0), (None, 1.0)), ((1e-9, 0.5), (None, 0.5))):
        assert farthest(found[one][1], found[other][1]) == 0
    assert farthest(found[None, 5.0][1], found[None, 1.0][1]) > 1e-4


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
