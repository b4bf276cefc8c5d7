"""`Score`: what is known about the quality of one image, and what the number means in words."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from grmp_score.config import ModelConfig

#: Names of distributions in `ModelConfig.reference_percentiles`.
CLEAN, DISTORTED = "clean", "distorted_level_5"

#: The verdicts of weights that know no opinion of people's, best first, each with where it begins: a percentile of
#: one of the distributions.  `WORST` lies below.
VERDICTS = (
    ("excellent", CLEAN, 75),
    ("good", CLEAN, 25),
    ("fair", DISTORTED, 50),
    ("poor", DISTORTED, 25),
)
WORST = "bad"


@dataclass(frozen=True, repr=False)
class Score:
    """The quality of one image.

    Attributes:
        value: mean p(high quality) over the patches, 0..1, higher is better.
        std: standard deviation of p(high) over the patches (n - 1); 0 for a single patch.
        standard_error: ``std`` / sqrt(number of patches): how far the value may be from that of all patches.  None
            where nothing is known about it: a single patch, or patches that are all alike, as those of an image no
            larger than a patch.
        patch_values: p(high) of each patch, in the order of the layout.
        path: where the image came from, if it has a name.
        width: pixels, upright.
        height: pixels, upright.
        label: the value on the scale of the labels that the weights were adapted to, in their direction (for DMOS
            lower is better); None when the weights have no such scale.
        percentile: share, 0..100, of the weights' clean reference photos that score below this image; None when the
            weights keep no such distribution.
        verdict: the score in a word, ``"excellent"``, ``"good"``, ``"fair"`` and two worse ones (see
            `verdict_limits`); None when the weights have no words.
        content_hash: ``"sha256:..."`` of the encoded file; None for arrays and PIL images.
    """

    value: float
    std: float = 0.0
    standard_error: float | None = None
    patch_values: tuple[float, ...] = ()
    path: str | None = None
    width: int = 0
    height: int = 0
    label: float | None = None
    percentile: float | None = None
    verdict: str | None = None
    content_hash: str | None = None

    #: Why there is no score: `FailedScore` has a reason here.
    error: ClassVar[None] = None

    @classmethod
    def from_patches(
        cls,
        values: tuple[float, ...],
        *,
        path: str | None,
        width: int,
        height: int,
        content_hash: str | None = None,
        config: ModelConfig | None = None,
    ) -> Score:
        """The score of an image whose patches have these p(high) values.

        Args:
            values: p(high) of each patch.
            path, width, height, content_hash: as in `Score`.
            config: of the weights, for label, percentile and verdict.
        """
        n = len(values)
        mean = math.fsum(values) / n
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
        scale = None if config is None else config.label_scale
        reference = {} if config is None else config.reference_percentiles
        return cls(
            mean,
            std,
            None if min(values) == max(values) else std / math.sqrt(n),
            values,
            path,
            width,
            height,
            label=None if scale is None else scale.to_label(mean),
            percentile=percentile_of(reference, mean),
            verdict=None if config is None else verdict_of(verdict_limits(config), mean),
            content_hash=content_hash,
        )

    def __repr__(self) -> str:
        spread = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        parts = [f"{self.value:.3f}{spread}", self.verdict, self.path and repr(self.path)]
        return f"Score({', '.join(part for part in parts if part)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, if its path can be read, with a bar and the verdict."""
        from grmp_score.notebook import score_html

        return score_html(self.value, self.standard_error, self.verdict, self.path)


@dataclass(frozen=True)
class FailedScore:
    """An image that could not be scored, as a value in a stream of scores.

    Attributes:
        error: why.
        path: where the image came from, if it has a name.
        content_hash: ``"sha256:..."`` of the encoded file, if it could be read; None for arrays and PIL images.
    """

    error: str
    path: str | None = None
    content_hash: str | None = None

    def __getattr__(self, name: str) -> object:
        """What a `Score` has and this has not is None, as it was in version 0.1."""
        if name not in Score.__dataclass_fields__:
            raise AttributeError(f"'FailedScore' object has no attribute {name!r}")
        warnings.warn(
            f"{name} of an image that could not be scored; tell it by isinstance(score, FailedScore)",
            DeprecationWarning,
            stacklevel=2,
        )
        return () if name == "patch_values" else None


#: What a stream of images gives.
AnyScore: TypeAlias = "Score | FailedScore"


def percentile_of(reference: Mapping[str, Sequence[float]], value: float) -> float | None:
    """The share of the clean reference photos that score below ``value``.

    Args:
        reference: name of a distribution -> 101 percentiles of p(high), as in the configuration.
        value: p(high) in 0..1.

    Returns:
        0..100, linear between the percentiles; None when the weights have no such distribution.
    """
    points = _percentiles(reference, CLEAN)
    if points is None:
        return None
    above = bisect.bisect_left(points, value)
    if above == 0:
        return 0.0
    if above == len(points):
        return 100.0
    low, high = points[above - 1], points[above]
    return above - 1 + (value - low) / (high - low)


def verdict_limits(config: ModelConfig) -> list[tuple[str, float]]:
    """The verdicts with the lowest score of each, best first; the last begins at 0.

    They are the grades of the people whose opinion the weights were trained on (`Opinion.grades`).  Where there are
    none, reference photos take their place: excellent is what scores above three quarters of the clean ones, good
    what scores like most of them (above a quarter); fair is below that, poor is below half of the heavily distorted
    ones and bad below three quarters of them.

    Returns:
        Empty when the weights have neither (adapted ones: those of their base no longer hold), or tell clean photos
        and distorted ones apart so badly that the words would mean nothing (a quarter of the clean photos score
        below half of the distorted ones).
    """
    if config.opinion is not None:
        return list(config.opinion.grades)
    reference = config.reference_percentiles
    clean, distorted = _percentiles(reference, CLEAN), _percentiles(reference, DISTORTED)
    if clean is None or distorted is None:
        return []
    points = {CLEAN: clean, DISTORTED: distorted}
    limits = [*((word, points[name][share]) for word, name, share in VERDICTS), (WORST, 0.0)]
    falling = all(a > b for (_, a), (_, b) in itertools.pairwise(limits[:-1]))
    return limits if falling else []


def verdict_of(limits: Sequence[tuple[str, float]], value: float) -> str | None:
    """The word for a score; ``limits`` are `verdict_limits`, and without any there is no word."""
    return next((word for word, limit in limits if value >= limit), None)


def _percentiles(reference: Mapping[str, Sequence[float]], name: str) -> Sequence[float] | None:
    points = reference.get(name)
    if points is None or len(points) != 101 or any(a > b for a, b in itertools.pairwise(points)):
        return None
    return points
