"""One tree of errors: every failure a user can cause or meet is a `GrmpScoreError` with attributes."""

from __future__ import annotations

import copyreg
from pathlib import Path
from typing import Any


class GrmpScoreError(Exception):
    """Base of all errors of this package.

    Attributes:
        reason: what went wrong, as one sentence without the location.
        path: the file, folder or repository it happened at, if any.
        hint: what to do about it, if known.
    """

    def __init__(self, reason: str, *, path: str | Path | None = None, hint: str | None = None) -> None:
        self.reason = reason
        self.path = None if path is None else str(path)
        self.hint = hint
        super().__init__(reason, self.path, hint)

    def __str__(self) -> str:
        text = self.reason if self.path is None else f"{self.path}: {self.reason}"
        return text if self.hint is None else f"{text}. {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes send their errors as pickles; the default would call `__init__` with positions.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ImageReadError(GrmpScoreError):
    """An input is not an image that can be read: missing, empty, damaged, or of an unknown format."""


class ImageTooLargeError(ImageReadError):
    """An image has more pixels than the limit against decompression bombs.

    Attributes:
        pixels: width x height, as the file states them.
        limit: the limit it was read with.
    """

    def __init__(self, pixels: int, limit: int, *, path: str | Path | None = None) -> None:
        self.pixels, self.limit = pixels, limit
        super().__init__(
            f"the image has {pixels / 1e6:,.1f} megapixels, more than the limit of {limit / 1e6:,.1f}",
            path=path,
            hint="Raise max_pixels if the file is to be trusted",
        )


class ConfigError(GrmpScoreError, ValueError):
    """A setting has a value that makes no sense, or a configuration file does not have the expected form."""


class WeightsError(GrmpScoreError):
    """A weights folder or checkpoint is incomplete, damaged, or does not fit its configuration."""


class HubError(GrmpScoreError):
    """Weights could not be fetched from, or sent to, the Hub."""


class DataError(GrmpScoreError):
    """A training data set does not have the layout or the content that was expected."""


class TrainingDivergedError(GrmpScoreError):
    """The loss or its gradient is not finite: to continue the run would end in the same place."""


class CacheError(GrmpScoreError):
    """A file of cached scores cannot be opened, read or written, or is something else."""


class ResultsError(GrmpScoreError):
    """Results of an earlier run cannot be continued."""


class MissingExtraError(GrmpScoreError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        self.feature, self.package, self.extra = feature, package, extra
        super().__init__(
            f"{feature} needs the package {package!r}, which is not installed",
            hint=f"Install it with: pip install 'grmp_score[{extra}]'",
        )
