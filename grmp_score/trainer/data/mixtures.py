"""Compound distortions: what a camera or a website does to a photo in one go.

KADID-10k's types come one at a time; photos people take are blurred and noisy and compressed together.  Each
mixture chains single types of `grmp_score.trainer.data.distortions`, all growing with the level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from grmp_score.trainer.data.distortions import distort

#: Mixture -> its steps, in order: (type, level of the step for levels 1 to 5; 0 leaves the step out).
MIXTURES: dict[str, tuple[tuple[str, tuple[int, int, int, int, int]], ...]] = {
    # Missed focus on a phone: lens blur, sensor noise, JPEG.
    "mixed_focus": (
        ("lens_blur", (1, 2, 3, 4, 5)),
        ("white_noise", (0, 1, 1, 2, 2)),
        ("jpeg", (1, 1, 2, 2, 3)),
    ),
    # Hand-held in low light: motion blur, under-exposure, colour noise, JPEG.
    "mixed_low_light": (
        ("motion_blur", (0, 1, 2, 3, 4)),
        ("darken", (1, 1, 2, 2, 3)),
        ("white_noise_color_component", (1, 2, 2, 3, 4)),
        ("jpeg", (1, 1, 1, 2, 3)),
    ),
    # Shared again and again: enlarged from few pixels, sharpened, compressed.
    "mixed_reshared": (
        ("pixelate", (0, 1, 1, 2, 3)),
        ("gaussian_blur", (1, 1, 2, 3, 4)),
        ("high_sharpen", (1, 1, 2, 2, 3)),
        ("webp", (1, 2, 2, 3, 4)),
    ),
}

GROUP = "mixtures"


def mix(image: NDArray[np.uint8], name: str, level: int, seed: int = 0) -> NDArray[np.uint8]:
    """Applies one mixture.

    Args:
        image: RGB, uint8 [H, W, 3].
        name: a key of `MIXTURES`.
        level: 1 to 5, 5 is worst.
        seed: as for `distort`.

    Returns:
        RGB, uint8 [H, W, 3], a new array.
    """
    for step, levels in MIXTURES[name]:
        if levels[level - 1]:
            image = distort(image, step, levels[level - 1], seed)
    return image
