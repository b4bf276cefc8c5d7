"""Files that hold all their pixels and break a rule beside them: they are read, and it is noted.

Pillow refuses a PNG with a wrong checksum in a chunk of text, or with more than a megabyte of it (workflows and
editing histories are kept there), and a JPEG without its end marker.  What lacks pixels stays an error.

Notes go to the log ``grmp_score.images`` as INFO.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from typing import IO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_log = logging.getLogger("grmp_score.images")

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
#: A compressed profile is unpacked up to this size.
_LARGEST_PROFILE = 1 << 24
_END_OF_JPEG = b"\xff\xd9"


def plain_png(file: IO[bytes]) -> tuple[IO[bytes], bytes | None]:
    """A PNG without what Pillow stumbles over: its text, and other side chunks with a wrong checksum.

    Returns:
        The file itself where nothing is wrong with it, and the colour profile where that had to be taken out,
        because it is too large for Pillow.
    """
    file.seek(0)
    kept: list[tuple[int, int]] = []
    dropped: list[str] = []
    profile, at = None, len(file.read(8))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if not kind[0] & 0x20:  # critical: Pillow checks it
            kept.append((at, 12 + length))
            file.seek(length + 4, io.SEEK_CUR)
        else:
            body = file.read(length + 4)
            right = len(body) == length + 4 and zlib.crc32(kind + body[:-4]) == int.from_bytes(body[-4:], "big")
            if kind == b"iCCP" and right and (large := _large_profile(body[:-4])) is not None:
                profile = large
                dropped.append("the profile, of more than a megabyte, was applied by another way")
            elif not right:
                dropped.append(f"the checksum of the chunk {kind.decode('latin-1')} is wrong")
            elif kind in _TEXT:
                dropped.append("")
            else:
                kept.append((at, 12 + length))
        at += 12 + length
        if kind == b"IEND":
            break
    file.seek(0)
    if not dropped:
        return file, None
    for note in filter(None, dropped):
        _log.info("PNG: %s; the picture is complete", note)
    data = file.read()
    return io.BytesIO(data[:8] + b"".join(data[start : start + size] for start, size in kept)), profile


def _large_profile(body: bytes) -> bytes | None:
    """The profile in an iCCP chunk, if it is larger than Pillow unpacks."""
    start = body.find(b"\0") + 2
    try:
        unpacked = zlib.decompressobj().decompress(body[start:], _LARGEST_PROFILE)
    except zlib.error:
        return None
    return unpacked if len(unpacked) > 1 << 20 else None


def ended_jpeg(file: IO[bytes]) -> Image.Image | None:
    """The picture of a JPEG whose end marker is missing; None where pixels are missing too.

    What follows behind the last pixel changes none of them.  So the file is decoded twice, with two different
    endings, and where the pictures are the same all of it was there.  That holds for sequential JPEG; what a
    progressive one lacks does not show.
    """
    file.seek(0)
    data = file.read()
    pictures: list[Image.Image] = []
    for filling in (b"", b"\x55\x2a" * 64):
        with JpegImageFile(io.BytesIO(data + filling + _END_OF_JPEG)) as image:
            if image.info.get("progressive") or image.info.get("progression"):
                return None
            image.load()
            pictures.append(image.copy())
    first, second = pictures
    if first.tobytes() != second.tobytes():
        return None
    _log.info("JPEG: the end marker is missing; the picture is complete")
    return first
