"""From what a user names (files, folders, patterns, lists, addresses) to images, one by one as they are found."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO

from grmp_score.images.formats import SUFFIXES
from grmp_score.images.remote import expand_address, is_address

_MAGIC = re.compile(r"[*?\[]")


def find_images(paths: Iterable[str], *, patterns: bool = True) -> Iterator[str]:
    """Expands folders, patterns and addresses; everything else is passed through as it is.

    * A folder gives its images recursively, sorted by name, files before folders; hidden entries are skipped, and
      links to folders are not followed, so that a loop of links ends.  Every entry with an image's suffix is
      passed on, also a broken link or a pipe: what cannot be read becomes an error row of its own.
    * ``*``, ``?``, ``[...]`` and ``**`` (any depth) are patterns, as in a shell, unless a file of exactly that name
      exists.  A folder that a pattern without ``**`` matches is expanded as if it were named.
    * ``s3://``, ``https://``, ``zip://`` ... go through fsspec; folders and patterns in them are expanded too.
    * What does not exist, a folder that may not be listed, and a pattern that matches nothing are passed through.

    Nothing is held but the names in the current folder and its parents.  Names that are not valid UTF-8 keep their
    bytes (``surrogateescape``).

    Args:
        paths: names; consumed one by one.
        patterns: False takes ``*``, ``?`` and ``[`` literally, as is right for lists that a program has written.

    Raises:
        MissingExtraError: an address needs a package that is not installed.
    """
    for path in paths:
        if is_address(path):
            yield from expand_address(path, SUFFIXES)
        elif os.path.isdir(path):
            yield from _folder(path)
        elif patterns and _MAGIC.search(path) and not os.path.lexists(path):
            matches = _matches(path)
            first = next(matches, None)
            for match in [path] if first is None else chain([first], matches):
                yield from _folder(match) if os.path.isdir(match) else [match]
        else:
            yield path


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Names from a list, one by one as they arrive.

    Args:
        stream: binary, e.g. standard input.  Names end with a newline (a carriage return before it is dropped,
            as is a byte order mark), or, if the first bytes hold a NUL as ``find -print0`` writes it, with NULs.
            Empty names are skipped.

    Yields:
        names; bytes that are not valid UTF-8 are kept by ``surrogateescape``.
    """
    read = getattr(stream, "read1", stream.read)  # what has arrived is passed on at once
    rest: bytes = read(1 << 16)
    rest = rest.removeprefix(b"\xef\xbb\xbf")
    end = b"\0" if b"\0" in rest else b"\n"
    while True:
        *names, rest = rest.split(end)
        for name in names:
            yield from _decoded(name, end)
        more = read(1 << 16)
        if not more:
            yield from _decoded(rest, end)
            return
        rest += more


def _decoded(name: bytes, end: bytes) -> Iterator[str]:
    name = name.removesuffix(b"\r") if end == b"\n" else name
    if name:
        yield name.decode("utf-8", "surrogateescape") if os.name == "nt" else os.fsdecode(name)


def _folder(top: str) -> Iterator[str]:
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            yield folder  # reading it gives the reason
            continue
        below = []
        for entry in entries:
            if _is_folder(entry):
                below.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not _links_to_folder(entry):
                yield entry.path
        waiting += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a loop of links
        return False


def _matches(pattern: str) -> Iterator[str]:
    """What a pattern matches: component by component, sorted within each folder."""
    drive, tail = os.path.splitdrive(pattern)
    root = drive + (os.sep if tail.startswith(("/", os.sep)) else "")
    yield from _expand(root, [part for part in re.split(r"[/\\]" if os.name == "nt" else "/", tail) if part])


def _expand(base: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    literal = os.path.join(base, part)
    if part == "**":
        yield from _deep(base, rest)
    elif not _MAGIC.search(part) or os.path.lexists(literal):
        if rest or os.path.lexists(literal):
            yield from _expand(literal, rest)
    else:
        matching = re.compile(fnmatch.translate(part)).match
        for name in _names(base):
            if matching(name) and (part.startswith(".") or not name.startswith(".")):
                path = os.path.join(base, name)
                if not rest or os.path.isdir(path):
                    yield from _expand(path, rest)


def _deep(base: str, rest: list[str]) -> Iterator[str]:
    """``**``: the rest of the pattern here and in every folder below; nothing but files is matched."""
    for path in _expand(base, rest or ["*"]):
        if not os.path.isdir(path):
            yield path
    for name in _names(base):
        path = os.path.join(base, name)
        if not name.startswith(".") and os.path.isdir(path) and not os.path.islink(path):
            yield from _deep(path, rest)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or os.curdir))
    except OSError:
        return []
