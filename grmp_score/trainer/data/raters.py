"""Several people's ratings of the same images: how well they agree bounds what any scorer can reach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grmp_score.errors import DataError
from grmp_score.trainer.data.tables import Table, shown
from grmp_score.trainer.metrics import plcc, srcc

RATER_COLUMN = "rater"

#: Correlations over fewer images say nothing about a rater.
MIN_COMMON = 10

_SPLITS = 100


@dataclass(frozen=True)
class RaterAgreement:
    """How well raters agree.

    Attributes:
        raters: number of people.
        fewest: ratings of the image that has fewest.
        most: ratings of the image that has most.
        srcc: one rater against the mean of the others, on the images they share; mean over the raters with at
            least `MIN_COMMON` such images, -1..1.
        plcc: the same by Pearson's correlation.
        compared: number of these raters.
        reliability: of the mean opinion, 0..1: the panel is cut into random halves, the mean PLCC r between the
            halves' mean opinions gives 2 r / (1 + r) (Spearman and Brown); 0 when r is negative.  NaN when fewer
            than `MIN_COMMON` images have ratings in both halves.
    """

    raters: int
    fewest: int
    most: int
    srcc: float
    plcc: float
    compared: int
    reliability: float

    @property
    def ceiling(self) -> float:
        """PLCC to be expected of a scorer that knows what everybody would say on average: the noise in the mean of
        a finite panel keeps even it below 1, at the root of the reliability."""
        return math.sqrt(self.reliability)


def rater_agreement(ratings: NDArray[np.float64], seed: int = 0) -> RaterAgreement:
    """Agreement of raters.

    Args:
        ratings: [n images, R raters], NaN where a rater did not see the image; every image has at least one.
        seed: of the random halves.
    """
    given = ~np.isnan(ratings)
    values = np.where(given, ratings, 0.0)
    counts, sums = given.sum(axis=1), values.sum(axis=1)
    unit = float(np.abs(values).max()) or 1.0
    ranks, lines = [], []
    for rater in range(ratings.shape[1]):
        common = given[:, rater] & (counts > 1)
        if common.sum() >= MIN_COMMON:
            others = (sums[common] - values[common, rater]) / (counts[common] - 1)
            others = np.round(others / unit, 9)  # equal means stay equal in spite of the subtraction
            ranks.append(srcc(ratings[common, rater], others))
            lines.append(plcc(ratings[common, rater], others))
    known = [i for i, value in enumerate(ranks) if not math.isnan(value)]
    return RaterAgreement(
        raters=ratings.shape[1],
        fewest=int(counts.min()),
        most=int(counts.max()),
        srcc=float(np.mean([ranks[i] for i in known])) if known else float("nan"),
        plcc=float(np.mean([lines[i] for i in known])) if known else float("nan"),
        compared=len(known),
        reliability=_reliability(values, given, seed),
    )


def _reliability(values: NDArray[np.float64], given: NDArray[np.bool_], seed: int) -> float:
    rng = np.random.default_rng(seed)
    raters = values.shape[1]
    correlations = []
    for _ in range(_SPLITS):
        half = np.zeros(raters)
        half[rng.permutation(raters)[: raters // 2]] = 1.0
        count_a, count_b = given @ half, given @ (1.0 - half)
        both = (count_a > 0) & (count_b > 0)
        if both.sum() >= MIN_COMMON:
            a, b = (values @ half)[both] / count_a[both], (values @ (1.0 - half))[both] / count_b[both]
            correlations.append(plcc(a, b))
    known = [value for value in correlations if not math.isnan(value)]
    if not known:
        return float("nan")
    r = max(0.0, float(np.mean(known)))
    return 2 * r / (1 + r)


def read_ratings(
    table: Table, image_at: int, rater_at: int, scores: list[float], images: list[list[int]]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Arranges the rows of a table by image and rater.

    Args:
        table: one row per image and rater.
        image_at, rater_at: positions of these columns.
        scores: of every row.
        images: for every image the positions of its rows.

    Returns:
        Names of the raters [R] and ratings [n images, R], NaN where there is none.

    Raises:
        DataError: a row without rater, or two rows of one rater for one image.
    """
    names: dict[str, int] = {}
    for row, cells in table.rows:
        if not cells[rater_at]:
            raise DataError(f"row {row}: the rater is empty, expected a name", path=table.path)
        names.setdefault(cells[rater_at], len(names))
    ratings = np.full((len(images), len(names)), np.nan)
    first: dict[tuple[int, int], int] = {}
    for image, group in enumerate(images):
        for i in group:
            row, cells = table.rows[i]
            place = (image, names[cells[rater_at]])
            if place in first:
                raise DataError(
                    f"row {row}: rater {shown(cells[rater_at])} already rated {shown(cells[image_at])} in row "
                    f"{first[place]}",
                    path=table.path,
                    hint="Keep one of the two rows",
                )
            first[place] = row
            ratings[place] = scores[i]
    return tuple(names), ratings
