"""How labels are divided for training and testing: evenly over the scores, all versions of a photo on one side.

Sets of spoilt photos hold many versions of each (LIVE: 27 of every reference), and people's own folders hold copies
and bursts.  Who has learned one version knows the others; so all of them stay on one side.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grmp_score.errors import DataError, ImageReadError
from grmp_score.images.near_duplicates import connected, fingerprint
from grmp_score.images.read import MAX_PIXELS, read_image
from grmp_score.pipeline.read_ahead import read_ahead
from grmp_score.trainer.data.labels import Indices, Labels
from grmp_score.weights.checksum import sha256_of

#: Where versions are kept together, the least share of the rows to test on.
TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Division:
    """Rows to train on and rows to test on, without a photo on both sides.

    Attributes:
        drawn: positions of the rows to train on, in the labels, ascending.
        tested: positions of the rows to test on: in the labels, or in the test file that was given.
        left_out: positions, in the same, of the rows that may not be tested on for the sake of those.
    """

    drawn: Indices
    tested: Indices
    left_out: Indices


def divide(labels: Labels, shots: int | None, seed: int, test: Labels | None = None) -> Division:
    """Divides labels, by `draw_shots`, or removes from a test file what is trained on.

    Args:
        labels: rows to train on; without a test file also those to test on.
        shots: rows to draw; None for all.
        seed: of the draw.
        test: rows of another file.  Its references have the names of the labels', see `find_references`.
    """
    drawn, rest = np.arange(len(labels)), np.arange(0)
    if shots is not None:
        drawn, rest = draw_shots(labels.scores, shots, seed, labels.groups)
    if test is None:
        left = np.setdiff1d(np.arange(len(labels)), np.concatenate([drawn, rest]))
        return Division(drawn, rest, left)
    known = set(labels.take(drawn).references) - {""}
    seen = np.array([name in known for name in test.references or [""] * len(test)], dtype=bool)
    return Division(drawn, np.flatnonzero(~seen), np.flatnonzero(seen))


def draw_shots(
    scores: ArrayLike, shots: int, seed: int, groups: ArrayLike | None = None
) -> tuple[Indices, Indices]:
    """Draws training rows evenly over the score range.

    The rows, sorted by score, are cut into ``shots`` bins of equal count (plus or minus one); one row is drawn from
    each.  Equal scores are put in random order first.  The same seed draws the same rows.

    With groups the other rows of the drawn ones' groups are neither trained nor tested on.  Where that would leave
    less than `TEST_SHARE` to test on, `draw_test` divides the groups first, and the shots are drawn from one part.

    Args:
        scores: [n].
        shots: how many rows, exactly.
        seed: of everything random.
        groups: number of each row's group [n]; None: every row is a group of its own.

    Returns:
        Ascending indices of the drawn rows [shots] and of those to test on; no group has rows in both.
    """
    values = np.asarray(scores, dtype=np.float64)
    drawn = _draw(values, shots, seed)
    if groups is None:
        return drawn, _others(drawn, len(values))
    numbers = np.asarray(groups)
    rest = np.flatnonzero(~np.isin(numbers, numbers[drawn]))
    wanted = min(int(TEST_SHARE * len(values)), len(values) - shots)
    if len(rest) < wanted:
        train, rest = draw_test(values, wanted, seed, numbers)
        drawn = train[_draw(values[train], shots, seed)]
    return drawn, rest


def draw_test(scores: ArrayLike, count: int, seed: int, groups: ArrayLike | None = None) -> tuple[Indices, Indices]:
    """Draws rows to test on, evenly over the score range, as `draw_shots` draws.

    With groups, whole ones are drawn by their mean scores.  They hold ``count`` rows or, where sizes do not add up
    to that, fewer; none where all groups are larger.

    Returns:
        Ascending indices of the other rows and of those to test on; no group has rows in both.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if groups is None:
        test = _draw(values, count, seed) if count else np.arange(0)
        return _others(test, n), test
    _, numbers, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    means = np.bincount(numbers, weights=values) / sizes
    # So many groups of the mean size; then others as far as there is room, for those drawn may be small or not fit.
    first = _draw(means, max(1, round(count / n * len(sizes))), seed)
    rng = np.random.default_rng(seed)
    chosen, room = [], count
    for group in (*rng.permutation(first), *rng.permutation(_others(first, len(sizes)))):
        if sizes[group] <= room:
            chosen.append(group)
            room -= int(sizes[group])
    tested = np.isin(numbers, chosen)
    return np.flatnonzero(~tested), np.flatnonzero(tested)


def folds(scores: ArrayLike, k: int, seed: int, groups: ArrayLike | None = None) -> list[tuple[Indices, Indices]]:
    """Stratified k-fold: every fold covers the whole score range, sizes differ by at most one.

    The rows, sorted by score, are dealt out to the k folds in batches of k, each batch in random order.  With
    groups these are dealt out, by their mean scores; the largest of a batch goes to the smallest fold so far.

    Args:
        scores: [n].
        k: number of folds, at most that of the groups.
        seed: of everything random.
        groups: number of each row's group [n]; None: every row is a group of its own.

    Returns:
        For every fold the ascending indices of its training rows and of its held-out rows.
    """
    values = np.asarray(scores, dtype=np.float64)
    _, numbers, sizes = np.unique(
        np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True, return_counts=True
    )
    means = values if groups is None else np.bincount(numbers, weights=values) / np.maximum(sizes, 1)
    order, rng = _by_score(means, seed)
    if not 2 <= k <= len(order):
        what = "labels" if groups is None else "references"
        raise DataError(f"cannot make {k} folds of {len(order)} {what}")
    fold = np.empty(len(order), dtype=np.int64)
    rows = np.zeros(k, dtype=np.int64)  # so far, in every fold
    for start in range(0, len(order), k):
        batch = order[start : start + k]
        dealt = rng.permutation(k)
        dealt = dealt[np.argsort(rows[dealt], kind="stable")][: len(batch)]
        largest_first = batch[np.argsort(-sizes[batch], kind="stable")]
        fold[largest_first] = dealt
        rows[dealt] += sizes[largest_first]
    of_row = fold[numbers]
    return [(np.flatnonzero(of_row != i), np.flatnonzero(of_row == i)) for i in range(k)]


def _draw(values: NDArray[np.float64], count: int, seed: int) -> Indices:
    order, rng = _by_score(values, seed)
    if not 1 <= count <= len(order):
        raise DataError(f"cannot draw {count} training rows from {len(order)} labels")
    return np.sort(np.array([rng.choice(part) for part in np.array_split(order, count)], dtype=np.int64))


def _others(drawn: Indices, n: int) -> Indices:
    return np.setdiff1d(np.arange(n, dtype=np.int64), drawn)


def _by_score(values: NDArray[np.float64], seed: int) -> tuple[Indices, np.random.Generator]:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(values))
    return shuffled[np.argsort(values[shuffled], kind="stable")], rng


def find_references(
    parts: Sequence[Labels],
    *,
    max_pixels: int | None = MAX_PIXELS,
    workers: int = 2,
    progress: Callable[[], None] | None = None,
) -> list[Labels]:
    """Takes near duplicates (bursts, edits and copies) for versions of one photo, named by its first image.

    Where a part has ``references`` already they count as well: versions that are named and those that look alike go
    together.  Where all parts have, no image is looked at, but files of the same bytes still go together.  Images
    that cannot be read are versions of nothing.

    Args:
        parts: labels of one or several files.
        max_pixels: as for `read_image`.
        workers: threads that read images.
        progress: called after every image.

    Returns:
        The same labels, with references that are comparable across parts.
    """

    def look(path: Path) -> bytes | None:
        try:
            return fingerprint(read_image(path, max_pixels=max_pixels))
        except ImageReadError:
            return None

    paths = [path for part in parts for path in part.paths]
    named = [name for part in parts for name in part.references or [""] * len(part)]
    first = _first_copies(paths)
    if not all(part.references for part in parts):
        prints = []
        for one in read_ahead(look, paths, workers):
            prints.append(one)
            if progress is not None:
                progress()
        readable = [i for i, one in enumerate(prints) if one is not None]
        alike = connected([one for one in prints if one is not None])
        first[readable] = [readable[i] for i in alike]
    for name in dict.fromkeys(named):
        if name:
            joined = np.unique(first[[i for i, other in enumerate(named) if other == name]])
            first[np.isin(first, joined)] = joined[0]
    names = iter([str(paths[i]) for i in first])
    return [dataclasses.replace(part, references=tuple(islice(names, len(part)))) for part in parts]


def _first_copies(paths: Sequence[Path]) -> Indices:
    """For every file [n] the position of the first one with the same bytes, its own where there is none."""
    sizes = [path.stat().st_size for path in paths]
    several = Counter(sizes)
    known: dict[tuple[int, str], int] = {}
    first = np.arange(len(paths))
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if several[size] > 1:
            first[i] = known.setdefault((size, sha256_of(path)), i)
    return first
