"""What the tests of stage 1 share: made-up training crops, and comparing tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from torch import Tensor, equal, nn

from grmp_score.trainer.data.sources import CLEAN, Item
from grmp_score.trainer.pretrain.crops import TrainingCrops
from grmp_score.trainer.pretrain.meta import PretrainConfig

#: Six outer steps, three per epoch, on `toy_crops`; learning rates at which something happens.
FAST = PretrainConfig(epochs=2, tasks_per_step=2, inner_lr=1e-2, outer_lr=0.5, support_batch=6, query_batch=4)


def toy_crops(
    tasks: dict[str, list[str]] | None = None,
    *,
    references: int = 5,
    levels: tuple[int, ...] = (1, 3, 5),
    views: int = 2,
    symmetric: bool = False,
) -> TrainingCrops:
    """Crops [N, views, 32, 32, 3] of noise that get darker as their label falls.

    ``tasks`` gives the tasks of each data set; ``symmetric`` crops equal their mirror image.
    """
    rng = np.random.default_rng(0)
    items = []
    for data_set, names in (tasks or {"references": ["blur", "noise", "jpeg", "darken", "block"]}).items():
        for r in range(references):
            items.append(Item(f"{data_set}/{CLEAN}", CLEAN, 0, f"{r}.png", 1.0, Path(f"{r}.png")))
            for name, level in itertools.product(names, levels):
                label = float(np.clip(1 - level / 6 + rng.uniform(-0.05, 0.05), 0, 1))
                items.append(Item(f"{data_set}/{name}", "group", level, f"{r}.png", label, Path(f"{r}.png")))
    labels = np.array([i.label for i in items])
    pixels = rng.uniform(0, 90, (len(items), views, 32, 32, 3)) + 160 * labels[:, None, None, None, None]
    if symmetric:
        pixels = (pixels + pixels[:, :, :, ::-1]) / 2
    return TrainingCrops(items, labels, pixels.astype(np.uint8))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert not [k for k in one if not equal(one[k], other[k])]


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest absolute difference of any value."""
    return max(float((one[k] - other[k]).abs().max()) for k in one)
