"""How scores, names and pictures are shown, in pages, cards, pictures and notebooks alike.

NumPy and Pillow are imported where they are used: the command line prints names before it knows whether it needs
them.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jinja2 import Environment
    from numpy.typing import NDArray
    from PIL import Image

# --------------------------------------------------------------- colours of scores

#: The colour scale: value -> red, green, blue; straight lines between them.  Vermilion is bad, yellow the middle,
#: blue good, three colours of Okabe and Ito's palette, which any kind of colour blindness leaves apart.
COLOUR_SCALE = ((0.0, (213, 94, 0)), (0.5, (240, 228, 66)), (1.0, (0, 114, 178)))


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values 0..1 of any shape [...] -> uint8 colours [..., 3]; values outside get the end's colour."""
    import numpy as np

    positions = [position for position, _ in COLOUR_SCALE]
    channels = [np.interp(values, positions, [rgb[c] for _, rgb in COLOUR_SCALE]) for c in range(3)]
    rounded: NDArray[np.uint8] = np.stack(channels, axis=-1).round().astype(np.uint8)
    return rounded


def colour(value: float) -> tuple[int, int, int]:
    """The colour of one value."""
    import numpy as np

    r, g, b = colours(np.array(value)).tolist()
    return r, g, b


def css_colour(value: float) -> str:
    """The colour of one value as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour(value))


def ink_on(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on a background (WCAG's relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


# -------------------------------------------------------------------- thumbnails


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """A copy with a longer side of at most ``size``, and without the comments and profiles of the original."""
    from PIL.Image import Resampling

    factor = min(1.0, size / max(picture.size))
    target = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    small = picture.resize(target, Resampling.LANCZOS, reducing_gap=2.0)
    small.info = {}
    return small


def jpeg(picture: Image.Image) -> bytes:
    """A small JPEG of an RGB picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72, optimize=True)
    return buffer.getvalue()


def data_uri(jpeg_bytes: bytes) -> str:
    """A JPEG as an address that holds the picture itself."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg_bytes).decode()}"


# --------------------------------------------------------------------------- text


def printable(text: str) -> str:
    """A text, such as a file's name, with characters that cannot be shown written as codes."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def html_templates(folder: Path | None = None) -> Environment:
    """The Jinja templates of a folder; whatever they are filled with is escaped, and made `printable` before."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        # Markup has been escaped already, and style and script keep their line breaks.
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=None if folder is None else FileSystemLoader(folder),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
