"""What the tests of stage 1 share: made-up training crops, and comparing tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from torch import Tensor, equal, nn

from grmp_score.trainer.data.sources import CLEAN, Item
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops

#: Six outer steps, three per epoch, on `toy_crops`; learning rates at which something happens.
FAST = PretrainConfig(
    epochs=2,
    tasks_per_step=2,
    inner_lr=1e-2,
    outer_lr=0.5,
    outer_lr_end=1.0,
    adam="fresh",
    support_batch=6,
    query_batch=4,
)

#: The authors' loop with the same rates and batches: two outer steps per epoch, of two data sets.
CARRIED = PretrainConfig.preset(
    "authors", n_visual=3, epochs=3, inner_lr=1e-2, outer_lr=0.5, support_batch=6, query_batch=4
)
TWO_SETS = {"tid2013": ["blur", "noise"], "kadid10k": ["jpeg", "darken", "block"]}


def toy_crops(
    tasks: dict[str, list[str]] | None = None,
    *,
    references: int = 5,
    levels: tuple[int, ...] = (1, 3, 5),
    views: int = 2,
    symmetric: bool = False,
    squeezed: bool = False,
    flat: bool = False,
) -> TrainingCrops:
    """Crops [N, views, 32, 32, 3] of noise that get darker as their label falls.

    ``tasks`` gives the tasks of each data set; ``symmetric`` crops equal their mirror image, ``flat`` ones have one
    colour; ``squeezed`` ones have a larger image beside them, of 37x37.
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
    if flat:
        pixels = np.broadcast_to(pixels.mean(axis=(1, 2, 3), keepdims=True), pixels.shape)
    pixels = pixels.astype(np.uint8)
    if not squeezed:
        return TrainingCrops(items, labels, pixels)
    return TrainingCrops(
        items, labels, pixels[:, :1], np.pad(pixels[:, 0], ((0, 0), (2, 3), (2, 3), (0, 0)), "edge")
    )


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
