"""torch at work: which device, and small passes side by side on the cores of a CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from grmp_score.errors import ConfigError

T = TypeVar("T")

#: Patches in one pass of a GPU: enough to fill it, few enough that a single image does not wait for many.
GPU_PASS = 32


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


def in_passes(
    function: Callable[[Tensor], T], patches: Tensor, device: torch.device, threads: int | None = None
) -> list[T]:
    """The function of what goes through the model together, without gradients: views [b, ...] of patches [B, ...].

    On a CPU every patch is a pass of its own on one core, so that its value depends neither on its neighbours nor
    on the number of cores; the patches share the cores.  Elsewhere `GPU_PASS` go through together, pass after pass.
    """
    if device.type == "cpu":
        return on_all_cores(function, torch.split(patches, 1), threads)
    with torch.inference_mode():
        return [function(part) for part in torch.split(patches, GPU_PASS)]


def of_pass_size(part: Tensor, device: torch.device) -> Tensor:
    """A part [b, 3, S, S] with zeros behind it, as large as all: a GPU's kernels depend on the size, and differ."""
    missing = 0 if device.type == "cpu" else GPU_PASS - len(part)
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part


def on_all_cores(function: Callable[[Tensor], T], items: Sequence[Tensor], threads: int | None = None) -> list[T]:
    """The function of every item, without gradients, each computed by torch on one core.

    Small passes side by side keep the cores busier than one after another on all of them.  As many run at a time as
    torch would use threads (``torch.get_num_threads()``), or as are given.
    """

    threads = threads or torch.get_num_threads()
    if threads == torch.get_num_threads() == 1:
        with torch.inference_mode():
            return list(map(function, items))

    def compute(item: Tensor) -> T:
        with torch.inference_mode():  # a thread's own setting
            return function(item)

    return list(_one_core_workers(threads).map(compute, items))


@lru_cache(maxsize=4)
def _one_core_workers(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core each; made once, and kept.

    torch's setting is a thread's own, but each setting is also what a thread gets that asks torch for the first
    time later.  So all workers are started here and now, and the number is put back before anything is computed.
    """
    started, usual = threading.Barrier(threads), torch.get_num_threads()

    def start(_: int) -> None:
        torch.get_num_threads()  # the first time: from now on the thread keeps what is set in it
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="grmp-score-model")
    list(pool.map(start, range(threads)))
    torch.set_num_threads(usual)
    return pool


def _after_fork() -> None:
    """In the child of a process that has computed: its threads, ours and torch's, do not survive a fork.

    What torch would share among threads waits for them for ever, so the child computes on one core.
    """
    if _one_core_workers.cache_info().currsize:
        _one_core_workers.cache_clear()
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
