"""What goes into files: written complete or not at all, and numbers that JSON knows."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a new, empty, hidden sibling of ``target`` that takes its place at the end.

    Where anything goes wrong, Ctrl-C too, the sibling is removed and ``target`` stays as it was.  A link in its
    place is replaced, not followed.  The permissions are those of any new file.
    """
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.partial")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def finite_or_none(value: float) -> float | None:
    """NaN and infinity, which JSON does not have, as None."""
    return value if math.isfinite(value) else None
