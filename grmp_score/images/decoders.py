"""An open file -> a decoded picture in the mode it is stored in, by Pillow or the library that its format needs."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import IO, Any

from PIL import Image, features

from grmp_score.errors import ImageReadError, MissingExtraError
from grmp_score.images.formats import (
    HEADER_LENGTH,
    RAW_SUFFIXES,
    check_size,
    describe_non_image,
    hdr_transfer,
    image_format,
)
from grmp_score.images.repairs import ended_jpeg, plain_png
from grmp_score.images.tiff import (
    directories,
    ends_early,
    is_camera_raw,
    needs_tifffile,
    photo_first,
    read_tiff,
)

#: Bytes behind the header in which a file says what its colours mean.
_COLOUR_WITHIN = 1 << 14
#: Pillow's readers that are tried, by name: pictures of pixels, decoded in this process.  (Others start programs or
#: only know that a file of their kind is there.)
_FORMATS = frozenset(
    {
        "AVIF",
        "BLP",
        "BMP",
        "CUR",
        "DCX",
        "DDS",
        "DIB",
        "FITS",
        "FLI",
        "FTEX",
        "GBR",
        "GIF",
        "ICNS",
        "ICO",
        "IM",
        "IMT",
    }
    | {"JPEG", "JPEG2000", "JXL", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER"}
    | {"SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"}
)


def decode(file: IO[bytes], name: str | None, max_pixels: int | None) -> Image.Image:
    """The first picture in a file, its pixels loaded.

    Args:
        file: binary, seekable, at its beginning.
        name: the file's name, whose suffix tells RAW formats apart.
        max_pixels: limit of width x height, checked before the pixels are unpacked; None for no limit.

    Raises:
        ImageReadError: no image, or a damaged one.
        ImageTooLargeError: it is above ``max_pixels``.
        MissingExtraError: its format needs a package that is not installed.
    """
    image = None
    try:
        image = _open(file, name, max_pixels)
        image.load()
        return image
    except (ImageReadError, MissingExtraError, MemoryError):
        raise
    except Exception as error:
        # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, ValueError,
        # IndexError, zlib.error ...; to the caller they all mean the same.
        text = " ".join(str(error).split()) or type(error).__name__
        known = f" ({image.format})" if image and image.format else ""
        if image is not None and image.format == "TIFF" and "decoder error" in text:
            return read_tiff(file, max_pixels)  # a compression that Pillow's libtiff was built without
        if "truncated" in text.lower() or "end of file" in text.lower() or isinstance(error, EOFError):
            complete = ended_jpeg(file) if image is not None and image.format == "JPEG" else None
            if complete is not None:
                return complete
            raise ImageReadError(f"the file is truncated{known}") from error
        raise ImageReadError(f"cannot decode it{known}: {text}") from error


def _open(file: IO[bytes], name: str | None, max_pixels: int | None) -> Image.Image:
    """By the library that the format needs; Pillow loads the pixels later, from ``file``."""
    header = file.read(HEADER_LENGTH)
    file.seek(0)
    if not header:
        raise ImageReadError("the file is empty")
    kind = image_format(header)
    hdr = hdr_transfer(header if kind == "other" else header + file.read(_COLOUR_WITHIN))
    file.seek(0)
    if hdr is not None:
        raise ImageReadError(
            f"an HDR picture ({hdr}): its brightness is not that of the sRGB that scores are made of",
            hint="Export it as a standard (SDR) picture",
        )
    if kind == "raw":
        return _read_raw(file, max_pixels)
    if kind == "heif":
        return _read_heif(file, max_pixels)
    if kind == "jxl":
        return _read_jxl(file, max_pixels)
    profile = None
    if kind == "tiff":
        found = directories(file)
        if is_camera_raw(found):
            return _read_raw(file, max_pixels)
        file = photo_first(file, found)
        if needs_tifffile(directories(file)):
            return read_tiff(file, max_pixels)
    elif header.startswith(b"\x89PNG"):
        file, profile = plain_png(file)
    image = open_with_pillow(file, max_pixels)
    if image is None:
        if kind == "tiff":
            return read_tiff(file, max_pixels)
        if os.path.splitext(name or "")[1].lower() in RAW_SUFFIXES:  # of those few that are known by nothing else
            return _read_raw(file, max_pixels)
        if kind == "avif" and "avif" not in features.get_supported():
            raise ImageReadError("reading AVIF images needs Pillow 11.3 or newer: pip install -U Pillow")
        what = describe_non_image(header) or _unreadable_jpeg(file)
        also = f" but {what}" if what else ", or one that is damaged or of an unknown format"
        raise ImageReadError(f"not an image{also}")
    if profile is not None:
        image.info["icc_profile"] = profile
    return image


def open_with_pillow(file: IO[bytes], max_pixels: int | None) -> Image.Image | None:
    """By the first of Pillow's readers that knows the file, pixels not yet loaded; None where none does.

    `PIL.Image.open` would do, but its limit of pixels is a setting of the whole process, and ours is the caller's.
    """
    for ready in (Image.preinit, Image.init):
        ready()
        for name in [name for name in Image.ID if name in _FORMATS]:
            factory, accept = Image.OPEN[name]
            file.seek(0)
            if accept is not None and not _accepts(accept, file.read(16)):
                continue
            file.seek(0)
            try:
                image: Image.Image = factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):  # as `PIL.Image.open` has it: not its kind
                continue
            check_size(image.size, max_pixels)
            return image
    return None


def _unreadable_jpeg(file: IO[bytes]) -> str | None:
    """In words, a JPEG of a kind that the usual libraries do not read: lossless, or of more than 8 bits."""
    file.seek(0)
    data = file.read(1 << 20)
    at = 2
    while data.startswith(b"\xff\xd8") and data[at : at + 1] == b"\xff" and at + 5 <= len(data):
        kind, length, bits = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 4]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of the picture
            lossless = kind in (0xC3, 0xC7, 0xCB, 0xCF)
            return f"a {'lossless ' if lossless else ''}JPEG of {bits} bits" if lossless or bits > 8 else None
        at += 2 + length
    return None


def _accepts(accept: Callable[[bytes], bool | str], prefix: bytes) -> bool:
    result = accept(prefix)
    return bool(result) and not isinstance(result, str)  # a string says why not


# ------------------------------------------------------------------------- HEIF


def _read_heif(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingExtraError("reading HEIC and HEIF images", "pillow-heif", "heif") from error
    opened = pillow_heif.open_heif(file)
    check_size(opened.size, max_pixels)
    image: Image.Image = opened.to_pillow()  # upright: the library applies the rotation
    return image


# ---------------------------------------------------------------------- JPEG XL


def _read_jxl(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    try:
        import pillow_jxl  # noqa: F401  (makes itself known to Pillow)
    except ImportError as error:
        raise MissingExtraError("reading JPEG XL images", "pillow-jxl-plugin", "jxl") from error
    try:
        image = open_with_pillow(file, max_pixels)
        if image is not None:
            image.load()
            return image
    except ImageReadError:
        raise
    except Exception as error:  # its text speaks to programmers of the library
        raise ImageReadError("cannot decode it (JPEG XL): it is truncated or damaged") from error
    raise ImageReadError("cannot decode it (JPEG XL)")


# ------------------------------------------------------------------- camera RAW


def _read_raw(file: Any, max_pixels: int | None) -> Image.Image:
    """Developed by LibRaw with the camera's white balance, to sRGB, upright."""
    try:
        import rawpy
    except ImportError as error:
        raise MissingExtraError("reading camera RAW images", "rawpy", "raw") from error
    if ends_early(file):
        raise ImageReadError("the file is truncated (camera RAW)")
    file.seek(0)
    try:
        with rawpy.imread(file) as raw:
            check_size((raw.sizes.width, raw.sizes.height), max_pixels)
            return Image.fromarray(raw.postprocess(use_camera_wb=True, output_bps=8))
    except rawpy.LibRawFileUnsupportedError as error:
        raise ImageReadError("not a camera RAW image, or of a camera that LibRaw does not know") from error
    except rawpy.LibRawError as error:
        text = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ImageReadError(f"cannot decode it (camera RAW): {text}") from error
