"""Eqs. (7) and (8) against a derivation in NumPy, and what must hold for any gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from grmp_score.config import ModelConfig
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.adapt.parameters import trained_names
from grmp_score.trainer.adapt.qgr import project, semantic_loss

from .conftest import randomise

FORMS = ("per_parameter", "global")


def by_hand(g_qua: dict[str, Any], g_sem: dict[str, Any], strength: float, form: str) -> dict[str, Any]:
    """Eq. (8) in float64, on vectors."""
    groups = [[n] for n in g_sem] if form == "per_parameter" else [list(g_sem)]
    result = {n: np.asarray(g, dtype=np.float64) for n, g in g_qua.items()}
    for names in groups:
        qua = np.concatenate([np.asarray(g_qua[n], dtype=np.float64).ravel() for n in names])
        sem = np.concatenate([np.asarray(g_sem[n], dtype=np.float64).ravel() for n in names])
        if qua @ sem > 0:
            qua = qua - strength * (qua @ sem) / (sem @ sem) * sem
        for n, part in zip(names, np.split(qua, np.cumsum([g_qua[n].size for n in names])[:-1]), strict=True):
            result[n] = part.reshape(g_qua[n].shape)
    return result


def tensors(gradient: Mapping[str, Any]) -> dict[str, Tensor]:
    return {n: torch.from_numpy(np.asarray(g, dtype=np.float32)) for n, g in gradient.items()}


# ------------------------------------------------------------------- a whole model


@pytest.fixture
def gradients(tiny_config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """G_qua and G_sem of the tiny model on random crops, for everything that stage 2 trains."""
    model = randomise(QualityCLIP(tiny_config))
    teacher = randomise(QualityCLIP(tiny_config), seed=1)
    patches = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = trained_names(model, FewShotConfig(train="blocks", train_visual_prompts=True))
    named = dict(model.named_parameters())
    parameters = [named[n] for n in names]
    features = model.image(patches)
    quality = quality_loss(model.quality_logits(features, model.encode_quality()), torch.linspace(0, 1, 6))
    with torch.no_grad():
        p_sem = teacher.scene_logits(teacher.image(patches)).softmax(-1)
    semantic = semantic_loss(model.scene_logits(features, model.encode_scenes()), p_sem)
    g_qua = torch.autograd.grad(quality, parameters, retain_graph=True)
    g_sem = torch.autograd.grad(semantic, parameters, allow_unused=True)
    return dict(zip(names, g_qua, strict=True)), dict(zip(names, g_sem, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [0.5, 1.0, 5.0])
def test_every_parameter_of_a_model_equals_the_equation(
    gradients: tuple[dict[str, Tensor], dict[str, Tensor | None]], form: Any, strength: float
) -> None:
    """The projected gradient of all trained tensors, and the angle, equal NumPy's."""
    g_qua, g_sem = gradients
    result, angle, *_ = project(g_qua, g_sem, strength, form)
    qua = {n: g.numpy() for n, g in g_qua.items()}
    sem = {n: g.numpy() for n, g in g_sem.items() if g is not None}
    assert set(qua) - set(sem) == {"text_prompt.ctx"}  # the scene prompts hold no context
    expected = by_hand(qua, sem, strength, form)
    changed = 0
    for name, value in expected.items():
        scale = max(np.abs(value).max(), np.abs(qua[name]).max())
        np.testing.assert_allclose(result[name].numpy(), value, atol=2e-5 * scale, err_msg=name)
        changed += not torch.equal(result[name], g_qua[name])
    assert torch.equal(result["text_prompt.ctx"], g_qua["text_prompt.ctx"])
    a, b = (np.concatenate([g[n].ravel().astype(np.float64) for n in sem]) for g in (qua, sem))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert angle == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-3)
    assert changed > 5 if form == "per_parameter" else changed in (0, len(sem))


def test_some_parameters_agree_and_some_conflict(
    gradients: tuple[dict[str, Tensor], dict[str, Tensor | None]],
) -> None:
    """The model above has tensors of both kinds, so that both branches of eq. (8) are met."""
    signs = {float((gradients[0][n] * g).sum()) > 0 for n, g in gradients[1].items() if g is not None}
    assert signs == {True, False}


# ---------------------------------------------------------------------- properties

VALUES = st.floats(-10, 10, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
VECTORS = st.integers(1, 5).flatmap(lambda n: st.tuples(*[arrays(np.float32, n, elements=VALUES)] * 2))
PAIRS = st.dictionaries(st.sampled_from("abc"), VECTORS, min_size=1)


def split(pairs: dict[str, tuple[Any, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {n: p[0] for n, p in pairs.items()}, {n: p[1] for n, p in pairs.items()}


@given(PAIRS, st.sampled_from(FORMS), st.floats(0, 10))
@settings(max_examples=200, deadline=None)
def test_it_equals_the_equation(pairs: Any, form: Any, strength: float) -> None:
    """For any gradients, zero ones included."""
    qua, sem = split(pairs)
    result, *_ = project(tensors(qua), tensors(sem), strength, form)
    for name, value in by_hand(qua, {n: s for n, s in sem.items()}, strength, form).items():
        np.testing.assert_allclose(result[name].numpy(), value, rtol=1e-3, atol=1e-3)


@given(PAIRS)
@settings(max_examples=200, deadline=None)
def test_lambda_1_is_orthogonal_or_untouched(pairs: Any) -> None:
    """Per parameter, the dot product with G_sem is zero where it was positive, and as it was elsewhere."""
    qua, sem = split(pairs)
    result, *_ = project(tensors(qua), tensors(sem), 1.0)
    for name in pairs:
        before = float(np.dot(qua[name].astype(np.float64), sem[name]))
        after = float(np.dot(result[name].numpy().astype(np.float64), sem[name]))
        size = float(np.linalg.norm(qua[name]) * np.linalg.norm(sem[name]))
        assert after == pytest.approx(min(before, 0.0), abs=1e-5 * size + 1e-9)


@given(PAIRS)
@settings(max_examples=100, deadline=None)
def test_lambda_1_global_is_orthogonal_as_a_whole(pairs: Any) -> None:
    """The global form brings the dot product over all parameters to zero."""
    qua, sem = split(pairs)
    result, *_ = project(tensors(qua), tensors(sem), 1.0, "global")
    before, after = (
        sum(float(np.dot(np.asarray(g[n], dtype=np.float64), sem[n])) for n in pairs) for g in (qua, result)
    )
    size = sum(float(np.linalg.norm(qua[n])) for n in pairs) * sum(float(np.linalg.norm(sem[n])) for n in pairs)
    assert after == pytest.approx(min(before, 0.0), abs=1e-5 * size + 1e-9)


@given(PAIRS, st.sampled_from(FORMS), st.floats(0, 10))
@settings(max_examples=100, deadline=None)
def test_a_conflict_is_left_alone(pairs: Any, form: Any, strength: float) -> None:
    """G_sem = -G_qua and below: G is G_qua, bit for bit."""
    qua = tensors(split(pairs)[0])
    result, angle, *_ = project(qua, {n: -2 * g for n, g in qua.items()}, strength, form)
    assert all(torch.equal(result[n], qua[n]) for n in qua)
    assert angle is None or angle == pytest.approx(180, abs=0.1)


@given(PAIRS, st.sampled_from(FORMS))
@settings(max_examples=50, deadline=None)
def test_a_zero_semantic_gradient_changes_nothing(pairs: Any, form: Any) -> None:
    """No NaN, no angle."""
    qua = tensors(split(pairs)[0])
    for sem in ({n: torch.zeros_like(g) for n, g in qua.items()}, {n: None for n in qua}, {}):
        result, angle, *_ = project(qua, sem, 5.0, form)
        assert angle is None and all(torch.equal(result[n], qua[n]) for n in qua)


@given(PAIRS, st.sampled_from(FORMS), st.sampled_from([1e-30, 1e-22, 1e-10, 1e-3, 1e3, 1e25]))
@settings(max_examples=200, deadline=None)
def test_the_length_of_the_semantic_gradient_does_not_matter(pairs: Any, form: Any, factor: float) -> None:
    """Not even where its square leaves the range of float32."""
    qua, sem = (tensors(g) for g in split(pairs))
    scaled = {n: s * factor for n, s in sem.items()}
    (one, angle, *_), (other, again, *_) = (project(qua, s, 5.0, form) for s in (sem, scaled))
    for name in qua:
        np.testing.assert_allclose(one[name].numpy(), other[name].numpy(), rtol=1e-3, atol=1e-3)
    assert (angle is None) == (again is None)
    assert angle is None or again == pytest.approx(angle, abs=0.1)


@given(PAIRS, st.sampled_from(FORMS))
@settings(max_examples=50, deadline=None)
def test_lambda_0_returns_the_quality_gradient(pairs: Any, form: Any) -> None:
    """The values are those of G_qua, and the inputs are not written to."""
    qua, sem = (tensors(g) for g in split(pairs))
    copies = {n: g.clone() for n, g in qua.items()}
    result, *_ = project(qua, sem, 0.0, form)
    project(qua, sem, 5.0, form)
    assert all(torch.equal(result[n], copies[n]) and torch.equal(qua[n], copies[n]) for n in qua)


# ------------------------------------------------------------------------- eq. (7)


def test_the_semantic_loss_is_its_equation() -> None:
    """-sum p_sem log(p_qua / p_sem), mean over the batch."""
    rng = np.random.default_rng(0)
    logits, p_sem = rng.normal(0, 3, (5, 9)), rng.dirichlet(np.ones(9), 5)
    p_qua = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = float(np.mean(-(p_sem * np.log(p_qua / p_sem)).sum(1)))
    assert semantic_loss(torch.tensor(logits), torch.tensor(p_sem)).item() == pytest.approx(expected, rel=1e-12)


def test_the_semantic_loss_is_zero_only_for_the_teacher() -> None:
    """Equal distributions have zero loss and gradient; p_sem = 0 and huge logits give no NaN."""
    logits = torch.tensor([[300.0, -200.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    loss = semantic_loss(logits, logits.detach().softmax(-1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and float(logits.grad.abs().max()) < 1e-6  # type: ignore[union-attr]
    assert math.isfinite(semantic_loss(logits.detach(), torch.eye(3)[:2]).item())
    assert semantic_loss(logits.detach(), torch.full((2, 3), 1 / 3)).item() > 0
