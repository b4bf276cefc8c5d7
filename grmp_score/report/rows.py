"""A score as a row: which fields there are, and how names are shown."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grmp_score.errors import ConfigError

if TYPE_CHECKING:  # the scorer imports NumPy and Pillow, which --help and wrong usage should not wait for
    from grmp_score.config import LabelScale, ModelConfig
    from grmp_score.score import AnyScore

Value = str | float | int | None

#: Field of the machine-readable formats -> its type and what it is.
DESCRIPTIONS: dict[str, tuple[type, str]] = {
    "path": (str, "the image as named or found"),
    "score": (float, "mean p(high quality) over the patches: 0 bad .. 1 good"),
    "standard_error": (float, "spread of the score over the patches: std / sqrt(patches)"),
    "std": (float, "standard deviation of p(high quality) over the patches"),
    "patches": (int, "how many patches were scored"),
    "label": (float, "the score on the scale of the labels that the model was adapted to"),
    "percentile": (float, "share, in %, of the model's clean reference photos that score below"),
    "width": (int, "pixels, upright"),
    "height": (int, "pixels, upright"),
    "content_hash": (str, "sha256 of the file"),
    "model": (str, "name of the weights"),
    "checksum": (str, "what tells these weights from others of that name"),
    "error": (str, "why there is no score"),
}
FIELDS = tuple(DESCRIPTIONS)


@dataclass(frozen=True)
class Model:
    """What rows and tables say about the weights.

    Attributes:
        name: the weights' own.
        checksum: `Scorer.checksum`.
        label_scale: of the weights, if they have one.
        thresholds: verdicts and where they begin (see `grmp_score.score`); empty without reference distributions.
    """

    name: str
    checksum: str
    label_scale: LabelScale | None = None
    thresholds: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, config: ModelConfig, checksum: str) -> Model:
        """The model of a configuration."""
        from grmp_score.score import verdict_limits

        return cls(config.name, checksum, config.label_scale, tuple(verdict_limits(config.reference_percentiles)))


def row(score: AnyScore, model: Model) -> dict[str, Value]:
    """One score as a flat record with the columns of `FIELDS`; numbers keep their full precision."""
    known: dict[str, Value] = dict.fromkeys(FIELDS)
    known |= {"path": score.path, "content_hash": score.content_hash, "error": score.error}
    known |= {"model": model.name, "checksum": model.checksum}
    if score.error is not None:
        return known
    return known | {
        "score": score.value,
        "standard_error": score.standard_error,
        "std": score.std,
        "patches": len(score.patch_values),
        "label": score.label,
        "percentile": score.percentile,
        "width": score.width,
        "height": score.height,
    }


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


def shared_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, to be left out where they are shown; empty for none."""
    folders = {os.path.dirname(p) for p in paths}
    if len(paths) < 2 or len({os.path.isabs(f) for f in folders}) > 1:
        return ""
    return os.path.commonpath([f or "." for f in folders])


def short_name(path: str, folder: str) -> str:
    """A path without that folder, if it lies in it; unprintable characters made visible."""
    short = os.path.relpath(path, folder) if folder else path
    return printable(path if short.startswith(os.pardir) else short)


def short_names(paths: list[str]) -> list[str]:
    """Paths without the folder they all share; unprintable characters made visible."""
    folder = shared_folder(paths)
    return [short_name(path, folder) for path in paths]


def printable(name: str) -> str:
    """A file's name with characters that cannot be shown written as codes."""
    return name if name.isprintable() else name.encode("unicode_escape").decode()


def pick(record: dict[str, Value], fields: Sequence[str]) -> dict[str, Value]:
    """The record with these fields only, in this order."""
    return {name: record[name] for name in fields}
