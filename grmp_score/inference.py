"""The model at work: where it runs, and patches in, p(high) out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grmp_score.errors import ConfigError
from grmp_score.model import QualityCLIP, p_high


def pick_device(name: str) -> torch.device:
    """The device of that name; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or mps") from error
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device.type, True)
    if not usable:
        raise ConfigError(f"this machine has no usable {device.type} device", hint="Use auto or cpu")
    return device


@torch.inference_mode()
def p_high_of(model: QualityCLIP, images: Sequence[Tensor], device: torch.device) -> list[tuple[float, ...]]:
    """p(high) of the patches of images.

    Args:
        model: on ``device``.
        images: the patches [P, 3, S, S] of each image.
        device: where to compute.

    Returns:
        P numbers in 0..1 for each image, higher is better.
    """
    if not images:
        return []
    # One image after another on a CPU: the patches of one fill it, and the result of an image cannot
    # depend on its neighbours.  Elsewhere several images share a pass to fill the device.
    if device.type == "cpu":
        outputs = [model(patches) for patches in images]
    else:
        joined = model(torch.cat(list(images)).to(device))
        outputs = list(joined.split([len(patches) for patches in images]))
    return [tuple(p_high(logits.cpu().double()).tolist()) for logits in outputs]
