"""A score as a row.  A new column of the results is a new line of `COLUMNS`, and nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from grmp_score.errors import ConfigError

if TYPE_CHECKING:  # the scorer imports NumPy and Pillow, which --help and wrong usage should not wait for
    from grmp_score.config import LabelScale, Opinion
    from grmp_score.score import AnyScore
    from grmp_score.scorer import Scorer

Value = str | float | int | None


@dataclass(frozen=True)
class WeightsInfo:
    """What rows and tables say about the weights.

    Attributes:
        name: the weights' own.
        get_checksum: gives `Scorer.checksum`; it takes a while, and tables do not need it.
        label_scale: of the weights, if they have one.
        verdict_limits: the verdicts and where they begin (see `grmp_score.score.verdict_limits`); may be empty.
        opinion: of the weights, if they were trained on people's.
    """

    name: str
    get_checksum: Callable[[], str]
    label_scale: LabelScale | None = None
    verdict_limits: tuple[tuple[str, float], ...] = ()
    opinion: Opinion | None = None

    @classmethod
    def of(cls, scorer: Scorer) -> WeightsInfo:
        """Of a scorer's weights."""
        from grmp_score.score import verdict_limits

        config = scorer.config
        limits = tuple(verdict_limits(config))
        return cls(config.name, lambda: scorer.checksum, config.label_scale, limits, config.opinion)

    @property
    def checksum(self) -> str:
        """Tells these weights from others of that name."""
        return self.get_checksum()


@dataclass(frozen=True)
class Column:
    """A column of the machine-readable formats.

    Attributes:
        kind: of its values, where there is one.
        description: for people.
        value: taken from a score, or from the weights that gave it.
        of_failures: whether images that could not be scored have it too.
    """

    kind: type[str] | type[float] | type[int]
    description: str
    value: Callable[[Any, WeightsInfo], Value]
    of_failures: bool = False


COLUMNS: dict[str, Column] = {
    "path": Column(str, "the image as named or found", lambda score, _: score.path, of_failures=True),
    "score": Column(float, "mean p(high quality) over the patches: 0 bad .. 1 good", lambda score, _: score.value),
    "standard_error": Column(
        float, "spread of the score over the patches: std / sqrt(patches)", lambda score, _: score.standard_error
    ),
    "std": Column(float, "standard deviation of p(high quality) over the patches", lambda score, _: score.std),
    "patches": Column(int, "how many patches were scored", lambda score, _: len(score.patch_values)),
    "label": Column(
        float, "the score on the scale of the labels that the model was adapted to", lambda score, _: score.label
    ),
    "percentile": Column(
        float, "share, in %, of the model's clean reference photos below this", lambda score, _: score.percentile
    ),
    "width": Column(int, "pixels, upright", lambda score, _: score.width),
    "height": Column(int, "pixels, upright", lambda score, _: score.height),
    "content_hash": Column(str, "sha256 of the file", lambda score, _: score.content_hash, of_failures=True),
    "model": Column(str, "name of the weights", lambda _, weights: weights.name, of_failures=True),
    "checksum": Column(
        str,
        "tells these weights from others of that name",
        lambda _, weights: weights.checksum,
        of_failures=True,
    ),
    "error": Column(str, "why there is no score", lambda score, _: score.error, of_failures=True),
}

#: Names of the columns, in their usual order.
FIELDS = tuple(COLUMNS)


def describe_columns() -> str:
    """The columns as a help text has them: a line for each, with its name and what it holds."""
    return "\n".join(f"  {name:<{max(map(len, FIELDS))}}  {column.description}" for name, column in COLUMNS.items())


def row(score: AnyScore, weights: WeightsInfo, fields: Sequence[str] = FIELDS) -> dict[str, Value]:
    """One score as a flat record with these fields, in this order; numbers keep their full precision.

    Texts are Unicode: see `unicode_text`.
    """
    failed = score.error is not None
    columns = {name: COLUMNS[name] for name in fields}
    values = {
        name: None if failed and not column.of_failures else column.value(score, weights)
        for name, column in columns.items()
    }
    return {name: unicode_text(v) if isinstance(v, str) else v for name, v in values.items()}


def unicode_text(text: str) -> str:
    r"""A name as Unicode: bytes that are no UTF-8 are written as ``\xff``, so that every program reads the row.

    The bytes themselves are in the output of the format ``paths``, and ``content_hash`` tells which file it is.
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def parse_fields(text: str) -> tuple[str, ...]:
    """``"path,score"`` -> names of `FIELDS`, in that order.

    Raises:
        ConfigError: a name is unknown or stands there twice; all valid ones are named.
    """
    names = tuple(name.strip() for name in text.split(","))
    known = f"valid are {', '.join(FIELDS)}"
    for name in names:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            raise ConfigError(f"unknown field {name!r}{f', did you mean {near[0]!r}' if near else ''}; {known}")
    if len(set(names)) < len(names):
        raise ConfigError(f"a field stands twice in {text!r}; {known}")
    return names
