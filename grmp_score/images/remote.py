"""Addresses that fsspec opens: ``s3://``, ``https://``, ``zip://inner::outer`` ...  (extra ``[remote]``)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from grmp_score.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

# At least two letters before the colon: one is a Windows drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+(::[A-Za-z]|://)")


def is_address(text: object) -> bool:
    """Whether this names something remote; a local file of that name comes first."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None and not os.path.lexists(text)


def read_address(address: str) -> bytes:
    """All bytes behind an address.

    Raises:
        MissingExtraError: fsspec, or its driver for this protocol, is not installed.
        Exception: whatever the driver raises.
    """
    fsspec = _fsspec(address)
    try:
        with fsspec.open(address, "rb") as file:
            data: bytes = file.read()
    except ImportError as error:
        raise _no_driver(address, error) from error
    return data


def expand_address(address: str, suffixes: frozenset[str]) -> Iterator[str]:
    """The images behind an address: a folder's (recursively, sorted, hidden ones skipped), a pattern's, or itself.

    Of https addresses only ``*`` is a pattern, because ``?`` and ``[`` have another meaning there.  An address
    that ends like an image is not asked for whether it is a folder.

    Raises:
        MissingExtraError: fsspec, or its driver for this protocol, is not installed.
    """
    fsspec = _fsspec(address)
    head = address.split("::", 1)[0]
    wildcards = "*" if head.startswith("http") else "*?["
    is_pattern = any(letter in head for letter in wildcards)
    if not is_pattern and os.path.splitext(head)[1].lower() in suffixes:
        yield address
        return
    try:
        system, path = fsspec.core.url_to_fs(address)
        if is_pattern:
            found = sorted(name for name in system.glob(path) if not _is_hidden(name) and not system.isdir(name))
            yield from (_address_like(address, name) for name in found)
            if not found:
                yield address
        elif system.isdir(path):
            yield from (_address_like(address, name) for name in _walk(system, path, suffixes))
        else:
            yield address
    except ImportError as error:
        raise _no_driver(address, error) from error
    except Exception:
        # No such archive, no such host, no rights: reading the address gives the reason, as its own row.
        yield address


def _walk(system: Any, folder: str, suffixes: frozenset[str]) -> Iterator[str]:
    """The images in a folder of an fsspec file system, then those of the folders in it, by name."""
    folders = []
    for entry in sorted(system.ls(folder, detail=True), key=lambda e: str(e["name"])):
        name = str(entry["name"])
        # Some stores list a folder as an entry of itself.
        if _is_hidden(name) or name.rstrip("/") == folder.rstrip("/"):
            continue
        if entry["type"] == "directory":
            folders.append(name)
        elif os.path.splitext(name)[1].lower() in suffixes:
            yield name
    for name in folders:
        yield from _walk(system, name, suffixes)


def _is_hidden(name: str) -> bool:
    return name.rstrip("/").rsplit("/", 1)[-1].startswith(".")


def _address_like(address: str, name: str) -> str:
    """A name as the file system gives it -> an address with the protocol and chain of the one it came from."""
    head, chain, rest = address.partition("::")
    if "://" not in head:  # a cache in front of the address: simplecache::s3://...
        return f"{head}::{_address_like(rest, name)}"
    if "://" in name:  # https lists whole addresses
        return name + chain + rest
    protocol = head.split("://", 1)[0]
    return f"{protocol}://{name.lstrip('/') if chain else name}{chain}{rest}"


def _fsspec(address: str) -> ModuleType:
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise MissingExtraError(f"reading {address}", "fsspec", "remote") from error
    module: ModuleType = fsspec
    return module


def _no_driver(address: str, error: ImportError) -> MissingExtraError:
    if "aiohttp" in str(error):
        return MissingExtraError(f"reading {address}", "aiohttp", "remote")
    # fsspec says which package serves the protocol ("Install s3fs to access S3").
    driver = re.search(r"[Ii]nstall ['\"]?([\w\-]+)", str(error))
    missing = MissingExtraError(f"reading {address}", driver.group(1) if driver else str(error), "remote")
    if driver:
        missing.hint = f"Install it with: pip install {driver.group(1)}"
    return missing
