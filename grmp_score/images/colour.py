"""A decoded picture of any mode -> 8-bit sRGB, upright, over a background."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from grmp_score.errors import ConfigError, ImageReadError
from grmp_score.images.arrays import to_8_bit
from grmp_score.images.orientation import turn_upright

Colour = tuple[int, int, int]

_ORIENTATION = 0x0112
_ALPHA = ("RGBA", "LA", "PA", "RGBa")

#: Pillow's mode -> the colour space that a profile for it must have.
_SPACES = {"RGB": "RGB", "RGBA": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}


def parse_colour(colour: str | tuple[int, int, int]) -> Colour:
    """A colour's name, ``"#rrggbb"`` or three values 0..255 -> red, green, blue.

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
    orientation = _orientation(image)  # of a TIFF, Pillow has already undone it now
    profile = image.info.get("icc_profile")
    same = image
    if image.mode.startswith(("I", "F")):
        image = _from_deep(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode in _ALPHA or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    if isinstance(profile, bytes):
        image = _to_srgb(image, profile, in_place=owned or image is not same)
    if image.mode == "RGBA":
        image = _over(image, background)
    if image.mode != "RGB":
        image = image.convert("RGB")
    turned = turn_upright(image, orientation, owned=owned or image is not same)
    if turned is image and image is same and not owned:
        turned = image.copy()
    image = turned
    image.info = {}  # orientation and profile have been applied; nobody shall do it again
    return image


def _orientation(image: Image.Image) -> int:
    # Cameras write broken EXIF blocks; their pictures are fine.
    with contextlib.suppress(Exception):
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> 8 bits by its true range; Pillow's own conversion clips at 255."""
    values: Any = np.asarray(image)
    white, tags = 65535, getattr(image, "tag_v2", {})
    if image.mode == "F":
        finite = values[np.isfinite(values)]
        if finite.size and np.count_nonzero(finite > 1) > finite.size / 2:
            raise ImageReadError(
                f"its floating-point values lie in {finite.min():.4g}..{finite.max():.4g}, and more than half of "
                "them above 1; expected 0 (black) to 1 (white)"
            )
        white = 1
    elif image.mode == "I" and tags:
        signed = 2 in _numbers(tags.get(339))
        bits = max(_numbers(tags.get(258)), default=32)
        values = values if signed else values.astype(np.int32).view(np.uint32)
        # Wide types often hold 16-bit pictures; a true 32-bit one of such small values would be all black.
        white = 2 ** (bits - signed) - 1 if bits < 32 or values.max() > 65535 else 65535
    scaled = to_8_bit(values, float(white))
    # Pillow inverts "white is zero" for 8 bits only.
    return scaled.point(range(255, -1, -1)) if 0 in _numbers(tags.get(262)) else scaled


def _numbers(tag: Any) -> tuple[int, ...]:
    return tag if isinstance(tag, tuple) else () if tag is None else (int(tag),)


def _over(image: Image.Image, background: Colour) -> Image.Image:
    """RGBA over a colour."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=alpha)
    return canvas


def _to_srgb(image: Image.Image, profile: bytes, *, in_place: bool) -> Image.Image:
    """Applies an embedded profile; one that is broken or of another colour space is ignored."""
    try:
        from PIL import ImageCms
    except ImportError:  # a Pillow that was built without it
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and "sRGB" in (source.profile.profile_description or ""):
            return image
        if space == "RGB" and image.mode == "L":
            image, in_place = image.convert("RGB"), True
        if _SPACES.get(image.mode) != space:
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
        result = ImageCms.applyTransform(image, transform, inPlace=in_place and image.mode == mode)
        return image if result is None else result
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
