"""Which files a report may show, and how its page links to them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote


class AllowedFiles:
    """What a report may show: images that lie in the folders that the user named.

    A file that was named itself may be a link to anywhere; one that was found in a folder may not lead out of all
    folders named.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """Takes files, folders and patterns as the user named them; addresses are always allowed."""
        self._folders: list[Path] = []
        self._files: set[Path] = set()
        for path in (Path(p) for p in paths if "://" not in p):
            if path.is_dir():
                self._folders.append(path.resolve())
            elif path.exists():
                self._files.add(path.resolve())
            elif any(c in str(path) for c in "*?["):  # what it finds lies below the part of it that is a folder
                folder = next((p for p in path.parents if p.is_dir()), None)
                if folder is not None:
                    self._folders.append(folder.resolve())

    def __contains__(self, path: str) -> bool:
        """Whether an image may be shown; where there is no such file, reading it will say why."""
        if "://" in path:
            return True
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return True
        return real in self._files or any(real.is_relative_to(folder) for folder in self._folders)


def link(path: str, folder: str) -> str | None:
    """The URL of an image in a page that lies in ``folder``.

    Returns:
        a relative URL, percent-encoded byte by byte; ``file:`` where none leads there (another drive); web
        addresses as they are; None for other addresses, which browsers do not know.
    """
    if "://" in path:
        return path if re.match(r"https?://", path, re.IGNORECASE) else None
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(absolute, folder)
    except ValueError:
        return Path(absolute).as_uri()
    # A colon is encoded too: "javascript:x.jpg" is a file, not a script.
    return quote(os.fsencode(relative.replace(os.sep, "/")), safe="/")
