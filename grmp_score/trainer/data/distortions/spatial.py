"""Spatial distortions: jitter, misplaced patches, pixelation, value quantisation and colour blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from grmp_score.trainer.data.distortions.filters import Image, to_float, to_uint8

JITTER = (0.08, 0.15, 0.3, 0.6, 1.1)
PATCHES = (20, 40, 60, 80, 100)
PIXELATE = (0.01, 0.05, 0.1, 0.2, 0.5)
QUANTIZATION_LEVELS = (20, 14, 10, 7, 5)
BLOCKS = (2, 4, 6, 8, 10)
# KADID-10k gives the two counts above for images of this many pixels; they are scaled to keep the density.
_KADID_PIXELS = 512 * 384


def jitter(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Fetch every pixel from a randomly displaced place (bilinear); the spread of the displacement grows.

    KADID-10k scatters five times with the given standard deviation; one step with sqrt(5) times as much is
    the same spread at a fifth of the cost.
    """
    h, w = image.shape[:2]
    offsets = rng.standard_normal((2, h, w), dtype=np.float32) * np.float32(np.sqrt(5) * JITTER[level - 1])
    places = np.indices((h, w), dtype=np.float32) + offsets  # [2, H, W]: row and column to fetch from
    fetched = [
        ndimage.map_coordinates(plane, places, order=1, mode="nearest")
        for plane in np.moveaxis(to_float(image), 2, 0)
    ]
    return to_uint8(np.stack(fetched, axis=-1))


def _count(counts: tuple[int, ...], level: int, pixels: int) -> int:
    """The number of patches at a level, in proportion to the image's area and rising with every level."""
    return max(level, round(counts[level - 1] * pixels / _KADID_PIXELS))


def non_eccentricity_patch(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Copy a growing number of 16x16 patches to places up to 8 pixels away from where they belong."""
    h, w = image.shape[:2]
    side = min(16, min(h, w) // 4)
    reach = side // 2
    number = _count(PATCHES, level, h * w)
    # One draw per patch in a fixed order: a higher level keeps the patches of the lower ones.
    draws = rng.random((number, 4))
    out: Image = image.copy()
    for v, u, dv, du in draws:
        y, x = (int(reach + t * (n - side - 2 * reach)) for t, n in ((v, h), (u, w)))
        dy, dx = (round(float((2 * t - 1) * reach)) for t in (dv, du))
        out[y + dy : y + dy + side, x + dx : x + dx + side] = image[y : y + side, x : x + side]
    return out


def pixelate(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Shrink by a factor of 0.95 - strength ** 0.6 and enlarge again, both by nearest neighbour."""
    scale = 0.95 - PIXELATE[level - 1] ** 0.6
    indices = []
    for n in image.shape[:2]:
        small = max(1, int(n * scale))
        coarse = ((np.arange(n) + 0.5) * small / n).astype(np.int64)
        indices.append(((coarse + 0.5) * n / small).astype(np.int64))
    return np.asarray(image[np.ix_(*indices)])


def _optimal_table(histogram: NDArray[np.int64], classes: int) -> Image:
    """The 256-entry table that replaces values by at most `classes` ones with the least squared error.

    Exact (dynamic programming over the histogram); this is the criterion of multi-level Otsu thresholding.
    """
    values = np.arange(256, dtype=np.float64)
    n, s, q = (np.concatenate(([0.0], np.cumsum(histogram * values**p))) for p in (0, 1, 2))
    count, first = n[None, :] - n[:, None], s[None, :] - s[:, None]
    # cost[i, j]: squared error of the class of values i .. j - 1 around its mean.
    cost = q[None, :] - q[:, None] - first**2 / np.maximum(count, 1)
    cost[np.tril_indices(257, -1)] = np.inf
    best, choices = cost[0], []
    for _ in range(classes - 1):
        total = best[:, None] + cost
        choices.append(total.argmin(axis=0))
        best = total.min(axis=0)
    bounds = [256]
    for choice in reversed(choices):
        bounds.append(int(choice[bounds[-1]]))
    table = np.zeros(256, dtype=np.uint8)
    for high, low in zip(bounds, [*bounds[1:], 0], strict=True):
        if count[low, high] > 0:
            table[low:high] = int(first[low, high] / count[low, high] + 0.5)
    return table


def quantization(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Leave a falling number of values per channel, placed by minimal within-class variance: banding."""
    histogram = np.bincount(image.ravel(), minlength=256)
    return np.asarray(_optimal_table(histogram, QUANTIZATION_LEVELS[level - 1])[image])


def color_block(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Cover the image with a growing number of 32x32 blocks of random colours."""
    h, w = image.shape[:2]
    side = min(32, min(h, w) // 4)
    out: Image = image.copy()
    # One draw per block in a fixed order: a higher level keeps the blocks of the lower ones.
    for v, u, *rgb in rng.random((_count(BLOCKS, level, h * w), 5)):
        y, x = int(v * (h - side + 1)), int(u * (w - side + 1))
        out[y : y + side, x : x + side] = (np.array(rgb) * 256).astype(np.uint8)
    return out
