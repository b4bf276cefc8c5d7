"""Stage 1: prompts meta-learned over distortion types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grmp_score.trainer.pretrain.run import pretrain

__all__ = ["pretrain"]


def __getattr__(name: str) -> Any:
    if name == "pretrain":  # imports torch
        from grmp_score.trainer.pretrain.run import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
