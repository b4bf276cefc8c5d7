"""Blurs: Gaussian, lens (disc) and motion."""

from __future__ import annotations

import numpy as np

from grmp_score.trainer.data.distortions.filters import (
    Image,
    convolve,
    disk_kernel,
    gaussian_kernel,
    line_kernel,
    to_float,
    to_uint8,
)

# KADID-10k starts at sigma 0.1, which changes no pixel; 0.6 is just visible.
GAUSSIAN_SIGMA = (0.6, 1.0, 1.6, 2.8, 5.0)
LENS_RADIUS = (1.0, 2.0, 4.0, 6.0, 8.0)
MOTION_LENGTH = (2.5, 4.5, 8.0, 12.0, 18.0)


def gaussian_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Gaussian blur; the standard deviation in pixels grows."""
    return to_uint8(convolve(to_float(image), gaussian_kernel(GAUSSIAN_SIGMA[level - 1])))


def lens_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Out-of-focus blur: mean over a disc whose radius in pixels grows."""
    return to_uint8(convolve(to_float(image), disk_kernel(LENS_RADIUS[level - 1])))


def motion_blur(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Mean along a line of random direction whose length in pixels grows."""
    return to_uint8(convolve(to_float(image), line_kernel(MOTION_LENGTH[level - 1], rng.uniform(0, np.pi))))
