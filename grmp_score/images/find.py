"""From what a user names (files, folders, patterns, lists, addresses) to images, one by one as they are found."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import PurePath
from typing import BinaryIO

from grmp_score.errors import DataError
from grmp_score.images.formats import HEADER_LENGTH, SUFFIXES, describe_non_image, picture_in
from grmp_score.images.remote import expand_address, is_address

#: Names, as patterns, of what folders hold besides a person's photos: thumbnails and waste baskets of network
#: drives, of Windows and of archives made on a Mac.
EXCLUDED = (
    *("@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "System Volume Information"),
    *("__MACOSX", "Thumbs", "Thumbs.db", "*~"),
)
#: Called with a file or folder that was not taken from a folder, and why.
Skipped = Callable[[str, str], None]

HIDDEN, _OTHER, _EXCLUDED = "hidden", "not named like an image", "excluded by name"


def find_images(
    paths: Iterable[str],
    *,
    patterns: bool = True,
    exclude: Sequence[str] = EXCLUDED,
    skipped: Skipped = lambda path, why: None,
) -> Iterator[str]:
    """Expands folders, patterns and addresses; everything else is passed through as it is.

    * A folder gives its images recursively, sorted by name, files before folders; hidden entries and those of a
      name to be excluded are skipped, and links to folders are not followed, so that a loop of links ends.  Every
      entry with an image's suffix is passed on, also a broken link or a pipe: what cannot be read becomes an error
      row of its own.  So is a file without a suffix that begins like a picture.
    * ``*``, ``?``, ``[...]`` and ``**`` (any depth) are patterns, as in a shell, unless a file of exactly that name
      exists.  A folder that a pattern without ``**`` matches is expanded as if it were named; ``**`` itself enters
      neither hidden folders nor links to folders.
    * ``s3://``, ``https://``, ``zip://`` ... go through fsspec; folders and patterns in them are expanded too.
    * What does not exist, a folder that may not be listed, and a pattern that matches nothing are passed through.

    Nothing is held but the names in the current folder and its parents.  Names that are not valid UTF-8 keep their
    bytes (``surrogateescape``).

    Args:
        paths: names; consumed one by one.
        patterns: False takes ``*``, ``?`` and ``[`` literally, as is right for lists that a program has written.
        exclude: patterns for the names of files and folders that are not taken from a folder.  A folder that is
            named itself is looked into, whatever it is called.
        skipped: called for every entry of a folder that was not taken, with the reason.

    Raises:
        MissingExtraError: an address needs a package that is not installed.
    """
    for path in paths:
        if is_address(path):
            yield from expand_address(path, SUFFIXES)
        elif os.path.isdir(path):
            yield from _images_in(path, exclude, skipped)
        elif patterns and glob.has_magic(path) and not os.path.lexists(path):
            matches = _matches(path)
            for match in chain([next(matches, path)], matches):
                yield from _images_in(match, exclude, skipped) if os.path.isdir(match) else [match]
        else:
            yield path


def read_list(stream: BinaryIO, name: str = "standard input") -> Iterator[str]:
    """Names from a list, one by one as they arrive.

    Args:
        stream: binary, e.g. standard input.  Names end with a newline (a carriage return before it is dropped,
            as is a byte order mark), or, if the first bytes hold a NUL as ``find -print0`` writes it, with NULs.
            Text in UTF-16, which PowerShell's ``>`` writes, is known by its byte order mark or by its NULs.
            Empty names are skipped.
        name: of the list, for messages.

    Yields:
        names; bytes that are not valid UTF-8 are kept by ``surrogateescape``.

    Raises:
        DataError: it holds a picture, an archive or broken UTF-16 and no list; or it names a whole disk, which
            is hardly ever meant and takes days.
    """
    read = getattr(stream, "read1", stream.read)  # what has arrived is passed on at once
    first: bytes = read(1 << 16)
    while len(first) < 8 and (more := read(1 << 16)):
        first += more
    what = "a picture" if picture_in(first) else describe_non_image(first)
    if what is not None:
        raise DataError(
            f"expected a list of names, got {what}", path=name, hint=f"Score it with: grmp-score {name}"
        )
    encoding = _utf_16(first)
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()

    def as_bytes(part: bytes) -> bytes:
        if encoding is None:
            return part
        try:
            return decoder.decode(part, not part).encode()
        except ValueError as error:
            raise DataError(f"not valid UTF-16: {error}", path=name, hint="Save the list as UTF-8") from error

    rest = as_bytes(first).removeprefix(codecs.BOM_UTF8)
    end = b"\0" if b"\0" in rest else b"\n"
    while True:
        *names, rest = rest.split(end)
        for found in names:
            yield from _decoded(found, end, name)
        more = read(1 << 16)
        rest += as_bytes(more)
        if not more:
            yield from _decoded(rest, end, name)
            return


def _utf_16(first: bytes) -> str | None:
    """The encoding of a list that is not one byte a letter, by its first bytes; None for all others."""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Letters that are in ASCII have one NUL each.
    even, odd = first[0 : len(first) & ~1 : 2], first[1::2]
    if len(odd) > 2 and even.isascii() and b"\0" not in even and not any(odd):
        return "utf-16-le"
    return "utf-16-be" if len(odd) > 2 and odd.isascii() and b"\0" not in odd and not any(even) else None


def _decoded(name: bytes, end: bytes, of: str) -> Iterator[str]:
    name = name.removesuffix(b"\r") if end == b"\n" else name
    if not name:
        return
    text = name.decode("utf-8", "surrogateescape") if os.name == "nt" else os.fsdecode(name)
    if (
        not is_address(text)
        and os.path.ismount(text)
        and os.path.dirname(os.path.abspath(text)) == os.path.abspath(text)
    ):
        raise DataError(
            f"names {text!r}, a whole disk",
            path=of,
            hint="Name it as an argument if it is meant, or remove the line",
        )
    yield text


def _images_in(top: str, exclude: Sequence[str], skipped: Skipped) -> Iterator[str]:
    """The images in a folder and below."""
    unreadable: list[str] = []
    for folder, below, names in os.walk(top, onerror=lambda error: unreadable.append(error.filename or top)):
        while unreadable:
            yield unreadable.pop(0)  # trying to read it gives the reason
        below[:] = [name for name in sorted(below) if _is_wanted(folder, name, exclude, skipped)]
        for name in sorted(names):
            if _is_wanted(folder, name, exclude, skipped):
                path = os.path.join(folder, name)
                if _may_be_image(path):
                    yield path
                else:
                    skipped(path, _OTHER)
    yield from unreadable


def _is_wanted(folder: str, name: str, exclude: Sequence[str], skipped: Skipped) -> bool:
    hidden = name.startswith(".")
    if hidden or any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
        skipped(os.path.join(folder, name), HIDDEN if hidden else _EXCLUDED)
        return False
    return True


def _may_be_image(path: str) -> bool:
    """By its suffix, or, without one, by its first bytes."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix:
        # Web sites append a size: .jpg_large, .jpg-orig, .png!d
        return suffix in SUFFIXES or re.split(r"[^.a-z0-9]", suffix)[0] in SUFFIXES
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return picture_in(file.read(HEADER_LENGTH))
    except OSError:
        return False


def _matches(pattern: str) -> Iterator[str]:
    """What a pattern matches, sorted folder by folder; one with ``**`` matches files only."""
    if "**" not in PurePath(pattern).parts:
        yield from _expand(pattern)
        return
    if PurePath(pattern).name == "**":
        pattern = os.path.join(pattern, "*")
    yield from (match for match in _expand(pattern) if not os.path.isdir(match))


def _expand(pattern: str) -> Iterator[str]:
    # `glob.glob` component by component: of a pattern for a million files only the names of one folder are held,
    # and its own "**" would follow links to folders, round and round where they make a loop.
    if not pattern or os.path.lexists(pattern):
        yield pattern
    elif glob.has_magic(pattern):
        parent, name = os.path.split(pattern)
        for folder in _expand(parent):
            if name == "**":
                yield from _folders(folder)
            elif os.path.lexists(os.path.join(folder, name)):
                yield os.path.join(folder, name)
            else:
                yield from (os.path.join(folder, match) for match in _glob(name, folder))


def _folders(top: str) -> Iterator[str]:
    """A folder and all below it, but for hidden ones and links."""
    yield top
    for path in (os.path.join(top, name) for name in _glob("*", top)):
        if os.path.isdir(path) and not os.path.islink(path):
            yield from _folders(path)


def _glob(pattern: str, folder: str) -> list[str]:
    return sorted(glob.glob(pattern, root_dir=folder or None))
