"""One short name for everything in a set of weights that decides what it says about an image."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from grmp_score.config import ModelConfig


def model_checksum(config: ModelConfig, state: Mapping[str, Tensor]) -> str:
    """The checksum of a model: 16 hexadecimal digits of a SHA-256.

    It covers all tensors as float32 and the parts of the configuration that decide scores, labels and percentiles.
    The model's name, its provenance and its measured results may change without changing it.

    Args:
        config: the weights' own.
        state: all tensors by their name in `QualityCLIP`, of any dtype and on any device.
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
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data if tensor.numel() else b"")
    return digest.hexdigest()[:16]
