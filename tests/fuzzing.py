"""Files that are damaged at random, always the same ones for a seed: what CI and the long run have in common."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")


def originals() -> dict[str, list[bytes]]:
    """Sound files of each format: colour, grey and palette, with EXIF, several frames, several compressions."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = small.resize((64, 48), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    more = {"save_all": True, "append_images": [image.rotate(180)]}
    kinds: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("JPEG", image, {"quality": 90, "exif": exif}),
        ("JPEG", image, {"progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("PNG", image, {"exif": exif}),
        ("PNG", image.quantize(16), {"transparency": 3}),
        ("PNG", Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), {}),
        ("WEBP", image, {"exif": exif}),
        ("WEBP", image.convert("RGBA"), {"lossless": True}),
        ("WEBP", image, more),
        ("TIFF", image, {"exif": exif}),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("TIFF", image, {"compression": "jpeg"}),
        ("TIFF", Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255), {}),
        ("TIFF", image.convert("1"), {"compression": "group4"}),
        ("GIF", image.quantize(64), {}),
        ("GIF", image, more),
        ("BMP", image, {}),
        ("BMP", image.quantize(16), {}),
        ("BMP", image.convert("1"), {}),
    ]
    files: dict[str, list[bytes]] = {fmt: [] for fmt in FORMATS}
    for fmt, picture, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, fmt, **options)
        files[fmt].append(buffer.getvalue())
    return files


def damaged(count: int, *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged files, each with a word on what was done to it: bytes flipped, cut off, or appended."""
    files = originals()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        fmt = FORMATS[number % len(FORMATS)]
        data = bytearray(files[fmt][rng.integers(len(files[fmt]))])
        how = ("flips", "header flips", "truncation", "junk", "flips and truncation", "run")[number // 6 % 6]
        if "flips" in how:
            end = min(len(data), 200) if how == "header flips" else len(data)
            for at in rng.integers(0, end, rng.integers(1, 9)):
                data[at] ^= int(rng.integers(1, 256))
        if "truncation" in how:
            del data[rng.integers(0, len(data)) :]
        if how == "junk":
            data += rng.bytes(int(rng.integers(1, 5000)))
        if how == "run":  # a damaged block on the disk
            at = int(rng.integers(0, len(data)))
            block = bytes(64) if rng.integers(2) else rng.bytes(64)
            data[at : at + 64] = block
        yield f"{number} {fmt} {how}", bytes(data)
