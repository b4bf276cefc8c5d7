"""Arrays and tensors of any documented type -> PIL images with 8 bits per channel, or what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from grmp_score.errors import ImageReadError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_DTYPES = "uint8 (0..255), uint16 (0..65535), float (0..1) or bool"
_EXPECTED_ARRAY = f"expected an array [H, W] or [H, W, C] with C = 1, 3 (RGB) or 4 (RGBA) of {_DTYPES}"
_EXPECTED_TENSOR = (
    f"expected a tensor [H, W], [C, H, W] or [1, C, H, W] with C = 1, 3 (RGB) or 4 (RGBA) of {_DTYPES}"
)

#: How far floats may leave 0..1: a resampled picture overshoots by rounding.
_TOLERANCE = 1e-3

#: Rows that are scaled at a time, so that no second full picture in floating point is in memory.
_ROWS = 256


def from_tensor(tensor: torch.Tensor) -> Image.Image:
    """[H, W], [C, H, W] or [1, C, H, W], on any device -> image of mode L, RGB or RGBA.

    Raises:
        ImageReadError: another shape, type or range.
    """
    import torch

    shape = tuple(tensor.shape)
    if tensor.ndim == 4 and shape[0] != 1:
        raise ImageReadError(
            f"{_EXPECTED_TENSOR}, got a batch {list(shape)} of {shape[0]} images",
            hint="Score the images one by one; iterating over the batch gives them",
        )
    if tensor.ndim == 4:
        tensor = tensor[0]  # [C, H, W]
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        hint = "Channels come first: tensor.permute(2, 0, 1)" if shape[-1:] in ((3,), (4,)) else None
        raise ImageReadError(f"{_EXPECTED_TENSOR}, got the shape {list(shape)}", hint=hint)
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.to(torch.float32)
    try:
        array = tensor.detach().cpu().numpy()
    except (TypeError, RuntimeError) as error:  # complex, quantised, sparse
        raise ImageReadError(f"{_EXPECTED_TENSOR}, got {tensor.dtype}") from error
    channels_last = array if array.ndim == 2 else array.transpose(1, 2, 0)  # [H, W] or [H, W, C]
    return from_array(channels_last, expected=_EXPECTED_TENSOR)


def from_array(array: NDArray[Any], *, expected: str = _EXPECTED_ARRAY) -> Image.Image:
    """[H, W] or [H, W, C] -> image of mode L, RGB or RGBA.

    Raises:
        ImageReadError: another shape, type or range.
    """
    shape = list(array.shape)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "Channels come last: array.transpose(1, 2, 0)" if channels_first else None
        raise ImageReadError(f"{expected}, got the shape {shape}", hint=hint)
    if array.size == 0:
        raise ImageReadError(f"the array has no pixels: {shape}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]  # [H, W]
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * np.uint8(255))
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # uint16 of either byte order
        return to_8_bit(array, 65535.0)
    if array.dtype.kind != "f":
        whole = "Whole numbers 0..255 are given by array.astype(np.uint8)"
        if array.dtype.kind in "iu" and (array.min() < 0 or array.max() > 255):
            whole = f"The values are {array.min()}..{array.max()}; divide them by the value of white"
        raise ImageReadError(f"{expected}, got {array.dtype}", hint=whole if array.dtype.kind in "iu" else None)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageReadError("the array holds NaN or infinite values; floats must lie in 0..1")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise ImageReadError(
            f"the array's values lie in {low:.4g}..{high:.4g}; floats must lie in 0..1",
            hint="Divide by the value of white" if low >= 0 else "Undo the normalisation, or clip",
        )
    return to_8_bit(array, 1.0)


def floats_to_8_bit(values: NDArray[Any]) -> Image.Image:
    """The floating-point values of a file, [H, W] or [H, W, C], 0 black, 1 white -> 8 bits.

    Raises:
        ImageReadError: more of them lie above 1 than below: they are on another scale.
    """
    with np.errstate(invalid="ignore"):  # damaged files hold signalling NaNs
        another_scale = np.count_nonzero(values > 1) > np.count_nonzero(values <= 1)
    if another_scale:
        raise ImageReadError(
            f"its floating-point values lie in {np.nanmin(values):.4g}..{np.nanmax(values):.4g}, "
            "and more than half of them above 1; expected 0 (black) to 1 (white)"
        )
    return to_8_bit(values, 1.0)


def to_8_bit(values: NDArray[Any], white: float) -> Image.Image:
    """Values [H, W] or [H, W, C] -> 8 bits, 0 black, ``white`` white, clipped; NaN is black."""
    result = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS):
        with np.errstate(invalid="ignore"):  # signalling NaNs again
            part = values[top : top + _ROWS].astype(np.float64)  # [rows, W] or [rows, W, C]
        part = np.nan_to_num(part, nan=0.0, posinf=np.inf, neginf=-np.inf) * (255.0 / white)
        result[top : top + _ROWS] = np.clip(np.round(part), 0, 255)
    return Image.fromarray(result)
