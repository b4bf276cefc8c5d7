"""What several distortion types share: 8 bits to floats and back, the Gaussian filter, and CIE Lab.

Arrays are float32, channels last, values 0..1 unless a docstring says otherwise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float32]
Image = NDArray[np.uint8]

# Linear sRGB -> XYZ (IEC 61966-2-1, D65), rows divided by the white point so that white maps to 1, 1, 1.
_WHITE = np.array([0.95047, 1.0, 1.08883])
_RGB_TO_XYZ = (
    np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    / _WHITE[:, None]
)
_XYZ_TO_RGB = np.linalg.inv(_RGB_TO_XYZ)
_LINEAR = np.arange(256) / 255.0
_LINEAR = np.where(_LINEAR <= 0.04045, _LINEAR / 12.92, ((_LINEAR + 0.055) / 1.055) ** 2.4).astype(np.float32)


def to_float(image: Image) -> Float:
    """Scale an 8-bit image [H, W, C] to float32 in 0..1."""
    return np.asarray(image / np.float32(255), dtype=np.float32)


def to_uint8(image: NDArray[np.floating]) -> Image:
    """Round a float image (nominally 0..1) to 8 bits, clipping what lies outside."""
    return np.asarray(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def gaussian(image: Float, sigma: float) -> Float:
    """Gaussian filter of each channel of an image [H, W, C], cut at three standard deviations, edges replicated."""
    radius = max(1, math.ceil(3 * sigma))
    blurred: Float = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", radius=(radius, radius, 0))
    return blurred


def rgb_to_lab(image: Image) -> Float:
    """8-bit sRGB [H, W, 3] -> CIE Lab (D65): L 0..100, a and b about -110..110."""
    f = _LINEAR[image] @ _RGB_TO_XYZ.T.astype(np.float32)
    f = np.where(f > 216 / 24389, np.cbrt(f), (24389 / 27 * f + 16) / 116)
    return np.stack(
        (116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])), axis=-1
    ).astype(np.float32)


def lab_to_rgb(lab: Float) -> Float:
    """CIE Lab (D65) -> sRGB in 0..1; colours outside the gamut are clipped channel by channel."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack((y + lab[..., 1] / 500, y, y - lab[..., 2] / 200), axis=-1)
    xyz = np.where(f > 6 / 29, f * f * f, (116 * f - 16) * (27 / 24389))
    linear = np.clip(xyz.astype(np.float32) @ _XYZ_TO_RGB.T.astype(np.float32), 0, 1)
    bent = 1.055 * linear ** np.float32(1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, bent), dtype=np.float32)
