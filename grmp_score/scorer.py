"""`Scorer`: images in, quality scores out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from grmp_score import weights
from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, WeightsError
from grmp_score.explain import Explanation, explain_image
from grmp_score.images.read import MAX_PIXELS, ImageSource
from grmp_score.pipeline.cache import ScoreCache
from grmp_score.pipeline.prepare import Prepared, Preparer, Watch
from grmp_score.pipeline.stream import score_stream
from grmp_score.score import Score as Score
from grmp_score.weights import hub
from grmp_score.weights.checksum import model_checksum

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from grmp_score.model.quality_clip import QualityCLIP

#: Part of every cache key: to be raised whenever the same weights and the same image give another score.
SCORING_VERSION = 2

#: Held while a model is made: threads that need the same one wait for it, and a `Scorer` can be copied and pickled.
_BUILDING = threading.RLock()


class Scorer:
    """Scores images with one set of weights.

    The model is made when the first image needs it: importing torch takes seconds, and scores that come from a
    cache need neither.

    Attributes:
        weights: configuration and tensors that the model is made of.
        preprocess: how images become patches.
        workers: threads that read and cut images.
        background, max_pixels: as for `read_image`.

    Example:
        >>> from grmp_score import Scorer
        >>> Scorer().score("photo.jpg").value  # doctest: +SKIP
        0.83
    """

    def __init__(
        self,
        source: weights.Weights | None = None,
        *,
        device: str = "auto",
        patches: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        background: str | tuple[int, int, int] = "white",
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        """Makes a scorer from weights at hand; `from_pretrained` fetches others.

        Args:
            source: weights; None for the bundled model, which needs no network.
            device: ``"auto"`` (CUDA, then MPS, then CPU, chosen when the model is made) or a torch device.
            patches: patches per image instead of the weights' own number.
            batch_size: images that are computed together; None chooses half as many as torch may use threads on a
                CPU (1 to 8: their patches share the cores), 16 elsewhere.  The scores do not depend on it.
            workers: threads that read and cut images; None chooses by the number of cores, at most 4.
            background: what lies under transparent parts, as in `read_image`.
            max_pixels: limit of width x height against decompression bombs, as in `read_image`; None for none.

        Raises:
            ConfigError: a setting makes no sense, or there is no such device.
            WeightsError: the bundled model is missing or damaged.
        """
        self.weights = source if source is not None else weights.load()
        preprocess = self.weights.config.preprocess
        self.preprocess = preprocess if patches is None else preprocess.with_patches(patches)
        self._device, self._batch_size = device, _positive(batch_size, "batch_size")
        if device not in ("auto", "cpu"):
            _ = self.device  # whether there is such a device, torch must be asked; these two are always there
        self.workers = _positive(workers, "workers") or min(4, os.cpu_count() or 1)
        self.background, self.max_pixels = background, _positive(max_pixels, "max_pixels")

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        filename: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        device: str = "auto",
        patches: int | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        background: str | tuple[int, int, int] = "white",
        max_pixels: int | None = MAX_PIXELS,
    ) -> Scorer:
        """Makes a scorer from a weights folder, a bundled model's name, or a Hub repository.

        Args:
            source: local folder, bundled name (``"mini"``), or repository id such as ``"owner/name"``.
            filename: an official ``*.pt`` checkpoint in that folder or repository, e.g.
                ``"clive_50_prompt_lda_5.0.pt"`` of ``"zzhowe/GRMP-IQA"``.
            revision: branch, tag or commit.
            token: Hub token, or True for the stored one.
            cache_dir: cache folder instead of the Hub client's own.
            local_files_only: never use the network (as the environment variable HF_HUB_OFFLINE=1 does).
            device, patches, batch_size, workers, background, max_pixels: as for `Scorer`.

        Raises:
            HubError, WeightsError, ConfigError: what is wrong with the source, and the remedy.
        """
        name = os.fspath(source)
        if filename is not None:
            from grmp_score.weights.official import fetch_official

            loaded = fetch_official(
                name,
                filename,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        else:
            loaded = weights.load(
                name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
        return cls(
            loaded,
            device=device,
            patches=patches,
            batch_size=batch_size,
            workers=workers,
            background=background,
            max_pixels=max_pixels,
        )

    @property
    def config(self) -> ModelConfig:
        """The weights' configuration."""
        return self.weights.config

    @cached_property
    def device(self) -> torch.device:
        """Where the model runs."""
        from grmp_score.pipeline.inference import pick_device

        return pick_device(self._device)

    @cached_property
    def batch_size(self) -> int:
        """Images that go through the model together."""
        from grmp_score.pipeline.inference import usual_batch_size

        return self._batch_size or usual_batch_size(self.device)

    @cached_property
    def model(self) -> QualityCLIP:
        """The `QualityCLIP`; calling it on normalised patches [B, 3, S, S] gives quality logits [B, 2], columns
        high, low.  It is made on first use.

        Raises:
            WeightsError: the tensors do not make a model, or their files have been changed.
        """
        with _BUILDING:
            if not self.is_built:
                model = self.weights.build().to(self.device)
                model.requires_grad_(False)
                # A checksum that has been given away, perhaps into a cache, must be that of this very model.
                known = self.__dict__.get("checksum")
                if known is not None and known != model_checksum(self.config, model.state_dict()):
                    raise WeightsError(
                        f"the tensors are no longer those of the checksum {known}: the files have been changed",
                        path=self.weights.origin or None,
                        hint="Open the weights again",
                    )
                self.__dict__["model"] = model
            built: QualityCLIP = self.__dict__["model"]
            return built

    @property
    def is_built(self) -> bool:
        """Whether the model has been made."""
        return "model" in self.__dict__

    @cached_property
    def checksum(self) -> str:
        """The `model_checksum` of the weights: 16 hexadecimal digits.

        Raises:
            WeightsError: a file of the weights has been replaced since it was opened.
        """
        return model_checksum(self.config, self.model.state_dict()) if self.is_built else self.weights.checksum()

    @property
    def settings_key(self) -> bytes:
        """Stands for everything but the image that decides a score; the key of a `ScoreCache`."""
        settings = {
            "scoring": SCORING_VERSION,
            "model": self.checksum,
            "preprocess": dataclasses.asdict(self.preprocess),
            "background": self.background,
            "max_pixels": self.max_pixels,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()

    def score(self, image: ImageSource) -> Score:
        """Scores one image.

        Args:
            image: path, encoded bytes, binary file, PIL image, or uint8 array [H, W, 3] (RGB) or [H, W].

        Raises:
            ImageReadError: the image cannot be read.
        """
        return self._forward([self._preparer().prepare(image)])[0]

    def score_many(
        self, images: Iterable[ImageSource], *, cache: ScoreCache | None = None, watch: Watch | None = None
    ) -> Iterator[Score]:
        """Scores a stream of images, in order, one `Score` for each.

        An image that cannot be read gives a score with ``error`` set and no value; the stream goes on.  Images
        are read ahead by a few threads; the number held in memory does not depend on the stream's length.

        Args:
            images: as for `score`.
            cache: where scores are looked up and kept.  What fails is not kept.
            watch: called with the name and the upright RGB picture of every image that was read, before its score
                is yielded, by the thread that read it; for thumbnails and the like.  It is given images whose
                score comes from the cache too.

        Raises:
            CacheError: the cache cannot be used.
            WeightsError: the first image that needs the model shows that the tensors do not make one.
        """
        return score_stream(
            images,
            self._preparer(cache, watch),
            self._forward,
            workers=self.workers,
            batch_size=lambda: self.batch_size,
        )

    def explain(self, image: ImageSource) -> Explanation:
        """The score of one image with its patches' places and values, and a heat map from some 48 more patches.

        Args:
            image: as for `score`.

        Raises:
            ImageReadError: the image cannot be read.
        """
        read: list[Image.Image] = []
        preparer = self._preparer(watch=lambda _, picture: read.append(picture))
        score = self._forward([preparer.prepare(image)])[0]
        return explain_image(read[0], score, self.preprocess, lambda patches: list(self._p_high([patches])[0]))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes these weights as a folder that `from_pretrained` reads; the preprocessing in use is saved."""
        return self._current().save(folder)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Uploads these weights as a Hub repository and returns the URL of the commit."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = self.save_pretrained(folder)
            # An empty model card would only make the Hub complain.
            files = sorted(p.name for p in path.iterdir() if p.stat().st_size)
            return hub.push_folder(path, repo, private=private, token=token, revision=revision, files=files)

    def _current(self) -> weights.Weights:
        config = dataclasses.replace(self.config, preprocess=self.preprocess)
        return dataclasses.replace(self.weights, config=config)

    def _preparer(self, cache: ScoreCache | None = None, watch: Watch | None = None) -> Preparer:
        settings = b"" if cache is None else self.settings_key
        return Preparer(self.config, self.preprocess, self.background, self.max_pixels, cache, settings, watch)

    def _forward(self, items: list[Prepared]) -> list[Score]:
        return [
            Score.from_patches(
                values,
                path=item.path,
                width=item.width,
                height=item.height,
                content_hash=item.content_hash,
                config=self.config,
            )
            for item, values in zip(items, self._p_high([item.patches for item in items]), strict=True)
        ]

    def _p_high(self, images: list[Tensor]) -> list[tuple[float, ...]]:
        from grmp_score.pipeline.inference import p_high_of

        return p_high_of(self.model, images, self.device) if images else []


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    return value
