"""A function over a stream of items by a few threads: in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: Callable[[], int] | None = None,
) -> Generator[R, None, None]:
    """Yields ``function(item)`` for every item, in the order of the items.

    Nothing is read before the first result is asked for.  The number of results and items held in memory does not
    depend on the length of the stream.  Closing the generator cancels what has not begun.

    Args:
        function: called in the worker threads; what it raises is raised where its result is due.
        items: a stream of any length, read by the thread that consumes the results.
        workers: number of threads.
        ahead: how many results may be waited for or kept at a time; asked anew for every result, so that it may
            change on the way.  None for one more than there are workers.
    """
    stream = iter(items)
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="grmp-score-read") as pool:
        try:
            while True:
                room = (workers + 1 if ahead is None else ahead()) - len(pending)
                pending.extend(pool.submit(function, item) for item in islice(stream, max(0, room)))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
