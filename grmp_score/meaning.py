"""What a score means: where it lies among those of clean and of heavily distorted photos.

The weights' configuration keeps the percentiles of p(high) on reference pictures.  Weights without them (adapted
ones: the percentiles of their base no longer hold) have neither percentiles nor verdicts.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence

#: Names of distributions in `ModelConfig.reference_percentiles`.
CLEAN, DISTORTED = "clean", "distorted_level_5"

#: The verdicts, best first, each with where it begins: a percentile of one of the distributions.
VERDICTS = (
    ("excellent", CLEAN, 75),
    ("good", CLEAN, 25),
    ("fair", DISTORTED, 50),
    ("poor", DISTORTED, 25),
)
WORST = "bad"


def percentile(reference: Mapping[str, Sequence[float]], value: float) -> float | None:
    """The share of the clean reference photos that score below ``value``.

    Args:
        reference: name of a distribution -> 101 percentiles of p(high), as in the configuration.
        value: p(high) in 0..1.

    Returns:
        0..100, linear between the percentiles; None when the weights have no such distribution.
    """
    points = _points(reference, CLEAN)
    if points is None:
        return None
    above = bisect.bisect_left(points, value)
    if above == 0:
        return 0.0
    if above == len(points):
        return 100.0
    low, high = points[above - 1], points[above]
    return above - 1 + (value - low) / (high - low)


def thresholds(reference: Mapping[str, Sequence[float]]) -> list[tuple[str, float]]:
    """The verdicts with the lowest score of each, best first; what lies below the last is `WORST`.

    Excellent is what scores above three quarters of the clean photos, good what scores like most of them (above a
    quarter); fair is below that, poor is below half of the heavily distorted photos and bad below three quarters
    of them.

    Returns:
        empty when the weights have no such distributions, or tell clean photos and distorted ones apart so badly
        that the words would mean nothing (a quarter of the clean photos score below half of the distorted ones).
    """
    clean, distorted = _points(reference, CLEAN), _points(reference, DISTORTED)
    if clean is None or distorted is None:
        return []
    points = {CLEAN: clean, DISTORTED: distorted}
    limits = [(word, points[name][share]) for word, name, share in VERDICTS]
    values = [limit for _, limit in limits]
    falling = all(a > b for a, b in itertools.pairwise(values))
    return limits if falling else []


def verdict(limits: Sequence[tuple[str, float]], value: float) -> str | None:
    """The word for a score; ``limits`` are `thresholds`, and without any there is no word."""
    if not limits:
        return None
    return next((word for word, limit in limits if value >= limit), WORST)


def _points(reference: Mapping[str, Sequence[float]], name: str) -> Sequence[float] | None:
    points = reference.get(name)
    if points is None or len(points) != 101 or any(a > b for a, b in itertools.pairwise(points)):
        return None
    return points
