"""Percentiles and verdicts: what the weights' own reference distributions say about a score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grmp_score.config import Backbone, ModelConfig, Opinion
from grmp_score.errors import ConfigError
from grmp_score.score import Score, percentile_of, verdict_limits, verdict_of

GRADES = (("excellent", 0.875), ("good", 0.625), ("fair", 0.375), ("bad", 0.125), ("very bad", 0.0))
UNIFORM = [i / 100 for i in range(101)]
HALF = [i / 200 for i in range(101)]


def config_of(reference: dict[str, list[float]], opinion: Opinion | None = None) -> ModelConfig:
    """A configuration with these distributions and this opinion."""
    return ModelConfig("x", Backbone(model_cfg={}), reference_percentiles=reference, opinion=opinion)


def test_the_percentile_is_the_share_below() -> None:
    """0 at and below the worst reference photo, 100 above the best, straight lines between."""
    reference = {"clean": [0.2 + 0.6 * x for x in UNIFORM]}
    for value, expected in ((0.0, 0), (0.2, 0), (0.5, 50), (0.503, 50.5), (0.8, 100), (1.0, 100)):
        assert percentile_of(reference, value) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=101, max_size=101), st.floats(0, 1))
def test_percentiles_of_any_distribution(points: list[float], value: float) -> None:
    """Within a step of the share of points below, also where many are equal; never beyond 0..100."""
    points = sorted(points)
    found = percentile_of({"clean": points}, value)
    assert found is not None and 0 <= found <= 100
    assert abs(found - np.searchsorted(points, value, side="left")) <= 1 + 1e-9


def test_without_a_distribution_there_is_nothing_to_say() -> None:
    """Neither percentile nor verdict; nor from one that is no list of 101 rising numbers."""
    for reference in ({}, {"clean": [0.1, 0.2]}, {"clean": UNIFORM[::-1]}, {"web": UNIFORM}):
        assert percentile_of(reference, 0.5) is None
        assert (
            verdict_limits(config_of(reference)) == []
            and verdict_of(verdict_limits(config_of(reference)), 0.5) is None
        )
    assert verdict_limits(config_of({"clean": UNIFORM})) == []


def test_verdicts_begin_where_the_distributions_say() -> None:
    """Three quarters and one quarter of the clean photos, a half and a quarter of the distorted ones."""
    reference = {"clean": [0.5 + x / 2 for x in UNIFORM], "distorted_level_5": HALF}
    limits = verdict_limits(config_of(reference))
    assert limits == [("excellent", 0.875), ("good", 0.625), ("fair", 0.25), ("poor", 0.125), ("bad", 0.0)]
    words = [verdict_of(limits, value) for value in (1.0, 0.875, 0.87, 0.625, 0.6, 0.25, 0.2, 0.125, 0.1, 0.0)]
    assert words == ["excellent"] * 2 + ["good"] * 2 + ["fair"] * 2 + ["poor"] * 2 + ["bad"] * 2


def test_a_model_that_tells_nothing_apart_gives_no_verdict() -> None:
    """Where a quarter of the clean photos score below half of the distorted ones, the words would mean nothing."""
    assert verdict_limits(config_of({"clean": UNIFORM, "distorted_level_5": UNIFORM})) == []


def test_people_s_grades_come_before_reference_photos() -> None:
    """A score gets the word of the grade it is nearest to, whatever the distributions say."""
    opinion = Opinion("30 people", GRADES, expected_error=0.1, within_90=0.2)
    config = config_of({"clean": UNIFORM, "distorted_level_5": HALF}, opinion)
    values = (1.0, 0.875, 0.87, 0.625, 0.5, 0.375, 0.3, 0.125, 0.12, 0.0)
    made = [Score.from_patches((v,), path=None, width=1, height=1, config=config) for v in values]
    words = ["excellent", "good", "fair", "bad", "very bad"]
    assert [score.verdict for score in made] == [word for word in words for _ in range(2)]
    assert made[0].percentile == 100
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "grades", [(), (("good", 0.5),), (("bad", 0.0), ("good", 0.5)), (("good", 1.5), ("bad", 0.0))]
)
def test_grades_without_an_order_are_refused(grades: tuple[tuple[str, float], ...]) -> None:
    """The limits fall from at most 1 to 0."""
    with pytest.raises(ConfigError, match="grades"):
        Opinion("30 people", grades, expected_error=0.1, within_90=0.2)
