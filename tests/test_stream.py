"""The stream of images: in order and complete whatever the cache has, and never much in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grmp_score.pipeline import stream as stream_module
from grmp_score.pipeline.prepare import Prepared
from grmp_score.pipeline.stream import MOST, score_stream
from grmp_score.score import Score


class Reader:
    """A preparer whose cache has some of the images; counts what is prepared and not yet scored."""

    def __init__(self, known: list[bool]) -> None:
        self.cache, self.known, self.lock = object(), known, threading.Lock()
        self.held = self.most = 0
        self.remembered: list[str | None] = []

    def try_prepare(self, image: Any) -> Prepared | Score:
        if self.known[int(image)]:
            return Score(0.0, path=str(image))
        with self.lock:
            self.held += 1
            self.most = max(self.most, self.held)
        return Prepared(torch.zeros(1), str(image), 1, 1)

    def forward(self, items: list[Prepared]) -> list[Score]:
        with self.lock:
            self.held -= len(items)
        return [Score(1.0, path=item.path) for item in items]

    def remember(self, item: Prepared, score: Score) -> None:
        assert item.path == score.path
        self.remembered.append(item.path)

    def scores(self, images: Any, *, workers: int, batch: int) -> Iterator[Score]:
        return score_stream(images, self, self.forward, workers=workers, batch_size=lambda: batch)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 80)), max_size=8),
    workers=st.integers(1, 4),
    batch=st.integers(1, 5),
)
def test_every_image_once_and_in_order(runs: list[tuple[bool, int]], workers: int, batch: int) -> None:
    """Long and short runs of known and unknown images; what is held does not grow with them."""
    known = [value for value, count in runs for _ in range(count)]
    reader = Reader(known)
    scores = list(reader.scores(map(str, range(len(known))), workers=workers, batch=batch))
    assert [score.path for score in scores] == [str(i) for i in range(len(known))]
    assert [score.value for score in scores] == [0.0 if value else 1.0 for value in known]
    assert reader.remembered == [str(i) for i, value in enumerate(known) if not value]
    assert reader.held == 0 and reader.most <= 2 * (workers + batch) + batch


def test_known_names_are_taken_many_at_a_time() -> None:
    """But a bounded number, and pictures one by one, since they are held meanwhile."""
    for images, limit in ((map(str, range(5000)), 3 * MOST), (iter(range(5000)), 3)):
        taken = 0

        def counting(images: Iterator[Any] = images) -> Iterator[Any]:
            nonlocal taken
            for image in images:
                taken += 1
                yield image

        scores = Reader([True] * 5000).scores(counting(), workers=2, batch=1)
        ahead = []
        for given_back in range(1, 2001):
            next(scores)
            ahead.append(taken - given_back)
        scores.close()  # type: ignore[attr-defined]
        assert limit / 2 <= max(ahead) <= limit + MOST
    assert not [t for t in threading.enumerate() if t.name.startswith("grmp-score-read")]


def test_a_slow_list_keeps_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that arrive slowly are looked up one by one."""
    now = [0.0]
    monkeypatch.setattr(stream_module.time, "monotonic", lambda: now[0])
    taken = 0

    def slow() -> Iterator[str]:
        nonlocal taken
        while True:
            now[0] += 1
            taken += 1
            yield "0"

    scores = Reader([True]).scores(slow(), workers=2, batch=1)
    for given_back in range(1, 200):
        next(scores)
        assert taken - given_back <= 4
    scores.close()  # type: ignore[attr-defined]


def test_closing_stops_the_threads_at_the_next_image() -> None:
    """A part of many names is not finished when nobody wants the scores any more."""
    looked, going, reader = [], threading.Event(), Reader([True] * 10_000)
    plain = reader.try_prepare

    def waiting(image: Any) -> Prepared | Score:
        looked.append(image)
        if int(image) == 1000:
            going.set()
        return plain(image)

    reader.try_prepare = waiting  # type: ignore[method-assign]
    scores = reader.scores(map(str, range(10_000)), workers=2, batch=1)
    while not going.is_set():
        next(scores)
    scores.close()  # type: ignore[attr-defined]
    after = len(looked)
    assert after < 10_000
    assert not [t for t in threading.enumerate() if t.name.startswith("grmp-score-read")]
    assert len(looked) == after
