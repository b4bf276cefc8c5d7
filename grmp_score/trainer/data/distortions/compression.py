"""Compression artefacts from the real codecs in Pillow: JPEG 2000, JPEG, WebP, AVIF."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL
from PIL import Image as PillowImage
from PIL import features

from grmp_score.trainer.data.distortions.filters import Image

JPEG2000_RATIO = (16, 32, 45, 120, 170)
JPEG_QUALITY = (43, 36, 24, 7, 4)
WEBP_QUALITY = (40, 25, 12, 5, 0)
AVIF_QUALITY = (45, 35, 25, 15, 6)


def _through_codec(image: Image, codec: str, feature: str, **options: Any) -> Image:
    """Encode and decode [H, W, 3] with one of Pillow's codecs.

    Raises:
        RuntimeError: this build of Pillow lacks the codec.
    """
    if not features.check(feature):
        raise RuntimeError(
            f"this distortion needs the {codec} codec, which this build of Pillow {PIL.__version__} lacks: "
            "install an official Pillow wheel of version 11.3 or newer, or leave this distortion out"
        )
    buffer = io.BytesIO()
    PillowImage.fromarray(image).save(buffer, format=codec, **options)
    buffer.seek(0)
    with PillowImage.open(buffer) as decoded:
        return np.array(decoded.convert("RGB"))


def jpeg2000(image: Image, level: int, rng: np.random.Generator) -> Image:
    """JPEG 2000 at a growing compression ratio (raw size / file size)."""
    # Each wavelet level halves the image; OpenJPEG refuses more levels than the smaller side allows.
    resolutions = min(6, int(np.log2(min(image.shape[:2]))))
    return _through_codec(
        image,
        "JPEG2000",
        "jpg_2000",
        no_jp2=True,
        irreversible=True,
        quality_mode="rates",
        quality_layers=[JPEG2000_RATIO[level - 1]],
        num_resolutions=resolutions,
    )


def jpeg(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Baseline JPEG with 4:2:0 chroma at a falling quality setting."""
    return _through_codec(image, "JPEG", "jpg", quality=JPEG_QUALITY[level - 1])


def webp(image: Image, level: int, rng: np.random.Generator) -> Image:
    """Lossy WebP at a falling quality setting (not in KADID-10k)."""
    return _through_codec(image, "WEBP", "webp", quality=WEBP_QUALITY[level - 1], method=3)


def avif(image: Image, level: int, rng: np.random.Generator) -> Image:
    """AVIF at a falling quality setting (not in KADID-10k)."""
    # One thread: the result must not depend on the machine, nor the cost on its neighbours.
    return _through_codec(image, "AVIF", "avif", quality=AVIF_QUALITY[level - 1], speed=9, max_threads=1)
