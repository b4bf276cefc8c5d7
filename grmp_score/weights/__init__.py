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
from grmp_score.weights.zero_shot import CLIP_IQA_PROMPTS, with_prompts

__all__ = [
    "ADAPTER",
    "BACKBONE",
    "BUNDLED",
    "CARD",
    "CLIP_IQA_PROMPTS",
    "CONFIG",
    "DEFAULT_MODEL",
    "OPEN_CLIP_FILE",
    "Weights",
    "adapter_of",
    "load",
    "load_base",
    "with_prompts",
]
