"""What an image file says besides its pixels, which are not decoded: its XMP packet and its rating in EXIF."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, Any

from grmp_score.images.decoder_settings import decoder_settings
from grmp_score.images.decoders import open_with_pillow
from grmp_score.images.formats import HEADER_LENGTH, image_format

#: Tags of the first directory, by Microsoft and in EXIF 3.0; and XMP's in a TIFF.
_RATING, _RATING_PERCENT, _XMP = 0x4746, 0x4749, 700


@dataclass(frozen=True)
class Metadata:
    """What is embedded in an image.

    Attributes:
        xmp: the XMP packet.
        rating: EXIF's, 0..5 stars.
        rating_percent: EXIF's, 0..100.
    """

    xmp: bytes | None = None
    rating: int | None = None
    rating_percent: int | None = None


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """The metadata of a file; empty for one that is missing, damaged, or of a format that keeps none we can read.

    HEIC and HEIF need the extra ``[heif]``.  Of camera RAW only those kinds that are TIFF inside are read.
    """
    try:
        with decoder_settings(), open(path, "rb") as file:
            return _read(file)
    except Exception:  # of decoders of damaged files; what is wrong is told where pixels are read
        return Metadata()


def _read(file: IO[bytes]) -> Metadata:
    if image_format(file.read(HEADER_LENGTH)) == "heif":
        import pillow_heif
        from PIL import Image

        info = pillow_heif.open_heif(file).info
        exif: Any = Image.Exif()
        exif.load(info.get("exif") or b"")
    else:
        image = open_with_pillow(file, None)
        if image is None:
            return Metadata()
        info, exif = image.info, image.getexif()
    packet = info.get("xmp") or info.get("XML:com.adobe.xmp") or exif.get(_XMP)
    if isinstance(packet, str):
        packet = packet.encode()
    rating, percent = exif.get(_RATING), exif.get(_RATING_PERCENT)
    return Metadata(
        packet if isinstance(packet, bytes) else None,
        rating if isinstance(rating, int) else None,
        percent if isinstance(percent, int) else None,
    )
