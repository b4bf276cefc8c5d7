"""RGB image -> normalised float32 patches [P, 3, S, S], the same ones every time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grmp_score.config import Preprocess

#: Patches [P, 3, S, S].
Patches = NDArray[np.float32]

#: Patches side by side beyond which a thin image is not enlarged; bounds the memory for a 8000x1 image.
_MAX_ENLARGED = 40

#: From 3 on Pillow's manual finds reducing before resampling indistinguishable from resampling in most cases.
_REDUCING_GAP = 3.0

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, eq=False)
class Corners:
    """Where patches are cut out of one size of an image.

    Attributes:
        scale: share of the resized image, one of ``preprocess.scales``.
        width: width of the image at this scale, in its own pixels.
        height: height of the image at this scale.
        corners: int64 [n, 2], top-left corners (y, x) in it.
    """

    scale: float
    width: int
    height: int
    corners: NDArray[np.int64]


def make_patches(image: Image.Image, preprocess: Preprocess) -> Patches:
    """Cuts one image into normalised patches.

    Args:
        image: 8-bit RGB image of any size.
        preprocess: resize rule, layout and normalisation, from the weights' config.

    Returns:
        float32 array [P, 3, S, S]; values are (v / 255 - mean) / std.  The result depends on the pixels and
        ``preprocess`` alone.
    """
    return cut_patches(image, patch_layout(*image.size, preprocess), preprocess)


def patch_layout(width: int, height: int, preprocess: Preprocess) -> list[Corners]:
    """Where `make_patches` cuts an image of width x height, scale by scale, in the order of its patches."""
    layout = []
    dealt = [preprocess.scales[i % len(preprocess.scales)] for i in range(preprocess.patches)]
    for scale in dict.fromkeys(dealt):
        count = dealt.count(scale)
        here = dataclasses.replace(preprocess, patches=count, scales=(1.0,))
        w, h = resized_size(width, height, preprocess, scale)
        layout.append(Corners(scale, w, h, patch_corners(h, w, here)))
    return layout


def cut_patches(image: Image.Image, layout: Iterable[Corners], preprocess: Preprocess) -> Patches:
    """The patches [P, 3, S, S] of an 8-bit RGB image at the places of ``layout``, normalised."""
    crops, size = [], preprocess.patch_size
    for part in layout:
        # Resizing takes longer than decoding, and patches lie mostly in the middle.
        top, left = part.corners.min(axis=0).tolist()
        bottom, right = (part.corners.max(axis=0) + size).tolist()
        resized = resize(image, preprocess, part.scale, (left, top, right, bottom))
        # Cut by Pillow: an array of the whole image would be a second one in memory.
        corners = (part.corners - (top, left)).tolist()
        crops += [np.asarray(resized.crop((x, y, x + size, y + size))) for y, x in corners]
    return normalised(np.stack(crops), preprocess)


def normalised(pixels: NDArray[np.uint8], preprocess: Preprocess) -> Patches:
    """Crops [P, S, S, 3] of 0..255 -> patches [P, 3, S, S]: (v / 255 - mean) / std."""
    values: Patches = pixels.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # [P, 3, S, S]
    values /= np.float32(255)
    values -= np.array(preprocess.mean, dtype=np.float32).reshape(3, 1, 1)
    values /= np.array(preprocess.std, dtype=np.float32).reshape(3, 1, 1)
    return values


def patch_boxes(width: int, height: int, layout: Iterable[Corners], size: int) -> NDArray[np.float64]:
    """What the patches of ``layout`` cover of the image they are cut from.

    Args:
        width: width of the image before any resizing.
        height: its height.
        layout: `patch_layout` of this width and height, or any other corners.
        size: side of the patches.

    Returns:
        float64 [P, 4]: left, top, right, bottom in the image's own pixels, within 0..width and 0..height.
    """
    boxes = []
    for part in layout:
        ratio = np.array([width / part.width, height / part.height])
        start = part.corners[:, ::-1] * ratio
        boxes.append(np.hstack([start, start + size * ratio]))
    joined: NDArray[np.float64] = np.concatenate(boxes)
    # The product may round to a hair beyond the border.
    return np.minimum(joined, [width, height, width, height])


def resize(
    image: Image.Image, preprocess: Preprocess, scale: float = 1.0, part: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Brings an image to `resized_size`.

    What shrinks to less than a sixth is first reduced by a whole number, to no less than `_REDUCING_GAP` times the
    size that is wanted; all else is one resampling.

    Args:
        image: 8-bit RGB.
        preprocess: resize rule and resampling.
        scale: share of the size that the rule gives.
        part: left, top, right, bottom of what is wanted of the resized image; all by default.  Pillow keeps places
            in single precision, so a few in 10,000 values of a part differ by 1 of 255 from those of the whole.
    """
    width, height = resized_size(*image.size, preprocess, scale)
    left, top, right, bottom = part or (0, 0, width, height)
    if (width, height) == image.size:
        return image if part is None else image.crop(part)
    if not preprocess.antialias:
        whole = _resize_without_antialias(image, height, width, preprocess.interpolation)
        return whole if part is None else whole.crop(part)
    across, down = image.width / width, image.height / height
    factor = max(1, int(min(across, down) / _REDUCING_GAP))
    source = image.reduce(factor) if factor > 1 else image
    across, down = across / factor, down / factor
    box = (left * across, top * down, min(right * across, source.width), min(bottom * down, source.height))
    return source.resize((right - left, bottom - top), _RESAMPLING[preprocess.interpolation], box)


def resized_size(width: int, height: int, preprocess: Preprocess, scale: float = 1.0) -> tuple[int, int]:
    """Width and height after the resize rule and then ``scale``.

    An image smaller than a patch is enlarged, keeping its aspect ratio, until its shorter side is the patch size
    (an image thinner than 1:40 loses its ratio: its longer side is not enlarged beyond 40 patches).
    """
    if preprocess.resize == "exact":
        assert preprocess.size is not None
        width = height = preprocess.size
    elif preprocess.resize == "shorter":
        assert preprocess.size is not None
        if min(width, height) > preprocess.size:
            width, height = _scaled_to_shorter(width, height, preprocess.size)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    if min(width, height) < preprocess.patch_size:
        longest = max(width, height, _MAX_ENLARGED * preprocess.patch_size)
        width, height = _scaled_to_shorter(width, height, preprocess.patch_size)
        width, height = min(width, longest), min(height, longest)
    return width, height


def _scaled_to_shorter(width: int, height: int, shorter: int) -> tuple[int, int]:
    scale = shorter / min(width, height)
    return max(shorter, round(width * scale)), max(shorter, round(height * scale))


def _resize_without_antialias(image: Image.Image, height: int, width: int, mode: str) -> Image.Image:
    """OpenCV's ``resize``: half-pixel centres, replicated border, cubic kernel with a = -0.75, no low-pass.

    OpenCV rounds its cubic weights to 1/2048, so single values may differ by 1 of 255.  Only the rows that are
    sampled are unpacked: in floating point a large photo would be many times its size.
    """
    rows, row_weights = _taps(image.height, height, mode)  # [height, T]
    columns, column_weights = _taps(image.width, width, mode)
    needed, row_at = np.unique(rows, return_inverse=True)
    row_at = row_at.reshape(rows.shape)
    lines = np.concatenate([np.asarray(image.crop((0, y, image.width, y + 1))) for y in needed.tolist()])
    narrow = np.zeros((len(needed), width, 3), dtype=np.float32)
    result = np.zeros((height, width, 3), dtype=np.float32)
    for tap in range(rows.shape[1]):
        narrow += lines[:, columns[:, tap]] * column_weights[:, tap, None]
    for tap in range(rows.shape[1]):
        result += narrow[row_at[:, tap]] * row_weights[:, tap, None, None]
    return Image.fromarray(np.clip(np.round(result), 0, 255).astype(np.uint8))


def _taps(source: int, target: int, mode: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The source pixels [target, T] that each target pixel is a mixture of, and their weights."""
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    if mode == "bilinear":
        centre = np.maximum(centre, 0)
    first = np.floor(centre).astype(np.int64)
    t = (centre - first)[:, None]
    if mode == "bilinear":
        offsets, weights = np.array([0, 1]), np.concatenate([1 - t, t], axis=1)
    else:
        offsets, a = np.array([-1, 0, 1, 2]), -0.75
        d = np.abs(t - offsets)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights = np.where(d <= 1, near, far)
    return np.clip(first[:, None] + offsets, 0, source - 1), weights.astype(np.float32)


def patch_corners(height: int, width: int, preprocess: Preprocess) -> NDArray[np.int64]:
    """Top-left corners [P, 2] (y, x) of the patches in an image of height x width >= the patch size."""
    room = np.array([height - preprocess.patch_size, width - preprocess.patch_size])
    if room.min() < 0:
        raise ValueError(f"a {width}x{height} image has no patch of {preprocess.patch_size}")
    if preprocess.layout == "center":
        return np.array([room // 2])
    margin = np.floor((1 - preprocess.spread) / 2 * room).astype(np.int64)
    room = room - 2 * margin
    if preprocess.layout == "grid":
        fractions = _grid_fractions(preprocess.patches, height, width)
        corners: NDArray[np.int64] = margin + np.round(fractions * room).astype(np.int64)
        return corners
    rng = np.random.default_rng([preprocess.seed, height, width])
    return margin + rng.integers(0, room + 1, size=(preprocess.patches, 2), dtype=np.int64)


def _grid_fractions(count: int, height: int, width: int) -> NDArray[np.float64]:
    """``count`` positions in 0..1 (y, x), spread evenly: rows by the aspect ratio, each row filled evenly."""
    rows = int(np.clip(round((count * height / width) ** 0.5), 1, count))
    per_row = [len(part) for part in np.array_split(np.arange(count), rows)]
    return np.array(
        [(_spread(r, rows), _spread(c, columns)) for r, columns in enumerate(per_row) for c in range(columns)]
    )


def _spread(index: int, count: int) -> float:
    return 0.5 if count == 1 else index / (count - 1)
