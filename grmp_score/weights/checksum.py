"""One short name for everything in a set of weights that decides what it says about an image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from grmp_score.config import ModelConfig
from grmp_score.weights.tensors import Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def model_checksum(config: ModelConfig, state: Mapping[str, Tensor | Stored]) -> str:
    """The checksum of a model: 16 hexadecimal digits of a SHA-256.

    It covers all tensors as float32 and the parts of the configuration that decide scores, labels and percentiles.
    The model's name, its provenance and its measured results may change without changing it.  Tensors in files and
    in memory give the same; for those in files torch is not imported.

    Args:
        config: the weights' own.
        state: all tensors by their name in `QualityCLIP`, of any dtype, on any device or in files.
    """
    parts = {
        "model_cfg": config.backbone.model_cfg,
        "prompts": dataclasses.asdict(config.prompts),
        "preprocess": dataclasses.asdict(config.preprocess),
        "label_scale": None if config.label_scale is None else dataclasses.asdict(config.label_scale),
        "reference_percentiles": config.reference_percentiles,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name in sorted(state):
        values = _as_float32(state[name])
        digest.update(f"\n{name} {list(values.shape)}\n".encode())
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()[:16]


def _as_float32(tensor: Tensor | Stored) -> NDArray[np.float32]:
    values = tensor.read() if isinstance(tensor, Stored) else tensor
    # Both conversions are exact for narrower types and round to the nearest for wider ones.
    array: NDArray[Any] = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
    return np.asarray(array, dtype=np.float32, order="C")
