"""From whatever names or holds a picture to patches, with everything that is known about its file on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from grmp_score.config import ModelConfig, Preprocess
from grmp_score.errors import ImageReadError
from grmp_score.images.read import ImageSource, image_bytes, read_image, source_name
from grmp_score.model.patches import make_patches
from grmp_score.pipeline.cache import Entry, FileState, ScoreCache
from grmp_score.score import Score

if TYPE_CHECKING:
    from torch import Tensor

#: Takes the name (None for images without one) and the upright RGB picture of an image that was read.
Watch = Callable[[str | None, Image.Image], object]


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to be scored: its patches [P, 3, S, S], and what its score will say about it."""

    patches: Tensor
    path: str | None
    width: int
    height: int
    content_hash: str | None = None
    state: FileState | None = None


class _Opened(NamedTuple):
    data: ImageSource
    name: str | None
    content_hash: str | None


@dataclass(frozen=True)
class Preparer:
    """Reads and cuts images.

    Attributes:
        config: of the weights, for what scores from the cache say.
        preprocess: how images are cut.
        background, max_pixels: as in `read_image`.
        cache: where to look before decoding.
        settings: the key of everything but the image.
        watch: is shown every picture, also of images whose score the cache has.
    """

    config: ModelConfig
    preprocess: Preprocess
    background: str | tuple[int, int, int]
    max_pixels: int | None
    cache: ScoreCache | None = None
    settings: bytes = b""
    watch: Watch | None = None

    def read(self, image: ImageSource, name: str | None = None) -> Image.Image:
        """The upright RGB picture."""
        return read_image(image, background=self.background, max_pixels=self.max_pixels, name=name)

    def prepare(self, image: ImageSource) -> Prepared:
        """The patches of an image; nothing is looked up.

        Raises:
            ImageReadError: the image cannot be read.
        """
        return self._decode(self._open(image))

    def try_prepare(self, image: ImageSource) -> Prepared | Score:
        """The patches of an image, or its score where the cache has it; with ``error`` if it cannot be read."""
        name, content_hash = source_name(image), None
        try:
            state = self._state(image)
            if state is not None and self.cache is not None:
                content_hash = self.cache.known_hash(state)
                score = self._cached(content_hash, name)
                if score is not None:
                    self._show(image, name)
                    return score
            opened = self._open(image)
            content_hash = opened.content_hash
            score = self._cached(content_hash, name)
            if score is not None:
                self._note(state, content_hash)
                self._show(opened.data, name)
                return score
            return dataclasses.replace(self._decode(opened), state=state)
        except ImageReadError as error:
            reason = error.reason if error.hint is None else f"{error.reason}. {error.hint}"
            return Score(None, path=error.path or name, error=reason, content_hash=content_hash)

    def remember(self, item: Prepared, score: Score) -> None:
        """Keeps a new score in the cache, if there is one and the image has bytes to know it by."""
        if self.cache is not None and item.content_hash is not None:
            self.cache.put(item.content_hash, self.settings, Entry(score.patch_values, item.width, item.height))
            self._note(item.state, item.content_hash)

    def _open(self, image: ImageSource) -> _Opened:
        name = source_name(image)
        if not isinstance(image, (str, os.PathLike, bytes, bytearray)) and not hasattr(image, "read"):
            return _Opened(image, name, None)
        data = image_bytes(image)  # type: ignore[arg-type]  # once, for the hash and for the decoder
        return _Opened(data, name, f"sha256:{hashlib.sha256(data).hexdigest()}")

    def _decode(self, opened: _Opened) -> Prepared:
        picture = self.read(opened.data, opened.name)
        if self.watch is not None:
            self.watch(opened.name, picture)
        patches = make_patches(picture, self.preprocess)
        return Prepared(patches, opened.name, picture.width, picture.height, opened.content_hash)

    def _show(self, image: ImageSource, name: str | None) -> None:
        if self.watch is not None:
            self.watch(name, self.read(image, name))

    def _note(self, state: FileState | None, content_hash: str | None) -> None:
        if self.cache is not None and state is not None and content_hash is not None:
            self.cache.remember_file(state, content_hash)

    def _state(self, image: ImageSource) -> FileState | None:
        trusted = self.cache is not None and self.cache.trust_mtime and isinstance(image, (str, os.PathLike))
        return FileState.of(image) if trusted else None  # type: ignore[arg-type]

    def _cached(self, content_hash: str | None, path: str | None) -> Score | None:
        if self.cache is None or content_hash is None:
            return None
        entry = self.cache.get(content_hash, self.settings)
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
