"""An open file -> a decoded picture in the mode it is stored in, by Pillow or the library that its format needs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from grmp_score.errors import ImageReadError, ImageTooLargeError, MissingExtraError
from grmp_score.images.arrays import floats_to_8_bit, to_8_bit
from grmp_score.images.formats import HEADER_LENGTH, describe_non_image, image_format
from grmp_score.images.orientation import ORIENTATION

if TYPE_CHECKING:
    from tifffile import TiffPage

# Tags of TIFF.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SUB_IFDS, _DNG_VERSION = 258, 262, 284, 330, 50706
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _COLOUR_FILTER_ARRAY = 0, 1, 2, 32803  # values of _PHOTOMETRIC
_SEPARATE_PLANES = 2  # value of _PLANAR


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
        if "truncated" in text.lower() or "end of file" in text.lower() or isinstance(error, EOFError):
            raise ImageReadError(f"the file is truncated{known}") from error
        raise ImageReadError(f"cannot decode it{known}: {text}") from error


def check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    """Refuses a picture without pixels, or above the limit."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageReadError(f"the image has no pixels: {width}x{height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(width * height, max_pixels)


def _open(file: IO[bytes], name: str | None, max_pixels: int | None) -> Image.Image:
    """By the library that the format needs; Pillow loads the pixels later, from ``file``."""
    header = file.read(HEADER_LENGTH)
    file.seek(0)
    if not header:
        raise ImageReadError("the file is empty")
    kind = image_format(header, name)
    if kind == "raw":
        return _read_raw(file, max_pixels)
    if kind == "heif":
        return _read_heif(file, max_pixels)
    if kind == "tiff":
        tags = _tiff_tags(file)
        if _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) == _COLOUR_FILTER_ARRAY:  # RAW under another name
            return _read_raw(file, max_pixels)
        if tags.get(_PLANAR) == _SEPARATE_PLANES and max(tags.get(_BITS_PER_SAMPLE) or (8,)) > 8:
            # Pillow 13 mixes up the channels of deep pictures whose colour planes lie one after another.
            return _read_tiff(file, max_pixels)
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        if kind == "tiff":
            return _read_tiff(file, max_pixels)
        if kind == "avif" and "avif" not in features.get_supported():
            raise ImageReadError("reading AVIF images needs Pillow 11.3 or newer: pip install -U Pillow") from error
        what = describe_non_image(header)
        also = f" but {what}" if what else ", or one that is damaged or of an unknown format"
        raise ImageReadError(f"not an image{also}") from error
    check_size(image.size, max_pixels)
    return image


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


# ------------------------------------------------------------------- camera RAW


def _read_raw(file: Any, max_pixels: int | None) -> Image.Image:
    """Developed by LibRaw with the camera's white balance, to sRGB, upright."""
    try:
        import rawpy
    except ImportError as error:
        raise MissingExtraError("reading camera RAW images", "rawpy", "raw") from error
    if _ends_early(file):
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


def _ends_early(file: IO[bytes]) -> bool:
    """Whether a TIFF-like file ends before the pixels that its directories speak of.

    LibRaw finds out too, but writes a line of its own to standard error.
    """
    size = file.seek(0, io.SEEK_END)
    first = _tiff_tags(file)
    below = first.get(_SUB_IFDS, ())
    offsets = below if isinstance(below, tuple) else (below,)
    for directory in (first, *(_tiff_tags(file, offset) for offset in offsets)):
        for starts, lengths in (_STRIPS, _TILES):
            parts = zip(directory.get(starts, ()), directory.get(lengths, ()), strict=False)
            if any(start + length > size for start, length in parts):
                return True
    return False


# ------------------------------------------------------------------------- TIFF


def _tiff_tags(file: IO[bytes], offset: int | None = None) -> Mapping[int, Any]:
    """The first directory of a TIFF file, or the one at an offset; empty where it cannot be read."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next if offset is None else offset)
        directory.load(file)
        dict(directory)  # decodes the values
    except Exception:  # damaged; or BigTIFF, whose header is longer
        return {}
    return directory


def _read_tiff(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    """What Pillow does not read of TIFF: colour in floating point or 32 bits, doubles, deep separate planes."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("reading this kind of TIFF image", "tifffile", "tiff") from error
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as opened:
            page = opened.pages.first
            check_size((page.imagewidth, page.imagelength), max_pixels)
            return _from_tiff_page(page)
    except ImageReadError:
        raise
    except Exception as error:
        raise ImageReadError("cannot decode it (TIFF): it is truncated, damaged or of an unknown kind") from error


def _from_tiff_page(page: TiffPage) -> Image.Image:
    values: Any = page.asarray()  # [H, W], [H, W, C] or [C, H, W]
    if page.axes.startswith("S"):  # colour planes one after another
        values = np.moveaxis(values, 0, -1)  # [H, W, C]
    if values.ndim == 3:
        values = values[..., 0] if values.shape[-1] == 1 else values[..., :4]  # [H, W] or [H, W, C]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (3, 4)):
        raise ImageReadError(f"a TIFF of the shape {list(values.shape)} and axes {page.axes} is no single picture")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise ImageReadError(f"a TIFF of the colours {page.photometric!s} and type {values.dtype} cannot be read")
    if values.ndim == 3 and values.shape[-1] == 4 and not page.extrasamples:
        raise ImageReadError("a TIFF with four colours that are not stated cannot be read")
    floats = values.dtype.kind == "f"
    image = floats_to_8_bit(values) if floats else to_8_bit(values, float(np.iinfo(values.dtype).max))
    if page.photometric == _WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    # What `colour` looks at later, where Pillow would have put it.
    if page.iccprofile:
        image.info["icc_profile"] = page.iccprofile
    orientation = page.tags.get(ORIENTATION)
    if orientation is not None:
        image.getexif()[ORIENTATION] = orientation.value
    return image
