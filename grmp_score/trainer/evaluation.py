"""How well a scorer agrees with a person's labels: the field's figures, with intervals, groups and worst cases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grmp_score.files import finite_or_none
from grmp_score.score import FailedScore
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.raters import RaterAgreement, rater_agreement
from grmp_score.trainer.metrics import (
    Fit,
    bootstrap_interval,
    fit_logistic,
    krcc,
    plcc,
    plcc_logistic,
    plcc_rows,
    rmse,
    srcc,
    srcc_rows,
)

if TYPE_CHECKING:
    from grmp_score.scorer import Scorer

#: Fewer rows have no agreement worth the name: everything but their number is NaN.
MIN_ROWS = 5

_NO_INTERVAL = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Agreement:
    """Agreement of p(high) with labels.  Correlations are -1..1, 1 is best, whichever way the labels go.

    Attributes:
        n: number of rows; with fewer than `MIN_ROWS` all else is NaN.
        srcc: Spearman's rank correlation.
        krcc: Kendall's tau-b.
        plcc: Pearson's correlation, raw.
        plcc_logistic: Pearson's correlation after the logistic.
        rmse: root mean squared error after the logistic, in the labels' unit.
        srcc_interval: bootstrap 95 % interval.
        plcc_interval: bootstrap 95 % interval (of the raw one).
        fit: the curve from p(high) to labels; `Fit.kind` says when it is not a logistic.
    """

    n: int
    srcc: float
    krcc: float
    plcc: float
    plcc_logistic: float
    rmse: float
    srcc_interval: tuple[float, float]
    plcc_interval: tuple[float, float]
    fit: Fit

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes None."""
        return {
            "n": self.n,
            "srcc": finite_or_none(self.srcc),
            "srcc_interval": [finite_or_none(end) for end in self.srcc_interval],
            "krcc": finite_or_none(self.krcc),
            "plcc": finite_or_none(self.plcc),
            "plcc_interval": [finite_or_none(end) for end in self.plcc_interval],
            "plcc_logistic": finite_or_none(self.plcc_logistic),
            "rmse": finite_or_none(self.rmse),
            "fit": {"kind": self.fit.kind, "parameters": [finite_or_none(b) for b in self.fit.parameters]},
        }


@dataclass(frozen=True)
class Disagreement:
    """One image on which scorer and label are far apart.

    Attributes:
        path: the image.
        row: its row in the CSV.
        label: what the person said.
        score: p(high), 0..1.
        expected: the label that the fitted curve reads from ``score``.
    """

    path: Path
    row: int
    label: float
    score: float
    expected: float


@dataclass(frozen=True)
class Unscored:
    """One image that could not be scored: its file, its row in the CSV, and why."""

    path: Path
    row: int
    error: str


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What `evaluate` found.

    Attributes:
        overall: agreement on all scored rows.
        groups: agreement by value of the grouping column, in alphabetical order, on the curve of ``overall``.
        worst: the largest disagreements, largest first.
        unscored: images without a score; they are in no figure.
        predictions: p(high) [n rows of the labels], NaN where there is none.
        raters: how well the raters agree, if the labels have raters.
        seconds: time that reading and scoring took.
    """

    overall: Agreement
    groups: dict[str, Agreement]
    worst: tuple[Disagreement, ...]
    unscored: tuple[Unscored, ...]
    predictions: NDArray[np.float64]
    raters: RaterAgreement | None
    seconds: float


def agreement(
    predictions: ArrayLike,
    labels: ArrayLike,
    *,
    higher_is_better: bool = True,
    seed: int = 0,
    fit: Fit | None = None,
) -> Agreement:
    """Agreement of p(high) with labels.

    Args:
        predictions: p(high) [n], 0..1, higher is better.
        labels: [n] in their own unit.
        higher_is_better: direction of the labels.
        seed: of the bootstrap.
        fit: curve from p(high) to labels fitted on other rows; None fits these.
    """
    x, y = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if len(x) < MIN_ROWS:
        nan = float("nan")
        return Agreement(len(x), nan, nan, nan, nan, nan, _NO_INTERVAL, _NO_INTERVAL, fit or Fit("mean", (nan,)))
    fit = fit_logistic(x, y) if fit is None else fit
    good = y if higher_is_better else -y
    after = plcc_logistic(x, y, fit)
    return Agreement(
        n=len(x),
        srcc=srcc(x, good),
        krcc=krcc(x, good),
        plcc=plcc(x, good),
        plcc_logistic=after if higher_is_better else -after,
        rmse=rmse(fit(x), y),
        srcc_interval=bootstrap_interval(srcc_rows, x, good, seed=seed),
        plcc_interval=bootstrap_interval(plcc_rows, x, good, seed=seed),
        fit=fit,
    )


def evaluate(
    scorer: Scorer,
    labels: Labels,
    by: str | None = None,
    seed: int = 0,
    worst: int = 10,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Scores every labelled image once and compares with the labels.

    Args:
        scorer: what is measured.
        labels: images and opinion scores; all are used, none is trained on.
        by: another column of the labels; every value of it becomes a group.  The groups share one curve: fitted to
            each by itself it would flatter the small ones.
        seed: of the bootstrap and of the raters' halves.
        worst: how many of the largest disagreements to keep.
        progress: called with 1 after every image.

    Raises:
        DataError: there is no such column.  Images that cannot be scored are values of the result.
    """
    cells = None if by is None else np.array([cell or "(empty)" for cell in labels.column(by)])
    predictions = np.full(len(labels), np.nan)
    unscored = []
    started = time.monotonic()
    for i, score in enumerate(scorer.score_many(labels.paths)):
        if isinstance(score, FailedScore) or math.isnan(score.value):
            reason = score.error or "the model gave NaN"
            unscored.append(Unscored(labels.paths[i], labels.rows[i], reason))
        else:
            predictions[i] = score.value
        if progress is not None:
            progress(1)
    seconds = time.monotonic() - started
    scored = ~np.isnan(predictions)

    def measure(rows: NDArray[np.bool_], fit: Fit | None = None) -> Agreement:
        return agreement(
            predictions[rows],
            labels.scores[rows],
            higher_is_better=labels.higher_is_better,
            seed=seed,
            fit=fit,
        )

    overall = measure(scored)
    groups = {}
    if cells is not None:
        groups = {str(value): measure(scored & (cells == value), overall.fit) for value in sorted(set(cells))}
    return EvaluationResult(
        overall=overall,
        groups=groups,
        worst=_worst(labels, predictions, overall.fit, worst),
        unscored=tuple(unscored),
        predictions=predictions,
        raters=None if labels.ratings is None else rater_agreement(labels.ratings, seed),
        seconds=seconds,
    )


def _worst(labels: Labels, predictions: NDArray[np.float64], fit: Fit, count: int) -> tuple[Disagreement, ...]:
    expected = fit(predictions)
    gap = np.abs(labels.scores - expected)
    order = [i for i in np.argsort(-gap, kind="stable") if not math.isnan(gap[i])]  # NaN: not scored, or no curve
    return tuple(
        Disagreement(
            labels.paths[i], labels.rows[i], float(labels.scores[i]), float(predictions[i]), float(expected[i])
        )
        for i in order[:count]
    )
