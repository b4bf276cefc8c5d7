"""Make the photos in `examples/photos` from the sample images that come with scikit-image.

    python examples/make_photos.py [FOLDER]

Needs scikit-image and Pillow. Each scene is there as it was taken and once or twice made worse in a known way
and the order of the scores can be judged by eye. Nothing is downloaded. Random numbers are seeded: the
pixels before compression are the same on every run, and so are the files with the same JPEG codec.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

QUALITY = 95  # of the JPEG, where compression is not itself the defect


def same(image: Image.Image) -> Image.Image:
    """Return the image as it is."""
    return image


def blur(sigma: float) -> Callable[[Image.Image], Image.Image]:
    """Blur as a lens out of focus does, about; `sigma` in pixels."""
    return lambda image: image.filter(ImageFilter.GaussianBlur(sigma))


def noise(sigma: float, seed: int) -> Callable[[Image.Image], Image.Image]:
    """Add colour noise as a sensor in the dark does, about; `sigma` in grey levels of 255."""

    def add(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image, dtype=np.float64)
        noisy = pixels + np.random.default_rng(seed).normal(0.0, sigma, pixels.shape)
        return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))

    return add


def blurred_and_dark(sigma: float, exposure: float) -> Callable[[Image.Image], Image.Image]:
    """Blur, then underexpose: `exposure` times the light, taken in linear light as a camera would."""

    def spoil(image: Image.Image) -> Image.Image:
        pixels = np.asarray(blur(sigma)(image), dtype=np.float64) / 255
        dark = (pixels**2.2 * exposure) ** (1 / 2.2)
        return Image.fromarray(np.rint(dark * 255).astype(np.uint8))

    return spoil


PHOTOS: list[tuple[str, Callable[[], np.ndarray], Callable[[Image.Image], Image.Image], int]] = [
    ("astronaut.jpg", data.astronaut, same, QUALITY),
    ("astronaut_jpeg10.jpg", data.astronaut, same, 10),
    ("astronaut_soft.jpg", data.astronaut, blur(1.5), QUALITY),
    ("cat.jpg", data.chelsea, same, QUALITY),
    ("cat_noisy.jpg", data.chelsea, noise(25.0, seed=1), QUALITY),
    ("coffee.jpg", data.coffee, same, QUALITY),
    ("coffee_blurred_dark.jpg", data.coffee, blurred_and_dark(3.0, exposure=0.15), QUALITY),
    ("rocket.jpg", data.rocket, same, QUALITY),
    ("rocket_blurred.jpg", data.rocket, blur(4.0), QUALITY),
]


def main(folder: Path) -> None:
    """Write all photos into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source, spoil, quality in PHOTOS:
        image = spoil(Image.fromarray(source()[..., :3]))
        image.save(folder / name, quality=quality)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "photos")
