"""A stream of images through a few reading threads: in order, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from grmp_score.images import ImageSource
from grmp_score.prepare import Prepared, Preparer
from grmp_score.score import Score


def score_stream(
    images: Iterable[ImageSource],
    preparer: Preparer,
    forward: Callable[[list[Prepared]], list[Score]],
    *,
    workers: int,
    batch_size: Callable[[], int],
) -> Iterator[Score]:
    """One `Score` for each image, in order; nothing is read before the first is asked for.

    Args:
        images: a stream of any length; only ``workers`` plus two batches of it are held.
        preparer: reads, and looks into the cache.
        forward: scores what the preparer has no score of.
        workers: threads that read.
        batch_size: images that ``forward`` takes at a time; asked for when the first has to be computed.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="grmp-score-read") as pool:
        pending: deque[Future[Prepared | Score]] = deque()
        stream = iter(images)

        def read_ahead(count: int) -> None:
            more = islice(stream, max(0, count - len(pending)))
            pending.extend(pool.submit(preparer.try_prepare, image) for image in more)

        try:
            read_ahead(workers + 1)
            while pending:
                first = pending.popleft().result()
                read_ahead(workers + 1)
                if isinstance(first, Score):
                    yield first
                    continue
                size = batch_size()
                read_ahead(workers + size)
                batch = [first, *(pending.popleft().result() for _ in range(min(size - 1, len(pending))))]
                read_ahead(workers + size)
                scored = iter(forward([item for item in batch if isinstance(item, Prepared)]))
                for item in batch:
                    if isinstance(item, Prepared):
                        score = next(scored)
                        preparer.remember(item, score)
                        yield score
                    else:
                        yield item
        finally:
            for future in pending:
                future.cancel()
