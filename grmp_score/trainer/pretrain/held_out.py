"""How well a model orders distorted references it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.model.quality_clip import QualityCLIP, p_high
from grmp_score.trainer.metrics import srcc
from grmp_score.trainer.pretrain.crops import TrainingCrops
from grmp_score.trainer.pretrain.meta import to_patches


@dataclass(frozen=True)
class HeldOutAgreement:
    """Agreement with the labels on held-out references.

    Attributes:
        overall: SRCC over all their versions.
        per_task: SRCC within each task (all its levels and references, clean ones included).
        images: number of images.
    """

    overall: float
    per_task: dict[str, float]
    images: int

    @property
    def mean_per_task(self) -> float:
        """Mean SRCC over the tasks."""
        return float(np.mean(list(self.per_task.values())))


def evaluate_held_out(
    model: QualityCLIP, crops: TrainingCrops, references: Sequence[str], *, features: Tensor | None = None
) -> HeldOutAgreement:
    """Scores all versions of some references and compares with their labels.

    Args:
        model: what is evaluated.
        crops: training crops, of which these references were not trained on.
        references: names as in `TrainingCrops.references`.
        features: what `encode_crops` gave for ``crops.indices(references)``, from a model with the same image side.
    """
    indices = crops.indices(references)  # [n], ascending
    predicted = predict(model, encode_crops(model, crops, indices) if features is None else features)  # [n]
    labels = crops.labels[indices]  # [n]
    per_task = {}
    for task in crops.tasks():
        rows = np.searchsorted(indices, crops.indices(references, task))
        per_task[task] = srcc(predicted[rows], labels[rows])
    return HeldOutAgreement(srcc(predicted, labels), per_task, len(indices))


@torch.inference_mode()
def encode_crops(
    model: QualityCLIP,
    crops: TrainingCrops,
    indices: NDArray[np.int64],
    *,
    views: Sequence[int] | None = None,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Image features [n, V, D] of some items.

    Args:
        model: its image side.
        crops: where the items are from.
        indices: [n] of the items.
        views: which V crops of each; all by default.
        batch_size: crops per pass.
        progress: called with (crops done, crops in all).
    """
    model.eval()
    device = model.text_features.device
    views = range(crops.pixels.shape[1]) if views is None else views
    items, chosen = np.repeat(indices, len(views)), np.tile(np.asarray(views), len(indices))  # [n * V]
    features = []
    for start in range(0, len(items), batch_size):
        batch = slice(start, start + batch_size)
        pixels = np.array(crops.pixels[items[batch], chosen[batch]])  # [B, S, S, 3]
        features.append(model.image(to_patches(pixels, model.config.preprocess).to(device)).cpu())  # [B, D]
        if progress is not None:
            progress(min(start + batch_size, len(items)), len(items))
    return torch.cat(features).view(len(indices), len(views), -1)


@torch.inference_mode()
def predict(model: QualityCLIP, features: Tensor) -> NDArray[np.float64]:
    """p(high) [n] from image features [n, V, D]: the mean over the crops."""
    n, views, _ = features.shape
    text = model.encode_quality()  # [2, D]
    values = p_high(model.quality_logits(features.to(text.device).flatten(0, 1), text)).double()  # [n * V]
    mean: NDArray[np.float64] = values.view(n, views).mean(dim=1).cpu().numpy()
    return mean
