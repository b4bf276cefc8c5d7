"""A tiny labelling task for the tests of `adapt`: photo-like pictures whose score is their brightness."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import FewShotConfig
from grmp_score.trainer.data.labels import Labels
from grmp_score.weights.folder import Weights

from .conftest import make_photo

#: Gradient descent that is exact, and quick: 12 images, 2 stages, 2 folds.
FAST = FewShotConfig(
    shots=12,
    train="blocks",
    epochs=2,
    head_first=False,
    text_first_epochs=2,
    batch_size=5,
    lr=1e-3,
    folds=2,
    precision="float32",
    cache_dtype="float32",
    warm_up_epochs=0,
)
#: No cross-validation, so that all epochs are trained.
PLAIN = dataclasses.replace(FAST, folds=0)


def make_labels(folder: Path, count: int, *, noise: float = 0.0, seed: int = 0) -> Labels:
    """Writes `count` pictures and returns their labels on a scale of about 3 to 10."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths, scores = [], []
    for i in range(count):
        brightness = rng.uniform(0.3, 1.0)
        pixels = np.asarray(make_photo(56, 44, 1000 * seed + i), dtype=np.float64) * brightness
        paths.append(folder / f"{i:02d}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        scores.append(10 * brightness + noise * rng.normal())
    return Labels(folder / "labels.csv", tuple(paths), tuple(range(2, count + 2)), np.array(scores))


def make_scorer(weights: Weights) -> Scorer:
    """A scorer on the CPU."""
    return Scorer(weights, device="cpu", workers=2)


def checksum(scorer: Scorer) -> str:
    """Of the adapter's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(scorer.weights.adapter.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest absolute difference of any value."""
    assert one.keys() == other.keys()
    return max(float((one[k] - other[k]).abs().max()) for k in one)
