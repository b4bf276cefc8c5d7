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
from grmp_score.trainer.pretrain.crops import Prepared
from grmp_score.trainer.pretrain.meta import to_patches


@dataclass(frozen=True)
class Evaluation:
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


def held_out_rows(data: Prepared, references: Sequence[str]) -> NDArray[np.int64]:
    """Indices of all items of some references (data set first), in the order of the data."""
    wanted = set(references)
    return np.array(
        [i for i, t in enumerate(data.items) if f"{t.task.split('/')[0]}/{t.reference}" in wanted], dtype=np.int64
    )


@torch.inference_mode()
def encode(
    model: QualityCLIP,
    data: Prepared,
    indices: NDArray[np.int64],
    *,
    views: Sequence[int] = (0, 1, 2),
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Image features [n, V, D] of prepared items, of the given crops of each."""
    model.eval()
    device = model.text_features.device
    pairs = [(i, k) for i in indices for k in views]
    features = []
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        patches = to_patches(np.stack([data.crops[i, k] for i, k in chunk]), model).to(device)
        features.append(model.image(patches).cpu())
        if progress is not None:
            progress(min(start + batch_size, len(pairs)), len(pairs))
    encoded = torch.cat(features)
    return encoded.view(len(indices), len(views), -1)


@torch.inference_mode()
def predict(model: QualityCLIP, features: Tensor) -> NDArray[np.float64]:
    """p(high) [n] from image features [n, V, D]: the mean over the crops."""
    text = model.encode_quality()
    values = p_high(model.quality_logits(features.to(text.device).flatten(0, 1), text)).double()
    mean: NDArray[np.float64] = values.view(features.shape[:2]).mean(dim=1).cpu().numpy()
    return mean


def evaluate(
    model: QualityCLIP,
    data: Prepared,
    references: Sequence[str],
    *,
    views: Sequence[int] = (0, 1, 2),
    features: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores all versions of some references and compares with their labels.

    ``features`` are what `encode` gave for `held_out_rows`, from a model with the same image side.
    """
    indices = held_out_rows(data, references)
    if features is None:
        features = encode(model, data, indices, views=views, progress=progress)
    predicted = predict(model, features)
    labels = data.labels[indices]
    position = {int(i): row for row, i in enumerate(indices)}
    per_task = {}
    for task in data.tasks():
        rows = [position[int(i)] for i in data.indices(task, references)]
        per_task[task] = srcc(predicted[rows], labels[rows])
    return Evaluation(srcc(predicted, labels), per_task, len(indices))
