"""The files of a rater: every change is on disk, whole, before it is answered; several raters may share a file."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from grmp_score.errors import DataError
from grmp_score.files import replacing
from grmp_score.trainer.data.tables import read_table, shown

Cells = tuple[str, ...]


class SharedTable:
    """A CSV that several programs change.

    A change reads the file anew under a lock, writes a sibling, syncs it to the disk and renames it, so that
    neither kill -9 nor a second rater's program loses or halves a row.
    """

    def __init__(self, path: Path, columns: Cells) -> None:
        """Reads what is there; a file that does not exist yet is made by the first change.

        Raises:
            DataError: the file is something else, or its folder does not exist.
        """
        self.path, self.columns = Path(os.path.realpath(path)), columns
        if not self.path.parent.is_dir():
            raise DataError("no such folder", path=path.parent, hint="Make it, or name another file")
        self.rows()

    def name_of(self, photo: str | Path) -> str:
        """What a photo is called in this file: its path from the file's folder, with ``/``."""
        try:
            return Path(os.path.relpath(os.path.abspath(photo), self.path.parent)).as_posix()
        except ValueError:  # another drive
            return Path(os.path.abspath(photo)).as_posix()

    def rows(self) -> list[tuple[int, Cells]]:
        """Number and cells of every row.

        Raises:
            DataError: the file is none of ours.
        """
        if not self.path.is_file() or not self.path.stat().st_size:
            return []
        table = read_table(self.path, self.columns)
        if table.header != self.columns:
            raise DataError(
                f"the header is {shown(table.header, 80)}, expected {','.join(self.columns)}",
                path=self.path,
                hint="Name a new file",
            )
        return list(table.rows)

    def change(self, change: Callable[[list[Cells]], Iterable[Cells]]) -> None:
        """Replaces all rows by what ``change`` makes of them."""
        from filelock import FileLock

        with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=60):
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(change([cells for _, cells in self.rows()]))
            with replacing(self.path) as temporary:
                if self.path.exists():
                    shutil.copymode(self.path, temporary)
                with open(temporary, "wb") as file:
                    file.write(text.getvalue().encode())
                    file.flush()
                    os.fsync(file.fileno())
            if os.name != "nt":  # Windows brings a rename onto the disk by itself, and opens no folders
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)


def now() -> str:
    """ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Label:
    """One row of a `LabelFile`.

    Attributes:
        image: `SharedTable.name_of` the photo.
        score: on the scale of the file; higher is better.
        rater: who gave it.
        time: when; empty where somebody else wrote the row.
        seconds: that the photo was looked at; NaN where unknown.
        repeat: what the same rater said when the photo was shown again; None if it was not.
    """

    image: str
    score: float
    rater: str
    time: str
    seconds: float
    repeat: float | None = None

    @property
    def cells(self) -> Cells:
        """As they stand in the file."""
        seconds = "" if self.seconds != self.seconds else f"{self.seconds:.1f}"
        repeat = "" if self.repeat is None else f"{self.repeat:g}"
        return self.image, f"{self.score:g}", self.rater, self.time, seconds, repeat


class LabelFile(SharedTable):
    """Labels in a CSV that `read_labels` reads: one row per image and rater."""

    def __init__(self, path: Path) -> None:
        """As `SharedTable`."""
        super().__init__(path, ("image", "score", "rater", "time", "seconds", "repeat"))

    def read(self) -> list[Label]:
        """All labels, in the order of the file.

        Raises:
            DataError: a row is none of ours; file, row and value are named.
        """
        labels: list[Label] = []
        seen: dict[tuple[str, str], int] = {}
        for number, (image, score, rater, time, seconds, repeat) in self.rows():
            try:
                again = float(repeat) if repeat else None
                labels.append(Label(image, float(score), rater, time, float(seconds or "nan"), again))
            except ValueError as error:
                raise DataError(f"row {number}: {error}, expected a number", path=self.path) from error
            first = seen.setdefault((image, rater), number)
            if first != number:
                raise DataError(
                    f"row {number}: {shown(rater)} already rated {shown(image)} in row {first}",
                    path=self.path,
                    hint="Keep one of the two rows",
                )
        return labels

    def rate(self, label: Label) -> None:
        """Adds a label at the end, in place of the one that this rater gave the image before."""
        self.change(lambda rows: [*_others(rows, label.image, label.rater), label.cells])

    def repeat(self, label: Label, score: float | None) -> Label:
        """Notes what the rater of a label said when the photo was shown again; None takes that back."""
        new = replace(label, repeat=score)
        self.change(lambda rows: [new.cells if (r[0], r[2]) == (new.image, new.rater) else r for r in rows])
        return new

    def remove(self, image: str, rater: str) -> None:
        """Removes the label that a rater gave an image, if there is one."""
        self.change(lambda rows: _others(rows, image, rater))


def _others(rows: list[Cells], image: str, rater: str) -> list[Cells]:
    return [cells for cells in rows if (cells[0], cells[2]) != (image, rater)]
