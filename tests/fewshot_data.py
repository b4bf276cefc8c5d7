"""A tiny labelling task for the tests of stage 2: photo-like pictures whose score is their brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from grmp_score.scorer import Scorer
from grmp_score.trainer.data.labels import Labels
from grmp_score.weights.folder import Weights

from .conftest import make_photo


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
