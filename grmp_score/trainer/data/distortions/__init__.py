"""Twenty-seven ways to spoil a clean image, each at five levels: the tasks of stage 1.

The 25 types of KADID-10k (Lin, Hosu, Saupe: "KADID-10k: A Large-scale Artificially Distorted IQA
Database", QoMEX 2019) under its names and in its groups, written anew from their published descriptions, plus
the codecs WebP and AVIF. Severities follow KADID-10k's for photos of about 512x512 pixels, softened or
spread where its steps are very uneven, and changed where its levels do not order severity or leave the image
as it is (`gaussian_blur`, `color_saturation_2`, `mean_shift`, `contrast_change`: said there). `denoise` puts
a classical denoiser in the place of a network.

Example:
    >>> import numpy as np
    >>> clean = np.full((64, 64, 3), 128, dtype=np.uint8)
    >>> distort(clean, "white_noise", level=3).shape
    (64, 64, 3)
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grmp_score.trainer.data.distortions import blur, colour, compression, noise, spatial, tone

__all__ = ["DISTORTIONS", "LEVELS", "MIN_SIDE", "Distortion", "distort"]

LEVELS = (1, 2, 3, 4, 5)
"""Levels of severity: 1 is just visible to mild, 5 is the worst."""

MIN_SIDE = 16
"""Smallest height and width that every type accepts, in pixels."""

Apply = Callable[[NDArray[np.uint8], int, np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True)
class Distortion:
    """One distortion type, which is one task of stage 1.

    Attributes:
        name: The type, as in KADID-10k.
        group: Its family: blurs, color, compression, noise, brightness_change, spatial or sharpness_contrast.
        apply: RGB uint8 [H, W, 3], level, generator -> RGB uint8 [H, W, 3]. Leaves its input alone. What it
            draws does not depend on the level, so that with one generator state a higher level is the same
            accident, only worse.
    """

    name: str
    group: str
    apply: Apply


_GROUPS: dict[str, tuple[Apply, ...]] = {
    "blurs": (blur.gaussian_blur, blur.lens_blur, blur.motion_blur),
    "color": (
        colour.color_diffusion,
        colour.color_shift,
        colour.color_quantization,
        colour.color_saturation_1,
        colour.color_saturation_2,
    ),
    "compression": (compression.jpeg2000, compression.jpeg, compression.webp, compression.avif),
    "noise": (
        noise.white_noise,
        noise.white_noise_color_component,
        noise.impulse_noise,
        noise.multiplicative_noise,
        noise.denoise,
    ),
    "brightness_change": (tone.brighten, tone.darken, tone.mean_shift),
    "spatial": (
        spatial.jitter,
        spatial.non_eccentricity_patch,
        spatial.pixelate,
        spatial.quantization,
        spatial.color_block,
    ),
    "sharpness_contrast": (tone.high_sharpen, tone.contrast_change),
}

DISTORTIONS: dict[str, Distortion] = {
    apply.__name__: Distortion(apply.__name__, group, apply)
    for group, applies in _GROUPS.items()
    for apply in applies
}
"""All types by name, in a fixed order (KADID-10k's, with WebP and AVIF after its codecs)."""


def distort(image: NDArray[np.uint8], name: str, level: int, seed: int = 0) -> NDArray[np.uint8]:
    """Distort one image.

    The result depends only on the arguments, never on NumPy's or Python's global random state. The pixels
    take part in the seed: two images get different noise under one seed, so that a model cannot learn the
    pattern by heart; the levels of one image share theirs.

    Args:
        image: RGB, uint8 [H, W, 3], both sides at least `MIN_SIDE`. Not modified.
        name: A key of `DISTORTIONS`.
        level: One of `LEVELS`, 5 is worst.
        seed: Non-negative; another seed gives another noise, direction or place where the type is random.

    Returns:
        RGB, uint8 [H, W, 3], a new array.

    Raises:
        ValueError: unknown name or level, negative seed, or not an RGB uint8 image of sufficient size.
        RuntimeError: Pillow was built without the codec that this type needs.
    """
    if name not in DISTORTIONS:
        raise ValueError(f"unknown distortion: expected one of {', '.join(DISTORTIONS)}; got {name!r}")
    if level not in LEVELS:
        raise ValueError(f"unknown level of {name}: expected one of 1 to 5 (5 is worst); got {level!r}")
    if seed < 0:
        raise ValueError(f"seed of {name}: expected an integer of at least 0; got {seed!r}")
    shape: tuple[int, ...] = getattr(image, "shape", ())
    if getattr(image, "dtype", None) != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape) < 3:
        got = f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(shape)}"
        raise ValueError(f"image to distort: expected an RGB uint8 array [H, W, 3]; got {got}")
    if min(shape[:2]) < MIN_SIDE:
        got = f"{shape[0]}x{shape[1]}"
        raise ValueError(f"image to distort: expected at least {MIN_SIDE}x{MIN_SIDE} pixels; got {got}")
    image = np.ascontiguousarray(image)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), zlib.crc32(image.tobytes())])
    return np.ascontiguousarray(DISTORTIONS[name].apply(image, int(level), rng))
