"""Image features made of several blocks: the model's side, and the head that is fitted in closed form."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from readout import fit_readout

from grmp_score.config import Backbone, ModelConfig
from grmp_score.errors import ConfigError
from grmp_score.model.quality_clip import QualityCLIP

from .conftest import TINY_CLIP, random_weights


def config_of(tiny_config: ModelConfig, readout: Any, **changes: Any) -> ModelConfig:
    """The tiny model with its features read out of some blocks."""
    model_cfg = {**TINY_CLIP, "readout_blocks": readout}
    return dataclasses.replace(tiny_config, backbone=Backbone(model_cfg=model_cfg), **changes)


def test_features_are_made_of_cls_and_mean_token_of_the_last_blocks(tiny_config: ModelConfig) -> None:
    """[CLS, mean patch token] of each of the last k blocks, prompts inserted, ln_post, projection, length 1."""
    model = random_weights(config_of(tiny_config, 2)).build()
    patches = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = model.visual_prompts
    assert prompts is not None and model.image.feature_blocks == 2
    visual = model.clip.visual
    with torch.inference_mode():
        x, parts = model.image.embed(patches), []
        for number, (block, p) in enumerate(zip(visual.transformer.resblocks, prompts.tokens, strict=True)):
            out = block(torch.cat([x[:, :1], p.expand(4, -1, -1), x[:, 1:]], dim=1))
            x = torch.cat([out[:, :1], out[:, 4:]], dim=1)
            parts += [x[:, 0], x[:, 1:].sum(1) / 4] if number >= 1 else []
        pooled = torch.cat(parts, dim=1)
        deviation = (pooled.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        centred = (pooled - pooled.mean(1, keepdim=True)) / deviation
        wanted = (centred * visual.ln_post.weight + visual.ln_post.bias) @ visual.proj
        wanted = wanted / wanted.norm(dim=1, keepdim=True)
        torch.testing.assert_close(model.image(patches), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.image.head(model.image.trunk(patches)), wanted, rtol=0, atol=1e-5)


def test_one_block_is_the_native_model(tiny_config: ModelConfig) -> None:
    """readout_blocks = 1 has open_clip's own tensors."""
    native, one = QualityCLIP(tiny_config).state_dict(), QualityCLIP(config_of(tiny_config, 1)).state_dict()
    assert {k: v.shape for k, v in native.items()} == {k: v.shape for k, v in one.items()}


@pytest.mark.parametrize("readout", [0, -1, 1.5, "two", True, 4])
def test_impossible_readouts(tiny_config: ModelConfig, readout: object) -> None:
    """Not a number of blocks that the tower has: a clear error."""
    with pytest.raises(ConfigError, match="readout_blocks"):
        QualityCLIP(config_of(tiny_config, readout))


def test_readout_must_lie_above_the_trunk(tiny_config: ModelConfig) -> None:
    """Features of a block inside the frozen trunk could not be had from the trunk's output."""
    with pytest.raises(ConfigError, match="only 2 lie above"):
        QualityCLIP(config_of(tiny_config, 3))
    assert QualityCLIP(config_of(tiny_config, 3, adapted_blocks=3)).readout_blocks == 3


def test_prompt_norm_is_refused(tiny_config: ModelConfig) -> None:
    """The authors' extra LayerNorm follows the last block alone."""
    prompts = dataclasses.replace(tiny_config.prompts, prompt_norm=True)
    with pytest.raises(ConfigError, match="prompt_norm"):
        QualityCLIP(config_of(tiny_config, 2, prompts=prompts))


# ------------------------------------------------------------------ fitting the head


@pytest.fixture(scope="module")
def crops() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of photos, features of crops, and labels that two of the features tell."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=generator)
    photos = torch.randn(300, 40, generator=generator) @ mixing + 3
    quality = torch.randn(500, 40, generator=generator) @ mixing + 3
    labels = torch.sigmoid((quality[:, 0] - quality[:, 1]) / 8)
    return photos, quality, labels


def test_head_normalises_and_keeps_quality_on_its_first_axis(
    crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """ln_post gives mean 0 and deviation 1; axis 0 follows the labels and no other axis goes with it."""
    photos, quality, labels = crops
    head = fit_readout(photos, quality, labels, 12, ridge=0.1, quality_share=0.3)
    z = head.normalise(torch.cat([photos, quality]))
    torch.testing.assert_close(z.mean(0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(40), rtol=0, atol=1e-4)
    f = z @ head.proj
    assert f.shape == (800, 12)
    correlation = torch.corrcoef(f.T)
    assert float(correlation[0, 1:].abs().max()) < 1e-3
    assert float(torch.corrcoef(torch.stack([f[300:, 0], labels]))[0, 1]) > 0.9
    lengths = f.square().mean(0)
    assert float(lengths[0] / lengths.sum()) == pytest.approx(0.3, abs=0.01)


def test_more_ridge_is_a_simpler_direction(crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """The direction of an endless penalty is the plain correlation of each feature with the labels."""
    photos, quality, labels = crops
    head = fit_readout(photos, quality, labels, 12, ridge=1e6)
    z = head.normalise(quality)
    plain = (z - z.mean(0)).T @ (labels - labels.mean())
    assert float(torch.cosine_similarity(head.proj[:, 0], plain, dim=0)) > 0.9999


@pytest.mark.parametrize("wrong", [{"embed_dim": 1}, {"embed_dim": 41}, {"ridge": 0.0}, {"quality_share": 1.0}])
def test_settings_out_of_range(
    crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor], wrong: dict[str, float]
) -> None:
    """Named by the error."""
    settings: dict[str, Any] = {"embed_dim": 12, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        fit_readout(*crops, **settings)
