"""Agreement of a scorer with labels: figures against SciPy, directions, groups, and images that fail."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from grmp_score.errors import DataError
from grmp_score.score import FailedScore, Score
from grmp_score.scorer import Scorer
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.evaluation import MIN_ROWS, agreement, evaluate
from grmp_score.weights.folder import Weights

from .conftest import make_photo


class Oracle:
    """Gives known scores; None is an image that cannot be read."""

    def __init__(self, values: Iterable[float | None]) -> None:
        self.values = list(values)

    def score_many(self, paths: Iterable[Path]) -> Iterator[Score | FailedScore]:
        for path, value in zip(paths, self.values, strict=True):
            yield FailedScore("the file is empty", str(path)) if value is None else Score(value, path=str(path))


def labels_of(scores: np.ndarray, **more: object) -> Labels:
    """Labels for images 0.png, 1.png ... in rows 2, 3 ..."""
    n = len(scores)
    paths, rows = tuple(Path(f"{i}.png") for i in range(n)), tuple(range(2, n + 2))
    return Labels(Path("mine.csv"), paths, rows, scores, **more)  # type: ignore[arg-type]


def sample(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """p(high) and labels on 0..100 that agree by a logistic with noise."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 0.9, n)
    return p, 100 / (1 + np.exp(-(p - 0.5) / 0.1)) + rng.normal(0, 5, n)


def test_figures_are_scipys() -> None:
    """SRCC, KRCC and PLCC as SciPy's; RMSE and PLCC after the fitted curve; intervals around them."""
    p, mos = sample()
    a = agreement(p, mos)
    assert a.n == 60 and a.fit.kind == "logistic"
    assert a.srcc == pytest.approx(stats.spearmanr(p, mos).statistic)
    assert a.krcc == pytest.approx(stats.kendalltau(p, mos).statistic)
    assert a.plcc == pytest.approx(stats.pearsonr(p, mos).statistic)
    assert a.plcc_logistic == pytest.approx(stats.pearsonr(a.fit(p), mos).statistic)
    assert a.plcc < a.plcc_logistic < 1
    assert a.rmse == pytest.approx(np.sqrt(np.mean((a.fit(p) - mos) ** 2))) and 3.5 < a.rmse < 6
    assert a.srcc_interval[0] < a.srcc < a.srcc_interval[1]
    assert a.plcc_interval[0] < a.plcc < a.plcc_interval[1]


def test_dmos_gives_the_same_figures() -> None:
    """Labels turned round, and said to be: every figure stays; only the curve falls."""
    p, mos = sample()
    up, down = agreement(p, mos), agreement(p, 100 - mos, higher_is_better=False)
    for name in ("srcc", "krcc", "plcc", "plcc_logistic", "rmse", "srcc_interval", "plcc_interval"):
        assert getattr(down, name) == pytest.approx(getattr(up, name), abs=1e-6), name
    assert up.fit.rising and not down.fit.rising


def test_scores_the_wrong_way_round_are_negative() -> None:
    """The logistic's freedom to fall hides nothing."""
    p, mos = sample()
    good, bad = agreement(p, mos), agreement(1 - p, mos)
    for name in ("srcc", "krcc", "plcc", "plcc_logistic"):
        assert getattr(bad, name) == pytest.approx(-getattr(good, name), abs=1e-6), name


@pytest.mark.parametrize("n", range(MIN_ROWS))
def test_few_rows_have_no_figures(n: int) -> None:
    """Their number, and NaN, also as JSON."""
    a = agreement(np.linspace(0, 1, n), np.linspace(1, 5, n))
    assert a.n == n and np.isnan([a.srcc, a.krcc, a.plcc, a.plcc_logistic, a.rmse, *a.srcc_interval]).all()
    data = json.loads(json.dumps(a.as_dict(), allow_nan=False))
    assert data["n"] == n and data["srcc"] is None and data["plcc_interval"] == [None, None]


def test_a_constant_scorer_has_no_correlation_but_an_error() -> None:
    """The mean is the best that can be read from it."""
    _, mos = sample()
    a = agreement(np.full(60, 0.5), mos)
    assert math.isnan(a.srcc) and math.isnan(a.plcc_logistic) and a.fit.kind == "mean"
    assert a.rmse == pytest.approx(mos.std())


def test_groups_share_the_curve() -> None:
    """Each group's figures are those of its rows on the curve of all; small ones are listed with their number."""
    p, mos = sample()
    cells = tuple("big" if i < 40 else "" if i < 57 else "tiny" for i in range(60))
    result = evaluate(Oracle(p), labels_of(mos, columns={"Camera": cells}), by="camera")  # type: ignore[arg-type]
    assert list(result.groups) == ["(empty)", "big", "tiny"]
    assert [g.n for g in result.groups.values()] == [17, 40, 3]
    big = result.groups["big"]
    assert big == agreement(p[:40], mos[:40], fit=result.overall.fit)
    assert big.rmse == pytest.approx(np.sqrt(np.mean((result.overall.fit(p[:40]) - mos[:40]) ** 2)))
    assert math.isnan(result.groups["tiny"].srcc)


def test_an_unknown_column_is_refused_before_scoring() -> None:
    """The scorer is not asked."""
    with pytest.raises(DataError, match="no column 'camera' to group by"):
        evaluate(None, labels_of(sample()[1]), by="camera")  # type: ignore[arg-type]


def test_worst_disagreements() -> None:
    """The rows farthest from the curve, farthest first, with what it would have read."""
    p, mos = sample()
    mos[7], mos[33] = 0.0, 95.0
    p[7], p[33] = 0.88, 0.15
    result = evaluate(Oracle(p), labels_of(mos), worst=2)  # type: ignore[arg-type]
    assert {w.path.name for w in result.worst} == {"7.png", "33.png"}
    gaps = [abs(w.label - w.expected) for w in result.worst]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 50
    for w in result.worst:
        assert w.expected == pytest.approx(float(result.overall.fit(w.score)))
        assert w.label == mos[w.row - 2] and w.score == p[w.row - 2]
    assert evaluate(Oracle(p), labels_of(mos), worst=0).worst == ()  # type: ignore[arg-type]


def test_images_that_fail_are_values() -> None:
    """They are named with row and reason and are in no figure; the others are measured."""
    p, mos = sample()
    values = [None if i in (3, 9) else math.nan if i == 20 else v for i, v in enumerate(p.tolist())]
    ticks: list[int] = []
    result = evaluate(Oracle(values), labels_of(mos), progress=ticks.append, worst=100)  # type: ignore[arg-type]
    assert [(u.path.name, u.row, u.error) for u in result.unscored] == [
        ("3.png", 5, "the file is empty"),
        ("9.png", 11, "the file is empty"),
        ("20.png", 22, "the model gave NaN"),
    ]
    kept = np.setdiff1d(np.arange(60), [3, 9, 20])
    assert result.overall == agreement(p[kept], mos[kept])
    assert np.flatnonzero(np.isnan(result.predictions)).tolist() == [3, 9, 20]
    assert len(result.worst) == 57 and len(ticks) == 60


def test_nothing_scored() -> None:
    """No figures, no worst cases, no error."""
    result = evaluate(Oracle([None] * 60), labels_of(sample()[1]))  # type: ignore[arg-type]
    assert result.overall.n == 0 and math.isnan(result.overall.srcc)
    assert result.worst == () and len(result.unscored) == 60


def test_raters_come_along() -> None:
    """Labels with ratings give the raters' agreement, others do not."""
    p, mos = sample()
    ratings = mos[:, None] + np.random.default_rng(0).normal(0, 5, (60, 4))
    result = evaluate(Oracle(p), labels_of(mos, raters=tuple("abcd"), ratings=ratings))  # type: ignore[arg-type]
    assert result.raters is not None and result.raters.raters == 4 and 0.9 < result.raters.srcc < 1
    assert evaluate(Oracle(p), labels_of(mos)).raters is None  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_intervals() -> None:
    """And another seed others, with the same figures."""
    p, mos = sample()
    one, two = agreement(p, mos, seed=1), agreement(p, mos, seed=2)
    assert one == agreement(p, mos, seed=1) and one.srcc_interval != two.srcc_interval and one.srcc == two.srcc


def test_a_real_scorer(tiny_weights: Weights, tmp_path: Path) -> None:
    """Predictions are the scorer's own values, in the order of the labels."""
    for i in range(8):
        make_photo(40, 40, seed=i).save(tmp_path / f"{i}.png")
    paths = tuple(tmp_path / f"{i}.png" for i in range(8))
    scorer = Scorer(tiny_weights)
    result = evaluate(scorer, Labels(tmp_path, paths, tuple(range(8)), np.arange(8.0)))
    assert result.predictions.tolist() == [scorer.score(path).value for path in paths]
    assert result.overall.srcc == pytest.approx(stats.spearmanr(result.predictions, np.arange(8)).statistic)
