"""Noise: Gaussian in RGB and in YCbCr, impulses, multiplicative, and what a denoiser leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from grmp_score.trainer.data.distortions.filters import Float, Image, to_float, to_uint8

# Variances of values in 0..1, densities of samples: KADID-10k's.
WHITE_VARIANCE = (0.001, 0.002, 0.003, 0.005, 0.01)
COMPONENT_VARIANCE = (0.0001, 0.0005, 0.001, 0.002, 0.003)
IMPULSE_DENSITY = (0.001, 0.005, 0.01, 0.02, 0.03)
MULTIPLICATIVE_VARIANCE = (0.001, 0.005, 0.01, 0.02, 0.05)
DENOISED_VARIANCE = (0.001, 0.002, 0.004, 0.008, 0.016)

_RGB_TO_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=np.float32
)
_YCBCR_TO_RGB = np.linalg.inv(_RGB_TO_YCBCR).astype(np.float32)


def _normal(shape: tuple[int, ...], variance: float, rng: np.random.Generator) -> Float:
    """Gaussian noise of mean 0; the draw does not depend on the variance, which only scales it."""
    return np.asarray(rng.standard_normal(shape, dtype=np.float32) * np.sqrt(variance), dtype=np.float32)


def white_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Gaussian noise of growing variance, independent in R, G and B."""
    return to_uint8(to_float(image) + _normal(image.shape, WHITE_VARIANCE[level - 1], rng))


def white_noise_color_component(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Gaussian noise of growing variance, independent in Y, Cb and Cr: seen as coloured grain."""
    noise = _normal(image.shape, COMPONENT_VARIANCE[level - 1], rng)
    return to_uint8(to_float(image) + noise @ _YCBCR_TO_RGB.T)


def impulse_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Salt and pepper: a growing share of the samples becomes 0 or 255."""
    draw, density = rng.random(image.shape, dtype=np.float32), IMPULSE_DENSITY[level - 1]
    out: Image = image.copy()
    out[draw < density / 2] = 0
    out[draw > 1 - density / 2] = 255
    return out


def multiplicative_noise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Speckle: Gaussian noise of growing variance in proportion to the value."""
    return to_uint8(to_float(image) * (1 + _normal(image.shape, MULTIPLICATIVE_VARIANCE[level - 1], rng)))


def _dct_denoise(image: Float, sigma: float) -> NDArray[np.float32]:
    """Denoise [H, W, C] by hard-thresholding 8x8 DCT blocks, averaged over shifted block grids.

    The sliding DCT denoiser of Yu and Sapiro (IPOL 2011) with every second diagonal shift.
    """
    size = 8
    h, w, c = image.shape
    padded = np.pad(image, ((size, 2 * size), (size, 2 * size), (0, 0)), mode="reflect")
    total = np.zeros_like(image)
    shifts = [(0, 0), (2, 5), (4, 2), (6, 7)]
    for dy, dx in shifts:
        rows, columns = -(-(h + dy) // size), -(-(w + dx) // size)
        top, left = size - dy, size - dx
        blocks = padded[top : top + rows * size, left : left + columns * size]
        blocks = blocks.reshape(rows, size, columns, size, c)
        coefficients = fft.dctn(blocks, axes=(1, 3), norm="ortho")
        keep = np.abs(coefficients) > 3 * sigma
        keep[:, 0, :, 0] = True  # the mean of a block is no noise
        clean = fft.idctn(coefficients * keep, axes=(1, 3), norm="ortho")
        total += clean.reshape(rows * size, columns * size, c)[dy : dy + h, dx : dx + w]
    return np.asarray(total / len(shifts), dtype=np.float32)


def denoise(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Add Gaussian noise of growing variance, then remove it: fine texture goes, faint artefacts stay.

    KADID-10k removes it with the network DnCNN; sliding-DCT thresholding stands in for it, without weights.
    """
    variance = DENOISED_VARIANCE[level - 1]
    noisy = to_float(image) + _normal(image.shape, variance, rng)
    return to_uint8(_dct_denoise(noisy.astype(np.float32), float(np.sqrt(variance))))
