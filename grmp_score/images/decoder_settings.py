"""What decoders say besides raising an exception: kept from the screen while a picture is read."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

# Several threads read at the same time: the first one in sets, the last one out puts back.
_lock = threading.Lock()
_readers = 0
_ours: Any = None


@contextlib.contextmanager
def decoder_settings() -> Iterator[None]:
    """While at least one thread is inside, warnings of the decoders are not shown: an odd file is an image or an
    error, told by return value.  (`warnings.catch_warnings` would do, but it is not safe with threads.)

    Pillow's switches are left to the process: its limit of pixels is not asked (`decoders` opens files without it),
    and where ``LOAD_TRUNCATED_IMAGES`` is set, half pictures are read here as everywhere.
    """
    global _readers, _ours
    _silence_decoders()
    with _lock:
        if _readers == 0:
            warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif|tifffile)\b")
            _ours = warnings.filters[0]
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                with contextlib.suppress(ValueError):  # somebody has replaced all filters meanwhile
                    warnings.filters.remove(_ours)  # type: ignore[attr-defined]


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
