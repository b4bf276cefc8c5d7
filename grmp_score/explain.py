"""Why an image has its score: what each patch says, and a map of quality over the whole image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grmp_score.config import Preprocess
from grmp_score.model.patches import Corners, Patches, cut_patches, patch_boxes, patch_layout, resized_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from grmp_score.score import Score

#: Patches of the dense grid, over all scales, at most; one per scale is the least.
DENSE_PATCHES = 48

#: Longer side of the heat map at most; it is far smoother than this.
MAP_SIZE = 512

#: Width of the window that patches are averaged with, as a share of their side and of their distance.
_SIGMA_OF_SIDE, _SIGMA_OF_STRIDE = 0.25, 0.6


@dataclass(frozen=True)
class PatchValue:
    """One of the patches that a score is the mean of.

    Attributes:
        box: left, top, right, bottom of what the patch shows, in pixels of the upright image.
        scale: share of the resized image that it was cut at; a patch of scale 0.5 shows twice the width.
        p_high: p(high quality), 0..1, higher is better.
    """

    box: tuple[float, float, float, float]
    scale: float
    p_high: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What a score is made of.

    Attributes:
        score: the score, as `Scorer.score` gives it.
        patches: the patches it is the mean of, in their order.
        heat: float32 [h, w], 0..1, higher is better: local quality over the whole upright image, at the image's
            aspect ratio and at most `MAP_SIZE` pixels long.  It comes from ``dense_patches`` patches on a regular
            grid at every scale of the model.  A point's value at one scale is the mean p(high) of that scale's
            patches, weighted by Gaussian windows around their centres (standard deviation: a quarter of a
            patch, or 0.6 of the grid's step if that is wider); the map is the mean over the scales.  A patch is
            judged as a whole, so nothing smaller than about half a patch can stand out.
        dense_patches: number of patches behind ``heat``.
    """

    score: Score
    patches: tuple[PatchValue, ...]
    heat: NDArray[np.float32]
    dense_patches: int

    def __repr__(self) -> str:
        height, width = self.heat.shape
        heat = f"heat {height}x{width} from {self.heat.min():.2f} to {self.heat.max():.2f}"
        return f"Explanation({self.score!r}, {len(self.patches)} patches, {heat})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, if its path can be read, and the heat map side by side."""
        from grmp_score.notebook import explanation_html

        score = self.score
        return explanation_html(
            score.value, score.standard_error, score.verdict, score.path, self.heat, self.dense_patches
        )


def explain_image(
    image: Image.Image, score: Score, preprocess: Preprocess, p_high: Callable[[Patches], list[float]]
) -> Explanation:
    """Explains the score of one image.

    Args:
        image: upright 8-bit RGB.
        score: its score, with the values of its patches.
        preprocess: how the model cuts images.
        p_high: the model: normalised patches [B, 3, S, S] -> p(high) of each.
    """
    layout = patch_layout(*image.size, preprocess)
    boxes = patch_boxes(*image.size, layout, preprocess.patch_size)
    scales = [part.scale for part in layout for _ in part.corners]
    patches = tuple(
        PatchValue((float(b[0]), float(b[1]), float(b[2]), float(b[3])), scale, value)
        for b, scale, value in zip(boxes, scales, score.patch_values, strict=True)
    )
    dense = dense_layout(*image.size, preprocess)
    cut = cut_patches(image, dense, preprocess)
    # As many at once as a score takes: explaining an image needs hardly more memory than scoring it.
    step = max(preprocess.patches, 8)
    values = [v for start in range(0, len(cut), step) for v in p_high(cut[start : start + step])]
    heat = heat_map(*image.size, dense, np.array(values), preprocess.patch_size)
    return Explanation(score, patches, heat, len(values))


def dense_layout(width: int, height: int, preprocess: Preprocess, limit: int = DENSE_PATCHES) -> list[Corners]:
    """A regular grid of patches from edge to edge at every scale, with one step (at least a quarter of a patch)
    for all scales, as narrow as ``limit`` patches in all allow; an image never gets less than one per scale."""
    size = preprocess.patch_size
    sizes = [resized_size(width, height, preprocess, scale) for scale in preprocess.scales]

    def count(step: int) -> int:
        return sum(_steps(w - size, step) * _steps(h - size, step) for w, h in sizes)

    # The count falls with the step: the narrowest that fits lies between a quarter of a patch and the longest side.
    low, high = max(1, size // 4), max(1, size // 4, *(max(s) for s in sizes))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) <= limit else (middle + 1, high)
    layout = []
    for scale, (w, h) in zip(preprocess.scales, sizes, strict=True):
        ys, xs = _positions(h - size, low), _positions(w - size, low)
        corners = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)
        layout.append(Corners(scale, w, h, corners))
    return layout


def heat_map(
    width: int, height: int, layout: list[Corners], values: NDArray[np.float64], size: int
) -> NDArray[np.float32]:
    """The map of `Explanation.heat` from the values [P] of the patches of a `dense_layout`."""
    shrink = min(1.0, MAP_SIZE / max(width, height))
    w, h = max(1, round(width * shrink)), max(1, round(height * shrink))
    total, start = np.zeros((h, w)), 0
    for part in layout:
        xs, ys = np.unique(part.corners[:, 1]), np.unique(part.corners[:, 0])
        grid = values[start : start + len(part.corners)].reshape(len(ys), len(xs))
        start += len(part.corners)
        total += _window(h, ys, part.height, size) @ grid @ _window(w, xs, part.width, size).T
    return np.clip(total / len(layout), 0.0, 1.0).astype(np.float32)


def _window(length: int, corners: NDArray[np.int64], extent: int, size: int) -> NDArray[np.float64]:
    """Weights [length, n] of n patches along one axis for every point of the map; each row adds up to 1.

    A Gaussian in two dimensions is the product of two in one, and so is the weighted mean on a regular grid.
    """
    step = float(np.diff(corners).max()) if len(corners) > 1 else 0.0
    sigma = max(_SIGMA_OF_SIDE * size, _SIGMA_OF_STRIDE * step)
    points = (np.arange(length) + 0.5) * extent / length
    distance = (points[:, None] - (corners + size / 2)) / sigma
    exponent = -0.5 * distance**2
    weights: NDArray[np.float64] = np.exp(exponent - exponent.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _steps(room: int, step: int) -> int:
    return 1 + -(-room // step)


def _positions(room: int, step: int) -> NDArray[np.int64]:
    return np.round(np.linspace(0, room, _steps(room, step))).astype(np.int64)
