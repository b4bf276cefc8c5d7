"""The model at work: patches in, p(high) out, by ONNX Runtime or by torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from grmp_score.model.patches import Patches

if TYPE_CHECKING:
    import torch

    from grmp_score.model.graph import Graph
    from grmp_score.model.quality_clip import QualityCLIP

T = TypeVar("T")
R = TypeVar("R")

EngineName = Literal["auto", "onnxruntime", "torch"]
Precision = Literal["auto", "float32", "bfloat16", "int8"]


class Engine(Protocol):
    """Computes p(high) of patches.

    Attributes:
        name: of the library.
        device: where it computes.
        precision: of its products.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...

    def p_high(self, patches: Patches) -> list[float]:
        """Patches [B, 3, S, S], B >= 1 -> B numbers in 0..1, higher is better.

        The value of a patch does not depend on the others.
        """


class OnnxEngine:
    """ONNX Runtime on the CPU.  Every patch is a pass of its own on one core; the patches share the cores."""

    name: ClassVar[str] = "onnxruntime"
    device: ClassVar[str] = "cpu"

    def __init__(self, graph: Graph, precision: str, threads: int) -> None:
        """Loads a graph.

        Args:
            graph: of `Weights.graph`.
            precision: that it was made for.
            threads: cores to use.
        """
        import onnxruntime

        self.precision, self._threads = precision, threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(v) for v in graph.tensors.values()]
        options.add_external_initializers(list(graph.tensors), values)
        model = graph.model.SerializeToString()
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def p_high(self, patches: Patches) -> list[float]:
        """See `Engine`."""
        logits = on_cores(self._logits, np.split(patches, len(patches)), self._threads)
        return p_high(np.concatenate(logits))

    def _logits(self, patch: Patches) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._session.run(None, {"patches": patch})[0]
        return logits


class TorchEngine:
    """torch, on any of its devices."""

    name: ClassVar[str] = "torch"

    def __init__(self, model: QualityCLIP, device: torch.device, precision: str, threads: int | None) -> None:
        """Takes a model that is on the device; ``threads``: as many as torch would use, where None."""
        self.precision, self._threads, self._device, self._model = precision, threads, device, model
        self._tower = model
        if precision == "bfloat16":
            import copy

            self._tower = copy.deepcopy(model).bfloat16()

    @property
    def device(self) -> str:
        """See `Engine`."""
        return str(self._device)

    def p_high(self, patches: Patches) -> list[float]:
        """See `Engine`."""
        import torch

        from grmp_score.pipeline.inference import in_passes, of_pass_size

        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32

        def run(part: torch.Tensor) -> torch.Tensor:
            # A score does not depend on where it is asked for.
            with torch.autocast(self._device.type, enabled=False):
                whole = of_pass_size(part, self._device).to(self._device, dtype)
                features = self._tower.image(whole)[: len(part)].float()
                return self._model.quality_logits(features).cpu()

        every = torch.from_numpy(np.ascontiguousarray(patches))
        return p_high(torch.cat(in_passes(run, every, self._device, self._threads)).numpy())


def p_high(logits: NDArray[np.float32]) -> list[float]:
    """Logits [B, 2], columns high, low -> p(high) of each (eq. 2)."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    values: list[float] = (1 / (1 + np.exp(np.minimum(margin, 700.0)))).tolist()
    return values


def cores() -> int:
    """Cores that this process may use: those that it is allowed to run on, or OMP_NUM_THREADS."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Whether it is worth the seconds that torch takes to ask it for a GPU."""
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32" / "nvcuda.dll").exists()
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def on_cores(function: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """The function of every item, by so many threads."""
    if threads == 1:
        return list(map(function, items))
    return list(_workers(threads).map(function, items))


@lru_cache(maxsize=4)
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="grmp-score-model")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)
