"""Small NumPy filters and colour transforms that several distortion types share.

Arrays are float32, channels last, values 0..1 unless a docstring says otherwise. Everything here is plain
NumPy, so importing the distortions costs nothing and needs no SciPy, OpenCV or scikit-image.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

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


def _fast_length(n: int) -> int:
    """The next length >= n whose only prime factors are 2, 3 and 5, for which the FFT is quick."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def convolve(image: Float, kernel: NDArray[np.float64]) -> Float:
    """Filter each channel of an image [H, W, C] with one kernel [kh, kw] (odd sides), edges replicated.

    Done by FFT: the cost hardly depends on the size of the kernel, which reaches 80 pixels here.
    """
    h, w = image.shape[:2]
    ph, pw = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(np.moveaxis(image, 2, 0), ((0, 0), (ph, ph), (pw, pw)), mode="edge")
    shape = (_fast_length(h + 2 * ph), _fast_length(w + 2 * pw))
    spectrum = np.fft.rfft2(padded, shape) * np.fft.rfft2(kernel.astype(np.float32), shape)
    # Rows and columns below 2 * ph, 2 * pw mix in the wrap-around of the circular convolution: cut them off.
    full = np.fft.irfft2(spectrum, shape)[:, 2 * ph : 2 * ph + h, 2 * pw : 2 * pw + w]
    return np.ascontiguousarray(np.moveaxis(full, 0, 2), dtype=np.float32)


@lru_cache(maxsize=32)
def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """Normalised Gaussian of the given standard deviation in pixels, cut at three of them."""
    r = max(1, int(np.ceil(3 * sigma)))
    profile = np.exp(-(np.arange(-r, r + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(profile, profile)
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


@lru_cache(maxsize=32)
def disk_kernel(radius: float) -> NDArray[np.float64]:
    """Normalised disc (an out-of-focus point), antialiased by 8x8 samples per pixel."""
    r = int(np.ceil(radius))
    fine = (np.arange((2 * r + 1) * 8) + 0.5) / 8 - (r + 0.5)
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= (radius + 0.5) ** 2).astype(np.float64)
    kernel = inside.reshape(2 * r + 1, 8, 2 * r + 1, 8).mean(axis=(1, 3))
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


def line_kernel(length: float, angle: float) -> NDArray[np.float64]:
    """Normalised antialiased line through the centre: `length` pixels long, `angle` in radians."""
    r = int(np.ceil(length / 2)) + 1
    t = np.linspace(-length / 2, length / 2, 16 * r + 1)
    y, x = r + t * np.sin(angle), r + t * np.cos(angle)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    kernel = np.zeros((2 * r + 2, 2 * r + 2))
    for dy in (0, 1):
        for dx in (0, 1):
            np.add.at(kernel, (y0 + dy, x0 + dx), (1 - np.abs(y - y0 - dy)) * (1 - np.abs(x - x0 - dx)))
    kernel = kernel[: 2 * r + 1, : 2 * r + 1]
    return np.asarray(kernel / kernel.sum(), dtype=np.float64)


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
