"""Colour distortions: diffusion, shift, quantisation and two kinds of saturation change."""

from __future__ import annotations

import numpy as np
from PIL import Image as PillowImage
from scipy import ndimage

from grmp_score.trainer.data.distortions.filters import (
    Image,
    gaussian,
    lab_to_rgb,
    rgb_to_lab,
    to_float,
    to_uint8,
)

# KADID-10k amplifies by the same numbers as it blurs: from mild to garish between its first two levels.
DIFFUSION = (1.0, 3.0, 6.0, 8.0, 12.0)
DIFFUSION_GAIN = (1.0, 1.7, 2.6, 4.0, 6.5)
SHIFT = (1.5, 3.0, 6.0, 9.0, 13.0)
COLOURS = (64, 48, 32, 16, 8)
HSV_SATURATION = (0.6, 0.4, 0.2, 0.0, -0.4)
# KADID-10k starts at a factor of 1, no change at all; 1.5 is just visible.
LAB_SATURATION = (1.5, 2.0, 3.0, 6.0, 9.0)


def color_diffusion(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Blur the colour channels a, b of Lab widely and amplify them, as KADID-10k does: colours bleed."""
    lab = rgb_to_lab(image)
    lab[..., 1:] = gaussian(lab[..., 1:], 1.5 * DIFFUSION[level - 1] + 2)
    lab[..., 1:] *= DIFFUSION_GAIN[level - 1]
    return to_uint8(lab_to_rgb(lab))


def color_shift(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Move the green channel in a random direction, blended in where the image has edges."""
    angle = rng.uniform(0, 2 * np.pi)
    offset = [round(SHIFT[level - 1] * f(angle)) for f in (np.sin, np.cos)]  # rows, columns
    planes = to_float(image)  # [H, W, 3]
    grey = planes @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # [H, W]
    gy, gx = np.gradient(grey)
    edges = gaussian(np.hypot(gx, gy)[..., None], 4.0)[..., 0]  # [H, W]
    low, high = np.percentile(edges, (1, 99))
    blend = np.clip((edges - low) / max(float(high - low), 1e-6), 0, 1)
    green = planes[..., 1]
    moved = ndimage.shift(green, offset, order=0, mode="nearest")
    planes[..., 1] = green + blend * (moved - green)
    return to_uint8(planes)


def color_quantization(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Reduce to a palette of few colours with Floyd-Steinberg dither."""
    picture = PillowImage.fromarray(image)
    palette = picture.quantize(COLOURS[level - 1], method=PillowImage.Quantize.FASTOCTREE)
    dithered = picture.quantize(palette=palette, dither=PillowImage.Dither.FLOYDSTEINBERG)
    return np.array(dithered.convert("RGB"))


def color_saturation_1(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Multiply the saturation of HSV by a falling factor; below 0 the hues turn into their complements."""
    planes = to_float(image)
    value = planes.max(axis=2, keepdims=True)
    # At constant hue and value every RGB channel is linear in the saturation, so HSV itself is not needed.
    return to_uint8(value - HSV_SATURATION[level - 1] * (value - planes))


def color_saturation_2(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Multiply the colour channels a, b of Lab by a growing factor: garish colours."""
    lab = rgb_to_lab(image)
    lab[..., 1:] *= LAB_SATURATION[level - 1]
    return to_uint8(lab_to_rgb(lab))
