"""`Scorer`: images in, quality scores out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch

from grmp_score import hub, weights
from grmp_score.cache import ScoreCache
from grmp_score.checksum import model_checksum
from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, GrmpScoreError
from grmp_score.images import MAX_PIXELS, ImageSource
from grmp_score.model import QualityCLIP, p_high
from grmp_score.prepare import Prepared, Preparer
from grmp_score.score import Score as Score

#: Part of every cache key: to be raised whenever the same weights and the same image give another score.
SCORING_VERSION = 1


class Scorer:
    """Scores images with one set of weights.

    Attributes:
        model: the `QualityCLIP`; calling it on normalised patches [B, 3, S, S] gives quality logits [B, 2],
            columns high, low.
        weights: configuration and tensors it was made of.
        device: where the model runs.

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
            device: ``"auto"`` (CUDA, then MPS, then CPU) or a torch device.
            patches: patches per image instead of the weights' own number.
            batch_size: images that go through the model together; None chooses 1 on a CPU, 16 elsewhere.
                The scores do not depend on it.
            workers: threads that read and cut images; None chooses by the number of cores, at most 4.
            background: what lies under transparent parts, as in `read_image`.
            max_pixels: limit of width x height against decompression bombs, as in `read_image`; None for none.
        """
        self.weights = source if source is not None else weights.load()
        preprocess = self.weights.config.preprocess
        self.preprocess = preprocess if patches is None else preprocess.with_patches(patches)
        self.device = pick_device(device)
        self.batch_size = _positive(batch_size, "batch_size") or (1 if self.device.type == "cpu" else 16)
        self.workers = _positive(workers, "workers") or min(4, os.cpu_count() or 1)
        self.background, self.max_pixels = background, _positive(max_pixels, "max_pixels")
        self.model: QualityCLIP = self.weights.build().to(self.device)
        self.model.requires_grad_(False)

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
            loaded = _load_checkpoint(name, filename, revision, token, cache_dir, local_files_only)
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
    def checksum(self) -> str:
        """The `model_checksum` of the weights: 16 hexadecimal digits."""
        return model_checksum(self.config, self.model.state_dict())

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

    def score_many(self, images: Iterable[ImageSource], *, cache: ScoreCache | None = None) -> Iterator[Score]:
        """Scores a stream of images, in order, one `Score` for each.

        An image that cannot be read gives a score with ``error`` set and no value; the stream goes on.  Images
        are read ahead by a few threads; the number held in memory does not depend on the stream's length.

        Args:
            images: as for `score`.
            cache: where scores are looked up and kept.  What fails is not kept.

        Raises:
            CacheError: the cache cannot be used.
        """
        preparer = self._preparer(cache)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="grmp-score-read") as pool:
            pending: deque[Future[Prepared | Score]] = deque()
            stream = iter(images)
            ahead = self.workers + self.batch_size
            try:
                pending.extend(pool.submit(preparer.try_prepare, image) for image in islice(stream, ahead))
                while pending:
                    batch = [pending.popleft().result() for _ in range(min(self.batch_size, len(pending)))]
                    pending.extend(pool.submit(preparer.try_prepare, i) for i in islice(stream, len(batch)))
                    scored = iter(self._forward([item for item in batch if isinstance(item, Prepared)]))
                    for item in batch:
                        if isinstance(item, Prepared):
                            score = next(scored)
                            preparer.remember(item, score)
                            yield score
                        else:
                            yield item
            finally:
                for future in pending:
                    future.cancel()

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

    def _preparer(self, cache: ScoreCache | None = None) -> Preparer:
        settings = b"" if cache is None else self.settings_key
        return Preparer(self.config, self.preprocess, self.background, self.max_pixels, cache, settings)

    @torch.inference_mode()
    def _forward(self, items: list[Prepared]) -> list[Score]:
        if not items:
            return []
        # One image after another on a CPU: the patches of one fill it, and the result of an image cannot
        # depend on its neighbours.  Elsewhere several images share a pass to fill the device.
        if self.device.type == "cpu":
            outputs = [self.model(item.patches) for item in items]
        else:
            joined = self.model(torch.cat([item.patches for item in items]).to(self.device))
            outputs = list(joined.split([len(item.patches) for item in items]))
        return [
            Score.from_patches(
                tuple(p_high(logits.cpu().double()).tolist()),
                path=item.path,
                width=item.width,
                height=item.height,
                content_hash=item.content_hash,
                config=self.config,
            )
            for item, logits in zip(items, outputs, strict=True)
        ]


def pick_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or mps") from error
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device.type, True)
    if not usable:
        raise ConfigError(f"this machine has no usable {device.type} device", hint="Use auto or cpu")
    return device


def _positive(value: int | None, name: str) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    return value


def _load_checkpoint(
    source: str,
    filename: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
) -> weights.Weights:
    from grmp_score.official import load_official

    if Path(source).is_dir():
        path = Path(source) / filename
    elif hub.looks_like_repo(source):
        path = hub.fetch_file(
            source,
            filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    else:
        raise GrmpScoreError("no such folder, and not the form of a Hub repository id", path=source)
    return load_official(path, name=f"{source}/{filename}")
