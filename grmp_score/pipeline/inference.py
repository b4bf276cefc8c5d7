"""The model at work: where it runs, and patches in, p(high) out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from grmp_score.errors import ConfigError
from grmp_score.model.quality_clip import QualityCLIP, p_high

T = TypeVar("T")


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


def usual_batch_size(device: torch.device) -> int:
    """Images to compute together: enough to keep the device busy, and not more than memory is likely to hold."""
    return min(8, max(1, torch.get_num_threads() // 2)) if device.type == "cpu" else 16


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
    parts = parts_of(torch.cat(list(images)), device)
    logits = torch.cat(on_all_cores(lambda part: model(part.to(device)).cpu(), parts))
    values: list[float] = p_high(logits.double()).tolist()
    left = iter(values)
    return [tuple(islice(left, len(patches))) for patches in images]


def parts_of(patches: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """What of the patches [B, 3, S, S] goes through the model together: views [b, 3, S, S].

    On a CPU every patch is a pass of its own on one core, so that its value depends neither on its neighbours nor
    on the number of cores; the patches share the cores.  Elsewhere all go through together, to fill the device.
    """
    return torch.split(patches, 1 if device.type == "cpu" else max(1, len(patches)))


def on_all_cores(function: Callable[[Tensor], T], items: Sequence[Tensor]) -> list[T]:
    """The function of every item, without gradients, each computed by torch on one core.

    Small passes side by side keep the cores busier than one after another on all of them.  As many run at a time as
    torch would use threads (``torch.get_num_threads()``).
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        with one_core(threads):
            return [_without_gradients(function, item) for item in items]
    with one_core(threads), ThreadPoolExecutor(min(threads, len(items)), initializer=_take_one_core) as pool:
        return list(pool.map(partial(_without_gradients, function), items))


@contextmanager
def one_core(threads: int) -> Iterator[None]:
    """Lets torch use one core in this thread, and ``threads`` again at the end.

    The number is kept per thread, but each setting is also what threads get that start later; so whatever the
    threads in between set, it is put back.
    """
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _take_one_core() -> None:
    torch.set_num_threads(1)


def _without_gradients(function: Callable[[Tensor], T], item: Tensor) -> T:
    with torch.inference_mode():  # a thread's own setting
        return function(item)
