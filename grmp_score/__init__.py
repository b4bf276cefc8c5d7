"""How good does this image look, and what do *you* mean by good?

``from grmp_score import Scorer`` costs little: torch and open_clip are imported when an image needs the model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from grmp_score import _moved as _moved
from grmp_score.errors import (
    CacheError,
    ConfigError,
    DataError,
    GrmpScoreError,
    HubError,
    ImageReadError,
    ImageTooLargeError,
    MissingExtraError,
    ResultsError,
    WeightsError,
)

if TYPE_CHECKING:
    from grmp_score.pipeline.cache import ScoreCache
    from grmp_score.score import FailedScore, Score
    from grmp_score.scorer import Scorer, ScorerOptions
    from grmp_score.trainer.adapt.config import FewShotConfig
    from grmp_score.trainer.adapt.run import adapt
    from grmp_score.trainer.data.labels import read_labels
    from grmp_score.trainer.evaluation import evaluate
    from grmp_score.trainer.pretrain.config import PretrainConfig
    from grmp_score.trainer.pretrain.run import pretrain

__version__ = "0.2.0"

#: Public name -> the module that it is imported from when it is first used.
_LAZY = {
    "FailedScore": "grmp_score.score",
    "FewShotConfig": "grmp_score.trainer.adapt.config",
    "PretrainConfig": "grmp_score.trainer.pretrain.config",
    "Score": "grmp_score.score",
    "ScoreCache": "grmp_score.pipeline.cache",
    "Scorer": "grmp_score.scorer",
    "ScorerOptions": "grmp_score.scorer",
    "adapt": "grmp_score.trainer.adapt.run",
    "evaluate": "grmp_score.trainer.evaluation",
    "pretrain": "grmp_score.trainer.pretrain.run",
    "read_labels": "grmp_score.trainer.data.labels",
}

__all__ = [
    "CacheError",
    "ConfigError",
    "DataError",
    "FailedScore",
    "FewShotConfig",
    "GrmpScoreError",
    "HubError",
    "ImageReadError",
    "ImageTooLargeError",
    "MissingExtraError",
    "PretrainConfig",
    "ResultsError",
    "Score",
    "ScoreCache",
    "Scorer",
    "ScorerOptions",
    "WeightsError",
    "__version__",
    "adapt",
    "evaluate",
    "pretrain",
    "read_labels",
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
