"""A decoded picture of any mode -> 8-bit sRGB, upright, over a background."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from grmp_score.errors import ConfigError
from grmp_score.images.arrays import floats_to_8_bit, to_8_bit
from grmp_score.images.orientation import exif_orientation, make_upright

Colour = tuple[int, int, int]

#: Pillow's mode -> the colour space that a profile for it must have.
_PROFILE_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def parse_colour(colour: str | tuple[int, int, int]) -> Colour:
    """A colour's name, ``"#rrggbb"`` or three values 0..255 -> red, green, blue, each 0..255.

    Raises:
        ConfigError: it is none.
    """
    try:
        values = ImageColor.getrgb(colour) if isinstance(colour, str) else tuple(int(v) for v in colour)
        if len(values) == 3 and all(0 <= v <= 255 for v in values):
            return values
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        f"unknown colour {colour!r}", hint='Name one ("white", "#808080") or give red, green, blue, each 0..255'
    )


def to_rgb(image: Image.Image, background: Colour = (255, 255, 255), *, owned: bool = False) -> Image.Image:
    """Any PIL image -> upright 8-bit sRGB, by the rules at the top of `grmp_score.images.read`.

    Args:
        image: decoded or not.
        background: what lies under transparent parts.
        owned: True allows to change ``image`` and to return it, which saves memory.
    """
    image.load()
    orientation = exif_orientation(image)  # of a TIFF, Pillow has already undone it now
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith(("I", "F")):
        alpha = _transparent_grey(image)
        image = _reduce_depth(image)
    elif not owned:
        image = image.copy()
    # From here on, `image` may be changed in place.
    if image.mode in ("La", "LA") or (image.mode == "L" and image.has_transparency_data):
        image = image.convert("LA")
        alpha, image = image.getchannel("A"), image.getchannel("L")
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    if isinstance(profile, bytes):
        image = _apply_profile(image, profile)
    if alpha is not None:
        image.putalpha(alpha)
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        image = _lay_over(image, background)
    if image.mode != "RGB":
        image = image.convert("RGB")
    image = make_upright(image, orientation)
    image.info = {}  # orientation and profile have been applied; nobody shall do it again
    return image


def _transparent_grey(image: Image.Image) -> Image.Image | None:
    """Where a deep grey picture has not the one grey that stands for transparent, as L; None where it has none."""
    grey = image.info.get("transparency")
    return Image.fromarray((np.asarray(image) != grey) * np.uint8(255)) if isinstance(grey, int) else None


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> 8 bits by its true range; Pillow's own conversion clips at 255."""
    values: Any = np.asarray(image)  # [H, W]
    tags = getattr(image, "tag_v2", {})
    if image.mode == "F":
        reduced = floats_to_8_bit(values)
    elif image.mode == "I" and tags:
        signed = _SIGNED in _numbers(tags.get(_SAMPLE_FORMAT))
        bits = max(_numbers(tags.get(_BITS_PER_SAMPLE)), default=32)
        values = values if signed else values.astype(np.int32).view(np.uint32)
        # Wide types often hold 16-bit pictures; a true 32-bit one of such small values would be all black.
        white = 2 ** (bits - signed) - 1 if bits < 32 or values.max() > 65535 else 65535
        reduced = to_8_bit(values, white)
    else:
        bits = max(_numbers(tags.get(_BITS_PER_SAMPLE)), default=16)  # 12 bits come as they are, in 16
        reduced = to_8_bit(values, 2**bits - 1)
    # Pillow inverts "white is zero" for 8 bits only.
    return ImageOps.invert(reduced) if _WHITE_IS_ZERO in _numbers(tags.get(_PHOTOMETRIC)) else reduced


def _numbers(tag: Any) -> tuple[int, ...]:
    """The values of a TIFF tag, which Pillow gives as a tuple, a number, or None where there is none."""
    return tag if isinstance(tag, tuple) else () if tag is None else (int(tag),)


def _lay_over(image: Image.Image, background: Colour) -> Image.Image:
    """RGBA over a colour."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=alpha)
    return canvas


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts to sRGB; a profile that is broken or of another colour space is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and _is_srgb(profile):
            return image
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if _PROFILE_SPACES.get(image.mode) != space:
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            image.mode,
            mode,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        # In place, because a copy of a large picture costs as much as the picture.
        result = ImageCms.applyTransform(image, transform, inPlace=image.mode == mode)
        return image if result is None else result
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):  # ImportError: Pillow without lcms
        return image


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile leaves colours as they are, to a step of 255; its name is no proof."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)  # 729 colours
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    converted = ImageCms.applyTransform(Image.fromarray(cube), transform)
    return converted is not None and bool(np.abs(np.asarray(converted, int) - cube).max() <= 1)
