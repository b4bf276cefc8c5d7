"""Going on with the results of a stopped run: nothing lost, nothing twice, nothing else taken for results."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from grmp_score.errors import ResultsError
from grmp_score.report.resume import Earlier, read_earlier
from grmp_score.report.rows import WeightsInfo, parse_fields
from grmp_score.report.writers import DELIMITERS, DelimitedWriter, JsonLinesWriter
from grmp_score.score import FailedScore, Score

MODEL = WeightsInfo("tiny", lambda: "0123456789abcdef")
NAMES = ["a.png", 'quo"te, comma.png', "new\nline.png", "lone\rreturn.png", "invalid \udcff.png", "\N{CAMERA}.png"]


def written(output_format: str, fields: str = "path,score,patches,model,checksum,error") -> bytes:
    """A file with a row for each of `NAMES`, the last one an error."""
    text = io.StringIO(newline="")
    names = parse_fields(fields)
    if output_format == "jsonl":
        writer: JsonLinesWriter | DelimitedWriter = JsonLinesWriter(text, MODEL, names)
    else:
        writer = DelimitedWriter(text, MODEL, names, delimiter=DELIMITERS[output_format])
    for name in NAMES[:-1]:
        writer.write(Score(0.5, 0.1, 0.05, (0.4, 0.6), name, 3, 4))
    writer.write(FailedScore("broken, badly", path=NAMES[-1]))
    return text.getvalue().encode("utf-8", "surrogateescape")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where results lie."""
    return tmp_path / "out"


def read(out: Path, data: bytes, output_format: str) -> Earlier:
    """What is understood of a file with this content, which stays as it is."""
    out.write_bytes(data)
    earlier = read_earlier(out, output_format)
    assert out.read_bytes() == data
    return earlier


@pytest.mark.parametrize("output_format", ["jsonl", "csv", "tsv"])
def test_whatever_a_file_was_torn_to_is_continued_without_gap(output_format: str, out: Path) -> None:
    """Cut at any byte, the rows that are kept are complete, and they and what remains are all images once."""
    data = written(output_format)
    whole = read(out, data, output_format)
    assert (whole.rows, whole.failed, whole.size, whole.patches) == (6, 1, len(data), {2})
    assert whole.fields == ("path", "score", "patches", "model", "checksum", "error")
    assert list(whole.remaining(NAMES)) == []
    sizes = {len(data): 6}
    for length in reversed(range(len(data))):
        os.truncate(out, length)
        earlier = read_earlier(out, output_format)
        assert list(earlier.remaining(NAMES)) == NAMES[earlier.rows :]
        assert earlier.size <= length and sizes.setdefault(earlier.size, earlier.rows) == earlier.rows
    header = [] if output_format == "jsonl" else [0]
    assert sorted(sizes.values()) == [*header, *range(7)]  # nothing but whole rows is kept


@pytest.mark.parametrize("output_format", ["jsonl", "csv"])
def test_only_the_end_may_be_torn(output_format: str, out: Path) -> None:
    """Damage in the middle is named with its line; zeros at the end, as after a power cut, are cut off."""
    lines = written(output_format).splitlines(keepends=True)
    assert read(out, b"".join(lines[:2]) + b"\0" * 40, output_format).size == len(b"".join(lines[:2]))
    with pytest.raises(ResultsError, match=r"out: line 2 is no row of results"):
        read(out, lines[0] + b"garbage\n" + b"".join(lines[1:]), output_format)


def test_a_line_is_that_of_an_editor(out: Path) -> None:
    """Names with line ends do not shift the numbers in messages."""
    rows = written("csv").splitlines(keepends=True)
    assert rows[3].endswith(b"new\n")
    with pytest.raises(ResultsError, match=r"out: line 6 is no row of results"):
        read(out, b"".join(rows[:5]) + b"garbage\n" + rows[5], "csv")


def test_tables_that_went_through_a_spreadsheet(out: Path) -> None:
    """Numbers of patches may have become decimal."""
    assert read(out, b"path,checksum,patches\na.png,c,10.0\n", "csv").patches == {10}


def test_an_image_that_is_named_twice_has_two_rows(out: Path) -> None:
    """A path is left out as often as it has a row."""
    earlier = read(out, written("jsonl") + written("jsonl"), "jsonl")
    assert list(earlier.remaining(["a.png", "a.png", "b.png", "a.png"])) == ["b.png", "a.png"]
    assert list(earlier.remaining(["a.png"])) == []  # and asking does not use them up


@pytest.mark.parametrize(
    ("data", "output_format", "reason"),
    [
        (b"Dear Anna,\nthank you for the photos.\n", "jsonl", "line 1 is no row"),
        (b"Dear Anna", "jsonl", "something else"),
        (b"Dear Anna", "csv", "something else"),
        (b"Dear Anna,\nthank you\n", "csv", "unknown fields"),
        (b'{"a": 1}\n', "jsonl", "unknown fields"),
        (b"\x89PNG\r\n\x1a\n\0\0", "tsv", "unknown fields"),
        (b'{"path": "a.png", "score": 0.5}\n', "jsonl", "no field 'checksum'"),
        (b"checksum,score\nx,0.5\n", "csv", "no field 'path'"),
        (b'{"path": "a", "checksum": "c", "patches": "many"}\n', "jsonl", "line 1 is no row"),
    ],
)
def test_other_files_are_refused(data: bytes, output_format: str, reason: str, out: Path) -> None:
    """A letter, a picture, rows that do not tell what is done: nothing is ever cut off them."""
    with pytest.raises(ResultsError, match=reason):
        read(out, data, output_format)


def test_rows_of_another_model_are_refused(out: Path) -> None:
    """Scores of two models, or of two numbers of patches, in one file could not be compared."""
    earlier = read(out, written("csv"), "csv")
    earlier.check(MODEL, 2, path=out)
    with pytest.raises(ResultsError, match=r"'tiny' \(checksum 0123456789abcdef\).* 'tiny' \(ffff\)"):
        earlier.check(WeightsInfo("tiny", lambda: "ffff"), 2, path=out)
    with pytest.raises(ResultsError, match="scores of 2 patches per image, this run would use 10"):
        earlier.check(MODEL, 10, path=out)
