"""What does not change while the head is fine-tuned, computed once per crop and kept.

Below the first trainable block nothing is trained, so the tokens that enter it are a constant of every crop, and so
are the semantic teacher's scene probabilities and the un-adapted image features.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.config import Preprocess
from grmp_score.errors import DataError, GrmpScoreError, ImageReadError
from grmp_score.images.read import read_image
from grmp_score.model.patches import make_patches
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.pipeline.inference import on_all_cores, parts_of
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.tables import shown
from grmp_score.weights.folder import Weights

Precision = Literal["float32", "bfloat16"]


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


@dataclass(frozen=True, eq=False)
class Activations:
    """Constants of n images with C crops each.

    Attributes:
        tokens: [n, C, 1 + N, W] entering the first trainable block, float16 or float32, in memory or in a mapped
            file; None when no block of the image tower is trained.
        features: un-adapted, L2-normalised image features [n, C, D], float32.
        pooled: what they are projected from [n, C, F], in the tokens' dtype; None unless asked for.
        scenes: the teacher's p_sem [n, C, 9], float32; None without QGR.
        plain: the first ``plain`` crops are not mirrored, as at scoring.
    """

    tokens: Tensor | None
    features: Tensor
    scenes: Tensor | None
    plain: int
    pooled: Tensor | None = None

    def take(self, rows: NDArray[np.int64]) -> Activations:
        """Those of some images, in this order."""
        index = torch.from_numpy(rows)

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        features = self.features[index]
        return Activations(some(self.tokens), features, some(self.scenes), self.plain, some(self.pooled))


def teacher_of(weights: Weights) -> tuple[QualityCLIP, bool]:
    """V_sem of eq. (7): the original dual encoder without visual prompts, and whether it really is the original.

    Weights that do not hold the original of an adapted block (official checkpoints) can only offer the adapted one;
    the second value is then False.
    """
    config = weights.config
    prompts = dataclasses.replace(config.prompts, n_visual=0, prompt_norm=False)
    model = QualityCLIP(dataclasses.replace(config, prompts=prompts))
    original = weights.backbone_state()
    adapted = {k.removeprefix("clip."): v for k, v in weights.adapter.items() if k.startswith("clip.")}
    model.clip.load_state_dict({k: v.to(torch.float32) for k, v in {**adapted, **original}.items()})
    model.refresh_text()
    model.requires_grad_(False)
    return model.eval(), adapted.keys() <= original.keys()


def same_image_side(model: QualityCLIP, teacher: QualityCLIP) -> bool:
    """Whether both compute the same image features: no visual prompts, and equal image towers."""
    if model.visual_prompts is not None or teacher.visual_prompts is not None:
        return False
    theirs = teacher.clip.visual.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in model.clip.visual.state_dict().items())


def read_ahead(paths: Sequence[Path], preprocess: Preprocess, workers: int) -> Iterator[Tensor | ImageReadError]:
    """Patches [P, 3, S, S] of one image after another, or why it cannot be read; some are read ahead by threads."""

    def prepare(path: Path) -> Tensor | ImageReadError:
        try:
            return make_patches(read_image(path), preprocess)
        except ImageReadError as error:
            return error

    with ThreadPoolExecutor(workers, thread_name_prefix="grmp-score-read") as pool:
        stream = iter(paths)
        pending: deque[Future[Tensor | ImageReadError]] = deque(
            pool.submit(prepare, path) for path in islice(stream, workers + 1)
        )
        try:
            while pending:
                prepared = pending.popleft().result()
                pending.extend(pool.submit(prepare, path) for path in islice(stream, 1))
                yield prepared
        finally:
            for future in pending:
                future.cancel()


@torch.no_grad()
def compute_activations(
    model: QualityCLIP,
    labels: Labels,
    preprocess: Preprocess,
    *,
    teacher: QualityCLIP | None,
    flips: bool = False,
    keep_tokens: bool = True,
    keep_pooled: bool = False,
    dtype: torch.dtype = torch.float16,
    precision: Precision = "float32",
    cache_bytes: int = 3 * 2**29,
    folder: Path | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Activations:
    """Reads every image once and runs the frozen parts on its crops.

    Args:
        model: before anything is trained; stays where it is.
        labels: whose images; the file and row of one that cannot be read are named.
        preprocess: how they are cut.
        teacher: of `teacher_of`, on the model's device; None leaves the scene probabilities out.
        flips: also use the mirrored crops.
        keep_tokens: False keeps the features alone.
        keep_pooled: also keep what the features are projected from.
        dtype: of the kept tokens and pooled features.
        precision: of the computing.
        cache_bytes: tokens beyond that are kept in a memory-mapped file that vanishes with the process.
        folder: for that file; None for the system's temporary folder.
        workers: threads that read images.
        progress: called with 1 after every image.

    Raises:
        DataError: an image cannot be read.
        GrmpScoreError: tokens do not fit ``dtype`` or the disk.
    """
    device = model.text_features.device
    plain = preprocess.patches
    same_images = teacher is not None and same_image_side(model, teacher)
    shape = (len(labels), plain * (1 + flips))
    tokens: Tensor | None = None
    features = torch.empty(*shape, model.text_features.shape[1])
    pooled = torch.empty(*shape, model.clip.visual.proj.shape[0], dtype=dtype) if keep_pooled else None
    scenes = None if teacher is None else torch.empty(*shape, len(teacher.scene_features))

    def run(patches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What enters the trained blocks, what leaves them pooled, features, and the teacher's scenes (or none)."""
        patches = patches.to(device)
        with computing(device, precision):
            entering = model.image.trunk(patches)
            before = model.image.pool(entering)
            own = model.image.project(before).float()
            if teacher is None:
                return entering, before, own, own[:, :0]
            semantic = own if same_images else teacher.image(patches).float()
            return entering, before, own, teacher.scene_logits(semantic).softmax(dim=-1)

    for i, patches in enumerate(read_ahead(labels.paths, preprocess, workers)):
        if isinstance(patches, ImageReadError):
            raise DataError(
                f"row {labels.rows[i]}: the image {shown(str(labels.paths[i]))} cannot be read: {patches.reason}",
                path=labels.source,
                hint="Replace the file, or remove its row",
            ) from patches
        if flips:
            patches = torch.cat([patches, patches.flip(-1)])
        made = on_all_cores(run, parts_of(patches, device))
        entering, before, own, semantic = (torch.cat(column) for column in zip(*made, strict=True))
        if scenes is not None:
            scenes[i] = semantic.cpu()
        features[i] = own.cpu()
        if pooled is not None:
            pooled[i] = before.to("cpu", dtype)
        if keep_tokens:
            if tokens is None:
                tokens = _room((*shape, *entering.shape[1:]), dtype, cache_bytes, folder)
            tokens[i] = entering.to("cpu", dtype)
            if not bool(tokens[i].isfinite().all()):
                raise GrmpScoreError(
                    f"row {labels.rows[i]}: the activations of {shown(str(labels.paths[i]))} do not fit {dtype}",
                    hint="Keep them as float32 (cache_dtype)",
                )
        if progress is not None:
            progress(1)
    return Activations(tokens, features, scenes, plain, pooled)


def _room(shape: tuple[int, ...], dtype: torch.dtype, budget: int, folder: Path | None) -> Tensor:
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
