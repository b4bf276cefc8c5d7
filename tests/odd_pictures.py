"""What tests of reading share: `pixels`, `refused`, and files of kinds that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from grmp_score.errors import ImageReadError
from grmp_score.images import read_image

_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4}


def pixels(source: Any, **options: Any) -> np.ndarray:
    """What is read, [H, W, 3], as whole numbers that can be subtracted."""
    image = read_image(source, **options)
    array = np.asarray(image)
    assert image.mode == "RGB" and array.dtype == np.uint8 and array.shape == (image.height, image.width, 3)
    return array.astype(int)


def refused(source: Any, **options: Any) -> ImageReadError:
    """The error that a source gives."""
    with pytest.raises(ImageReadError) as caught:
        read_image(source, **options)
    return caught.value


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int, fmt: str = "JPEG", **options: Any) -> bytes:
    """A file whose pixels are stored turned, so that its EXIF orientation makes it look like ``image``."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(undo[orientation]) if orientation in undo else image
    return encoded(stored, fmt, exif=exif, **options)


def broken_exif(image: Image.Image) -> bytes:
    """A JPEG file whose EXIF directory points beyond its end, about which Pillow warns."""
    tags = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 0x0112, 3, 1000, 5000) * 2
    return encoded(image, "JPEG", quality=97, subsampling=0, exif=tags)


def deep(image: Image.Image) -> np.ndarray:
    """16-bit values of an 8-bit picture, with the low byte used."""
    return np.asarray(image).astype(np.uint16) * 257


def float_of(image: Image.Image, dtype: str) -> np.ndarray:
    """An 8-bit picture in 0..1."""
    return (np.asarray(image) / 255).astype(dtype)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG file with this header and these rows, whether they fit together or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG file of [H, W] or [H, W, C] uint16, C = 2, 3, 4."""
    height, width = values.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    return png(width, height, 16, colour_type, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


def bomb() -> bytes:
    """A PNG file of few bytes that states ten thousand megapixels."""
    return png(100_000, 100_000, 8, 2, bytes(1000))


def tiff(
    values: np.ndarray,
    *,
    photometric: int | None = None,
    planar: bool = False,
    extra: dict[int, tuple[str, Any]] | None = None,
) -> bytes:
    """An uncompressed TIFF file of [H, W] or [H, W, C], of any number type, in one strip or one for each plane."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    values = values.astype(values.dtype.newbyteorder("<"))
    planes = [values[..., c] for c in range(channels)] if planar else [values]
    strips = [np.ascontiguousarray(plane).tobytes() for plane in planes]
    sample = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: dict[int, tuple[str, Any]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [values.dtype.itemsize * 8] * channels),
        259: ("H", [1]),
        262: ("H", [photometric if photometric is not None else 2 if channels >= 3 else 1]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [sample] * channels),
        **({338: ("H", [2])} if channels in (2, 4) else {}),
        **(extra or {}),
    }
    start = len(_head(tags))
    tags[273] = ("I", [start + sum(map(len, strips[:i])) for i in range(len(strips))])
    return _head(tags) + b"".join(strips)


def dng(height: int = 96, width: int = 144) -> bytes:
    """A raw photo of a grey wedge, in the least form that a RAW converter takes."""
    ramp = np.tile(np.linspace(2000, 60000, width), (height, 1)).astype(np.uint16)
    identity = [n for row in np.eye(3, dtype=int).tolist() for value in row for n in (value, 1)]
    tags: dict[int, tuple[str, Any]] = {
        271: ("s", b"Test\0"),
        272: ("s", b"Cam\0"),
        33421: ("H", [2, 2]),  # the colours of the sensor's cells: red green / green blue
        33422: ("B", [0, 1, 1, 2]),
        50706: ("B", [1, 4, 0, 0]),
        50707: ("B", [1, 1, 0, 0]),
        50708: ("s", b"Test Cam\0"),
        50714: ("H", [0]),
        50717: ("I", [65535]),
        50721: ("2i", identity),
        50728: ("2I", [1, 1] * 3),
        50778: ("H", [21]),
    }
    return tiff(ramp, photometric=32803, extra=tags)


def _head(tags: dict[int, tuple[str, Any]]) -> bytes:
    entries, beyond = b"", b""
    tail = 8 + 2 + 12 * len(tags) + 4
    for code, (kind, value) in sorted(tags.items()):
        letter = kind[-1]
        data = value if letter == "s" else struct.pack(f"<{len(value)}{letter}", *value)
        number = {"2I": 5, "2i": 10}.get(kind) or _TYPES[letter]
        count = len(value) // 2 if kind[0] == "2" else len(value)
        field = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", tail + len(beyond))
        if len(data) > 4:
            beyond += data + b"\0" * (len(data) % 2)
        entries += struct.pack("<HHI", code, number, count) + field
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + beyond


def wide_gamut_profile() -> bytes:
    """An ICC profile with red and green swapped against sRGB: whoever ignores it sees other colours."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    at = {bytes(data[p : p + 4]): p for p in range(132, 132 + 12 * count, 12)}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    # The description, so that nobody takes it for sRGB.
    return bytes(data).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB b", b"swap b")
