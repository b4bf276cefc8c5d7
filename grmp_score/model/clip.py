"""The dual encoder below the prompts: a CLIP by open_clip's names.

With `tokenizer` the only file that knows open_clip, which is asked for named architectures and weights alone.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grmp_score.errors import ConfigError
from grmp_score.model.architecture import check_architecture, feature_blocks, side
from grmp_score.model.quick_gelu import QuickGELU


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


class LayerScale(nn.Module):
    """Factors of their own for every channel."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(value * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> the same shape."""
        return x * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, cfg: Mapping[str, Any], quick_gelu: bool) -> None:
        super().__init__()
        norm, scale = cfg.get("norm_kwargs") or {}, cfg.get("ls_init_value")
        hidden = int(width * cfg.get("mlp_ratio", 4.0))
        self.ln_1 = nn.LayerNorm(width, **norm)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.ln_2 = nn.LayerNorm(width, **norm)
        parts = {
            "c_fc": nn.Linear(width, hidden),
            "gelu": QuickGELU() if quick_gelu else nn.GELU(),
            "c_proj": nn.Linear(hidden, width),
        }
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ls_2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, W] -> [B, T, W]."""
        normed = self.ln_1(x)
        x = x + self.ls_1(self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0])
        result: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return result


class Transformer(nn.Module):
    """Blocks, one after another."""

    def __init__(self, width: int, layers: int, heads: int, cfg: Mapping[str, Any], quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, cfg, quick_gelu) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B, T, W] -> [B, T, W]."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """The parameters of an image tower; `towers.ImageTower` computes with them."""

    def __init__(self, embed_dim: int, cfg: Mapping[str, Any], quick_gelu: bool, wide: int) -> None:
        """``wide``: how many times the tower's width the features are that ``ln_post`` and ``proj`` take."""
        super().__init__()
        width, norm = cfg.get("width", 768), cfg.get("norm_kwargs") or {}
        self.image_size, self.patch_size = side(cfg, "image_size"), side(cfg, "patch_size")
        self.pool_type = cfg.get("pool_type", "tok")
        self.final_ln_after_pool = bool(cfg.get("final_ln_after_pool"))
        tokens = 1 + (self.image_size // self.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, self.patch_size, self.patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(tokens, width))
        self.ln_pre = nn.Identity() if cfg.get("no_ln_pre") else nn.LayerNorm(width, **norm)
        heads = width // cfg.get("head_width", 64)
        self.transformer = Transformer(width, cfg.get("layers", 12), heads, cfg, quick_gelu)
        self.ln_post = nn.LayerNorm(wide * width, **norm)
        self.proj = nn.Parameter((wide * width) ** -0.5 * torch.randn(wide * width, embed_dim))


class CLIP(nn.Module):
    """The parameters of both towers, by the names that open_clip gives them; `towers` computes with them.

    open_clip's own modules compute the same (`tests/test_model.py`), but importing them takes seconds.

    Attributes:
        attn_mask: [T, T], of the text tower; None for one without a causal mask.
    """

    attn_mask: Tensor | None

    def __init__(self, model_cfg: Mapping[str, Any]) -> None:
        super().__init__()
        vision, text, embed_dim = model_cfg["vision_cfg"], model_cfg["text_cfg"], model_cfg["embed_dim"]
        quick_gelu = bool(model_cfg.get("quick_gelu"))
        blocks = feature_blocks(model_cfg, vision.get("layers", 12))
        self.visual = VisionTransformer(embed_dim, vision, quick_gelu, 1 if blocks is None else 2 * len(blocks))
        width, layers, norm = text.get("width", 512), text.get("layers", 12), text.get("norm_kwargs") or {}
        self.context_length, self.vocab_size = text.get("context_length", 77), text.get("vocab_size", 49408)
        self.transformer = Transformer(width, layers, text.get("heads", 8), text, quick_gelu)
        self.token_embedding = nn.Embedding(self.vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(self.context_length, width))
        self.ln_final = nn.LayerNorm(width, **norm)
        self.text_projection = None
        if text.get("proj_type", "linear") != "none":
            self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        mask = None
        if not text.get("no_causal_mask"):
            mask = torch.full((self.context_length, self.context_length), -torch.inf).triu_(1)
        self.register_buffer("attn_mask", mask, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(model_cfg.get("init_logit_scale", math.log(1 / 0.07))))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        deviations = {
            "attn.in_proj_weight": width**-0.5,
            "attn.out_proj.weight": (2 * width * layers) ** -0.5,
            "mlp.c_fc.weight": (2 * width) ** -0.5,
            "mlp.c_proj.weight": (2 * width * layers) ** -0.5,
        }
        for name, parameter in self.transformer.named_parameters():
            deviation = deviations.get(".".join(name.split(".")[2:]))
            if deviation is not None:
                nn.init.normal_(parameter, std=deviation)


def build_clip(model_cfg: Mapping[str, Any]) -> CLIP:
    """Builds a dual encoder of two native transformers, weights not yet loaded (float32, on the CPU).

    Args:
        model_cfg: open_clip's ``embed_dim``, ``vision_cfg``, ``text_cfg`` and optionally ``quick_gelu``; and,
            unknown to open_clip, ``readout_blocks``: the numbers of k blocks, from 1, or k > 1 for the last k.
            The image features are then made of the CLS token and the mean patch token of each, side by side, and
            not of one token of the last block; ``visual.ln_post`` and ``visual.proj`` are 2k times as wide.
            Quality shows in lower blocks than meaning does, and a linear map of several blocks sees both.

    Raises:
        ConfigError: the configuration asks for a tower that is not a native ViT / text transformer.
    """
    check_architecture(model_cfg)
    return CLIP(model_cfg).eval()


def adapted_names(clip: CLIP, blocks: int) -> list[str]:
    """Names of the parameters of the last ``blocks`` blocks of both towers, ``ln_final`` and ``ln_post``: what
    stage 2 trains besides the text context (METHOD section 3)."""
    prefixes = ["ln_final.", "visual.ln_post."]
    for tower, transformer in (("transformer", clip.transformer), ("visual.transformer", clip.visual.transformer)):
        depth = len(transformer.resblocks)
        prefixes += [f"{tower}.resblocks.{i}." for i in range(max(0, depth - blocks), depth)]
    return [name for name, _ in clip.named_parameters() if name.startswith(tuple(prefixes))]
