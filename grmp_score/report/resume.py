"""Results of a run that was stopped, read so that another one can go on with them."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from grmp_score.errors import ResultsError
from grmp_score.report.rows import FIELDS, WeightsInfo
from grmp_score.report.writers import DELIMITERS

#: Without these fields it cannot be known what is done, and by which model.
NEEDED = ("path", "checksum")


@dataclass
class Earlier:
    """What a file of results holds already.

    Attributes:
        fields: of its rows; None when there are none yet.
        rows: how many.
        failed: how many of them are errors.  These images are not tried again; without their rows they are.
        size: bytes up to the end of the last complete row; what follows was torn off when the run was stopped.
        models: checksum of a model that rows are of -> its name.
        patches: numbers of patches per image.
    """

    fields: tuple[str, ...] | None = None
    rows: int = 0
    failed: int = 0
    size: int = 0
    models: dict[str, str] = field(default_factory=dict)
    patches: set[int] = field(default_factory=set)
    _done: Counter[bytes] = field(default_factory=Counter)

    def check(self, model: WeightsInfo, patches: int, *, path: str) -> None:
        """The rows are of this model with this number of patches per image.

        Raises:
            ResultsError: they are of another, and the scores could not be compared.
        """
        others = {checksum: name for checksum, name in self.models.items() if checksum != model.checksum}
        for checksum, name in others.items():
            raise ResultsError(
                f"holds results of the model {name!r} (checksum {checksum}), this run would use "
                f"{model.name!r} ({model.checksum})",
                path=path,
                hint="Use that model, or write to another file",
            )
        if self.patches - {patches}:
            raise ResultsError(
                f"holds scores of {min(self.patches - {patches})} patches per image, this run would use {patches}",
                path=path,
                hint="Use that number of patches, or write to another file",
            )

    def remaining(self, paths: Iterable[str]) -> Iterator[str]:
        """The paths that have no row yet; one that stands there twice needs two."""
        left = Counter(self._done)
        for path in paths:
            key = _key(path)
            if left[key] > 0:
                left[key] -= 1
            else:
                yield path

    def _add(self, record: dict[str, str | None]) -> None:
        self.rows += 1
        self.failed += bool(record.get("error"))
        self._done[_key(record["path"] or "")] += 1
        self.models.setdefault(record["checksum"] or "", record.get("model") or "")
        if record.get("patches"):
            self.patches.add(int(float(record["patches"] or 0)))


def read_earlier(file: BinaryIO, output_format: str, *, path: str) -> Earlier:
    """Reads results from the beginning.  Only a row that is the last one may be incomplete.

    Args:
        file: what an earlier run wrote.
        output_format: one of `RESUMABLE`.
        path: its name, for errors.

    Raises:
        ResultsError: it holds something else, or lacks the fields of `NEEDED`.
    """
    earlier = Earlier()
    rows = _json_rows(file) if output_format == "jsonl" else _delimited_rows(file, DELIMITERS[output_format])
    torn = 0
    for item in rows:
        if torn:
            raise ResultsError(f"line {torn} is no row of results in the format {output_format}", path=path)
        if item.record is None:
            torn = item.line
            continue
        if earlier.fields is None:
            earlier.fields = tuple(item.record)
            unknown = [name for name in earlier.fields if name not in FIELDS]
            missing = [name for name in NEEDED if name not in earlier.fields]
            if unknown or missing:
                what = (
                    f"unknown fields {unknown}" if unknown else f"no field {missing[0]!r}, which tells what is done"
                )
                raise ResultsError(f"cannot go on with results that have {what}", path=path)
        try:
            if not item.header:
                earlier._add(item.record)
        except (KeyError, ValueError) as error:
            raise ResultsError(f"line {item.line} is no row of results", path=path) from error
        earlier.size = item.end
    if torn and earlier.fields is None:
        file.seek(0)
        if not _begins_like_results(file.read(64), output_format):
            raise ResultsError(f"holds something else than results in the format {output_format}", path=path)
    return earlier


def _begins_like_results(head: bytes, output_format: str) -> bool:
    """Whether a file without one complete row is what a stopped run may have left, and not somebody's letter."""
    if output_format == "jsonl":
        if head in (b"{", b'{"'):
            return True
        if not head.startswith(b'{"'):
            return False
        head = head[2:]
    name = re.match(rb"\w+", head)
    return name is not None and any(field.startswith(name[0].decode()) for field in FIELDS)


class _Item(NamedTuple):
    line: int
    end: int  # offset in bytes
    record: dict[str, str | None] | None  # None: not a row
    header: bool = False


def _json_rows(file: BinaryIO) -> Iterator[_Item]:
    end = 0
    for number, line in enumerate(file, start=1):
        end += len(line)
        record = None
        if line.endswith(b"\n"):
            try:
                parsed = json.loads(line)
            except ValueError:
                parsed = None
            if isinstance(parsed, dict):
                record = {name: None if value is None else str(value) for name, value in parsed.items()}
        yield _Item(number, end, record)


class _Lines:
    """The lines of a file as text, with where the last one ended."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.number, self.end, self.complete = file, 0, 0, True

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number, self.end, self.complete = self.number + 1, self.end + len(line), line.endswith(b"\n")
            yield line.decode("utf-8", "surrogateescape")


def _delimited_rows(file: BinaryIO, delimiter: str) -> Iterator[_Item]:
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    fields: list[str] | None = None
    while True:
        first = lines.number + 1
        try:
            cells = next(reader, None)
        except csv.Error:
            cells = []
        if cells is None:
            return
        whole = lines.complete and len(cells) == len(fields if fields is not None else cells) > 0
        if fields is None and whole:
            fields = cells
            yield _Item(first, lines.end, dict.fromkeys(fields), header=True)
        else:
            record = (
                {name: cell or None for name, cell in zip(fields or [], cells, strict=False)} if whole else None
            )
            yield _Item(first, lines.end, record)


def _key(path: str) -> bytes:
    """A path in 16 bytes: a million of them take little memory."""
    return hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()
