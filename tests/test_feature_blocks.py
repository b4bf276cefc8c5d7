"""Image features read out of several blocks (`readout_blocks` in the backbone's configuration)."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from grmp_score.config import Backbone, ModelConfig
from grmp_score.errors import ConfigError
from grmp_score.model.quality_clip import QualityCLIP

from .conftest import TINY_CLIP, random_weights


def config_of(tiny_config: ModelConfig, blocks: Any, **changes: Any) -> ModelConfig:
    """The tiny model with its features made of some blocks."""
    model_cfg = {**TINY_CLIP, "readout_blocks": blocks}
    return dataclasses.replace(tiny_config, backbone=Backbone(model_cfg=model_cfg), **changes)


@pytest.mark.parametrize(("asked", "blocks"), [(2, (1, 2)), ([1, 3], (0, 2)), ([2], (1,)), (3, (0, 1, 2))])
def test_features_are_cls_and_mean_token_of_the_blocks(
    tiny_config: ModelConfig, asked: Any, blocks: tuple[int, ...]
) -> None:
    """[CLS, mean patch token] of each of the blocks, prompts inserted, ln_post, projection, length 1."""
    model = random_weights(config_of(tiny_config, asked)).build()
    patches = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = model.visual_prompts
    assert prompts is not None and model.image.feature_blocks == blocks
    assert model.image.trunk_blocks == min(1, blocks[0])  # two blocks are adapted
    visual = model.clip.visual
    with torch.inference_mode():
        x, parts = model.image.embed(patches), []
        for number, (block, p) in enumerate(zip(visual.transformer.resblocks, prompts.tokens, strict=True)):
            out = block(torch.cat([x[:, :1], p.expand(4, -1, -1), x[:, 1:]], dim=1))
            x = torch.cat([out[:, :1], out[:, 4:]], dim=1)
            parts += [x[:, 0], x[:, 1:].sum(1) / 4] if number in blocks else []
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


@pytest.mark.parametrize("blocks", [0, -1, 1.5, "two", True, 4, [], [0], [4], [2, 1], [1, 1], [True]])
def test_impossible_numbers_of_blocks(tiny_config: ModelConfig, blocks: object) -> None:
    """Not a number of blocks that the tower has: a clear error."""
    with pytest.raises(ConfigError, match="readout_blocks"):
        QualityCLIP(config_of(tiny_config, blocks))


def test_prompt_norm_is_refused(tiny_config: ModelConfig) -> None:
    """The authors' extra LayerNorm follows the last block alone."""
    prompts = dataclasses.replace(tiny_config.prompts, prompt_norm=True)
    with pytest.raises(ConfigError, match="prompt_norm"):
        QualityCLIP(config_of(tiny_config, 2, prompts=prompts))
