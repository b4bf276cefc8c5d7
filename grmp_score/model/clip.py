"""The dual encoder below the prompts: open_clip's CLIP, made, named and checked.

With `tokenizer` the only file that knows open_clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from grmp_score.errors import ConfigError
from grmp_score.model.architecture import FEATURE_BLOCKS, feature_blocks
from grmp_score.model.quick_gelu import QuickGELU

if TYPE_CHECKING:
    from open_clip.model import CLIP


def architecture(name: str) -> dict[str, Any]:
    """open_clip's configuration of a named architecture, e.g. ``"ViT-B-16-quickgelu"`` (OpenAI's weights)."""
    import open_clip

    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise ConfigError(f"open_clip knows no architecture {name!r}")
    return dict(model_cfg)


def pretrained_repo(name: str, tag: str) -> str:
    """Hub repository of a pre-trained open_clip model, e.g. of ``"ViT-B-16-quickgelu"`` and ``"openai"``."""
    import open_clip

    pretrained = open_clip.get_pretrained_cfg(name, tag)
    repo = str(pretrained.get("hf_hub", "")).rstrip("/")
    if not repo:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(f"open_clip has no weights {tag!r} of {name!r} on the Hub; it has {tags}")
    return repo


def build_clip(model_cfg: Mapping[str, Any]) -> CLIP:
    """Builds an open_clip CLIP with two native transformers, weights not yet loaded (float32, on the CPU).

    Args:
        model_cfg: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and optionally ``quick_gelu``; and, unknown to
            open_clip, ``readout_blocks``: the numbers of k blocks, from 1, or k > 1 for the last k.  The image
            features are then made of the CLS token and the mean patch token of each, side by side, and not of one
            token of the last block; ``visual.ln_post`` and ``visual.proj`` are 2k times as wide.  Quality shows in
            lower blocks than meaning does, and a linear map of several blocks sees both.

    Raises:
        ConfigError: the configuration asks for a tower that is not a native open_clip ViT / text transformer.
    """
    from open_clip import transformer
    from open_clip.model import CLIP

    vision, text = model_cfg.get("vision_cfg", {}), model_cfg.get("text_cfg", {})
    unsupported = [
        *(
            f"vision_cfg.{key}"
            for key in ("timm_model_name", "attentional_pool", "patch_dropout")
            if vision.get(key)
        ),
        *(f"text_cfg.{k}" for k in ("hf_model_name", "embed_cls", "proj_bias") if text.get(k)),
    ]
    if text.get("pool_type", "argmax") != "argmax":
        unsupported.append("text_cfg.pool_type")
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        unsupported.append("vision_cfg.pool_type")
    if unsupported or not isinstance(vision.get("layers", 12), int):
        raise ConfigError(f"only native ViT CLIPs are supported; the configuration has {unsupported or 'a ResNet'}")
    try:
        # init_logit_scale stays open_clip's; every parameter is overwritten when weights are loaded.
        clip = CLIP(**{key: v for key, v in model_cfg.items() if key not in ("custom_text", FEATURE_BLOCKS)}).eval()
    except TypeError as error:
        raise ConfigError(f"open_clip rejects the model configuration: {error}") from error
    for block in [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]:
        if isinstance(block.mlp.gelu, transformer.QuickGELU):
            block.mlp.gelu = QuickGELU()
    blocks = feature_blocks(model_cfg, len(clip.visual.transformer.resblocks))
    if blocks is not None:
        visual = clip.visual
        width, embed_dim = visual.proj.shape
        wide = 2 * len(blocks) * width
        visual.ln_post = nn.LayerNorm(wide, eps=visual.ln_post.eps)
        visual.proj = nn.Parameter(torch.randn(wide, embed_dim) * wide**-0.5)
    return clip


def adapted_names(clip: CLIP, blocks: int) -> list[str]:
    """Names of the parameters of the last ``blocks`` blocks of both towers, ``ln_final`` and ``ln_post``: what
    stage 2 trains besides the text context (METHOD section 3)."""
    prefixes = ["ln_final.", "visual.ln_post."]
    for tower, transformer in (("transformer", clip.transformer), ("visual.transformer", clip.visual.transformer)):
        depth = len(transformer.resblocks)
        prefixes += [f"{tower}.resblocks.{i}." for i in range(max(0, depth - blocks), depth)]
    return [name for name, _ in clip.named_parameters() if name.startswith(tuple(prefixes))]
