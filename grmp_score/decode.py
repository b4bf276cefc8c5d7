"""An open file -> a decoded picture in the mode it is stored in, by Pillow or the library that its format needs."""

from __future__ import annotations

from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from grmp_score.arrays import to_8_bit
from grmp_score.errors import ImageReadError, ImageTooLargeError, MissingExtraError
from grmp_score.formats import HEAD, family, what_else

if TYPE_CHECKING:
    from tifffile import TiffPage


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
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        file.seek(start)
        if kind == "tiff":
            return _tiff(file, max_pixels)
        what = what_else(head)
        also = "" if what else ", or one that is damaged or of an unknown format"
        raise ImageReadError(f"not an image{also}" + (f" but {what}" if what else "")) from error
    check_size(image.size, max_pixels)
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        if 50706 in tags or tags.get(262) == 32803:  # a RAW file under another name
            file.seek(start)
            return _raw(file, max_pixels)
        if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:
            # Pillow 13 mixes up the channels of deep pictures whose colour planes lie one after another.
            file.seek(start)
            return _tiff(file, max_pixels)
    return image


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
    with tifffile.TiffFile(file) as opened:
        page = opened.pages.first
        check_size((page.imagewidth, page.imagelength), max_pixels)
        return _from_page(page)


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
