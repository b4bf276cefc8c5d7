"""Scores that outlive a run: an SQLite file that any number of threads and processes may share.

An entry is found by the SHA-256 of the image file's bytes and by a key that stands for everything else that
decides a score (model, preprocessing, background ...; see `Scorer.settings_key`).  So a cache never has to be
cleared: another model simply finds nothing.  What is kept are the values of the patches, from which a score follows
exactly.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from grmp_score.errors import CacheError

#: What marks an SQLite file as ours ("grmp"), and the version of its tables.
APPLICATION_ID, VERSION = 0x67726D70, 1

#: Seconds that a process waits for another one that is writing.
BUSY_SECONDS = 60.0

#: A file changed this short a time ago may change once more without its time stamp telling.
RACY_NS = 2_000_000_000

_TABLES = (
    "CREATE TABLE scores (content_hash BLOB NOT NULL, settings BLOB NOT NULL, patch_values BLOB NOT NULL,"
    " width INTEGER NOT NULL, height INTEGER NOT NULL, PRIMARY KEY (content_hash, settings)) WITHOUT ROWID",
    "CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,"
    " content_hash BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


class Entry(NamedTuple):
    """What is remembered about an image: p(high) of its patches, and its upright size."""

    patch_values: tuple[float, ...]
    width: int
    height: int


class FileState(NamedTuple):
    """A local file as the file system describes it, by which `ScoreCache.known_hash` recognises it."""

    path: bytes
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileState | None:
        """The state of a regular file; None for everything else."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(os.fsencode(os.path.abspath(path)), status.st_size, status.st_mtime_ns)


class ScoreCache:
    """An open cache file; made if it does not exist.  A context manager.

    Attributes:
        trust_mtime: whether a file of known path, size and modification time is taken to be unchanged without being
            read.
        hits: entries found so far.

    Example:
        >>> from grmp_score import Scorer
        >>> from grmp_score.pipeline.cache import ScoreCache
        >>> with ScoreCache("scores.sqlite") as cache:  # doctest: +SKIP
        ...     scores = list(Scorer().score_many(paths, cache=cache))
    """

    def __init__(self, path: str | os.PathLike[str], *, trust_mtime: bool = False) -> None:
        """Opens or makes the file.

        Raises:
            CacheError: it cannot be opened or written, is no SQLite file, or one of something else.
        """
        self.path, self.trust_mtime, self.hits = os.fspath(path), trust_mtime, 0
        self._lock = threading.Lock()
        if not Path(self.path).absolute().parent.is_dir():
            raise CacheError("cannot open the cache: its folder does not exist", path=self.path)
        with self._as_cache_error():
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> ScoreCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; every entry is on disk already."""
        with self._lock:
            self._db.close()

    def get(self, content_hash: str, settings: bytes) -> Entry | None:
        """The entry of an image, if there is one.

        Args:
            content_hash: ``"sha256:..."``.
            settings: `Scorer.settings_key`.

        Raises:
            CacheError: the file cannot be read.
        """
        with self._as_cache_error(), self._lock:
            row = self._db.execute(
                "SELECT patch_values, width, height FROM scores WHERE content_hash = ? AND settings = ?",
                (_packed(content_hash), settings),
            ).fetchone()
            if row is None:
                return None
            self.hits += 1
            values, width, height = row
            return Entry(struct.unpack(f"<{len(values) // 8}d", values), width, height)

    def put(self, content_hash: str, settings: bytes, entry: Entry) -> None:
        """Remembers an image; at once, so that whatever ends the program loses nothing.

        Raises:
            CacheError: the file cannot be written.
        """
        values = struct.pack(f"<{len(entry.patch_values)}d", *entry.patch_values)
        self._write(
            "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)",
            (_packed(content_hash), settings, values, entry.width, entry.height),
        )

    def known_hash(self, state: FileState) -> str | None:
        """The content hash of a file that has not changed since `remember_file`, as far as its state tells."""
        with self._as_cache_error(), self._lock:
            row = self._db.execute(
                "SELECT content_hash FROM files WHERE path = ? AND size = ? AND mtime_ns = ?", state
            ).fetchone()
        return None if row is None else f"sha256:{row[0].hex()}"

    def remember_file(self, state: FileState, content_hash: str) -> None:
        """Notes which content a file has.  ``state`` must have been taken before the file was read.

        A file that was changed within the last two seconds is not noted: with time stamps as coarse as many file
        systems', a second change could not be told.
        """
        if time.time_ns() - state.mtime_ns > RACY_NS and self.known_hash(state) != content_hash:
            self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (*state, _packed(content_hash)))

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._as_cache_error(), self._lock:
            self._db.execute(statement, values)

    def _prepare(self) -> None:
        with self._as_cache_error():
            with self._transaction("BEGIN"):
                self._is_new()  # before anything is changed in a file that may be somebody else's
            with contextlib.suppress(sqlite3.OperationalError):
                # Readers and a writer do not wait for each other.  Where the file system cannot do that, or another
                # process is opening the file right now, it works without.
                self._db.execute("PRAGMA journal_mode = WAL")
            # After a power cut the last entries may be missing, which costs only time.
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._transaction("BEGIN IMMEDIATE"):  # fails where nothing may be written
                if self._is_new():
                    for statement in _TABLES:
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")  # a write, to know now that there can be one

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        """All statements see one state of the file, whatever other processes do meanwhile."""
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _is_new(self) -> bool:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) == (0, 0, 0):
            return True
        if application != APPLICATION_ID:
            raise CacheError("is an SQLite file of another program, not a cache of scores", path=self.path)
        if version != VERSION:
            raise CacheError(
                f"the cache has version {version}, expected {VERSION}",
                path=self.path,
                hint="It was written by another version of grmp_score; remove it or name another file",
            )
        return False

    @contextlib.contextmanager
    def _as_cache_error(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "not a database" in text:
                raise CacheError("is not an SQLite file, so not a cache of scores", path=self.path) from error
            raise CacheError(f"cannot use the cache: {text}", path=self.path) from error


def _packed(content_hash: str) -> bytes:
    return bytes.fromhex(content_hash.removeprefix("sha256:"))
