"""Which photo comes next; `benchmarks/label_order.py` compares this order with others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def stratified(scores: Array, labelled: Sequence[int], candidates: Sequence[int], rng: np.random.Generator) -> int:
    """One of the candidates, at random, evenly over the ranks of the model's scores.

    All photos, sorted by score, are cut into as many strata as there are labels and one, rounded up to a power of
    two; the photo is drawn from the strata with the fewest labels.

    Args:
        scores: of all photos [n].
        labelled: photos that have a label.
        candidates: photos that may come; not empty.
        rng: what is random.
    """
    return int(rng.choice(in_emptiest_strata(scores, labelled, candidates)))


def in_emptiest_strata(scores: Array, labelled: Sequence[int], candidates: Sequence[int]) -> NDArray[np.int64]:
    """The candidates in the strata with the fewest labels."""
    strata = 1 << len(labelled).bit_length()
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    stratum = ranks * strata // len(scores)
    counts = np.bincount(stratum[list(labelled)], minlength=strata)
    left = np.asarray(candidates, dtype=np.int64)
    of_left = counts[stratum[left]]
    return np.asarray(left[of_left == of_left.min()])
