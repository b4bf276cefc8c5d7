"""How good does this image look, and what do *you* mean by good?

``from grmp_score import Scorer`` costs little: torch and open_clip are imported when an image needs the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grmp_score.errors import (
    ConfigError,
    GrmpScoreError,
    HubError,
    ImageReadError,
    MissingExtraError,
    WeightsError,
)

if TYPE_CHECKING:
    from grmp_score.scorer import Score, Scorer

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "GrmpScoreError",
    "HubError",
    "ImageReadError",
    "MissingExtraError",
    "Score",
    "Scorer",
    "WeightsError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Imports `Scorer` and `Score` (and with them NumPy and Pillow) on first use."""
    if name in ("Score", "Scorer"):
        from grmp_score import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
