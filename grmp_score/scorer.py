"""`Scorer`: images in, quality scores out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image

from grmp_score import weights
from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError
from grmp_score.explain import Explanation, explain_image
from grmp_score.images import MAX_PIXELS, ImageSource, parse_colour
from grmp_score.pipeline.cache import ScoreCache
from grmp_score.pipeline.engines import Engine, EngineName, OnnxEngine, Precision, TorchEngine, cores, may_have_gpu
from grmp_score.pipeline.prepare import OnImage, PreparedImage, Preparer
from grmp_score.pipeline.read_ahead import read_ahead
from grmp_score.score import FailedScore, Score

if TYPE_CHECKING:
    import torch

    from grmp_score.model.quality_clip import QualityCLIP

#: Part of every cache key: to be raised whenever the same weights and the same image give another score.
SCORING_VERSION = 3


@dataclass(frozen=True)
class ScorerOptions:
    """How a `Scorer` works; what it finds depends on ``patches``, ``background``, ``max_pixels`` and ``precision``.

    Attributes:
        device: ``"auto"`` (CUDA, then MPS, then CPU, chosen when the model is made) or a torch device.
        patches: patches per image; None for the weights' own number.
        engine: ``"onnxruntime"`` computes on CPUs alone and needs no torch; ``"torch"`` anywhere; ``"auto"`` takes
            the former where it can.
        precision: of the model's products.  ``"bfloat16"`` is torch's, ``"int8"`` ONNX Runtime's; ``"auto"`` is
            float32, in which both engines agree to 1e-5.
        batch_size: images that are computed together; None for half as many as there are threads on a CPU (1 to
            8: their patches share the cores), 16 elsewhere.  The scores do not depend on it.
        threads: that compute on a CPU; None for the cores that the process may use (environment:
            OMP_NUM_THREADS).  The scores do not depend on it.
        workers: threads that read and cut images; None for the number of cores, at most 4.
        background: what lies under transparent parts: a colour's name, ``"#rrggbb"``, or red, green, blue (0..255).
            Kept as ``"white"`` or ``"#rrggbb"``.
        max_pixels: limit of width x height against decompression bombs; None for none.

    Raises:
        ConfigError: a value makes no sense.
    """

    device: str = "auto"
    engine: EngineName = "auto"
    precision: Precision = "auto"
    patches: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    workers: int | None = None
    background: str | tuple[int, int, int] = "white"
    max_pixels: int | None = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, known in (("engine", get_args(EngineName)), ("precision", get_args(Precision))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        wrong = {("onnxruntime", "bfloat16"): "torch", ("torch", "int8"): "onnxruntime"}
        other = wrong.get((self.engine, self.precision))
        if other is not None:
            raise ConfigError(f"{self.engine} does not compute in {self.precision}", hint=f"{other} does")
        needs_cpu = self.engine == "onnxruntime" or self.precision == "int8"
        if needs_cpu and self.device not in ("auto", "cpu"):
            raise ConfigError(f"onnxruntime computes on the CPU, not on {self.device!r}")
        for name in ("patches", "batch_size", "threads", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        red, green, blue = parse_colour(self.background)
        hexadecimal = f"#{red:02x}{green:02x}{blue:02x}"
        object.__setattr__(self, "background", "white" if hexadecimal == "#ffffff" else hexadecimal)


class Scorer:
    """Scores images with one set of weights.

    The model is made when the first image needs it: importing torch takes seconds, and scores that come from a
    cache need neither.

    Attributes:
        weights: configuration and tensors that the model is made of.
        options: how it works.
        preprocess: how images become patches.

    Example:
        >>> from grmp_score import Scorer
        >>> Scorer().score("photo.jpg").value  # doctest: +SKIP
        0.83
    """

    def __init__(
        self, source: weights.Weights | None = None, options: ScorerOptions | None = None, **changes: Any
    ) -> None:
        """Makes a scorer from weights at hand; `from_pretrained` fetches others.

        Args:
            source: weights; None for the bundled model, which needs no network.
            options: how to work.
            changes: single options by name, as in ``Scorer(patches=5)``; they win over ``options``.

        Raises:
            ConfigError: an option makes no sense, or there is no such device.
            WeightsError: the bundled model is missing or damaged.
        """
        self.options = dataclasses.replace(options or ScorerOptions(), **changes)
        self.weights = source if source is not None else weights.load()
        own = self.weights.config.preprocess
        self.preprocess = own if self.options.patches is None else own.with_patches(self.options.patches)
        if self.options.device not in ("auto", "cpu"):
            _ = self.device  # whether there is such a device, torch must be asked; these two are always there

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
        options: ScorerOptions | None = None,
        **changes: Any,
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
            options, changes: as for `Scorer`.

        Raises:
            HubError, WeightsError, ConfigError: what is wrong with the source, and the remedy.
        """
        loaded = weights.load(
            source,
            filename=filename,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(loaded, options, **changes)

    def __repr__(self) -> str:
        return f"Scorer({self.config.name!r}, {self.preprocess.patches} patches, device {self.options.device!r})"

    @property
    def config(self) -> ModelConfig:
        """The weights' configuration."""
        return self.weights.config

    @property
    def background(self) -> str:
        """`ScorerOptions.background`."""
        return str(self.options.background)

    @property
    def max_pixels(self) -> int | None:
        """`ScorerOptions.max_pixels`."""
        return self.options.max_pixels

    @property
    def workers(self) -> int:
        """Threads that read and cut images."""
        return self.options.workers or min(4, os.cpu_count() or 1)

    @cached_property
    def device(self) -> torch.device:
        """Where `model` is."""
        from grmp_score.pipeline.inference import pick_device

        return pick_device(self.options.device)

    @property
    def precision(self) -> str:
        """Of the model's products."""
        return "float32" if self.options.precision == "auto" else self.options.precision

    @cached_property
    def engine(self) -> Engine:
        """What computes p(high); it is made on first use.

        Raises:
            WeightsError: the tensors do not make a model.
        """
        options, precision = self.options, self.precision
        if options.engine != "torch" and precision != "bfloat16" and self._on_cpu():
            graph = self.weights.graph("int8" if precision == "int8" else "float32")
            return OnnxEngine(graph, precision, options.threads or cores())
        return TorchEngine(self.model, self.device, precision, options.threads)

    def _on_cpu(self) -> bool:
        """Whether to compute on the CPU; torch is asked where there may be something else."""
        if self.options.device != "auto" or self.options.engine == "onnxruntime" or self.precision == "int8":
            return self.options.device in ("auto", "cpu")
        return not may_have_gpu() or self.device.type == "cpu"

    @cached_property
    def batch_size(self) -> int:
        """Images that go through the model together."""
        on_cpu = self.engine.device == "cpu"
        return self.options.batch_size or (min(8, max(1, (self.options.threads or cores()) // 2)) if on_cpu else 16)

    @cached_property
    def model(self) -> QualityCLIP:
        """The `QualityCLIP`; calling it on normalised patches [B, 3, S, S] gives quality logits [B, 2], columns
        high, low.  It is made on first use.

        Raises:
            WeightsError: the tensors do not make a model.
        """
        return self.weights.build().to(self.device).requires_grad_(False)

    @property
    def is_built(self) -> bool:
        """Whether the model has been made."""
        return "engine" in self.__dict__

    @cached_property
    def checksum(self) -> str:
        """The `Weights.checksum`: 16 hexadecimal digits, with ``-int8`` or ``-bfloat16`` in that precision."""
        suffix = "" if self.precision == "float32" else f"-{self.precision}"
        return self.weights.checksum() + suffix

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

    # ----------------------------------------------------------------- scoring

    def score(self, image: ImageSource) -> Score:
        """Scores one image.

        Args:
            image: path or address, encoded bytes, binary file, PIL image; array [H, W] or [H, W, C] of uint8,
                uint16, float (0..1) or bool; tensor [H, W], [C, H, W] or [1, C, H, W] of the same types and ranges.

        Raises:
            ImageReadError: the image cannot be read.
        """
        return self._score_batch([self.preparer().prepare(image)])[0]

    def score_many(
        self, images: Iterable[ImageSource], *, cache: ScoreCache | None = None, on_image: OnImage | None = None
    ) -> Iterator[Score | FailedScore]:
        """Scores a stream of images, in order, one result for each.

        An image that cannot be read gives a `FailedScore`; the stream goes on.  Images are read ahead by a few
        threads; the number held in memory does not depend on the stream's length.

        Args:
            images: as for `score`.
            cache: where scores are looked up and kept.  What fails is not kept.
            on_image: called with the name and the upright RGB picture of every image that was read, before its
                score is yielded, by the thread that read it; for thumbnails and the like.  It is given images whose
                score comes from the cache too.

        Raises:
            ConfigError: one path or the bytes of one image were given.
            CacheError: the cache cannot be used.
            WeightsError: the first image that needs the model shows that the tensors do not make one.
        """
        if isinstance(images, (str, bytes, os.PathLike)):  # whose letters would be taken for images
            raise ConfigError("score_many takes several images", hint="Score one with score(...), or give a list")
        preparer = self.preparer(cache=cache, on_image=on_image)

        def ahead() -> int:  # the next batch is read while this one is computed
            return self.workers + (self.batch_size if self.is_built else 1)

        with contextlib.closing(read_ahead(preparer.try_prepare, images, self.workers, ahead)) as items:
            yield from self._score_stream(items, preparer.remember)

    def preparer(self, *, cache: ScoreCache | None = None, on_image: OnImage | None = None) -> Preparer:
        """What reads and cuts images for this scorer, here or in another process; it does not hold the model."""
        key = b"" if cache is None else self.settings_key
        return Preparer(self.config, self.preprocess, self.background, self.max_pixels, cache, key, on_image)

    def score_prepared(self, items: Iterable[PreparedImage | Score | FailedScore]) -> Iterator[Score | FailedScore]:
        """Scores what `preparer` made of a stream of images, in order; what is a score already is passed on."""
        return self._score_stream(items, lambda *_: None)

    def explain(self, image: ImageSource) -> Explanation:
        """The score of one image with its patches' places and values, and a heat map from some 48 more patches.

        Args:
            image: as for `score`.

        Raises:
            ImageReadError: the image cannot be read.
        """
        pictures: list[Image.Image] = []
        item = self.preparer(on_image=lambda _, picture: pictures.append(picture)).prepare(image)
        score = self._score_batch([item])[0]
        return explain_image(pictures[0], score, self.preprocess, self.engine.p_high)

    def _score_stream(
        self,
        items: Iterable[PreparedImage | Score | FailedScore],
        remember: Callable[[PreparedImage, Score], object],
    ) -> Iterator[Score | FailedScore]:
        stream = iter(items)
        for first in stream:
            if not isinstance(first, PreparedImage):
                yield first
                continue
            batch = [first, *islice(stream, self.batch_size - 1)]
            scores = iter(self._score_batch([item for item in batch if isinstance(item, PreparedImage)]))
            for item in batch:
                if isinstance(item, PreparedImage):
                    score = next(scores)
                    remember(item, score)
                    yield score
                else:
                    yield item

    def _score_batch(self, items: list[PreparedImage]) -> list[Score]:
        patches = np.concatenate([item.patches for item in items])  # [sum of P, 3, S, S]
        values = iter(self.engine.p_high(patches))
        return [
            Score.from_patches(
                tuple(islice(values, len(item.patches))),
                path=item.path,
                width=item.width,
                height=item.height,
                content_hash=item.content_hash,
                config=self.config,
            )
            for item in items
        ]

    # ------------------------------------------------------------------ saving

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes these weights as a folder that `from_pretrained` reads; the preprocessing in use is saved."""
        return self.current_weights().save(folder)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Uploads these weights as a Hub repository and returns the URL of the commit."""
        return self.current_weights().push(repo, private=private, token=token, revision=revision)

    def current_weights(self) -> weights.Weights:
        """The weights with the preprocessing in use."""
        config = dataclasses.replace(self.config, preprocess=self.preprocess)
        return dataclasses.replace(self.weights, config=config)
