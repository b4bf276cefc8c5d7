"""Configuration and tensors <-> weights folder, Hub repository, official checkpoints."""

from grmp_score.weights.folder import (
    ADAPTER,
    BACKBONE,
    BUNDLED,
    CARD,
    CONFIG,
    DEFAULT_MODEL,
    OPEN_CLIP_FILE,
    Weights,
    adapter_of,
    load,
    load_base,
)

__all__ = [
    "ADAPTER",
    "BACKBONE",
    "BUNDLED",
    "CARD",
    "CONFIG",
    "DEFAULT_MODEL",
    "OPEN_CLIP_FILE",
    "Weights",
    "adapter_of",
    "load",
    "load_base",
]
