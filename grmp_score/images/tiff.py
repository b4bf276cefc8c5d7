"""TIFF and what is built on it: which of several pictures in a file is the photo, and what Pillow does not read.

Camera RAW (NEF, ARW, CR2, PEF, SRW, NRW, DNG ...) is TIFF whose first picture is mostly a thumbnail.  The
directories tell them apart, whatever the file is called.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from grmp_score.errors import ImageReadError, MissingExtraError
from grmp_score.images.arrays import floats_to_8_bit, to_8_bit
from grmp_score.images.formats import check_size
from grmp_score.images.orientation import ORIENTATION

if TYPE_CHECKING:
    from tifffile import TiffPage

# Tags, and values of some.
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _COMPRESSION = 254, 255, 256, 257, 258, 259
_PHOTOMETRIC, _PLANAR, _SUB_IFDS, _DNG_VERSION = 262, 284, 330, 50706
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _COLOUR_FILTER_ARRAY, _LINEAR_RAW = 0, 1, 2, 32803, 34892
_SEPARATE_PLANES = 2
#: Compressions that only cameras write: Sony, Nikon, Kodak, Pentax and Samsung.
_RAW_COMPRESSIONS = {32767, 34713, 65000, 65535}
#: Directories that are looked at, at most; a damaged chain may be endless.
_MOST = 64


@dataclass(frozen=True)
class Directory:
    """One picture in a TIFF file: where its directory begins, and its tags."""

    offset: int
    tags: Mapping[int, Any]

    @property
    def is_reduced(self) -> bool:
        """Whether it is said to be a smaller version of another picture in the file."""
        return bool(_first(self.tags.get(_NEW_SUBFILE_TYPE)) & 1 or _first(self.tags.get(_SUBFILE_TYPE)) == 2)

    @property
    def pixels(self) -> int:
        """Width x height."""
        return _first(self.tags.get(_WIDTH)) * _first(self.tags.get(_HEIGHT))


def directories(file: IO[bytes]) -> list[Directory]:
    """The directories of a file, those below others too, as far as they can be read; the first is the main one."""
    found: list[Directory] = []
    try:
        file.seek(0)
        head = file.read(8)
        head += file.read(8) if head[2:4] in (b"\0+", b"+\0") else b""  # BigTIFF
        first = TiffImagePlugin.ImageFileDirectory_v2(head).next
    except Exception:
        return found
    waiting, seen = [first], {0}
    while waiting and len(found) < _MOST:
        offset = waiting.pop(0)
        if offset in seen:
            continue
        seen.add(offset)
        try:
            file.seek(offset)
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            directory.load(file)
            dict(directory)  # decodes the values
        except Exception:  # damaged
            continue
        found.append(Directory(offset, directory))
        below = directory.get(_SUB_IFDS, ())
        waiting += [*(below if isinstance(below, tuple) else (below,)), directory.next]
    return found


def is_camera_raw(found: list[Directory]) -> bool:
    """Whether one of the pictures is what a sensor has measured."""
    return any(
        _DNG_VERSION in d.tags
        or d.tags.get(_PHOTOMETRIC) in (_COLOUR_FILTER_ARRAY, _LINEAR_RAW)
        or d.tags.get(_COMPRESSION) in _RAW_COMPRESSIONS
        for d in found
    )


def ends_early(file: IO[bytes]) -> bool:
    """Whether the file ends before the pixels that its directories speak of.

    LibRaw finds out too, but writes a line of its own to standard error.
    """
    size = file.seek(0, io.SEEK_END)
    for directory in directories(file):
        for starts, lengths in (_STRIPS, _TILES):
            parts = zip(directory.tags.get(starts, ()), directory.tags.get(lengths, ()), strict=False)
            if any(start + length > size for start, length in parts):
                return True
    return False


def photo_first(file: IO[bytes], found: list[Directory]) -> IO[bytes]:
    """The file with its largest full picture as the first, where the first is a reduced version of another."""
    if not found or not found[0].is_reduced:
        return file
    best = max([d for d in found if not d.is_reduced] or found, key=lambda d: d.pixels)
    if best is found[0]:
        return file
    file.seek(0)
    data = bytearray(file.read())
    order = "<" if data.startswith(b"II") else ">"
    place, form = (8, "Q") if bytes(data[2:4]) in (b"\0+", b"+\0") else (4, "I")
    struct.pack_into(order + form, data, place, best.offset)  # where the first directory is
    return io.BytesIO(data)


def needs_tifffile(found: list[Directory]) -> bool:
    """Whether Pillow would get the first picture wrong, or would not read it."""
    tags = found[0].tags if found else {}
    bits = tags.get(_BITS_PER_SAMPLE) or (8,)
    bits = bits if isinstance(bits, tuple) else (bits,)
    # Pillow 13 mixes up the channels of deep pictures whose colour planes lie one after another.
    mixed_up = tags.get(_PLANAR) == _SEPARATE_PLANES and max(bits) > 8
    odd = any(b not in (1, 2, 4, 8, 16, 32, 64) for b in bits) and bits != (12,)
    deep_alpha = len(bits) == 2 and max(bits) > 8
    return mixed_up or odd or deep_alpha


def read_tiff(file: IO[bytes], max_pixels: int | None) -> Image.Image:
    """What Pillow does not read of TIFF: colour in floating point, 32 or odd bits, some compressions."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("reading this kind of TIFF image", "tifffile", "tiff") from error
    file.seek(0)
    try:
        with tifffile.TiffFile(file) as opened:
            page = opened.pages.first
            check_size((page.imagewidth, page.imagelength), max_pixels)
            return _from_page(page)
    except ImageReadError:
        raise
    except Exception as error:
        if "imagecodecs" in str(error) and "requires" in str(error):
            what = f"reading TIFF images with the compression {getattr(page.compression, 'name', page.compression)}"
            raise MissingExtraError(what, "imagecodecs", "tiff") from error
        raise ImageReadError("cannot decode it (TIFF): it is truncated, damaged or of an unknown kind") from error


def _from_page(page: TiffPage) -> Image.Image:
    values: Any = page.asarray()  # [H, W], [H, W, C] or [C, H, W]
    if page.axes.startswith("S"):  # colour planes one after another
        values = np.moveaxis(values, 0, -1)  # [H, W, C]
    if values.ndim == 3:
        values = values[..., 0] if values.shape[-1] == 1 else values[..., :4]  # [H, W] or [H, W, C]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in (2, 3, 4)):
        raise ImageReadError(f"a TIFF of the shape {list(values.shape)} and axes {page.axes} is no single picture")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        raise ImageReadError(f"a TIFF of the colours {page.photometric!s} and type {values.dtype} cannot be read")
    if values.ndim == 3 and values.shape[-1] in (2, 4) and not page.extrasamples:
        raise ImageReadError(f"a TIFF with {values.shape[-1]} colours that are not stated cannot be read")
    if values.ndim == 3 and values.shape[-1] == 2:  # grey and alpha -> RGBA
        values = values[..., [0, 0, 0, 1]]
    if values.dtype.kind == "f":
        image = floats_to_8_bit(values)
    elif values.dtype.kind == "i":
        image = to_8_bit(values, float(np.iinfo(values.dtype).max))
    else:
        image = to_8_bit(values, float(2 ** min(page.bitspersample, 8 * values.dtype.itemsize) - 1))
    if page.photometric == _WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    # What `colour` looks at later, where Pillow would have put it.
    if page.iccprofile:
        image.info["icc_profile"] = page.iccprofile
    orientation = page.tags.get(ORIENTATION)
    if orientation is not None:
        image.getexif()[ORIENTATION] = orientation.value
    return image


def _first(value: Any) -> int:
    """The first number of a tag; 0 where there is none."""
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0
