"""The photos that are rated, by number, and their bytes as a browser can show them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from grmp_score.display import printable, shrink
from grmp_score.errors import ImageReadError
from grmp_score.images.decoder_settings import decoder_settings
from grmp_score.images.read import MAX_PIXELS, image_bytes, read_image
from grmp_score.report.links import AllowedFiles
from grmp_score.report.text import short_names

#: What every browser shows as it is.
_SHOWN = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_ORIENTATION = 0x0112
#: Longer side of the pictures in overviews.
SMALL = 400


class Picture(NamedTuple):
    """Bytes of an image and their media type."""

    data: bytes
    kind: str


@dataclass(frozen=True, eq=False)
class Photos:
    """What may be shown: files in the order they were found, asked for by number and never by path.

    Attributes:
        paths: of the images.
        names: what they are called on the page.
        folders: where they may lie; a link that leads out of all of them is not followed, also one that was put in
            the place of a photo since.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    folders: AllowedFiles

    @classmethod
    def of(cls, paths: Iterable[str], named: Iterable[str]) -> Photos:
        """Those of ``paths`` that lie in what the user named; each file once."""
        folders = AllowedFiles(named)
        # A name that is no text cannot stand in a CSV, and spaces around it would be lost there.
        fit = (
            p for p in paths if p in folders and p == p.strip() and not any("\ud800" <= c <= "\udfff" for c in p)
        )
        distinct = {os.path.realpath(path): path for path in fit}
        kept = tuple(distinct.values())
        return cls(kept, tuple(short_names(kept)), folders)

    def __len__(self) -> int:
        return len(self.paths)

    def checked(self, number: int) -> str:
        """The path of a photo, if it still lies in the folders.

        Raises:
            ImageReadError: it leads out of them.
        """
        path = self.paths[number]
        if path not in self.folders:
            raise ImageReadError("a link that leads out of the folders named", path=path)
        return path

    def picture(self, number: int, *, small: bool = False) -> Picture:
        """The picture upright and complete: the file's own bytes where every browser shows them, else a JPEG.

        Args:
            number: 0 .. len - 1.
            small: a JPEG with a longer side of at most `SMALL`.

        Raises:
            ImageReadError: it cannot be read, or leads out of the folders.
        """
        path = self.checked(number)
        data = image_bytes(path)
        kind = None if small else _shown_as_it_is(data)
        if kind is not None:
            return Picture(data, kind)
        upright = read_image(data, name=printable(path), max_pixels=MAX_PIXELS)
        if small:
            upright = shrink(upright, SMALL)
        buffer = io.BytesIO()
        # Above 90 no artefact is seen; the colours are not thinned out.
        upright.save(buffer, "JPEG", quality=80 if small else 95, subsampling=-1 if small else 0)
        return Picture(buffer.getvalue(), "image/jpeg")


def _shown_as_it_is(data: bytes) -> str | None:
    """The media type of what browsers show, and show upright; None for all else."""
    try:
        with decoder_settings(), Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
            return _SHOWN.get(image.format or "") if upright else None
    except Exception:  # damaged, or something else: the reader says which
        return None
