"""Blurs: Gaussian, lens (disc) and motion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from grmp_score.trainer.data.distortions.filters import Float, Image, gaussian, to_float, to_uint8

# KADID-10k starts at sigma 0.1, which changes no pixel; 0.6 is just visible.
GAUSSIAN_SIGMA = (0.6, 1.0, 1.6, 2.8, 5.0)
LENS_RADIUS = (1.0, 2.0, 4.0, 6.0, 8.0)
MOTION_LENGTH = (2.5, 4.5, 8.0, 12.0, 18.0)


def gaussian_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Gaussian blur; the standard deviation in pixels grows."""
    return to_uint8(gaussian(to_float(image), GAUSSIAN_SIGMA[level - 1]))


def lens_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Out-of-focus blur: mean over a disc whose radius in pixels grows."""
    return to_uint8(_convolve(to_float(image), disk_kernel(LENS_RADIUS[level - 1])))


def motion_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Mean along a line of random direction whose length in pixels grows."""
    return to_uint8(_convolve(to_float(image), line_kernel(MOTION_LENGTH[level - 1], rng.uniform(0, np.pi))))


def disk_kernel(radius: float) -> NDArray[np.float64]:
    """Normalised disc [2r + 1, 2r + 1] (an out-of-focus point), antialiased by 8x8 samples per pixel."""
    r = int(np.ceil(radius))
    fine = (np.arange((2 * r + 1) * 8) + 0.5) / 8 - (r + 0.5)  # sample positions, 0 in the centre
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= (radius + 0.5) ** 2).astype(np.float64)
    kernel = inside.reshape(2 * r + 1, 8, 2 * r + 1, 8).mean(axis=(1, 3))
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def line_kernel(length: float, angle: float) -> NDArray[np.float64]:
    """Normalised antialiased line through the centre: `length` pixels long, `angle` in radians; odd sides."""
    r = int(np.ceil(length / 2)) + 1
    t = np.linspace(-length / 2, length / 2, 16 * r + 1)  # points along the line
    y, x = r + t * np.sin(angle), r + t * np.cos(angle)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    # Every point is shared out among the four pixels around it.
    kernel = np.zeros((2 * r + 2, 2 * r + 2))
    for dy in (0, 1):
        for dx in (0, 1):
            np.add.at(kernel, (y0 + dy, x0 + dx), (1 - np.abs(y - y0 - dy)) * (1 - np.abs(x - x0 - dx)))
    kernel = kernel[: 2 * r + 1, : 2 * r + 1]
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def _convolve(image: Float, kernel: NDArray[np.float64]) -> Float:
    """Each channel of an image [H, W, C] with one kernel [kh, kw], edges replicated."""
    blurred: Float = ndimage.convolve(image, kernel[..., None], mode="nearest")
    return blurred
