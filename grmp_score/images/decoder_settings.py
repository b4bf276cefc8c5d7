"""Process-wide settings of the decoders, set right while a picture is read and put back afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from PIL import Image, ImageFile

# Several threads read at the same time: the first one in sets, the last one out puts back.
_lock = threading.Lock()
_readers = 0
_before: tuple[Any, int | None, bool] = (None, None, False)


@contextlib.contextmanager
def decoder_settings() -> Iterator[None]:
    """While at least one thread is inside:

    * Warnings of the decoders are not shown: an odd file is an image or an error, told by return value.
      (`warnings.catch_warnings` would do, but it is not safe with threads.)
    * Pillow's own pixel limit, which applies to the whole process, is off; the caller checks its own.
    * A truncated file is an error, whatever another library has set.
    """
    global _readers, _before
    _silence_decoders()
    with _lock:
        if _readers == 0:
            warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif|tifffile)\b")
            _before = (warnings.filters[0], Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                ours, Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _before
                with contextlib.suppress(ValueError):  # somebody has replaced all filters meanwhile
                    warnings.filters.remove(ours)  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _silence_decoders() -> None:
    """What decoders say about damaged files besides raising an exception does not go to standard error.

    Log records go where the application sends logs, if anywhere.  libtiff prints past Python; Pillow silences its
    warnings but not its errors.  Where the library cannot be reached (linked statically), its lines stay.
    """
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    with contextlib.suppress(AttributeError, OSError, ImportError):
        from PIL import _imaging

        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)
