"""Selecting and sorting streams of scores: equal to doing it with lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from grmp_score.report.select import Selection
from grmp_score.score import AnyScore, FailedScore, Score

values = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1)), max_size=30)


def scores_of(numbers: list[float | None]) -> list[AnyScore]:
    """A score for each number, an error for each None; all names differ."""
    return [
        Score(value, path=f"{index:02d}") if value is not None else FailedScore("broken", path=f"{index:02d}")
        for index, value in enumerate(numbers)
    ]


def found(selection: Selection, scores: list[AnyScore]) -> list[AnyScore]:
    """What is selected."""
    return list(selection.apply(iter(scores)))


@given(values, st.integers(1, 40), st.integers(1, 40))
def test_top_and_bottom(numbers: list[float | None], top: int, bottom: int) -> None:
    """The best, the worst, or both, each once, as from sorted lists; of equal scores the earlier are kept."""
    scores = scores_of(numbers)
    valid = [s for s in scores if isinstance(s, Score)]
    best = sorted(valid, key=lambda s: -s.value)
    worst = sorted(valid, key=lambda s: s.value)
    assert found(Selection(top=top), scores) == best[:top]
    assert found(Selection(bottom=bottom), scores) == worst[:bottom]
    both = found(Selection(top=top, bottom=bottom), scores)
    assert set(both) == {*best[:top], *worst[:bottom]} and len(set(both)) == len(both)
    assert [s.value for s in both] == sorted((s.value for s in both if isinstance(s, Score)), reverse=True)


@given(values)
def test_sorting(numbers: list[float | None]) -> None:
    """By score best first or worst first, errors last; equal ones stay in order."""
    scores = scores_of(numbers)
    for descending in (None, True, False):
        sign = 1 if descending is False else -1
        expected = sorted(
            scores,
            key=lambda s: (isinstance(s, FailedScore), 0.0 if isinstance(s, FailedScore) else sign * s.value),
        )
        assert found(Selection(sort="score", descending=descending), scores) == expected


@given(st.lists(st.text(max_size=3), max_size=20))
def test_sorting_by_name(names: list[str]) -> None:
    """A to Z or Z to A."""
    scores = [Score(0.5, path=name) for name in names]
    for descending in (None, False, True):
        paths = [s.path for s in found(Selection(sort="name", descending=descending), scores)]
        assert paths == sorted(names, reverse=bool(descending))


@given(values, st.floats(0, 1), st.floats(0, 1))
def test_limits(numbers: list[float | None], minimum: float, maximum: float) -> None:
    """Both ends belong to what is kept; what has no score is not."""
    scores = scores_of(numbers)
    kept = [s for s in scores if isinstance(s, Score) and minimum <= s.value <= maximum]
    assert found(Selection(minimum=minimum, maximum=maximum), scores) == kept
    assert found(Selection(), scores) == scores


def test_limits_apply_before_the_best_are_chosen_and_sorting_after() -> None:
    """All parts of a selection work together."""
    scores = scores_of([0.9, 0.1, 0.5, None, 0.7, 0.3])
    selection = Selection(sort="name", top=2, minimum=0.2, maximum=0.8)
    assert [s.path for s in found(selection, scores)] == ["02", "04"]


def test_a_stream_without_order_is_passed_on_at_once() -> None:
    """Nothing waits for the end when nothing has to."""

    def endless() -> Iterator[Score]:
        return (Score(i % 2 / 2 + 0.25, path=str(i)) for i in itertools.count())

    chosen = Selection(minimum=0.5).apply(endless())
    assert [s.path for s in itertools.islice(chosen, 3)] == ["1", "3", "5"]
    assert not Selection(minimum=0.5).waits and Selection(top=1).waits and Selection(sort="name").waits
