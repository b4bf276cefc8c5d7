"""What a report shows of each image: a thumbnail on disk, and a few numbers in memory."""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image

from grmp_score.report.bursts import fingerprint
from grmp_score.score import AnyScore, FailedScore

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Preview:
    """A thumbnail: where its JPEG lies in the temporary file, its size, and the image's fingerprint."""

    start: int
    length: int
    width: int
    height: int
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Shot:
    """One image of the report."""

    path: str
    value: float
    standard_error: float | None
    width: int
    height: int
    preview: Preview


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be scored, and why."""

    path: str
    reason: str


@dataclass
class Gallery:
    """Collects scores and thumbnails while images are scored.  A context manager: the thumbnails lie in a temporary
    file, so that memory holds some 500 bytes per image.

    Attributes:
        size: longer side of thumbnails in pixels; small images are not enlarged.
        shots: images with a score, in the order of `add`.
        failures: the others.
    """

    size: int = 200
    shots: list[Shot] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._end = 0
        self._lock = threading.Lock()
        self._seen: dict[str, Preview] = {}

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def look(self, path: str | None, picture: Image.Image) -> None:
        """Keeps the thumbnail of an image; any thread may call it (see ``watch`` of `Scorer.score_many`).

        Args:
            path: name of the image.
            picture: upright RGB.
        """
        if path is None:
            return
        thumbnail = shrink(picture, self.size)
        data = encode(thumbnail)
        with self._lock:
            start = self._end
            self._file.seek(start)
            self._file.write(data)
            self._end += len(data)
            self._seen[path] = Preview(start, len(data), *thumbnail.size, fingerprint(thumbnail))

    def add(self, score: AnyScore) -> bool:
        """Adds the score of an image that `look` has seen; whether it has one."""
        path = score.path or ""
        preview = self._seen.pop(path, None)
        if isinstance(score, FailedScore):
            self.failures.append(Failure(path, score.error))
            return False
        if preview is None:
            raise ValueError(f"no picture was seen of {path!r}")
        self.shots.append(Shot(path, score.value, score.standard_error, score.width, score.height, preview))
        return True

    def thumbnail(self, shot: Shot) -> bytes:
        """The JPEG of a shot's thumbnail."""
        with self._lock:
            self._file.seek(shot.preview.start)
            return self._file.read(shot.preview.length)


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """A copy with a longer side of at most ``size``, and without the comments and profiles of the original."""
    factor = min(1.0, size / max(picture.size))
    target = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    small = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=2.0)
    small.info = {}
    return small


def encode(picture: Image.Image) -> bytes:
    """A small JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72, optimize=True)
    return buffer.getvalue()


class Fence:
    """What may be shown: images that lie in the folders named by the user, wherever links on the way lead.

    A file that was named itself may be a link to anywhere; one found in a folder may not lead out of all of them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """Takes files, folders and patterns as the user named them; addresses are not held back by a fence."""
        self._folders: list[Path] = []
        self._files: set[Path] = set()
        for path in (Path(p) for p in paths if "://" not in p):
            if path.is_dir():
                self._folders.append(path.resolve())
            elif path.exists():
                self._files.add(path.resolve())
            elif any(c in str(path) for c in "*?["):  # what it finds lies below the part of it that is a folder
                folder = next((p for p in path.parents if p.is_dir()), None)
                if folder is not None:
                    self._folders.append(folder.resolve())

    def inside(self, path: str) -> bool:
        """Whether an image may be shown; where there is none, reading it will say why."""
        if "://" in path:
            return True
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return True
        return real in self._files or any(real.is_relative_to(folder) for folder in self._folders)
