"""Linear readings of pooled features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear import add_early_blocks, fit, without_source

from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.model.quality_clip import QualityCLIP

TINY = ModelConfig(
    "tiny",
    Backbone(
        model_cfg={
            "embed_dim": 24,
            "vision_cfg": {"image_size": 28, "patch_size": 14, "width": 16, "layers": 3, "head_width": 8},
            "text_cfg": {"context_length": 32, "vocab_size": 8192, "width": 16, "heads": 2, "layers": 1},
            "readout_blocks": [1, 3],
        }
    ),
    PromptConfig(),
    Preprocess(patch_size=28),
)


def margins(model: QualityCLIP, pooled: torch.Tensor) -> np.ndarray:
    """Of the quality logits [n], mean over crops, from pooled features [n, C, F]."""
    with torch.no_grad():
        logits = model.quality_logits(model.image.project(pooled))
    return (logits[..., 0] - logits[..., 1]).mean(dim=1).double().numpy()


def test_fit_finds_the_weights() -> None:
    """Of plenty of rows, whatever the unit of each column."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 3)) * (1, 10, 0.1)
    weights = fit(features, features @ np.array([1.0, 0.2, -5.0]) + 7)
    np.testing.assert_allclose(weights * (1, 10, 0.1), np.array([1.0, 2.0, -0.5]) * 3 / 4, rtol=0.05)


def test_labels_lose_what_their_source_adds() -> None:
    """Two sources that differ in their mean quality and, beyond that, by a constant: the constant goes."""
    rng = np.random.default_rng(1)
    sources = np.array(["a", "b"])[rng.integers(0, 2, 4000)]
    quality = rng.normal(0.5, 0.05, 4000) + 0.1 * (sources == "b")
    features = np.column_stack([quality, *rng.normal(size=(2, 4000))])
    # Half of the variance is within the sources, so the penalty shrinks the slope to (1/2) / (1/2 + 1/3) = 0.6;
    # what that leaves of the difference in quality counts as an effect.
    expected = 0.2 + 0.4 * 0.1
    labels = quality + 0.2 * (sources == "b")
    for share in (0.0, 0.5, 1.0):
        changed = without_source(features, labels, sources, share)
        moved = (changed - labels)[sources == "a"].mean() - (changed - labels)[sources == "b"].mean()
        assert moved == pytest.approx(share * expected, abs=0.01)
        assert labels.min() <= changed.min() and changed.max() <= labels.max()


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_early_blocks_get_their_share(share: float) -> None:
    """With share 0 the scores stay; with 1 they follow labels that only the early numbers can tell."""
    torch.manual_seed(0)
    model = QualityCLIP(TINY)
    model.refresh_text()
    pooled = model.clip.visual.ln_post(torch.randn(300, 2, model.clip.visual.proj.shape[0])).detach()
    early = pooled.shape[-1] // 2
    labels = pooled[:, :, 0].mean(dim=1).double().numpy()
    before = margins(model, pooled)
    add_early_blocks(model, pooled, labels, early=early, share=share)
    after = margins(model, pooled + model.clip.visual.ln_post.bias.detach())
    assert np.corrcoef(before, after)[0, 1] > (0.999 if share == 0 else -1)
    if share == 1:
        assert np.corrcoef(labels, after)[0, 1] > 0.9
    if share < 1:
        assert after.mean() == pytest.approx(before.mean(), abs=0.1)
