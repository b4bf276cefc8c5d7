"""QuickGELU, the activation of OpenAI's CLIP, with few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOPE = 1.702


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as open_clip's module of that name.

    The same function is silu(1.702 x) / 1.702, with silu(z) = z * sigmoid(z), so its gradient is silu'(1.702 x):
    two passes over x, and nothing kept but x, where autograd takes five through the formula as it is written.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and floating dtype; differentiable once."""
        result: Tensor = _QuickGELU.apply(x)
        return result


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return nn.functional.silu(x * SLOPE, inplace=True).div_(SLOPE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = torch.ops.aten.silu_backward(gradients[0], x * SLOPE)
        return result
