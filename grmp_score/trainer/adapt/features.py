"""What the frozen part of a model makes of labelled images: computed once per crop and kept.

Nothing changes below the first block that is trained, so the tokens that enter this block are constants of every
crop.  So are the semantic teacher's scene probabilities, and the features of the model as it was.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.config import Preprocess
from grmp_score.errors import ConfigError, DataError, GrmpScoreError, ImageReadError
from grmp_score.images.read import MAX_PIXELS, read_image
from grmp_score.model.patches import make_patches
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.pipeline.inference import in_passes
from grmp_score.pipeline.read_ahead import read_ahead
from grmp_score.trainer.adapt.config import FewShotConfig, Precision
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.tables import shown
from grmp_score.weights.folder import Weights

if TYPE_CHECKING:
    from grmp_score.scorer import Scorer


def native_precision(device: torch.device) -> Precision:
    """``"bfloat16"`` where the device computes in it about twice as fast as in float32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    elif device.type == "cpu":
        asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
        native = any(ask() for ask in asked if ask is not None)  # private, and absent from older versions
    else:
        native = False
    return "bfloat16" if native else "float32"


def computing(device: torch.device, precision: Precision) -> torch.autocast:
    """Context in which matrix products are made in this precision; parameters stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


# ----------------------------------------------------------------- the teacher


def teacher_of(weights: Weights, base: Weights | None = None) -> tuple[QualityCLIP, str]:
    """V_sem of eq. (7), the original dual encoder without visual prompts, and what it is, in words.

    Args:
        weights: where training starts.  Those that do not hold the original of an adapted block (converted
            checkpoints) can only offer the adapted one.
        base: the original dual encoder, where that is somewhere else.

    Raises:
        ConfigError: the base takes other patches than the start model.
    """
    config, source = weights.config, weights if base is None else base
    prompts = dataclasses.replace(config.prompts, n_visual=0, prompt_norm=False)
    model = QualityCLIP(dataclasses.replace(config, backbone=source.config.backbone, prompts=prompts))
    size = model.clip.visual.image_size
    if size != config.preprocess.patch_size:
        raise ConfigError(
            f"the teacher {source.config.name!r} takes patches of {size} pixels, but "
            f"{config.name!r} cuts them of {config.preprocess.patch_size}"
        )
    original = source.backbone_state()
    adapted = {k.removeprefix("clip."): v for k, v in source.adapter.items() if k.startswith("clip.")}
    model.clip.load_state_dict({k: v.to(torch.float32) for k, v in {**adapted, **original}.items()})
    model.refresh_text()
    model.requires_grad_(False)
    if base is not None:
        return model.eval(), source.config.backbone.name or source.config.name
    is_original = adapted.keys() <= original.keys()
    return model.eval(), "original backbone" if is_original else "start model without visual prompts"


def shared_part(model: QualityCLIP, teacher: QualityCLIP) -> Literal["tower", "trunk"] | None:
    """How far both compute the same of an image: the features, the tokens that leave the trunk, or nothing."""
    ours, theirs = model.clip.visual.state_dict(), teacher.clip.visual.state_dict()
    if model.visual_prompts is not None or teacher.visual_prompts is not None or ours.keys() != theirs.keys():
        return None
    trunk = model.image.trunk_blocks
    above = ("ln_post.", "proj", *(f"transformer.resblocks.{i}." for i in range(trunk, len(ours))))
    differ = [k for k, v in ours.items() if not torch.equal(v, theirs[k])]
    if not differ:
        return "tower"
    same = teacher.image.trunk_blocks == trunk and all(name.startswith(above) for name in differ)
    return "trunk" if same else None


# ---------------------------------------------------- images -> crops -> features


@dataclass(frozen=True)
class CropReader:
    """Reads images and cuts them into crops, as a scorer does.

    Attributes:
        preprocess: how they are cut.
        background, max_pixels: as for `read_image`.
        workers: threads that read ahead.
    """

    preprocess: Preprocess
    background: str | tuple[int, int, int] = "white"
    max_pixels: int | None = MAX_PIXELS
    workers: int = 2

    @classmethod
    def of(cls, scorer: Scorer) -> CropReader:
        """With all settings of this scorer."""
        return cls(scorer.preprocess, scorer.background, scorer.max_pixels, scorer.workers)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the crops, as plain values."""
        return {
            "preprocess": dataclasses.asdict(self.preprocess),
            "background": self.background,
            "max_pixels": self.max_pixels,
        }

    def with_patches(self, patches: int) -> CropReader:
        """The same with another number of crops per image."""
        return dataclasses.replace(self, preprocess=self.preprocess.with_patches(patches))

    def read(self, paths: Sequence[Path]) -> Iterator[Tensor | ImageReadError]:
        """Crops [P, 3, S, S] of one image after another, normalised, or why it cannot be read."""
        return read_ahead(self._crops_of, paths, self.workers)

    def _crops_of(self, path: Path) -> Tensor | ImageReadError:
        try:
            image = read_image(path, background=self.background, max_pixels=self.max_pixels)
            return torch.from_numpy(make_patches(image, self.preprocess))
        except ImageReadError as error:
            return error


class FrozenPass(NamedTuple):
    """What a model makes of the C crops of one image before anything is trained.

    Attributes:
        tokens: [C, 1 + N, W], entering the first trainable block.
        pooled: [C, F], leaving the last block, as ``ln_post`` gives them.
        features: [C, D], float32, projected and L2-normalised.
        scenes: the teacher's p_sem [C, 9]; [C, 0] without a teacher.
    """

    tokens: Tensor
    pooled: Tensor
    features: Tensor
    scenes: Tensor


@torch.no_grad()
def run_frozen(
    model: QualityCLIP,
    crops: Tensor,
    precision: Precision,
    teacher: QualityCLIP | None = None,
    *,
    shared: Literal["tower", "trunk"] | None = None,
    dtype: torch.dtype | None = None,
) -> FrozenPass:
    """Runs crops [C, 3, S, S] through the model, and through the teacher as far as it is not the same.

    Args:
        model: before anything is trained.
        crops: normalised.
        precision: of the computing.
        teacher: V_sem of eq. (7).
        shared: of `shared_part`.
        dtype: in which the tokens will be kept.  They are rounded to it before the blocks above run, so that
            features and p_sem are those that training finds at its start: L_kl is then not that of the rounding.
    """
    device = model.text_features.device

    def run(part: Tensor) -> FrozenPass:
        part = part.to(device)
        with computing(device, precision):
            tokens = model.image.trunk(part)
            if dtype is not None:
                tokens = tokens.to(dtype).to(torch.float32)
            pooled = model.image.pool(tokens)
            features = model.image.project(pooled).float()
            if teacher is None:
                return FrozenPass(tokens, pooled, features, features[:, :0])
            if shared == "tower":
                semantic = features
            elif shared == "trunk":
                semantic = teacher.image.head(tokens).float()
            else:
                semantic = teacher.image(part).float()
            return FrozenPass(tokens, pooled, features, teacher.scene_logits(semantic).softmax(dim=-1))

    parts = in_passes(run, crops, device)
    return FrozenPass(*(torch.cat(column) for column in zip(*parts, strict=True)))


# -------------------------------------------------------------- what is kept


@dataclass(frozen=True, eq=False)
class Activations:
    """Constants of n images with C crops each.

    Attributes:
        tokens: [n, C, 1 + N, W] entering the first trainable block, float16 or float32, in memory or in a mapped
            file; None when no block of the image tower is trained.
        features: L2-normalised image features [n, C, D], float32, of the model that training starts from, made of
            the tokens as they are kept.
        scenes: the teacher's p_sem [n, C, 9], float32; None without QGR.
        plain: the first ``plain`` crops are not mirrored, as at scoring.
        pooled: what the features are projected from [n, C, F], in the tokens' dtype; None unless asked for.
    """

    tokens: Tensor | None
    features: Tensor
    scenes: Tensor | None
    plain: int
    pooled: Tensor | None = None

    def take(self, rows: NDArray[np.int64]) -> Activations:
        """Those of some images, in this order; consecutive ones are not copied."""
        index: Tensor | slice = torch.from_numpy(rows)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            index = slice(int(rows[0]), int(rows[0]) + len(rows))

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        features = self.features[index]
        return Activations(some(self.tokens), features, some(self.scenes), self.plain, some(self.pooled))

    def check(self, n: int, config: FewShotConfig) -> None:
        """Raises ConfigError unless these are of n images and hold all that the settings need."""
        needed = {
            "pooled features": (config.fits_head, self.pooled),
            "tokens": (config.train == "blocks" or config.train_visual_prompts, self.tokens),
            "scene probabilities": (config.uses_qgr, self.scenes),
        }
        missing = [name for name, (asked, kept) in needed.items() if asked and kept is None]
        if missing:
            raise ConfigError(f"the activations hold no {' and no '.join(missing)}, which these settings need")
        if len(self.features) != n:
            raise ConfigError(f"activations of {len(self.features)} images, expected those of all {n} labels")

    @property
    def mean_features(self) -> NDArray[np.float64]:
        """[n, D]: mean over the crops as cut for scoring."""
        mean: NDArray[np.float64] = self.features[:, : self.plain].double().mean(dim=1).numpy()
        return mean


def compute_activations(
    model: QualityCLIP,
    labels: Labels,
    reader: CropReader,
    *,
    teacher: QualityCLIP | None,
    flips: bool = False,
    keep_tokens: bool = True,
    keep_pooled: bool = False,
    dtype: torch.dtype = torch.float16,
    precision: Precision = "float32",
    cache_bytes: int = 3 * 2**29,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Reads every image once and runs the frozen parts on its crops.

    Args:
        model: before anything is trained; stays where it is.
        labels: whose images; the file and row of one that cannot be read are named.
        reader: how they are read and cut.
        teacher: of `teacher_of`, on the model's device; None leaves the scene probabilities out.
        flips: also use the mirrored crops.
        keep_tokens: False keeps the features alone.
        keep_pooled: also keep what the features are projected from.
        dtype: of the kept tokens and pooled features.
        precision: of the computing.
        cache_bytes: tokens beyond that are kept in a memory-mapped file that vanishes with the process.
        folder: for that file; None for the system's temporary folder.
        progress: called with 1 after every image.

    Raises:
        DataError: an image cannot be read.
        GrmpScoreError: tokens do not fit ``dtype`` or the disk.
    """
    plain = reader.preprocess.patches
    shared = None if teacher is None else shared_part(model, teacher)
    shape = (len(labels), plain * (1 + flips))  # n, C
    tokens: Tensor | None = None
    features = torch.empty(*shape, model.text_features.shape[1])
    pooled = torch.empty(*shape, model.clip.visual.proj.shape[0], dtype=dtype) if keep_pooled else None
    scenes = None if teacher is None else torch.empty(*shape, len(teacher.scene_features))
    for i, crops in enumerate(reader.read(labels.paths)):
        if isinstance(crops, ImageReadError):
            raise DataError(
                f"row {labels.rows[i]}: the image {shown(str(labels.paths[i]))} cannot be read: {crops.reason}",
                path=labels.source,
                hint="Replace the file, or remove its row",
            ) from crops
        if flips:
            crops = torch.cat([crops, crops.flip(-1)])
        rounded = dtype if keep_tokens else None
        made = run_frozen(model, crops, precision, teacher, shared=shared, dtype=rounded)
        features[i] = made.features.cpu()
        if scenes is not None:
            scenes[i] = made.scenes.cpu()
        if pooled is not None:
            pooled[i] = made.pooled.to("cpu", dtype)
        if keep_tokens:
            if tokens is None:
                tokens = _allocate((*shape, *made.tokens.shape[1:]), dtype, cache_bytes, folder)
            tokens[i] = made.tokens.to("cpu", dtype)
            if not bool(tokens[i].isfinite().all()):
                raise GrmpScoreError(
                    f"row {labels.rows[i]}: the activations of {shown(str(labels.paths[i]))} do not fit {dtype}",
                    hint="Keep them as float32 (cache_dtype)",
                )
        if progress is not None:
            progress(1)
    return Activations(tokens, features, scenes, plain, pooled)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, budget: int, folder: Path | None) -> Tensor:
    """An uninitialised tensor, in memory or, beyond the budget, in a mapped file without a name."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size <= budget:
        return torch.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash later
            kind = np.float16 if dtype is torch.float16 else np.float32
            return torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=shape))
    except OSError as error:
        raise GrmpScoreError(
            f"no room for {size / 2**30:.1f} GiB of activations: {error.strerror or error}",
            path=folder or tempfile.gettempdir(),
            hint="Free some disk space, or use fewer crops or images",
        ) from error
