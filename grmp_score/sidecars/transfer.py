"""Copies, moves and links images together with their sidecars, writes down what was done, and undoes it."""

from __future__ import annotations

import contextlib
import datetime
import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from grmp_score.errors import DataError
from grmp_score.images.remote import is_address
from grmp_score.sidecars.ratings import others_of, sidecars_of

How = Literal["copy", "move", "link"]

#: First line of a log.
_HEADER = {"grmp_score": "transfer", "version": 1}


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        done: images that were copied, moved or linked; or files that were put back.
        refused: what was left as it is: the file and why.
        log: what `undo` takes; None where nothing was done.
    """

    done: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    log: Path | None = None


def transfer(images: Iterable[str], folder: str | Path, how: How) -> Outcome:
    """Copies, moves or links images into a folder, under their own names, with their sidecars.

    Nothing is ever written over: an image of whose files one is there already is left out, and so is one that
    would get the name of another.  A sidecar that also belongs to an image that stays is copied, not moved.  Images
    that lie in the folder already are left alone.

    Args:
        images: files on this disk.
        folder: made where it is missing.
        how: ``"link"`` makes symbolic links to the absolute paths.

    Raises:
        OSError: the folder or the log in it cannot be made.
    """
    outcome, target = Outcome(), os.path.abspath(folder)
    sources = list(dict.fromkeys(image if is_address(image) else os.path.abspath(image) for image in images))
    plan = list(_plan(sources, target, how, outcome))
    if not plan:
        return outcome
    made, parent = list[str](), target
    while not os.path.isdir(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    os.makedirs(target, exist_ok=True)
    outcome.log = Path(target, f"grmp-score-{datetime.datetime.now():%Y%m%d-%H%M%S-%f}.jsonl")
    with open(outcome.log, "x", encoding="ascii") as log:
        _note(log, _HEADER)
        for path in reversed(made):
            _note(log, {"do": "make", "to": path})
        for files in plan:
            try:
                for do, source, to in files:
                    if os.path.lexists(to):
                        raise FileExistsError(0, "exists already", to)
                    _note(log, {"do": do, "from": source, "to": to})  # first, so that a killed run can be undone
                    _DO[do](source, to)
                outcome.done += 1
            except OSError as error:
                outcome.refused.append((files[0][1], f"{error.filename or files[0][2]}: {error.strerror or error}"))
    return outcome


def undo(log: str | Path) -> Outcome:
    """Takes back what a log says, the last first.

    Moved files go back to where they were, if nothing else is there now.  Copies are removed if they are the same
    as their originals, byte by byte, and links if they still lead there.  When all is done the log is removed, and
    the folders that were made for it if they are empty.  What is refused stays in the log, to be tried again.

    Raises:
        DataError: the file is no such log.
    """
    entries = _read_log(log)
    outcome = Outcome(log=Path(log))
    for entry in reversed(entries):
        if entry["do"] == "make":
            continue
        try:
            outcome.done += _take_back(entry["do"], entry["from"], entry["to"])
        except OSError as error:
            outcome.refused.append((entry["to"], error.strerror or str(error)))
    if not outcome.refused:
        os.unlink(log)
        for entry in reversed(entries):
            if entry["do"] == "make":
                with contextlib.suppress(OSError):  # other things are in it
                    os.rmdir(entry["to"])
    return outcome


def _plan(sources: list[str], folder: str, how: How, outcome: Outcome) -> Iterator[list[tuple[str, str, str]]]:
    """For each image what to do (copy, move, link), from where and to where, the image before its sidecars."""
    taken, wanted = dict[str, str](), set(sources)
    for image in sources:
        if is_address(image) or not os.path.isfile(image):
            outcome.refused.append((image, "no file on this disk"))
            continue
        if os.path.realpath(os.path.dirname(image)) == os.path.realpath(folder):
            continue
        if how == "move" and os.path.islink(image):
            outcome.refused.append((image, "is a link, which need not lead anywhere from another place"))
            continue
        files = [(str(how), image)]
        for sidecar in sidecars_of(image):
            shared = not sidecar.startswith(image) and any(other not in wanted for other in others_of(image))
            if taken.get(os.path.join(folder, os.path.basename(sidecar))) != sidecar:  # not with another IMG.*
                files.append(("copy" if shared and how == "move" else str(how), sidecar))
        steps = [(do, source, os.path.join(folder, os.path.basename(source))) for do, source in files]
        there = next((to for _, _, to in steps if os.path.lexists(to)), None)
        other = next((taken[to] for _, _, to in steps if to in taken), None)
        if there is not None or other is not None:
            why = f"{there} exists already" if there is not None else f"{other} has the same name"
            outcome.refused.append((image, why))
            continue
        taken.update({to: source for _, source, to in steps})
        yield steps


def _copy(source: str, to: str) -> None:
    with open(source, "rb") as read, open(to, "xb") as write:
        try:
            shutil.copyfileobj(read, write, 1 << 20)
        except BaseException:  # a full disk, Ctrl-C
            os.unlink(to)
            raise
    shutil.copystat(source, to)


_DO: dict[str, Callable[[str, str], object]] = {"copy": _copy, "move": shutil.move, "link": os.symlink}


def _note(log: IO[str], entry: object) -> None:
    log.write(json.dumps(entry) + "\n")
    log.flush()


def _read_log(path: str | Path) -> list[dict[str, str]]:
    try:
        with open(path, encoding="ascii") as file:
            header, *entries = [json.loads(line) for line in file if line.endswith("\n")]
        wrong = header != _HEADER or not all(
            entry["do"] == "make" or (entry["do"] in _DO and isinstance(entry["from"], str)) for entry in entries
        )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    except (ValueError, KeyError, TypeError):
        wrong = True
    if wrong:
        raise DataError("is no log of copied, moved or linked images", path=path)
    return entries


def _take_back(do: str, source: str, to: str) -> bool:
    """Takes one step back; False where that has been done already.

    Raises:
        OSError: it would destroy something; the reason is its ``strerror``.
    """
    if not os.path.lexists(to):
        if os.path.lexists(source):
            return False
        raise OSError(0, f"is gone, and so is {source}")
    if do == "move":
        if os.path.lexists(source):
            raise OSError(0, f"cannot go back: {source} exists")
        os.makedirs(os.path.dirname(source), exist_ok=True)
        shutil.move(to, source)
        return True
    if do == "link":
        if not os.path.islink(to) or os.readlink(to) != source:
            raise OSError(0, "is no longer the link that was made")
    elif not os.path.isfile(source):
        raise OSError(0, f"is kept: the original, {source}, is gone")
    elif not filecmp.cmp(source, to, shallow=False):
        raise OSError(0, "is kept: it differs from its original")
    os.unlink(to)
    return True
