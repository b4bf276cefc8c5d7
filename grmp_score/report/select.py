"""Which scores are shown, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from grmp_score.score import AnyScore, FailedScore


@dataclass(frozen=True)
class Selection:
    """What to do with a stream of scores.

    Attributes:
        sort: ``"none"`` keeps the order of the inputs, or with ``top`` and ``bottom`` that of the scores;
            ``"score"`` sorts, images without one last; ``"name"`` sorts by path.
        descending: the direction of ``sort``; None for best first and A to Z.
        top: how many of the best to keep.
        bottom: how many of the worst to keep; with ``top`` both are kept.
        minimum: lowest score to keep.
        maximum: highest score to keep.
    """

    sort: Literal["none", "score", "name"] = "none"
    descending: bool | None = None
    top: int | None = None
    bottom: int | None = None
    minimum: float | None = None
    maximum: float | None = None

    @property
    def filters(self) -> bool:
        """Whether anything may be left out.  Then images without a score always are."""
        return not (self.top is self.bottom is self.minimum is self.maximum is None)

    @property
    def waits(self) -> bool:
        """Whether nothing can be shown before the last image has been scored."""
        return self.sort != "none" or self.top is not None or self.bottom is not None

    def apply(self, scores: Iterable[AnyScore]) -> Iterator[AnyScore]:
        """The selected scores; of equal scores the earlier one wins and comes first.

        Streams unless it `waits`: then all scores are held, about 1 KB each with ten patches (100 MB for 100,000
        images).
        """
        chosen: Iterable[AnyScore] = filter(self._passes, scores)
        if self.top is not None or self.bottom is not None:
            chosen = self._extremes(list(chosen))
        if self.sort == "score":
            chosen = sorted(chosen, key=lambda score: _by_value(score, best_first=self.descending is not False))
        elif self.sort == "name":
            chosen = sorted(chosen, key=lambda score: score.path or "", reverse=bool(self.descending))
        return iter(chosen)

    def _passes(self, score: AnyScore) -> bool:
        if isinstance(score, FailedScore):
            return not self.filters
        return (self.minimum is None or score.value >= self.minimum) and (
            self.maximum is None or score.value <= self.maximum
        )

    def _extremes(self, scores: list[AnyScore]) -> list[AnyScore]:
        """The best and the worst; one that is both stands there once.

        In the order they came if they are to be sorted, else by score: best first, or the worst alone worst first.
        """
        everything = range(len(scores))
        best = sorted(everything, key=lambda i: _by_value(scores[i], best_first=True))
        worst = sorted(everything, key=lambda i: _by_value(scores[i], best_first=False))
        kept = {*best[: self.top or 0], *worst[: self.bottom or 0]}
        order = everything if self.sort != "none" else worst if self.top is None else best
        return [scores[i] for i in order if i in kept]


def _by_value(score: AnyScore, *, best_first: bool) -> tuple[bool, float]:
    if isinstance(score, FailedScore):
        return True, 0.0  # last, either way
    return False, -score.value if best_first else score.value
