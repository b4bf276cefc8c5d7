"""Stage 2: a model fitted to a user's own labels, in closed form or by gradient descent.

``from grmp_score.trainer.adapt import adapt, Adapted, FewShotConfig``: torch is imported with `adapt`, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow, Progress

if TYPE_CHECKING:
    from grmp_score.trainer.adapt.run import Adapted, adapt

__all__ = ["Adapted", "FewShotConfig", "HistoryRow", "Progress", "adapt"]


def __getattr__(name: str) -> Any:
    if name in ("Adapted", "adapt"):
        from grmp_score.trainer.adapt import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
