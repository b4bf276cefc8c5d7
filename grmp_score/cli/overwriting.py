"""What a command may write over: its own results, and nothing else.

``grmp-score -o *.jpg`` names a photo as the place for the results: the shell puts the first one behind ``-o``.
Every command that writes a file asks `check_output` before anything is read, every one that writes a folder
`check_folder`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click

from grmp_score.images.formats import HEADER_LENGTH, SUFFIXES, picture_in
from grmp_score.report.rows import FIELDS

#: Beginnings and ends of the tables for people that this package writes.
_OWN_TEXT = re.compile(
    r"p\(high quality\): 0 bad \.\. 1 good; model "  # `grmp_score.report.table`
    r"|^\d+ of \d+ images; .* is better"  # `grmp_score.report.evaluation`
    r'|<meta name="generator" content="grmp_score',  # `grmp_score.report.html`
    re.MULTILINE,
)


def check_output(output: Path | None, inputs: Iterable[str | Path], *, overwrite: bool = False) -> None:
    """Refuses to write a file over what is none of our results.

    Args:
        output: the file to write; None, pipes and devices are let pass.
        inputs: everything that the command reads, files, folders and addresses.
        overwrite: replace any file that is neither an input nor an image.

    Raises:
        click.UsageError: it is an input of this run, an image (by its suffix or its content), or a file that this
            package has not written.
    """
    if output is None:
        return
    image = output.suffix.lower() in SUFFIXES
    instead = "name another file behind -o"
    if image:
        instead = f"name the file for the results behind -o ({output.stem}.csv) and the images without it"
    there = output.is_file()
    if there and any(_same(output, name) for name in inputs):
        raise click.UsageError(f"cannot write {output}: it is an input of this run; {instead}")
    if image:
        raise click.UsageError(f"cannot write {output}: results are no {output.suffix} file; {instead}")
    if not there:
        return
    with open(output, "rb") as file:
        header = file.read(HEADER_LENGTH)
    if picture_in(header):
        raise click.UsageError(f"cannot write {output}: it holds an image; {instead}")
    if not overwrite and not _is_ours(output):
        raise click.UsageError(
            f"cannot write {output}: the file is there and holds no results of grmp-score; {instead}, or replace "
            "it with --overwrite"
        )


def check_folder(output: Path) -> None:
    """Refuses to write weights into a folder of other things.

    Raises:
        click.UsageError: the folder holds something, and no weights.
    """
    from grmp_score import weights

    if output.is_dir() and any(output.iterdir()):
        with suppress(OSError, ValueError):
            if "format_version" in json.loads((output / weights.CONFIG).read_text(encoding="utf-8")):
                return
        raise click.UsageError(f"cannot write {output}: the folder holds other things; name a new one behind -o")


def _same(output: Path, name: str | Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(output, name)
    return False


def _is_ours(path: Path) -> bool:
    """Whether this package has written a file; one without content belongs to nobody."""
    size = path.stat().st_size
    if not size:
        return True
    with open(path, "rb") as file:
        begin = file.read(1 << 16)
        file.seek(max(0, size - 4096))
        end = file.read()
    if begin.startswith(b"PAR1"):  # Parquet: its schema is at the end
        return all(name in end for name in (b"path", b"score", b"checksum"))
    text = begin.decode("utf-8", "replace").removeprefix("\ufeff")
    first = text.splitlines()[0] if text.strip() else ""
    if first.startswith("{"):
        with suppress(ValueError):
            row = json.loads(first)
            return set(row) <= set(FIELDS) and bool(row)
        return '"model"' in text and '"higher_is_better"' in text  # `grmp-score evaluate --format json`
    if any(set(first.split(delimiter)) <= set(FIELDS) for delimiter in ",\t"):
        return True
    return bool(_OWN_TEXT.search(text) or _OWN_TEXT.search(end.decode("utf-8", "replace")))
