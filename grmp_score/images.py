"""Anything that holds a picture -> an 8-bit RGB `PIL.Image.Image`.

The only file that catches Pillow's errors.  What is done about each kind of picture:

* EXIF orientation is applied, so a portrait photo is scored as people see it.
* Transparency is laid over white.
* 16-bit and 32-bit integer greys are scaled by their true range (65535), not clipped; float images are taken
  as 0..1.
* CMYK, palette, 1-bit, LAB, YCbCr and grey images become RGB.
* The first frame of an animation is used.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Union

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from grmp_score.errors import ImageReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What `read_image` takes; arrays are [H, W, 3] or [H, W] uint8 RGB.
ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, "NDArray[np.uint8]"]


#: Pixels beyond which a file is taken for a decompression bomb.
MAX_PIXELS = 250_000_000


def image_bytes(source: str | os.PathLike[str] | bytes | IO[bytes]) -> bytes:
    """The encoded bytes of a picture, not yet decoded; `ImageReadError` when they cannot be had."""
    name = source_name(source)
    try:
        if isinstance(source, (bytes, bytearray)):
            return bytes(source)
        if isinstance(source, (str, os.PathLike)):
            _check_file(Path(source))
            return Path(source).read_bytes()
        return source.read()
    except FileNotFoundError as error:
        raise ImageReadError("no such file", path=name) from error
    except PermissionError as error:
        raise ImageReadError("no permission to read it", path=name) from error
    except (OSError, ValueError) as error:
        raise ImageReadError(f"cannot read: {error}", path=name) from error


def read_image(
    source: ImageSource,
    *,
    background: str | tuple[int, int, int] = "white",
    max_pixels: int | None = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Reads one picture.

    Args:
        source: path, encoded bytes, binary file object, PIL image, or uint8 array [H, W, 3] (RGB) or [H, W].

    Returns:
        8-bit RGB image, upright.

    Raises:
        ImageReadError: the source is missing, empty, damaged or not an image; its ``path`` is set for files.
    """
    name = name or source_name(source)
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source, background)
        if isinstance(source, np.ndarray):
            return to_rgb(_from_array(source), background)
        if isinstance(source, (bytes, bytearray)):
            source = io.BytesIO(source)
        elif isinstance(source, (str, os.PathLike)):
            _check_file(Path(source))
        with Image.open(source) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ImageReadError(f"{image.width}x{image.height} pixels, more than {max_pixels}", path=name)
            return to_rgb(image, background)
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        raise ImageReadError("not an image, or of a format that Pillow cannot read", path=name) from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"too large to decode safely: {error}", path=name) from error
    except FileNotFoundError as error:
        raise ImageReadError("no such file", path=name) from error
    except PermissionError as error:
        raise ImageReadError("no permission to read it", path=name) from error
    except Exception as error:
        # Decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error, ValueError,
        # IndexError, zlib.error, MemoryError ...; to the caller they all mean the same.
        raise ImageReadError(f"cannot decode: {error or type(error).__name__}", path=name) from error


def source_name(source: object) -> str | None:
    """The path of a file-like source, as text; None for sources that have no name."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else None


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ImageReadError("is a folder, not an image", path=path)
    if path.exists() and not path.is_file():
        # A pipe or device could block for ever on open.
        raise ImageReadError("not a regular file", path=path)
    if path.is_file() and path.stat().st_size == 0:
        raise ImageReadError("the file is empty", path=path)


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageReadError(f"expected a uint8 array [H, W, 3] or [H, W], got {array.dtype} {array.shape}")
    if array.size == 0:
        raise ImageReadError(f"the array has no pixels: {array.shape}")
    return Image.fromarray(array)


def to_rgb(image: Image.Image, background: str | tuple[int, int, int] = "white") -> Image.Image:
    """Any PIL image -> upright 8-bit RGB, by the rules at the top of this file."""
    image = ImageOps.exif_transpose(image)
    if image.width < 1 or image.height < 1:
        raise ImageReadError(f"the image has no pixels: {image.width}x{image.height}")
    if image.mode.startswith(("I", "F")):
        image = _scale_deep(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        colour = ImageColor.getrgb(background)[:3] if isinstance(background, str) else background
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*colour, 255)), rgba)
    return image.convert("RGB")


def _scale_deep(image: Image.Image) -> Image.Image:
    """Grey images deeper than 8 bits -> 8 bits by their true range; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        scaled = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0) * 255.0
    else:
        scaled = values.astype(np.float64) / 257.0
    return Image.fromarray(np.clip(np.round(scaled), 0, 255).astype(np.uint8))
