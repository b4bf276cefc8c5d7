"""Anything that holds a picture -> an upright 8-bit RGB `PIL.Image.Image`.

What is done about each kind of picture:

* EXIF orientation is applied, so a portrait photo is scored as people see it.
* An embedded ICC profile is applied (to sRGB, relative colorimetric with black-point compensation); a broken
  one is ignored.  Pictures without one are taken as sRGB.
* Transparency is laid over a background, white unless stated.
* 16-bit and 32-bit integers are scaled by the true range of their type, not clipped (32-bit integers of which none
  is above 65535 are 16-bit pictures in a wide type).
* Floating-point files are 0 (black) to 1 (white); values outside are clipped, NaN is black.  A file with more than
  half of its values above 1 is on some other scale and refused.
* CMYK, palette, 1-bit, LAB, YCbCr and grey images become RGB.
* The first frame of an animation, or the first page, is used.
* An image smaller than a patch is enlarged later, by `grmp_score.model.patches`.

HEIC needs the extra ``[heif]``, camera RAW ``[raw]``, unusual TIFF kinds (colour in floating point) ``[tiff]``,
addresses ``[remote]``; without them the error says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image

from grmp_score.errors import ImageReadError, MissingExtraError
from grmp_score.images.arrays import from_array, from_tensor
from grmp_score.images.colour import parse_colour, to_rgb
from grmp_score.images.decoder_settings import decoder_settings
from grmp_score.images.decoders import decode
from grmp_score.images.formats import check_size
from grmp_score.images.remote import is_address, read_address

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

#: What `read_image` takes.
ImageSource = Union[
    str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, "NDArray[Any]", "torch.Tensor"
]  # fmt: skip

#: Pixels beyond which a file is taken for a decompression bomb: above the largest phone photo (200 megapixels).
MAX_PIXELS = 250_000_000


def read_image(
    source: ImageSource,
    *,
    background: str | tuple[int, int, int] = "white",
    max_pixels: int | None = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Reads one picture.

    Args:
        source: one of

            * a path, or an address that fsspec opens (``s3://``, ``https://``, ``zip://`` ...);
            * the bytes of a file, or a binary file object (read from where it stands, left open);
            * a PIL image of any mode;
            * an array [H, W] or [H, W, C] with C = 1, 3 (RGB) or 4 (RGBA), of uint8 (0..255), uint16 (0..65535),
              float (0..1) or bool;
            * a torch tensor [H, W], [C, H, W] or [1, C, H, W], on any device, of the same C, types and ranges.
        background: what lies under transparent parts: a colour's name, ``"#rrggbb"``, or red, green, blue (0..255).
        max_pixels: limit of width x height for encoded images, against decompression bombs; None for none.
        name: what the picture is called, for errors and to know RAW formats by, where the source has no name.

    Returns:
        8-bit RGB image, upright, in sRGB.

    Raises:
        ImageReadError: the source is missing, empty, damaged, not an image, or an array of another shape, type or
            range; ``path`` is set where the source has a name.
        ImageTooLargeError: the image is above ``max_pixels``; an `ImageReadError` too.
        ConfigError: the background is no colour.
    """
    colour = parse_colour(background)
    name = name or source_name(source)
    with _read_errors(name), decoder_settings():
        if isinstance(source, Image.Image):
            check_size(source.size, None)
            return to_rgb(source, colour)
        if isinstance(source, np.ndarray):
            return to_rgb(from_array(source), colour, owned=True)
        if _is_tensor(source):
            return to_rgb(from_tensor(source), colour, owned=True)  # type: ignore[arg-type]
        with _opened(source) as file:
            return to_rgb(decode(file, name, max_pixels), colour, owned=True)


def image_bytes(source: str | os.PathLike[str] | bytes | IO[bytes]) -> bytes:
    """The encoded bytes of a picture, not yet decoded, so that they can be hashed and read in one go.

    Args:
        source: path, address, bytes, or binary file object.

    Raises:
        ImageReadError: there is no such file, or it is empty or cannot be read.
    """
    with _read_errors(source_name(source)), _opened(source) as file:
        data = file.read()
        if not data:
            raise ImageReadError("the file is empty")
        if not isinstance(data, bytes):
            raise ImageReadError("expected a binary file, got text", hint="Open it with mode 'rb'")
        return data


def source_name(source: object) -> str | None:
    """The path of a file-like source, as text; None for sources that have no name."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else None


@contextlib.contextmanager
def _read_errors(name: str | None) -> Iterator[None]:
    """Whatever goes wrong becomes an `ImageReadError` that names the source."""
    try:
        yield
    except ImageReadError as error:
        error.path = name
        raise
    except MissingExtraError as error:
        # All in the reason, because lists of broken images show nothing else.
        raise ImageReadError(f"{error.reason}. {error.hint}", path=name) from error
    except FileNotFoundError as error:
        raise ImageReadError("no such file", path=name) from error
    except PermissionError as error:
        raise ImageReadError("no permission to read it", path=name) from error
    except MemoryError as error:
        raise ImageReadError("there is not enough memory to decode it", path=name) from error
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageReadError(f"cannot read it: {text}", path=name) from error


@contextlib.contextmanager
def _opened(source: object) -> Iterator[IO[bytes]]:
    """A binary, seekable file, at its beginning, with the encoded picture."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif is_address(source):
        yield io.BytesIO(read_address(str(source)))
    elif isinstance(source, (str, os.PathLike)):
        with _open_file(os.fspath(source)) as file:
            yield file
    elif isinstance(source, io.TextIOBase):
        raise ImageReadError("expected a binary file, got one that is open as text", hint="Open it with mode 'rb'")
    elif hasattr(source, "read"):
        yield _from_position(source)
    else:
        raise ImageReadError(
            f"expected a path, bytes, binary file, PIL image, array or tensor, got {type(source).__name__}"
        )


def _open_file(path: str) -> IO[bytes]:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise ImageReadError("no permission to list this folder")
        raise ImageReadError("is a folder, not an image")
    if not stat.S_ISREG(mode):
        # A pipe or device could block for ever on open.
        raise ImageReadError("not a regular file")
    return open(path, "rb")


def _from_position(file: Any) -> IO[bytes]:
    """What a file object holds from where it stands, as a file of its own unless it stands at the beginning."""
    # Decoders go back to the beginning of a file, whatever stands there.
    seekable = getattr(file, "seekable", bool)()
    if seekable and file.tell() == 0:
        return file  # type: ignore[no-any-return]
    data = file.read()
    if seekable and not data:
        raise ImageReadError("the file object stands at its end", hint="Go back to its beginning: file.seek(0)")
    return io.BytesIO(data)


def _is_tensor(source: object) -> bool:
    """Whether this is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)
