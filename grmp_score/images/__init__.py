"""Any source that holds a picture -> an upright 8-bit sRGB image.

`read.read_image` is the way in; what happens behind it, in this order:

1. `read` opens the source: a path, an address (`remote`), bytes, a file object; arrays and tensors go to `arrays`.
2. `decoders` reads the file, by its content (`formats`), with Pillow or the library that its format needs.
3. `colour` makes 8-bit sRGB of it: depth, colour profile, transparency.
4. `orientation` turns it upright.

`find` comes before all this: from folders, patterns and lists to the names of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grmp_score.images.colour import parse_colour
    from grmp_score.images.read import MAX_PIXELS, ImageSource, image_bytes, read_image, source_name

__all__ = ["MAX_PIXELS", "ImageSource", "image_bytes", "parse_colour", "read_image", "source_name"]


def __getattr__(name: str) -> Any:
    # On first use, because the command line imports `images.find` and shall not wait for NumPy and Pillow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grmp_score.images import read

    return getattr(read, name)
