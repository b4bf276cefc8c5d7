"""Reads a CSV that a person made; whatever is wrong with it is named by file, row and value.

Rows are numbered by line, as an editor counts them: the header is row 1 when nothing stands above it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from grmp_score.errors import DataError

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
#: First bytes of files that are taken for CSV most often.
_MAGIC = {
    b"PK\x03\x04": "an Excel, Numbers or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a gzip file",
}


@dataclass(frozen=True)
class Table:
    """A CSV file as text.

    Attributes:
        path: where it was read.
        header: names of the columns, surrounding spaces removed.
        rows: row number and cells, surrounding spaces removed, as many as ``header`` has; empty lines left out.
        delimiter: what separates the cells.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    delimiter: str = ","

    def find(self, name: str) -> int | None:
        """Position of the column of this name, without regard to case and surrounding spaces."""
        wanted = name.strip().casefold()
        return next((i for i, column in enumerate(self.header) if column.casefold() == wanted), None)


def read_table(path: str | Path, known: Collection[str]) -> Table:
    """Reads a table with a header, separated by commas, semicolons or tabs, in UTF-8 with or without BOM.

    Args:
        path: file.
        known: names of columns that such a table may have; they decide between delimiters when a header holds
            several, and tell a header from data.

    Raises:
        DataError: the file is missing, no text, not UTF-8, empty, or without header; a row has too many or too few
            cells; a column appears twice.
    """
    path = Path(path)
    known = {name.strip().casefold() for name in known}
    text, separator = _without_preamble(_text(path))
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = separator or _delimiter(first, known, path)
    header: tuple[str, ...] = ()
    rows = []
    # Without strict=True a quote that is never closed would swallow the rest of the file in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    end = 0
    try:
        for cells in reader:
            number, end = end + 1, reader.line_num
            row = tuple(cell.strip() for cell in cells)
            if not any(row):
                continue
            if not header:
                header = row
                _check_header(header, number, known, path)
            elif len(row) != len(header):
                raise DataError(
                    f"row {number} has {len(row)} cells, expected {len(header)} as in the header: {shown(row)}",
                    path=path,
                    hint="A value that holds a comma needs quotes, a decimal comma must be a point",
                )
            else:
                rows.append((number, row))
    except csv.Error as error:
        raise DataError(f"row {end + 1} is not valid CSV: {error}", path=path, hint="Check its quotes") from error
    return Table(path, header, tuple(rows), delimiter)


def _without_preamble(text: str) -> tuple[str, str | None]:
    """Without comments (``#``) before the header and a spreadsheet's line ``sep=;``; and what that line says.

    They become empty lines, so that rows keep their numbers.
    """
    lines, separator = text.splitlines(keepends=True), None
    for i, line in enumerate(lines):
        content = line.strip().strip('"')
        if says := re.fullmatch(r"sep=(.?)", content, re.IGNORECASE):
            separator = says[1] or "\t"  # a tab at the end of a line is stripped
        elif content and not content.startswith("#"):
            break
        lines[i] = "\n"
    return "".join(lines), separator


def _text(path: Path) -> str:
    if path.is_dir():
        raise DataError("is a folder, expected a CSV file", path=path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("no such file, expected a CSV of labels", path=path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    hint = "Save it as CSV in UTF-8"
    for magic, kind in _MAGIC.items():
        if data.startswith(magic):
            raise DataError(f"is {kind}, expected CSV in UTF-8", path=path, hint=hint)
    if b"\0" in data:
        raise DataError("is a binary file or UTF-16 text, expected CSV in UTF-8", path=path, hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DataError(f"row {row} is not UTF-8: byte 0x{byte:02x}", path=path, hint=hint) from error
    if not text.strip():
        raise DataError("the file is empty, expected a header and one row per image", path=path)
    return text


def _delimiter(header: str, known: Collection[str], path: Path) -> str:
    """The delimiter by which the header falls into most known columns."""
    present = [d for d in _DELIMITERS if d in header]
    if not present:
        return ","
    found = {d: sum(c.strip(' "').casefold() in known for c in header.split(d)) for d in present}
    best = [d for d in present if found[d] == max(found.values())]
    if len(best) > 1 and found[best[0]] > 0:
        names = " and ".join(_DELIMITERS[d] for d in best)
        raise DataError(f"the header can be split by {names}: {shown(header)}", path=path, hint="Use commas only")
    return best[0]


def _check_header(header: tuple[str, ...], number: int, known: Collection[str], path: Path) -> None:
    names = [name.casefold() for name in header]
    hint = "Add a first row such as: image,mos"
    if not any(name in known for name in names):
        if any(re.fullmatch(r"[-+]?[\d.,]+", name) or re.search(r"\.[a-z]{3,4}$", name) for name in names):
            raise DataError(f"no header, row {number} is data: {shown(header)}", path=path, hint=hint)
        if len(header) == 1:
            raise DataError(
                f"one column only: {shown(header[0])}, expected columns separated by commas, semicolons or tabs",
                path=path,
                hint=hint,
            )
    for name in header:
        if name and names.count(name.casefold()) > 1:
            raise DataError(f"the column {shown(name)} appears twice", path=path, hint="Rename one of them")


def shown(value: object, width: int = 60) -> str:
    """A value on one line; a long one without its middle, for paths tell most at their end."""
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= width else f"{text[: width // 3]}...{text[3 - (width - width // 3) :]}"
