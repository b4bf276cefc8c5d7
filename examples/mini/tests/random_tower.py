"""Random DINOv2 weights for tests."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, PATCH, GRID, DEPTH = 128, 14, 5, 4


def random_dinov2(seed: int = 0) -> dict[str, Tensor]:
    """Random weights in the DINOv2 layout: no parameter is left at a value that would hide a mistake."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int, scale: float = 0.05, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=g) * scale + shift

    state = {
        "cls_token": rand(1, 1, WIDTH),
        "pos_embed": rand(1, GRID * GRID + 1, WIDTH, scale=0.5),
        "patch_embed.proj.weight": rand(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": rand(WIDTH, scale=0.5),
        "norm.weight": rand(WIDTH, scale=0.2, shift=1.0),
        "norm.bias": rand(WIDTH, scale=0.2),
    }
    for i in range(DEPTH):
        block = {
            "norm1.weight": rand(WIDTH, scale=0.2, shift=1.0),
            "norm1.bias": rand(WIDTH, scale=0.2),
            "attn.qkv.weight": rand(3 * WIDTH, WIDTH, scale=0.1),
            "attn.qkv.bias": rand(3 * WIDTH, scale=0.2),
            "attn.proj.weight": rand(WIDTH, WIDTH, scale=0.1),
            "attn.proj.bias": rand(WIDTH, scale=0.2),
            "ls1.gamma": rand(WIDTH, scale=0.5),
            "norm2.weight": rand(WIDTH, scale=0.2, shift=1.0),
            "norm2.bias": rand(WIDTH, scale=0.2),
            "mlp.fc1.weight": rand(4 * WIDTH, WIDTH, scale=0.1),
            "mlp.fc1.bias": rand(4 * WIDTH, scale=0.2),
            "mlp.fc2.weight": rand(WIDTH, 4 * WIDTH, scale=0.1),
            "mlp.fc2.bias": rand(WIDTH, scale=0.2),
            "ls2.gamma": rand(WIDTH, scale=0.5),
        }
        state |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return state
