"""Which scores are shown, and in which order, in bounded memory whatever their number."""

from __future__ import annotations

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

from grmp_score.score import AnyScore, FailedScore, Score

#: Scores that are sorted in memory; more are sorted in parts, on disk.
CHUNK = 5_000

Order = tuple[Any, ...]


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
        """The selected scores.  Streams unless `waits`; of equal scores the earlier one wins and comes first."""
        chosen: Iterator[AnyScore] = filter(self._passes, scores)
        if self.top is not None or self.bottom is not None:
            kept = _extremes(chosen, self.top or 0, self.bottom or 0)
            if self.sort == "none":
                sign = 1 if self.top is None else -1  # the worst alone begin with the very worst
                return iter(sorted(kept, key=lambda s: sign * s.value))
            chosen = iter(kept)
        if self.sort == "none":
            return chosen
        return sorted_on_disk(chosen, self._key())

    def _passes(self, score: AnyScore) -> bool:
        if isinstance(score, FailedScore):
            return not self.filters
        return (self.minimum is None or score.value >= self.minimum) and (
            self.maximum is None or score.value <= self.maximum
        )

    def _key(self) -> Callable[[AnyScore], Order]:
        if self.sort == "score":
            sign = 1 if self.descending is False else -1
            return lambda s: (True, 0.0) if isinstance(s, FailedScore) else (False, sign * s.value)
        if self.descending:
            # Code points negated, and at the end something greater than all of them, sort names backwards.
            return lambda s: (*(-ord(letter) for letter in s.path or ""), 1)
        return lambda s: (s.path or "",)


def _extremes(scores: Iterable[AnyScore], top: int, bottom: int) -> list[Score]:
    """The best and the worst scores, in the order they came; one that is both stands there once."""
    best: list[tuple[float, int, Score]] = []
    worst: list[tuple[float, int, Score]] = []
    for index, score in enumerate(scores):
        if isinstance(score, FailedScore):
            continue
        for heap, size, value in ((best, top, score.value), (worst, bottom, -score.value)):
            # The smallest of a heap is the next to go: the lowest value and, of equal ones, the latest.
            if len(heap) < size:
                heapq.heappush(heap, (value, -index, score))
            elif size and (value, -index) > heap[0][:2]:
                heapq.heapreplace(heap, (value, -index, score))
    found = {-index: score for _, index, score in best} | {-index: score for _, index, score in worst}
    return [found[index] for index in sorted(found)]


def sorted_on_disk(scores: Iterable[AnyScore], key: Callable[[AnyScore], Order]) -> Iterator[AnyScore]:
    """All scores by ``key``, equal ones in the order they came; at most `CHUNK` of them are in memory."""
    parts: list[IO[bytes]] = []
    chunk: list[tuple[Order, int, AnyScore]] = []
    try:
        for index, score in enumerate(scores):
            chunk.append((key(score), index, score))
            if len(chunk) >= CHUNK:
                parts.append(_spill(chunk))
                chunk = []
        chunk.sort(key=lambda item: item[:2])
        streams = [*map(_spilled, parts), iter(chunk)]
        for _, _, score in heapq.merge(*streams, key=lambda item: item[:2]):
            yield score
    finally:
        for part in parts:
            part.close()


def _spill(chunk: list[tuple[Order, int, AnyScore]]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `sorted_on_disk`)
    for item in sorted(chunk, key=lambda item: item[:2]):
        pickle.dump(item, file)
    file.seek(0)
    return file


def _spilled(file: IO[bytes]) -> Iterator[tuple[Order, int, AnyScore]]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return
