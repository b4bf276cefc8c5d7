"""The colours of scores: vermilion for bad, yellow for the middle, blue for good.

The three are of Okabe and Ito's palette, which people with any kind of colour blindness can tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Value -> red, green, blue; straight lines between them.
STOPS = ((0.0, (213, 94, 0)), (0.5, (240, 228, 66)), (1.0, (0, 114, 178)))


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values 0..1 of any shape [...] -> colours [..., 3]; values outside get the end's colour."""
    at = [stop for stop, _ in STOPS]
    channels = [np.interp(values, at, [rgb[c] for _, rgb in STOPS]) for c in range(3)]
    rounded: NDArray[np.uint8] = np.stack(channels, axis=-1).round().astype(np.uint8)
    return rounded


def colour(value: float) -> tuple[int, int, int]:
    """The colour of one value."""
    r, g, b = colours(np.array(value)).tolist()
    return r, g, b


def ink_on(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on a background (WCAG's relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)
