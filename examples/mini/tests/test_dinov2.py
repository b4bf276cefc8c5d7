"""The DINOv2 conversion against a DINOv2 forward pass written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dinov2 import convert_dinov2
from random_tower import DEPTH, GRID, PATCH, WIDTH, random_dinov2
from torch import Tensor
from torch.nn import functional as F

from grmp_score.errors import ConfigError, WeightsError
from grmp_score.model.clip import build_clip
from grmp_score.model.towers import ImageTower


def dinov2_forward(p: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """DINOv2 (arXiv 2304.07193) written out: [B, 3, S, S] -> normalised tokens [B, 1 + grid^2, width]."""
    width = p["cls_token"].shape[-1]
    patch = p["patch_embed.proj.weight"].shape[-1]
    heads = width // 64
    x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=patch)
    batch, _, grid, _ = x.shape
    x = torch.cat([p["cls_token"].expand(batch, 1, width), x.flatten(2).transpose(1, 2)], dim=1)
    old = int((p["pos_embed"].shape[1] - 1) ** 0.5)
    plane = p["pos_embed"][:, 1:].transpose(1, 2).reshape(1, width, old, old)
    if old != grid:
        plane = F.interpolate(plane, size=(grid, grid), mode="bicubic", antialias=False)
    x = x + torch.cat([p["pos_embed"][:, :1], plane.flatten(2).transpose(1, 2)], dim=1)
    for i in range(depth):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if k.startswith(f"blocks.{i}.")}
        h = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], eps=1e-6)
        qkv = F.linear(h, b["attn.qkv.weight"], b["attn.qkv.bias"])
        q, k, v = qkv.reshape(batch, -1, 3, heads, 64).permute(2, 0, 3, 1, 4)
        h = torch.softmax(q @ k.transpose(-1, -2) / 64**0.5, dim=-1) @ v
        h = F.linear(h.transpose(1, 2).flatten(2), b["attn.proj.weight"], b["attn.proj.bias"])
        x = x + b["ls1.gamma"] * h
        h = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], eps=1e-6)
        h = F.gelu(F.linear(h, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + b["ls2.gamma"] * F.linear(h, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), p["norm.weight"], p["norm.bias"], eps=1e-6)


@pytest.mark.parametrize("depth", range(1, DEPTH + 1))
def test_converted_tower_computes_what_dinov2_computes(depth: int) -> None:
    """At every depth the open_clip tower equals the DINOv2 forward pass."""
    state = random_dinov2()
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    vision_cfg, visual = convert_dinov2(state, depth=depth, image_size=56)
    text_cfg = {"context_length": 2, "vocab_size": 2, "width": 8, "heads": 1, "layers": 1}
    clip = build_clip({"embed_dim": 8, "vision_cfg": vision_cfg, "text_cfg": text_cfg})
    clip.visual.load_state_dict({**visual, "proj": clip.visual.proj})
    tower = ImageTower(clip.visual, None, adapted_blocks=1)
    expected = dinov2_forward(state, images, depth)[:, 0]
    with torch.no_grad():
        assert (tower.pool(tower.trunk(images)) - expected).norm() / expected.norm() < 1e-4


def test_stored_grid_is_used_as_it_is() -> None:
    """Without a change of size the positions are the stored ones plus the patch bias, bit for bit."""
    state = random_dinov2()
    _, visual = convert_dinov2(state, depth=1, image_size=GRID * PATCH)
    expected = state["pos_embed"][0].clone()
    expected[1:] += state["patch_embed.proj.bias"]
    assert torch.equal(visual["positional_embedding"], expected)


def test_half_precision_weights_and_mask_token() -> None:
    """Half-precision weights are widened exactly, and the token only pre-training uses is left out."""
    half = {k: v.half() for k, v in random_dinov2().items()}
    _, visual = convert_dinov2(half | {"mask_token": torch.zeros(1, WIDTH)}, depth=2, image_size=56)
    assert all(v.dtype == torch.float32 for v in visual.values())
    expected = half["blocks.1.mlp.fc2.weight"].float()
    assert torch.equal(visual["transformer.resblocks.1.mlp.c_proj.weight"], expected)


def test_input_is_neither_changed_nor_shared() -> None:
    """Changing the converted weights leaves the given ones as they were."""
    state = random_dinov2()
    before = {k: v.clone() for k, v in state.items()}
    _, visual = convert_dinov2(state, depth=DEPTH, image_size=GRID * PATCH)
    for tensor in visual.values():
        tensor.zero_()
    assert all(torch.equal(state[k], before[k]) for k in state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": DEPTH + 1}, "depth"),
        ({"depth": 1, "image_size": 57}, "multiple of the patch size 14"),
        ({"depth": 1, "image_size": 0}, "image_size"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    """An argument that makes no sense is refused by name."""
    with pytest.raises(ConfigError, match=message):
        convert_dinov2(random_dinov2(), **arguments)


@pytest.mark.parametrize(
    ("drop", "add"), [("blocks.1.ls2.gamma", None), (None, "register_tokens"), ("norm.bias", None)]
)
def test_missing_or_unknown_tensors(drop: str | None, add: str | None) -> None:
    """A tensor too few or too many is an error that names it."""
    state = random_dinov2()
    if drop:
        del state[drop]
    if add:
        state[add] = torch.zeros(1)
    with pytest.raises(WeightsError, match=drop or add or ""):
        convert_dinov2(state, depth=1, image_size=56)


def test_misshapen_tensor() -> None:
    """A tensor of the wrong shape is an error that names it."""
    state = random_dinov2()
    state["blocks.0.attn.qkv.weight"] = torch.zeros(WIDTH, WIDTH)
    with pytest.raises(WeightsError, match=r"blocks\.0\.attn\.qkv\.weight"):
        convert_dinov2(state, depth=1, image_size=56)


def test_positions_that_are_no_square() -> None:
    """A positional embedding that is no square grid is refused."""
    state = random_dinov2()
    state["pos_embed"] = torch.zeros(1, 8, WIDTH)
    with pytest.raises(WeightsError, match="square grid"):
        convert_dinov2(state, depth=1, image_size=56)
