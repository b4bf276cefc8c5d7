"""One image on its way to the model: bytes, hash, cached score or patches."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from grmp_score.config import ModelConfig, Preprocess
from grmp_score.errors import ImageReadError
from grmp_score.images import ImageSource, image_bytes, read_image, source_name
from grmp_score.model.patches import Patches, make_patches
from grmp_score.pipeline.cache import Entry, FileState, ScoreCache
from grmp_score.score import FailedScore, Score

#: Takes the name (None for images without one) and the upright RGB picture of an image that was read.
OnImage = Callable[[str | None, Image.Image], object]


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready to be scored.

    Attributes:
        patches: float32 [P, 3, S, S], normalised.
        path: where the image came from, if it has a name.
        width: pixels, upright.
        height: pixels, upright.
        content_hash: of the encoded file; None for arrays and PIL images.
        state: of the file before it was read, where a cache that trusts modification times is to know it again.
    """

    patches: Patches
    path: str | None
    width: int
    height: int
    content_hash: str | None = None
    state: FileState | None = None


@dataclass(frozen=True)
class Preparer:
    """Reads images and cuts them into patches; looks scores up in a cache on the way.  Used by many threads.

    Attributes:
        config: of the weights: what scores from the cache say besides the number.
        preprocess: how images are cut.
        background, max_pixels: as in `read_image`.
        cache: where to look before decoding.
        settings_key: stands for everything but the image that decides a score.
        on_image: is given every picture, also of images whose score the cache has.
    """

    config: ModelConfig
    preprocess: Preprocess
    background: str
    max_pixels: int | None
    cache: ScoreCache | None = None
    settings_key: bytes = b""
    on_image: OnImage | None = None

    def prepare(self, image: ImageSource) -> PreparedImage:
        """The patches of an image; no cache is asked.

        Raises:
            ImageReadError: the image cannot be read.
        """
        data, content_hash = _load(image)
        return self._cut(data, source_name(image), content_hash)

    def try_prepare(self, image: ImageSource) -> PreparedImage | Score | FailedScore:
        """The patches of an image, or its score where the cache has it, or why it cannot be read."""
        name, content_hash = source_name(image), None
        try:
            # A file known by path, size and time need not even be read.
            state = self._state(image)
            if state is not None and self.cache is not None:
                content_hash = self.cache.known_hash(state)
                score = self._cached(content_hash, name)
                if score is not None:
                    self._show(image, name)
                    return score
            data, content_hash = _load(image)
            score = self._cached(content_hash, name)
            if score is not None:
                self._remember_file(state, content_hash)
                self._show(data, name)
                return score
            return dataclasses.replace(self._cut(data, name, content_hash), state=state)
        except ImageReadError as error:
            reason = error.reason if error.hint is None else f"{error.reason}. {error.hint}"
            return FailedScore(reason, error.path or name, content_hash)

    def remember(self, item: PreparedImage, score: Score) -> None:
        """Keeps a new score in the cache, if there is one and the image has bytes to know it by."""
        if self.cache is not None and item.content_hash is not None:
            entry = Entry(score.patch_values, item.width, item.height)
            self.cache.put(item.content_hash, self.settings_key, entry)
            self._remember_file(item.state, item.content_hash)

    def _read(self, image: ImageSource, name: str | None) -> Image.Image:
        return read_image(image, background=self.background, max_pixels=self.max_pixels, name=name)

    def _cut(self, data: ImageSource, name: str | None, content_hash: str | None) -> PreparedImage:
        picture = self._read(data, name)
        if self.on_image is not None:
            self.on_image(name, picture)
        patches = make_patches(picture, self.preprocess)  # [P, 3, S, S]
        return PreparedImage(patches, name, picture.width, picture.height, content_hash)

    def _show(self, data: ImageSource, name: str | None) -> None:
        if self.on_image is not None:
            self.on_image(name, self._read(data, name))

    def _state(self, image: ImageSource) -> FileState | None:
        if self.cache is None or not self.cache.trust_mtime or not isinstance(image, (str, os.PathLike)):
            return None
        return FileState.of(image)

    def _remember_file(self, state: FileState | None, content_hash: str | None) -> None:
        if self.cache is not None and state is not None and content_hash is not None:
            self.cache.remember_file(state, content_hash)

    def _cached(self, content_hash: str | None, path: str | None) -> Score | None:
        if self.cache is None or content_hash is None:
            return None
        entry = self.cache.get(content_hash, self.settings_key)
        if entry is None:
            return None
        return Score.from_patches(
            entry.patch_values,
            path=path,
            width=entry.width,
            height=entry.height,
            content_hash=content_hash,
            config=self.config,
        )


def _load(image: ImageSource) -> tuple[ImageSource, str | None]:
    """The bytes of an encoded image, read once for the hash and for the decoder; others as they are."""
    if not isinstance(image, (str, os.PathLike, bytes, bytearray)) and not hasattr(image, "read"):
        return image, None
    data = image_bytes(image)  # type: ignore[arg-type]
    return data, f"sha256:{hashlib.sha256(data).hexdigest()}"
