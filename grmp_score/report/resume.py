"""Results of a run that was stopped, read so that another one can go on with them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grmp_score.errors import ResultsError
from grmp_score.report.rows import FIELDS, WeightsInfo, unicode_text
from grmp_score.report.writers import DELIMITERS

#: Without these fields it cannot be known what is done, and by which model.
NEEDED = ("path", "checksum")


@dataclass
class Earlier:
    """What a file of results holds already.  A million rows take some 250 MB: their paths are kept.

    Attributes:
        fields: of its rows; None when there are none yet.
        rows: how many.
        failed: how many of them are errors.  These images are not tried again; without their rows they are.
        size: bytes up to the end of the last complete row; what follows was torn off when the run was stopped.
        models: checksum of a model that rows are of -> its name.
        patches: numbers of patches per image.
        done: path as `unicode_text` -> how many rows it has.
    """

    fields: tuple[str, ...] | None = None
    rows: int = 0
    failed: int = 0
    size: int = 0
    models: dict[str, str] = field(default_factory=dict)
    patches: set[int] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def check(self, model: WeightsInfo, patches: int, *, path: Path) -> None:
        """The rows are of this model with this number of patches per image.

        Raises:
            ResultsError: they are of another, and the scores could not be compared.
        """
        for checksum, name in self.models.items():
            if checksum != model.checksum:
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
        """The paths that have no row yet; one that is named twice needs two."""
        left = self.done.copy()
        for path in paths:
            if left[unicode_text(path)] > 0:
                left[unicode_text(path)] -= 1
            else:
                yield path

    def add(self, record: Mapping[str, Any]) -> None:
        """Notes a row.

        Raises:
            KeyError, ValueError: it is none.
        """
        if record.get("patches"):
            self.patches.add(int(float(record["patches"])))
        self.done[unicode_text(str(record["path"] or ""))] += 1
        self.models.setdefault(str(record["checksum"] or ""), str(record.get("model") or ""))
        self.rows += 1
        self.failed += bool(record.get("error"))


def read_earlier(path: Path, output_format: str) -> Earlier:
    """Reads what an earlier run wrote.  Only a row that is the last one may be incomplete.

    Args:
        path: the file.
        output_format: one of `RESUMABLE`.

    Raises:
        ResultsError: it holds something else, or lacks the fields of `NEEDED`.
    """
    earlier, line, torn = Earlier(), 1, b""
    for row in _rows(path, quoting=output_format != "jsonl"):
        if torn:
            raise ResultsError(f"line {line} is no row of results in the format {output_format}", path=path)
        record = _parse(row, output_format, earlier.fields)
        if record is None:
            torn = row
            continue
        is_header = earlier.fields is None and output_format != "jsonl"
        if earlier.fields is None:
            earlier.fields = _known_fields(record, path)
        if not is_header:
            try:
                earlier.add(record)
            except (KeyError, ValueError) as error:
                raise ResultsError(f"line {line} is no row of results", path=path) from error
        line += row.count(b"\n")
        earlier.size += len(row)
    if torn and earlier.fields is None and not _may_begin_results(torn, output_format):
        raise ResultsError(f"holds something else than results in the format {output_format}", path=path)
    return earlier


def _rows(path: Path, *, quoting: bool) -> Iterator[bytes]:
    """Rows with their ends, as they stand in the file.  With quotes a row goes on until all of them are closed."""
    lines, quotes = list[bytes](), 0
    with open(path, "rb") as file:
        for line in file:
            lines.append(line)
            quotes += line.count(b'"') if quoting else 0
            if quotes % 2 == 0:
                yield b"".join(lines)
                lines.clear()
    if lines:
        yield b"".join(lines)


def _parse(row: bytes, output_format: str, fields: Sequence[str] | None) -> dict[str, Any] | None:
    """A row by its fields; the first of a delimited file, its header, names them.  None: it is not complete."""
    if not row.endswith(b"\n"):
        return None
    if output_format == "jsonl":
        try:
            record = json.loads(row)
        except ValueError:
            return None
        return record if isinstance(record, dict) else None
    text = row.decode("utf-8", "surrogateescape")
    try:
        (cells,) = csv.reader([text], delimiter=DELIMITERS[output_format], strict=True)
    except csv.Error:
        return None
    names = cells if fields is None else fields
    return dict(zip(names, cells, strict=True)) if len(names) == len(cells) > 0 else None


def _known_fields(record: Iterable[str], path: Path) -> tuple[str, ...]:
    fields = tuple(record)
    unknown = [name for name in fields if name not in FIELDS]
    missing = [name for name in NEEDED if name not in fields]
    if unknown or missing:
        what = f"unknown fields {unknown}" if unknown else f"no field {missing[0]!r}, which tells what is done"
        raise ResultsError(f"cannot go on with results that have {what}", path=path)
    return fields


def _may_begin_results(head: bytes, output_format: str) -> bool:
    """Whether a file without one complete row is what a stopped run may have left, and not somebody's letter."""
    opening = b'{"' if output_format == "jsonl" else b""
    if len(head) <= len(opening):
        return opening.startswith(head)
    word = re.match(rb"\w+", head.removeprefix(opening))
    return head.startswith(opening) and word is not None and any(f.startswith(word[0].decode()) for f in FIELDS)
