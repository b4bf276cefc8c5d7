"""Scores for programs: CSV, tab-separated values, JSON lines, Parquet, and bare paths."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from grmp_score.errors import MissingExtraError
from grmp_score.report.rows import COLUMNS, FIELDS, Value, WeightsInfo, row

if TYPE_CHECKING:
    from grmp_score.score import AnyScore

FORMATS = ("table", "csv", "tsv", "jsonl", "parquet", "paths")

#: Formats that have fields, and those of them that a later run can add rows to.
FIELD_FORMATS = ("csv", "tsv", "jsonl", "parquet")
RESUMABLE = ("csv", "tsv", "jsonl")

#: Separator of the delimited formats.
DELIMITERS = {"csv": ",", "tsv": "\t"}

#: Rows that are held before they are written to a Parquet file.
ROW_GROUP = 1000


class Writer(Protocol):
    """Takes scores one by one."""

    def write(self, score: AnyScore) -> None: ...

    def close(self) -> None: ...


class DelimitedWriter:
    """Separated values with a header; an error leaves the score empty."""

    def __init__(
        self,
        stream: IO[str],
        weights: WeightsInfo,
        fields: Sequence[str] = FIELDS,
        *,
        delimiter: str = ",",
        header: bool = True,
    ) -> None:
        self._stream, self._weights, self._fields, self._delimiter = stream, weights, tuple(fields), delimiter
        if header:
            self._line(self._fields)

    def write(self, score: AnyScore) -> None:
        self._line(row(score, self._weights, self._fields).values())

    def close(self) -> None:
        self._stream.flush()

    def _line(self, values: Any) -> None:
        self._stream.write(self._delimiter.join(self._cell(value) for value in values) + "\n")
        self._stream.flush()

    def _cell(self, value: Value) -> str:
        text = "" if value is None else str(value)
        # The standard library's writer leaves a lone carriage return bare, and its own reader stumbles over it.
        if any(letter in text for letter in (self._delimiter, '"', "\n", "\r")):
            return '"' + text.replace('"', '""') + '"'
        return text


class JsonLinesWriter:
    """One JSON object per line."""

    def __init__(self, stream: IO[str], weights: WeightsInfo, fields: Sequence[str] = FIELDS) -> None:
        self._stream, self._weights, self._fields = stream, weights, tuple(fields)

    def write(self, score: AnyScore) -> None:
        self._stream.write(json.dumps(row(score, self._weights, self._fields)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class PathsWriter:
    """The paths of what could be scored and nothing else, byte by byte, for other programs."""

    def __init__(self, stream: IO[str], end: str = "\n") -> None:
        self._stream, self._end = stream, end

    def write(self, score: AnyScore) -> None:
        if score.error is None:
            self._stream.write((score.path or "") + self._end)
            self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class ParquetWriter:
    """An Apache Parquet file, written in groups of `ROW_GROUP` rows."""

    def __init__(self, file: str | Path, weights: WeightsInfo, fields: Sequence[str] = FIELDS) -> None:
        """Makes the file.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        pyarrow, parquet = import_pyarrow()
        kinds = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
        self._schema = pyarrow.schema([(name, kinds[COLUMNS[name].kind]) for name in fields])
        self._table = pyarrow.Table
        self._writer = parquet.ParquetWriter(os.fspath(file), self._schema)
        self._weights, self._fields, self._rows = weights, tuple(fields), list[dict[str, Value]]()

    def write(self, score: AnyScore) -> None:
        self._rows.append(row(score, self._weights, self._fields))
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its module for Parquet.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("the Parquet format", "pyarrow", "parquet") from error
    return pyarrow, pyarrow.parquet
