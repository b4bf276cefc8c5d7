"""DINOv2 image towers rewritten as open_clip's native `VisionTransformer`, without approximation.

Both are pre-norm ViTs; they differ in bookkeeping only. DINOv2 has a patch-embedding bias, which open_clip's
patch convolution lacks: the bias is the same at every patch, so it is folded into the patch positions of the
positional embedding. DINOv2 has no norm before the first block and LayerNorm eps 1e-6. Source of the tower:
Oquab et al., "DINOv2", arXiv 2304.07193; parameter names as in timm's `vit_*_patch14_dinov2`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from grmp_score.errors import ConfigError, WeightsError

HEAD_WIDTH = 64  # every published DINOv2 size uses heads of this width
LAYER_NORM_EPS = 1e-6

# DINOv2 name inside a block -> open_clip name inside a residual block.
_BLOCK_NAMES = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "ls1.gamma": "ls_1.gamma",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
    "ls2.gamma": "ls_2.gamma",
}
_STEM_NAMES = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
)
_UNUSED_NAMES = ("mask_token",)  # only DINOv2's own pre-training reads it


def convert_dinov2(
    state: Mapping[str, Tensor], *, depth: int, image_size: int = 224
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a DINOv2 image tower to open_clip's native one, cut to its first blocks.

    The converted tower computes what DINOv2 computes when its blocks from `depth` on are removed (final norm
    kept); the positional embedding is resized bicubically without antialiasing, as DINOv2 itself does.

    Args:
        state: DINOv2 parameters of any floating dtype, without registers and with a plain (not gated) MLP.
        depth: number of blocks kept, 1..the number in `state`.
        image_size: side of the square input in pixels, a multiple of the patch size.

    Returns:
        `vision_cfg` for `open_clip.model.CLIP`, JSON-serialisable, and the state of its `visual` module in
        float32, except `proj`, which DINOv2 does not have.

    Raises:
        WeightsError: a tensor is missing, unknown or of an unexpected shape.
        ConfigError: an argument is out of range.
    """
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    _check_names(state, len(blocks))
    if not 1 <= depth <= len(blocks):
        raise ConfigError(f"depth: expected 1..{len(blocks)}, the blocks in the weights; got {depth}")

    def get(name: str) -> Tensor:
        return state[name].detach().to(torch.float32).clone()

    conv = get("patch_embed.proj.weight")  # [width, 3, patch, patch]
    width, _, patch, _ = conv.shape
    _check_shapes(state, width, depth)
    if width % HEAD_WIDTH:
        raise ConfigError(f"width: expected a multiple of the head width {HEAD_WIDTH}, got {width}")
    if image_size < patch or image_size % patch:
        raise ConfigError(f"image_size: expected a multiple of the patch size {patch}, got {image_size}")

    positions = _resize_positions(get("pos_embed")[0], image_size // patch)  # [1 + grid^2, width]
    positions[1:] += get("patch_embed.proj.bias")
    visual = {
        "class_embedding": get("cls_token").reshape(width),
        "positional_embedding": positions,
        "conv1.weight": conv,
        "ln_post.weight": get("norm.weight"),
        "ln_post.bias": get("norm.bias"),
    }
    for i in range(depth):
        for theirs, ours in _BLOCK_NAMES.items():
            visual[f"transformer.resblocks.{i}.{ours}"] = get(f"blocks.{i}.{theirs}")

    vision_cfg: dict[str, Any] = {
        "image_size": image_size,
        "patch_size": patch,
        "width": width,
        "layers": depth,
        "head_width": HEAD_WIDTH,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "ls_init_value": 1e-5,  # only switches layer scale on; the values come with the state
        "no_ln_pre": True,
        "pool_type": "tok",
        "final_ln_after_pool": False,
        "norm_kwargs": {"eps": LAYER_NORM_EPS},
    }
    return vision_cfg, visual


def _check_names(state: Mapping[str, Tensor], n_blocks: int) -> None:
    """Raise WeightsError unless `state` holds exactly a DINOv2 tower of `n_blocks` blocks."""
    expected = set(_STEM_NAMES) | {f"blocks.{i}.{name}" for i in range(n_blocks) for name in _BLOCK_NAMES}
    missing = sorted(expected - set(state))
    unknown = sorted(set(state) - expected - set(_UNUSED_NAMES))
    if missing or unknown:
        raise WeightsError(
            "not a DINOv2 tower with a plain MLP and without registers: "
            f"missing {missing[:5]}, unknown {unknown[:5]}"
        )


def _check_shapes(state: Mapping[str, Tensor], width: int, depth: int) -> None:
    """Raise WeightsError unless the block tensors that are kept have the shapes that go with `width`."""
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
    }
    for i in range(depth):
        for name in _BLOCK_NAMES:
            expected = shapes.get(name, (width,))
            got = tuple(state[f"blocks.{i}.{name}"].shape)
            if got != expected:
                raise WeightsError(f"blocks.{i}.{name}: expected shape {expected}, got {got}")


def _resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Resize CLS + square-grid positional embedding [1 + g^2, width] to [1 + grid^2, width]."""
    old = round((positions.shape[0] - 1) ** 0.5)
    if old * old != positions.shape[0] - 1:
        raise WeightsError(f"pos_embed: expected CLS and a square grid, got {positions.shape[0]} positions")
    if old == grid:
        return positions
    planes = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    planes = interpolate(planes, size=(grid, grid), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([positions[:1], planes.permute(0, 2, 3, 1).reshape(grid * grid, -1)])
