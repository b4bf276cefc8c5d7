"""What a model configuration says about the towers, without making them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grmp_score.errors import ConfigError

#: Entry of the model configuration that open_clip does not know; see `clip.build_clip`.
FEATURE_BLOCKS = "readout_blocks"

#: Entries of open_clip's configurations that are understood here, by part.
_KNOWN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", FEATURE_BLOCKS},
    "vision_cfg": {
        *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value"),
        *("no_ln_pre", "pos_embed_type", "pool_type", "final_ln_after_pool", "norm_kwargs"),
    },
    "text_cfg": {
        *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value"),
        *("no_causal_mask", "pool_type", "proj_type", "norm_kwargs"),
    },
}
#: Entries that change nothing about a native tower.
_IDLE = {
    *("attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_pool", "timm_proj", "timm_drop"),
    *("hf_tokenizer_name", "hf_proj_type", "hf_pooler_type", "hf_model_pretrained", "tokenizer_kwargs"),
    *("pad_id", "eos_id", "final_ln_after_pool"),
}


def check_architecture(model_cfg: Mapping[str, Any]) -> None:
    """Refuses configurations that are not two native transformers as CLIP has them.

    Raises:
        ConfigError: entries that are missing, or set and not understood.
    """
    missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in model_cfg]
    if missing:
        raise ConfigError(f"the model configuration has no {' and no '.join(missing)}")
    wrong = []
    for part, known in _KNOWN.items():
        entries = model_cfg[part] if part else model_cfg
        prefix = f"{part}." if part else ""
        wrong += [prefix + name for name, value in entries.items() if value and name not in known | _IDLE]
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    for name, value, choices in (
        ("vision_cfg.pool_type", vision.get("pool_type", "tok"), ("tok", "avg")),
        ("text_cfg.pool_type", text.get("pool_type", "argmax"), ("argmax",)),
        ("text_cfg.proj_type", text.get("proj_type", "linear"), ("linear", "none")),
    ):
        if value not in choices:
            wrong.append(name)
    if not isinstance(vision.get("layers", 12), int):
        wrong.append("a ResNet")
    if wrong:
        raise ConfigError(f"only native ViT CLIPs are supported; the model configuration has {', '.join(wrong)}")


def feature_blocks(model_cfg: Mapping[str, Any], depth: int) -> tuple[int, ...] | None:
    """Blocks of a tower of this depth, from 0, that the image features are made of; None: open_clip's own way."""
    asked = model_cfg.get(FEATURE_BLOCKS, 1)
    if asked == 1 and asked is not True:
        return None
    numbers = asked
    if isinstance(asked, int) and not isinstance(asked, bool) and asked > 1:
        numbers = range(depth - asked + 1, depth + 1)
    if (
        not isinstance(numbers, (range, list, tuple))
        or not numbers
        or not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= depth for n in numbers)
        or sorted(set(numbers)) != list(numbers)
    ):
        raise ConfigError(
            f"{FEATURE_BLOCKS} must be a number of blocks or rising numbers of blocks, 1 to {depth}, got {asked!r}"
        )
    return tuple(n - 1 for n in numbers)


def side(vision_cfg: Mapping[str, Any], name: str) -> int:
    """``image_size`` or ``patch_size`` of an image tower, in pixels; both are squares."""
    value = vision_cfg.get(name, {"image_size": 224, "patch_size": 16}[name])
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ConfigError(f"vision_cfg.{name} must be a square, got {value}")
    return int(sides.pop())
