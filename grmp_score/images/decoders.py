"""An open file -> a decoded picture in the mode it is stored in, by Pillow or the library that its format needs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError, features

from grmp_score.errors import ImageReadError, ImageTooLargeError, MissingExtraError
from grmp_score.images.arrays import to_8_bit
from grmp_score.images.formats import HEAD, family, what_else

if TYPE_CHECKING:
    from tifffile import TiffPage

# Tags of TIFF, and the value of photometric for a sensor's cells.
_BITS, _PHOTOMETRIC, _PLANAR, _DNG, _SENSOR = 258, 262, 284, 50706, 32803


def decode(file: IO[bytes], name: str | None, max_pixels: int | None) -> Image.Image:
    """The first picture in a file; its pixels may be loaded later, from ``file``.

    Args:
        file: binary, seekable, at its beginning.
        name: the file's name, whose suffix tells RAW formats apart.
        max_pixels: limit of width x height, checked before the pixels are unpacked; None for no limit.

    Raises:
        ImageReadError: no image, or one that needs a package that is not installed.
        Exception: whatever a decoder raises about a damaged file.
    """
    start = file.tell()
    head = file.read(HEAD)
    file.seek(start)
    if not head:
        raise ImageReadError("the file is empty")
    kind = family(head, name)
    if kind == "raw":
        return _raw(file, max_pixels)
    if kind == "heif":
        return _heif(file, max_pixels)
    if kind == "avif" and not _pillow_reads_avif():
        raise ImageReadError("reading AVIF images needs Pillow 11.3 or newer: pip install -U Pillow")
    if kind == "tiff":
        tags = _tags(file)
        file.seek(start)
        if _DNG in tags or tags.get(_PHOTOMETRIC) == _SENSOR:  # a RAW file under another name
            return _raw(file, max_pixels)
        if tags.get(_PLANAR) == 2 and max(tags.get(_BITS) or (8,)) > 8:
            # Pillow 13 mixes up the channels of deep pictures whose colour planes lie one after another.
            return _tiff(file, max_pixels)
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        file.seek(start)
        if kind == "tiff":
            return _tiff(file, max_pixels)
        what = what_else(head)
        also = f" but {what}" if what else ", or one that is damaged or of an unknown format"
        raise ImageReadError(f"not an image{also}") from error
    check_size(image.size, max_pixels)
    return image


def _tags(file: IO[bytes], at: int | None = None) -> Mapping[int, Any]:
    """The first directory of a TIFF file, or the one at an offset; empty where it cannot be read."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next if at is None else at)
        directory.load(file)
        dict(directory)  # decodes the values
    except Exception:  # damaged; or BigTIFF, whose header is longer
        return {}
    return directory


def _is_cut(file: IO[bytes]) -> bool:
    """Whether a TIFF-like file ends before the pixels that its directories speak of.

    LibRaw finds out too, but writes a line of its own to standard error.
    """
    size = file.seek(0, io.SEEK_END)
    first = _tags(file)
    below = first.get(330, ())
    for directory in (first, *(_tags(file, at) for at in (below if isinstance(below, tuple) else (below,)))):
        for starts, lengths in ((273, 279), (324, 325)):
            parts = zip(directory.get(starts, ()), directory.get(lengths, ()), strict=False)
            if any(start + length > size for start, length in parts):
                return True
    return False


def check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    """Refuses a picture above the limit."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageReadError(f"the image has no pixels: {width}x{height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(width * height, max_pixels)


def _missing(error: ImportError, what: str, package: str, extra: str) -> ImageReadError:
    missing = MissingExtraError(what, package, extra)
    failure = ImageReadError(f"{missing.reason}: pip install 'grmp_score[{extra}]'")
    failure.__cause__ = error
    return failure


@lru_cache(maxsize=1)
def _pillow_reads_avif() -> bool:
    return "avif" in features.get_supported()


def _heif(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise _missing(error, "reading HEIC and HEIF images", "pillow-heif", "heif") from error
    opened = pillow_heif.open_heif(file)
    check_size(opened.size, max_pixels)
    image: Image.Image = opened.to_pillow()  # upright: the library applies the rotation
    return image


def _raw(file: Any, max_pixels: int | None) -> Image.Image:
    """Developed by LibRaw with the camera's white balance, to sRGB, upright."""
    try:
        import rawpy
    except ImportError as error:
        raise _missing(error, "reading camera RAW images", "rawpy", "raw") from error
    if _is_cut(file):
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


def _tiff(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    """What Pillow does not read of TIFF: colour in floating point or 32 bits, doubles, deep separate planes."""
    try:
        import tifffile
    except ImportError as error:
        raise _missing(error, "reading this kind of TIFF image", "tifffile", "tiff") from error
    try:
        with tifffile.TiffFile(file) as opened:
            page = opened.pages.first
            check_size((page.imagewidth, page.imagelength), max_pixels)
            return _from_page(page)
    except ImageReadError:
        raise
    except Exception as error:
        raise ImageReadError("cannot decode it (TIFF): it is truncated, damaged or of an unknown kind") from error


def _from_page(page: TiffPage) -> Image.Image:
    values: Any = page.asarray()
    if page.axes.startswith("S"):  # colour planes one after another
        values = np.moveaxis(values, 0, -1)
    values = values[..., :4] if values.ndim == 3 and values.shape[-1] > 4 else values
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (1, 3, 4)):
        raise ImageReadError(f"a TIFF of the shape {list(values.shape)} and axes {page.axes} is no single picture")
    if page.photometric not in (0, 1, 2):
        raise ImageReadError(f"a TIFF of the colours {page.photometric!s} and type {values.dtype} cannot be read")
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim == 3 and values.shape[-1] == 4 and not page.extrasamples:
        raise ImageReadError("a TIFF with four colours that are not stated cannot be read")
    if values.dtype.kind == "f":
        bright = np.count_nonzero(values > 1)
        if bright > values.size / 2:
            raise ImageReadError(
                f"its floating-point values reach {np.nanmax(values):.4g}, and more than half of them lie above 1; "
                "expected 0 (black) to 1 (white)"
            )
        white = 1.0
    else:
        white = float(np.iinfo(values.dtype).max)
    image = to_8_bit(values, white)
    if page.photometric == 0:
        image = image.point(list(range(255, -1, -1)))
    if page.iccprofile:
        image.info["icc_profile"] = page.iccprofile
    orientation = page.tags.get(0x0112)
    if orientation is not None:
        image.getexif()[0x0112] = orientation.value
    return image
