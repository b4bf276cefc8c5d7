"""Turning a picture upright by its EXIF orientation, a large one without a second copy of it in memory."""

from __future__ import annotations

import contextlib
import tempfile

from PIL import Image

#: Number of the EXIF tag.
ORIENTATION = 0x0112

#: EXIF orientation -> what undoes it; 1 is upright.
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: Pixels from which the way through the disk is taken: above most photos, which it would only slow down.
#: A turned JPEG of 100 megapixels then takes 440 MB in place of 800 (benchmarks/large_image_memory.py).
LARGE = 40_000_000

#: Rows that are turned at a time on that way.
_ROWS = 256


def exif_orientation(image: Image.Image) -> int:
    """The orientation that a picture's EXIF block states, 1 (upright) where there is none."""
    # Cameras write broken EXIF blocks; their pictures are fine.
    with contextlib.suppress(Exception):
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def make_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undoes an EXIF orientation; one that does not exist changes nothing.

    Args:
        image: RGB; may be emptied, so that a large picture is in memory only once.
        orientation: value of the EXIF tag.
    """
    if orientation not in _UNDO:
        return image
    if image.width * image.height >= LARGE:
        size = image.size
        try:
            return _through_disk(image, orientation)
        except OSError:  # no room for a temporary file
            if image.size != size:  # too late, the picture has been emptied
                raise
    return image.transpose(_UNDO[orientation])


def _through_disk(image: Image.Image, orientation: int) -> Image.Image:
    """Writes turned strips to a file, gives the memory of the picture back, and puts the strips together."""
    width, height = image.size
    tops = range(0, height, _ROWS)
    lies_on_its_side = orientation >= 5
    with tempfile.TemporaryFile() as file:
        for top in tops:
            strip = image.crop((0, top, width, min(top + _ROWS, height)))
            file.write(strip.transpose(_UNDO[orientation]).tobytes())
        file.seek(0)
        image.thumbnail((1, 1), Image.Resampling.NEAREST)  # in place: gives its memory back
        upright = Image.new("RGB", (height, width) if lies_on_its_side else (width, height))
        for top in tops:
            rows = min(_ROWS, height - top)
            size = (rows, width) if lies_on_its_side else (width, rows)
            strip = Image.frombytes("RGB", size, file.read(3 * width * rows))
            # Where the first stored row is the last row or column, strips are put in from the end.
            start = height - top - rows if orientation in (3, 4, 6, 7) else top
            upright.paste(strip, (start, 0) if lies_on_its_side else (0, start))
    return upright
