"""Tone: brighten, darken, mean shift, contrast change, and sharpening beyond measure."""

from __future__ import annotations

import numpy as np

from grmp_score.trainer.data.distortions.filters import Image, gaussian, lab_to_rgb, rgb_to_lab, to_uint8

BRIGHTEN = (0.1, 0.2, 0.4, 0.7, 1.1)
DARKEN = (0.05, 0.1, 0.2, 0.4, 0.8)
MEAN_SHIFT = (0.04, 0.08, 0.12, 0.17, 0.24)
SHARPEN = (0.6, 1.3, 2.5, 5.0, 10.0)
CONTRAST = (0.12, 0.24, 0.36, 0.48, 0.65)

_VALUES = np.arange(256) / 255.0


def brighten(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Lift the middle tones: a curve through (0, 0), (1/2, 1/2 + amount / 2), (1, 1).

    As in KADID-10k two thirds of the result bend R, G and B and one third bends only the lightness of Lab.
    """
    amount = BRIGHTEN[level - 1]
    curved = np.clip(_VALUES + 2 * amount * _VALUES * (1 - _VALUES), 0, 1).astype(np.float32)[image]
    lab = rgb_to_lab(image)
    lightness = lab[..., 0] / 100
    lab[..., 0] = 100 * np.clip(lightness + 2 * amount * lightness * (1 - lightness), 0, 1)
    return to_uint8((2 * curved + lab_to_rgb(lab)) / 3)


def darken(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Lower the middle tones: a curve through (0, 0), (1/2, 1/2 - amount / 2), (1, 1)."""
    return to_uint8(_VALUES - 2 * DARKEN[level - 1] * _VALUES * (1 - _VALUES))[image]


def mean_shift(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Add a constant to every sample, up or down at random.

    KADID-10k ties the sign to the level (0, +0.08, -0.08, +0.15, -0.15), so that its levels do not order
    severity; a random sign keeps both directions at every level.
    """
    return to_uint8(_VALUES + MEAN_SHIFT[level - 1] * rng.choice((-1.0, 1.0)))[image]


def contrast_change(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Bend the tone curve into an S (more contrast) or against it (less), at random.

    A cubic through (0, 0), (1/4, 1/4 - amount / 4), (3/4, 3/4 + amount / 4), (1, 1); the sign of the
    amount is random for the reason given in `mean_shift`.
    """
    amount = CONTRAST[level - 1] * rng.choice((-1.0, 1.0))
    bend = _VALUES * (1 - _VALUES) * (2 * _VALUES - 1)
    return to_uint8(_VALUES + 8 / 3 * amount * bend)[image]


def high_sharpen(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Unsharp mask (standard deviation 3 pixels) on the lightness of Lab by a growing amount: halos."""
    lab = rgb_to_lab(image)
    lightness = lab[..., :1]
    sharp = lightness + SHARPEN[level - 1] * (lightness - gaussian(lightness, 3.0))
    lab[..., :1] = np.clip(sharp, 0, 100)
    return to_uint8(lab_to_rgb(lab))
