"""What a report shows of each image: its score, and a thumbnail that is kept on disk."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grmp_score.display import jpeg, shrink
from grmp_score.images.near_duplicates import fingerprint
from grmp_score.score import AnyScore, FailedScore, Score

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Where a thumbnail's JPEG lies in the temporary file, its size, and the fingerprint of what it shows."""

    start: int
    length: int
    width: int
    height: int
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """One image of the report."""

    path: str
    score: Score
    thumbnail: Thumbnail


@dataclass
class Gallery:
    """Collects scores and thumbnails while images are scored.

    A context manager: the thumbnails lie in a temporary file, so that memory holds some 1.5 KB per image.

    Attributes:
        size: longer side of thumbnails in pixels; small images are not enlarged.
        images: images with a score, in the order of `add`.
        failures: the others.
    """

    size: int = 200
    images: list[ScoredImage] = field(default_factory=list)
    failures: list[FailedScore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._end = 0
        self._lock = threading.Lock()
        self._waiting: dict[str, Thumbnail] = {}  # of images whose score has not come yet

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep_thumbnail(self, path: str | None, picture: Image.Image) -> None:
        """Keeps the thumbnail of an image: the ``on_image`` of `Scorer.score_many`.  Any thread may call it.

        Args:
            path: name of the image; without one nothing is kept.
            picture: upright RGB.
        """
        if path is None:
            return
        small = shrink(picture, self.size)
        data = jpeg(small)
        with self._lock:
            self._file.seek(self._end)
            self._file.write(data)
            self._waiting[path] = Thumbnail(self._end, len(data), *small.size, fingerprint(small))
            self._end += len(data)

    def add(self, score: AnyScore) -> None:
        """Adds a score, or a failure.

        Raises:
            ValueError: no thumbnail has been kept of an image with a score.
        """
        path = score.path or ""
        thumbnail = self._waiting.pop(path, None)
        if isinstance(score, FailedScore):
            self.failures.append(score)
        elif thumbnail is None:
            raise ValueError(f"no picture was seen of {path!r}")
        else:
            self.images.append(ScoredImage(path, score, thumbnail))

    def thumbnail(self, image: ScoredImage) -> bytes:
        """The JPEG of an image's thumbnail."""
        with self._lock:
            self._file.seek(image.thumbnail.start)
            return self._file.read(image.thumbnail.length)
