"""Turning a picture upright, a large one without a second copy of it in memory."""

from __future__ import annotations

import tempfile

from PIL import Image

#: EXIF orientation -> what undoes it.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Orientations whose first stored row is the last row or column of the upright picture.
_FROM_THE_END = (3, 4, 6, 7)

#: Pixels from which the way through the disk is taken: above most photos, which it would only slow down.
LARGE = 40_000_000
_ROWS = 256


def turn_upright(image: Image.Image, orientation: int, *, owned: bool) -> Image.Image:
    """Undoes an EXIF orientation; one that does not exist changes nothing.

    Args:
        image: RGB.
        orientation: value of the EXIF tag.
        owned: True allows to empty ``image``, so that a large picture is in memory only once.
    """
    if orientation not in _UPRIGHT:
        return image
    if owned and image.width * image.height >= LARGE:
        try:
            return _through_disk(image, orientation)
        except OSError:  # no room for a temporary file
            pass
    return image.transpose(_UPRIGHT[orientation])


def _through_disk(image: Image.Image, orientation: int) -> Image.Image:
    width, height = image.size
    tops = range(0, height, _ROWS)
    sideways = orientation >= 5
    with tempfile.TemporaryFile() as spill:
        for top in tops:
            strip = image.crop((0, top, width, min(top + _ROWS, height)))
            spill.write(strip.transpose(_UPRIGHT[orientation]).tobytes())
        spill.seek(0)
        image.thumbnail((1, 1), Image.Resampling.NEAREST)  # in place: gives its memory back
        result = Image.new("RGB", (height, width) if sideways else (width, height))
        for top in tops:
            rows = min(_ROWS, height - top)
            size = (rows, width) if sideways else (width, rows)
            strip = Image.frombytes("RGB", size, spill.read(3 * width * rows))
            at = height - top - rows if orientation in _FROM_THE_END else top
            result.paste(strip, (at, 0) if sideways else (0, at))
    return result
