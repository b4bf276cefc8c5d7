"""The closed form: what it promises, on features made up and on a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from grmp_score.errors import ConfigError
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import FewShotConfig, Progress, adapt
from grmp_score.trainer.adapt.closed_form import (
    LENGTH,
    MIN_IMAGES,
    NOISES,
    average_posterior,
    fit_closed_form,
    fit_projection,
    stretch,
    towards_normal,
)
from grmp_score.trainer.adapt.features import CropReader, compute_activations, teacher_of
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.metrics import srcc
from grmp_score.weights.folder import Weights

from .conftest import random_weights
from .fewshot_data import make_labels, make_scorer

NO_SCENES = torch.zeros(0, 12)
HEAD = FewShotConfig(shots=12, train="head", folds=2, precision="float32", cache_dtype="float32")


def made_up(n: int = 60, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pooled features [n, 4, 30], projection [30, 12], quality direction [12], gain [10]."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(n, 1, 30, generator=generator) + 0.3 * torch.randn(n, 4, 30, generator=generator)
    proj, quality = torch.randn(30, 12, generator=generator), torch.randn(12, generator=generator)
    return pooled, proj, 4 * quality, 0.5 + torch.rand(10, generator=generator)


def predicted(pooled: torch.Tensor, proj: torch.Tensor, quality: torch.Tensor) -> np.ndarray:
    """p(high) of images, mean over crops."""
    return (normalize(pooled @ proj, dim=-1) @ quality).sigmoid().mean(dim=1).double().numpy()


def test_a_direction_of_the_features_is_found() -> None:
    """Labels that another direction gives are predicted on images not seen, better than before."""
    pooled, proj, quality, gain = made_up(120)
    truth = predicted(pooled, proj, torch.randn(12, generator=torch.Generator().manual_seed(5)))
    truth = (truth - truth.min()) / np.ptp(truth)
    head = fit_projection(pooled[:60], truth[:60], proj, quality, gain, axis=quality, scenes=NO_SCENES)
    assert head is not None
    after = predicted(pooled[60:] + head.shift, head.proj, quality)
    assert srcc(after, truth[60:]) > 0.8 > 0.5 > srcc(predicted(pooled[60:], proj, quality), truth[60:])
    assert np.sqrt(np.mean(np.square(after - truth[60:]))) < 0.15  # p(high) is about the label


def test_only_the_quality_axis_and_a_spare_direction_change() -> None:
    """Scenes keep their logits but for the axis; what was along it moves to where no scene looks."""
    pooled, proj, quality, gain = made_up()
    generator = torch.Generator().manual_seed(9)
    axis, scenes = torch.randn(12, generator=generator), torch.randn(3, 12, generator=generator)
    head = fit_projection(pooled, np.linspace(0, 1, len(pooled)), proj, quality, gain, axis=axis, scenes=scenes)
    assert head is not None
    a = normalize(axis, dim=0)
    scenes_beside = scenes - (scenes @ a)[:, None] * a
    f, new = pooled @ proj, (pooled + head.shift) @ head.proj
    torch.testing.assert_close(new @ scenes_beside.T, f @ scenes_beside.T, atol=1e-4, rtol=0)
    change = (head.proj - proj).double()
    beside = change - torch.outer(change @ a.double(), a.double())
    values, directions = torch.linalg.svd(beside)[1:]
    assert values[0] > 0.1 > 1e-5 > values[1]  # one direction besides the axis
    spare = directions[0].float()
    assert (scenes @ spare).abs().max() < 1e-5
    others = torch.linalg.svd(torch.cat([a[None], scenes]))[2][4:]  # all directions that were free
    least = torch.linalg.svdvals(f.flatten(0, 1) @ others.T)[-1]
    assert (f @ spare).norm().item() == pytest.approx(least.item(), rel=1e-4)
    torch.testing.assert_close((new @ spare).abs(), (f @ a).abs(), atol=1e-4, rtol=0)


def test_features_keep_their_length_but_for_the_margin() -> None:
    """So the margin that was fitted over |f| is the one that the model has, over the new |f|."""
    pooled, proj, quality, gain = made_up()
    axis = LENGTH * normalize(quality, dim=0)
    head = fit_projection(pooled, np.linspace(0, 1, len(pooled)), proj, quality, gain, axis=axis, scenes=NO_SCENES)
    assert head is not None
    f, new = pooled @ proj, (pooled + head.shift) @ head.proj
    margin = new @ normalize(quality, dim=0)
    rest = (new.square().sum(dim=-1) - margin.square()).sqrt()
    assert (rest / f.norm(dim=-1)).min() > 0.8 and (rest / f.norm(dim=-1)).mean() == pytest.approx(1, abs=0.05)


def test_without_a_spare_direction_it_is_fitted_all_the_same() -> None:
    """A projection so narrow that quality and one scene fill it."""
    pooled, _, _, gain = made_up()
    proj = torch.randn(30, 2, generator=torch.Generator().manual_seed(2))
    targets = pooled.mean(dim=1)[:, -1].sigmoid().double().numpy()
    quality, scene = 2 * torch.eye(2)
    head = fit_projection(pooled, targets, proj, quality, gain, axis=quality, scenes=scene[None])
    assert head is not None
    torch.testing.assert_close((pooled + head.shift) @ head.proj[:, 1], pooled @ proj[:, 1], atol=1e-4, rtol=0)
    assert srcc(predicted(pooled + head.shift, head.proj, quality), targets) > 0.7


def test_quality_texts_are_moved_apart_to_a_length_and_no_further() -> None:
    """Along their difference only; texts that are far enough apart stay."""
    generator = torch.Generator().manual_seed(3)
    pooled, projection = torch.randn(2, 10, generator=generator), torch.randn(10, 6, generator=generator)
    texts = pooled @ projection
    moved = pooled @ stretch(projection, texts[0] - texts[1])
    u = normalize(texts[0] - texts[1], dim=0)
    torch.testing.assert_close(moved[0] - moved[1], LENGTH * u, atol=1e-4, rtol=0)
    beside = torch.eye(6) - torch.outer(u, u)
    torch.testing.assert_close(moved @ beside, texts @ beside, atol=1e-5, rtol=0)
    far = LENGTH * 2 * u
    assert torch.equal(stretch(projection, far), projection)
    assert torch.equal(stretch(projection, torch.zeros(6)), projection)


def test_targets_go_some_way_to_their_normal_scores() -> None:
    """Mean and order stay, ties stay ties, labels that are normal already stay what they are."""
    skewed = np.array([0.0, 0.7, 0.7, 0.8, 0.85, 0.9, 1.0])
    found = towards_normal(skewed)
    assert found.mean() == pytest.approx(skewed.mean())
    assert found[1] == found[2] and (np.diff(found[[0, 1, 3, 4, 5, 6]]) > 0).all()
    assert found[0] > skewed[0]  # the far end counts for less
    np.testing.assert_allclose(towards_normal(np.full(4, 0.5)), 0.5)
    normal = np.random.default_rng(0).normal(0.5, 0.1, 2000)
    np.testing.assert_allclose(towards_normal(normal), normal, atol=0.03)


def test_labels_that_the_model_knows_change_little() -> None:
    """Where the un-adapted model is right already, its order of unseen images stays."""
    pooled, proj, quality, gain = made_up(100)
    before = predicted(pooled, proj, quality)
    head = fit_projection(pooled[:50], before[:50], proj, quality, gain, axis=quality, scenes=NO_SCENES)
    assert head is not None
    assert srcc(predicted(pooled[50:] + head.shift, head.proj, quality), before[50:]) > 0.98


@pytest.mark.parametrize("case", ["few", "same features", "no direction"])
def test_what_cannot_be_fitted_is_left(case: str) -> None:
    """Too few images, images that are all alike, and texts that are the same."""
    pooled, proj, quality, gain = made_up(20)
    if case == "few":
        pooled = pooled[: MIN_IMAGES - 1]
    elif case == "same features":
        pooled = pooled[:1].expand(20, -1, -1)
    else:
        quality = torch.zeros_like(quality)
    assert (
        fit_projection(pooled, np.linspace(0, 1, len(pooled)), proj, quality, gain, axis=quality, scenes=NO_SCENES)
        is None
    )


def test_the_average_equals_its_definition() -> None:
    """Posterior means and restricted likelihoods by dense matrices, as the textbook writes them."""
    rng = np.random.default_rng(3)
    n, fixed = 15, np.column_stack([np.ones(15), rng.normal(size=15)])
    rows, y = rng.normal(size=(n, 10)), rng.normal(size=n)
    means, weights = [], []
    for noise in NOISES:
        covariance = rows @ rows.T + noise * np.eye(n)
        inverse = np.linalg.inv(covariance)
        normal = fixed.T @ inverse @ fixed
        free = np.linalg.solve(normal, fixed.T @ inverse @ y)
        r = y - fixed @ free
        variance = r @ inverse @ r / (n - 2)
        log = -0.5 * ((n - 2) * np.log(variance) + np.linalg.slogdet(covariance)[1])
        weights.append(log - 0.5 * np.linalg.slogdet(normal)[1])
        means.append([free, rows.T @ inverse @ r])
    share = np.exp(np.array(weights) - max(weights))
    share /= share.sum()
    for k, found in enumerate(average_posterior(fixed, rows, y)):
        np.testing.assert_allclose(found, sum(w * m[k] for w, m in zip(share, means, strict=True)), atol=1e-9)


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Eighteen pictures."""
    return make_labels(tmp_path / "pictures", 18)


def test_the_scorer_computes_what_was_fitted(tiny_weights: Weights, labels: Labels) -> None:
    """Trained, saved and measured: the same p(high) from the kept features and from the images."""
    scorer = make_scorer(tiny_weights)
    adapted = adapt(scorer, labels, dataclasses.replace(HEAD, folds=0))
    assert adapted.results["chosen"] == {"head": 1}
    assert adapted.test_predictions is not None
    values = [s.value for s in adapted.scorer.score_many(adapted.test_predictions.labels.paths)]
    np.testing.assert_allclose(np.array(values, dtype=float), adapted.test_predictions.after, atol=1e-6)
    assert np.abs(adapted.test_predictions.after - adapted.test_predictions.before).max() > 0.01
    stage = adapted.scorer.config.training["stage_2"]
    clip = scorer.model.clip
    trained = [clip.visual.proj, clip.visual.ln_post.bias, clip.text_projection]
    assert stage["trained_parameters"] == sum(p.numel() for p in trained)
    assert stage["teacher"] is None and stage["method"] == "Bayesian regression of the quality direction"


def test_the_model_is_left_as_it_was(tiny_weights: Weights, labels: Labels) -> None:
    """`fit_closed_form` gives new values; where nothing can be fitted, the old ones."""
    model = tiny_weights.build().requires_grad_(False)
    kept = compute_activations(
        model, labels, CropReader(model.config.preprocess), teacher=None, keep_tokens=False, keep_pooled=True
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert kept.pooled is not None
    values = fit_closed_form(model, kept.pooled, labels.scale.to_unit(labels.scores))
    few = fit_closed_form(model, kept.pooled[:2], np.array([0.0, 1.0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(values) == {"clip.visual.proj", "clip.visual.ln_post.bias", "clip.text_projection"}
    assert not any(torch.equal(value, before[name]) for name, value in values.items())
    assert all(torch.equal(value, before[name]) for name, value in few.items())


def test_gradient_descent_goes_on_from_it(tiny_weights: Weights, labels: Labels) -> None:
    """Its first look at the held-out rows is the last of the closed form, and the fold's curve says so."""
    config = dataclasses.replace(HEAD, train="blocks", epochs=1, batch_size=5)
    adapted = adapt(make_scorer(tiny_weights), labels, config)
    rows = adapted.history
    assert next(r.phase for r in rows if r.fold == 0) == "head"
    curves, chosen = adapted.results["cross_validation"]["curves"], adapted.results["chosen"]
    assert list(curves) == ["head", "all"] and len(curves["head"]) == 2
    assert curves["all"][0] == pytest.approx(curves["head"][chosen["head"]])
    assert chosen["head"] == 1  # whatever the folds say
    assert sum(r.phase == "head" and r.loss is not None for r in rows) == 2 + 1  # the folds and the end


def test_gradient_descent_that_is_stopped_goes_on_from_it(
    tiny_weights: Weights, labels: Labels, tmp_path: Path
) -> None:
    """Stopped again and again, it ends in the same weights: the closed form is fitted anew."""
    config = dataclasses.replace(HEAD, train="blocks", epochs=1, batch_size=8)
    expected = adapt(make_scorer(tiny_weights), labels, config).scorer.weights.adapter

    class Stop(BaseException):
        pass

    seen = 0

    def stop(progress: Progress) -> None:
        nonlocal seen
        if progress.row is not None and progress.row.phase == "all":
            seen += 1
            if seen % 4 == 0:
                raise Stop

    adapted = None
    while adapted is None:
        try:
            adapted = adapt(
                make_scorer(tiny_weights),
                labels,
                config,
                work=tmp_path / "work",
                resume=True,
                progress=stop,
            )
        except Stop:
            continue
    found = adapted.scorer.weights.adapter
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_a_scorer_without_blocks_below_works_too(tiny_weights: Weights, labels: Labels) -> None:
    """The readout of several blocks and that of the last one alone."""
    config = tiny_weights.config
    assert Scorer(tiny_weights, device="cpu").model.image.feature_blocks is None
    model_cfg = {**config.backbone.model_cfg, "readout_blocks": 2}
    wide = dataclasses.replace(
        config,
        backbone=dataclasses.replace(config.backbone, model_cfg=model_cfg),
        prompts=dataclasses.replace(config.prompts, n_visual=0, prompt_norm=False),
    )
    adapted = adapt(make_scorer(random_weights(wide)), labels, dataclasses.replace(HEAD, folds=0))
    assert adapted.results["after"]["n"] == 6


@pytest.mark.parametrize("train", ["head", "blocks"])
def test_kept_activations_give_the_same(
    tiny_weights: Weights, labels: Labels, train: Literal["head", "blocks"]
) -> None:
    """One reading of all images serves every draw: weights and figures are those of a run that reads its own."""
    config = dataclasses.replace(HEAD, train=train, epochs=1, batch_size=8)
    scorer = make_scorer(tiny_weights)
    kept = compute_activations(
        tiny_weights.build().requires_grad_(False),
        labels,
        CropReader.of(scorer),
        teacher=teacher_of(tiny_weights)[0],
        keep_pooled=True,
        dtype=torch.float32,
    )
    found, expected = adapt(scorer, labels, config, activations=kept), adapt(scorer, labels, config)
    for name, value in expected.scorer.weights.adapter.items():
        assert torch.equal(found.scorer.weights.adapter[name], value), name
    for name in ("before", "ridge", "after"):
        assert found.results[name]["srcc"] == pytest.approx(expected.results[name]["srcc"], abs=1e-6)
    with pytest.raises(ConfigError, match="of 18 images, expected those of all 36 labels"):
        adapt(scorer, labels, config, activations=kept, test=labels)


def test_activations_that_do_not_fit_are_refused(tiny_weights: Weights, labels: Labels) -> None:
    """Of other images, or without what the settings need; said before anything is computed."""
    scorer, model = make_scorer(tiny_weights), tiny_weights.build().requires_grad_(False)
    kept = compute_activations(model, labels, CropReader.of(scorer), teacher=None, keep_tokens=False)
    with pytest.raises(ConfigError, match="hold no pooled features, which"):
        adapt(scorer, labels, HEAD, activations=kept)
    blocks = dataclasses.replace(HEAD, train="blocks", head_first=False)
    with pytest.raises(ConfigError, match="hold no tokens and no scene probabilities"):
        adapt(scorer, labels, blocks, activations=kept)
    with pytest.raises(ConfigError, match="of 18 images, expected those of all 17 labels"):
        adapt(scorer, labels.take(range(17)), dataclasses.replace(HEAD, train="prompts"), activations=kept)
