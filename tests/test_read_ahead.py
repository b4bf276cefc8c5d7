"""Reading ahead: in order, complete, bounded in memory, and over when nobody wants more."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmp_score.pipeline.read_ahead import read_ahead


def reading_threads() -> list[threading.Thread]:
    """The threads of all `read_ahead` that have not ended."""
    return [t for t in threading.enumerate() if t.name.startswith("grmp-score-read")]


@settings(deadline=None, max_examples=40)
@given(count=st.integers(0, 60), workers=st.integers(1, 4), ahead=st.integers(1, 9))
def test_every_item_once_in_order_and_few_at_a_time(count: int, workers: int, ahead: int) -> None:
    """What is taken from the stream and not yet given back never exceeds the limit."""
    taken = given_back = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(count):
            taken += 1
            assert taken - given_back <= ahead
            yield item

    for item in read_ahead(lambda item: item * item, items(), workers, lambda: ahead):
        assert item == given_back * given_back
        given_back += 1
    assert given_back == taken == count
    assert not reading_threads()


def test_the_limit_may_change_on_the_way() -> None:
    """It is asked for anew before every result."""
    limits = iter([1, 1, 5, 1, 1])
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = read_ahead(lambda item: item, items(), 1, lambda: next(limits))
    seen = [(next(results), len(taken)) for _ in range(5)]
    assert seen == [(0, 1), (1, 2), (2, 7), (3, 7), (4, 7)]
    results.close()


def test_an_error_is_raised_where_its_result_is_due() -> None:
    """What comes before it is given back first."""
    results = read_ahead(lambda item: 1 / item, [2, 1, 0, 1], 2)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not reading_threads()


def test_closing_cancels_what_has_not_begun() -> None:
    """Nothing is computed afterwards, whatever the length of the stream."""
    computed: list[int] = []
    results = read_ahead(lambda item: computed.append(item), range(10_000), 2)
    next(results)
    results.close()
    after = len(computed)
    assert after <= 4 and not reading_threads()
