"""A stream of images through a few reading threads: in order, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from grmp_score.images.read import ImageSource
from grmp_score.pipeline.prepare import Prepared, Preparer
from grmp_score.score import Score

#: Names that a thread looks up in one go while the cache has all of them: handing over each takes longer than that.
MOST = 32

#: Seconds after which a thread hands over what it has, so that slow disks and lists do not keep results back.
PATIENCE = 0.05


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
        images: a stream of any length; a number of images that does not depend on it is held in memory.
        preparer: reads, and looks into the cache.
        forward: scores what the preparer has no score of.
        workers: threads that read.
        batch_size: images that ``forward`` takes at a time; asked for when the first has to be computed.
    """
    ahead = workers + 1
    with contextlib.closing(_read(images, preparer, workers, lambda: ahead)) as items:
        for first in items:
            if isinstance(first, Score):
                yield first
                continue
            size = batch_size()
            ahead = workers + size
            batch = [first, *islice(items, size - 1)]
            scored = iter(forward([item for item in batch if isinstance(item, Prepared)]))
            for item in batch:
                if isinstance(item, Prepared):
                    score = next(scored)
                    preparer.remember(item, score)
                    yield score
                else:
                    yield item


@dataclass
class _Part:
    """Images that one thread looks at; it stops at the first that must be computed."""

    images: list[ImageSource]
    found: Future[list[Prepared | Score]] | None = None


def _read(
    images: Iterable[ImageSource], preparer: Preparer, workers: int, ahead: Callable[[], int]
) -> Generator[Prepared | Score, None, None]:
    """What the preparer makes of the images; ``ahead`` parts are being read, each with one `Prepared` at most."""
    stream, parts, stopping = iter(images), deque[_Part](), threading.Event()
    most = 1 if preparer.cache is None else MOST
    size = 1

    def look(part: list[ImageSource]) -> list[Prepared | Score]:
        found: list[Prepared | Score] = []
        end = time.monotonic() + PATIENCE
        for image in part:
            found.append(preparer.try_prepare(image))
            if isinstance(found[-1], Prepared) or stopping.is_set() or time.monotonic() > end:
                break
        return found

    def read_ahead() -> None:
        while len(parts) < ahead() and (part := _taken(stream, size)):
            parts.append(_Part(part))
        for waiting in islice(parts, ahead()):
            if waiting.found is None:
                waiting.found = pool.submit(look, waiting.images)

    with ThreadPoolExecutor(workers, thread_name_prefix="grmp-score-read") as pool:
        try:
            read_ahead()
            while parts:
                part = parts.popleft()
                assert part.found is not None
                found = part.found.result()
                rest = part.images[len(found) :]
                # What is left of a part goes to all threads; the next parts are small until all is found again.
                parts.extendleft(_Part([image]) for image in reversed(rest))
                size = 1 if rest or isinstance(found[-1], Prepared) else min(2 * size, most)
                read_ahead()
                yield from found
        finally:
            stopping.set()
            for part in parts:
                if part.found is not None:
                    part.found.cancel()


def _taken(stream: Iterator[ImageSource], size: int) -> list[ImageSource]:
    """The next images, fewer than ``size`` if they are more than names, or arrive slowly."""
    taken: list[ImageSource] = []
    end = time.monotonic() + PATIENCE
    for image in islice(stream, size):
        taken.append(image)
        if not isinstance(image, (str, os.PathLike)) or time.monotonic() > end:
            break
    return taken
