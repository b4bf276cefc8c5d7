"""Checksums: of a file, and one short name for everything in a set of weights that decides a score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from grmp_score.config import ModelConfig
from grmp_score.errors import WeightsError
from grmp_score.weights.tensors import as_float32

if TYPE_CHECKING:
    from torch import Tensor


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str | None) -> None:
    """Raises `WeightsError` when a file's checksum is not the expected one (None: not checked)."""
    if expected is not None:
        compare_sha256(path, sha256_of(path), expected)


def compare_sha256(path: Path, got: str, expected: str) -> None:
    """Raises `WeightsError` when a checksum that is known already is not the expected one."""
    if got != expected:
        raise WeightsError(
            f"the checksum differs: expected sha256 {expected[:16]}..., got {got[:16]}...",
            path=path,
            hint="The file is damaged or was replaced; fetch or copy it again",
        )


def model_checksum(config: ModelConfig, backbone: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> str:
    """The checksum of a model: 16 hexadecimal digits of a SHA-256.

    It covers all tensors as float32 and the parts of the configuration that decide scores, labels and percentiles.
    The model's name, its provenance and its measured results may change without changing it.  Tensors in files and
    in memory give the same; for those in files torch is not imported, and one at a time is read.

    Args:
        config: the weights' own.
        backbone: base tensors by their open_clip names.
        adapter: trained tensors by their name in `QualityCLIP`; they win over those of the backbone.
    """
    prompts = dataclasses.asdict(config.prompts)
    del prompts["scenes"]  # they serve training and decide no score
    parts = {
        "model_cfg": config.backbone.model_cfg,
        "prompts": prompts,
        "preprocess": dataclasses.asdict(config.preprocess),
        "label_scale": None if config.label_scale is None else dataclasses.asdict(config.label_scale),
        "reference_percentiles": config.reference_percentiles,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    state = {
        **{f"clip.{name}": (backbone, name) for name in backbone},
        **{name: (adapter, name) for name in adapter},
    }
    for name in sorted(state):
        values = as_float32(*state[name])
        digest.update(f"\n{name} {list(values.shape)}\n".encode())
        digest.update(values.data if values.size else b"")
    return digest.hexdigest()[:16]
