"""The one table of columns: what a row of results holds, and what the help says of it."""

from __future__ import annotations

import warnings

import pytest

from grmp_score.errors import ConfigError
from grmp_score.report.rows import COLUMNS, FIELDS, WeightsInfo, describe_columns, parse_fields, row
from grmp_score.report.text import short_names
from grmp_score.score import FailedScore, Score

WEIGHTS = WeightsInfo("tiny", lambda: "0123456789abcdef")
SCORE = Score(0.5, 0.1, 0.05, (0.4, 0.6), "a.jpg", 640, 480, 3.0, 62.5, "good", "sha256:00")


def test_values_have_the_types_of_their_columns() -> None:
    """A score whose every field is known fills all columns but that of the error."""
    values = row(SCORE, WEIGHTS)
    assert tuple(values) == FIELDS
    assert {name for name, value in values.items() if value is None} == {"error"}
    assert all(isinstance(value, COLUMNS[name].kind) for name, value in values.items() if value is not None)


def test_a_failure_has_what_is_known_without_a_score() -> None:
    """Its name, its bytes, the model that was used, and the reason; everything else is empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # values that a failure does not have are not even asked for
        values = row(FailedScore("broken", "a.jpg", "sha256:00"), WEIGHTS)
    assert {name: value for name, value in values.items() if value is not None} == {
        "path": "a.jpg",
        "content_hash": "sha256:00",
        "model": "tiny",
        "checksum": "0123456789abcdef",
        "error": "broken",
    }


def test_fields_are_chosen_and_ordered() -> None:
    """A row has the fields asked for, in that order; misspelt and doubled ones are errors."""
    assert row(SCORE, WEIGHTS, parse_fields("score, path")) == {"score": 0.5, "path": "a.jpg"}
    assert list(row(SCORE, WEIGHTS, parse_fields("score, path"))) == ["score", "path"]
    with pytest.raises(ConfigError, match="unknown field 'scor', did you mean 'score'; valid are path, score"):
        parse_fields("path,scor")
    with pytest.raises(ConfigError, match="stands twice"):
        parse_fields("path,path")


def test_the_help_describes_every_column() -> None:
    """One line each, in the order of the columns."""
    lines = describe_columns().splitlines()
    assert [line.split()[0] for line in lines] == list(FIELDS)
    assert all(line.endswith(column.description) for line, column in zip(lines, COLUMNS.values(), strict=True))


def test_names_are_shortened_by_folders_but_not_by_the_root() -> None:
    """What is shown of two files in different places is still an absolute path."""
    assert short_names(["/photos/a/1.jpg", "/photos/b/2.jpg"]) == ["a/1.jpg", "b/2.jpg"]
    assert short_names(["/photos/1.jpg", "/tmp/2.jpg"]) == ["/photos/1.jpg", "/tmp/2.jpg"]
    assert short_names(["photos/1.jpg", "2.jpg"]) == ["photos/1.jpg", "2.jpg"]
