"""Images are copied, moved and linked with their sidecars; nothing is written over; undo restores all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from grmp_score.errors import DataError
from grmp_score.sidecars.transfer import How, transfer, undo

#: As photographers have them: own and shared sidecars, a RAW with its JPEG, one name in two folders.
NAMES = (
    *("a.jpg", "a.jpg.xmp", "b.CR2", "b.jpg", "b.xmp", "c.jpg", "c.XMP", "below/a.jpg", "below/d.png"),
    "notes.txt",
)


@pytest.fixture(name="photos")
def photos_fixture(tmp_path: Path) -> Path:
    """The folder of `NAMES`; the files hold their own names."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        (folder / name).write_text(name)
        os.utime(folder / name, ns=(10**18 + i, 10**18 + i))
    return folder


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Names, contents and times of all files below."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    digest = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {str(path.relative_to(folder)): (digest[path], path.stat().st_mtime_ns) for path in files}


def names_in(folder: Path) -> set[str]:
    """All but the log."""
    return {path.name for path in folder.iterdir() if path.suffix != ".jsonl"}


def images(photos: Path, *names: str) -> list[str]:
    """Paths as the command line has them."""
    return [str(photos / name) for name in names]


@pytest.mark.parametrize("how", ["copy", "move", "link"])
def test_sidecars_travel_along_and_undo_restores_everything(photos: Path, tmp_path: Path, how: How) -> None:
    """Own ones and shared ones; afterwards the tree is what it was, without the folders that were made."""
    before = state(tmp_path)
    target = tmp_path / "new" / "best"
    outcome = transfer(images(photos, "a.jpg", "b.CR2", "b.jpg", "c.jpg"), target, how)
    assert (outcome.done, outcome.refused) == (4, [])
    assert names_in(target) == {"a.jpg", "a.jpg.xmp", "b.CR2", "b.jpg", "b.xmp", "c.jpg", "c.XMP"}
    assert (target / "c.XMP").read_text() == "c.XMP"
    left = {path.name for path in photos.iterdir() if path.is_file()}
    assert left == ({"notes.txt"} if how == "move" else set(NAMES[:7]) | {"notes.txt"})
    assert outcome.log is not None
    back = undo(outcome.log)
    assert (back.done, back.refused) == (7, [])
    assert state(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_shared_sidecar_stays_with_the_image_that_stays(photos: Path, tmp_path: Path) -> None:
    """It is copied along with the one that moves."""
    before = state(tmp_path)
    outcome = transfer(images(photos, "b.jpg"), tmp_path / "best", "move")
    assert names_in(tmp_path / "best") == {"b.jpg", "b.xmp"} and (photos / "b.xmp").is_file()
    assert outcome.log is not None
    undo(outcome.log)
    assert state(tmp_path) == before


@pytest.mark.parametrize("how", ["copy", "move", "link"])
@pytest.mark.parametrize("there", ["a.jpg", "a.jpg.xmp"])
def test_nothing_is_written_over(photos: Path, tmp_path: Path, how: How, there: str) -> None:
    """An image of whose files one is there is left out with all of them; the others go."""
    target = tmp_path / "best"
    target.mkdir()
    (target / there).write_text("mine")
    outcome = transfer(images(photos, "a.jpg", "c.jpg"), target, how)
    assert outcome.done == 1 and outcome.refused == [(str(photos / "a.jpg"), f"{target / there} exists already")]
    assert (target / there).read_text() == "mine" and names_in(target) == {there, "c.jpg", "c.XMP"}
    assert (photos / "a.jpg").is_file() and (photos / "a.jpg.xmp").is_file()


def test_two_images_of_one_name(photos: Path, tmp_path: Path) -> None:
    """The first goes, the second is named."""
    outcome = transfer(images(photos, "a.jpg", "below/a.jpg", "a.jpg"), tmp_path / "best", "move")
    assert outcome.done == 1
    assert outcome.refused == [(str(photos / "below/a.jpg"), f"{photos / 'a.jpg'} has the same name")]
    assert (tmp_path / "best/a.jpg").read_text() == "a.jpg"


def test_what_cannot_go(photos: Path, tmp_path: Path) -> None:
    """What is missing, far away, or would break; what lies there already is no fault; no log for nothing."""
    (photos / "link.jpg").symlink_to("a.jpg")
    sources = [*images(photos, "link.jpg", "missing.jpg"), "https://example.org/a.jpg"]
    outcome = transfer(sources, tmp_path / "best", "move")
    assert [Path(path).name for path, _ in outcome.refused] == ["link.jpg", "missing.jpg", "a.jpg"]
    assert outcome.log is None and not (tmp_path / "best").exists()
    again = transfer(images(photos, "a.jpg"), photos, "move")
    assert (again.done, again.refused, again.log) == (0, [], None)


def test_undo_destroys_nothing(photos: Path, tmp_path: Path) -> None:
    """Changed copies, copies without an original and places that are taken are refused, and can be tried again."""
    copied = transfer(images(photos, "a.jpg", "c.jpg", "below/d.png"), tmp_path / "copies", "copy")
    moved = transfer(images(photos, "b.CR2", "b.jpg"), tmp_path / "moved", "move")
    assert copied.log is not None and moved.log is not None
    (tmp_path / "copies/a.jpg.xmp").write_text("rated since")
    (photos / "c.jpg").unlink()
    (photos / "b.CR2").write_text("another")
    back = undo(copied.log)
    assert {Path(path).name: why.split(":")[0] for path, why in back.refused} == {
        "a.jpg.xmp": "is kept",
        "c.jpg": "is kept",
    }
    assert names_in(tmp_path / "copies") == {"a.jpg.xmp", "c.jpg"}
    back = undo(moved.log)
    assert [why for _, why in back.refused] == [f"cannot go back: {photos / 'b.CR2'} exists"]
    assert (photos / "b.jpg").is_file() and (photos / "b.CR2").read_text() == "another"
    (photos / "b.CR2").unlink()
    assert undo(moved.log).refused == [] and (photos / "b.CR2").read_text() == "b.CR2"
    assert not (tmp_path / "moved").exists()


def test_a_killed_run_can_be_undone(photos: Path, tmp_path: Path) -> None:
    """The log is a step ahead of the files, and its last line may be torn."""
    before = state(tmp_path)
    outcome = transfer(images(photos, "a.jpg"), tmp_path / "best", "move")
    assert outcome.log is not None
    with open(outcome.log, "a") as log:
        entry = {"do": "move", "from": str(photos / "c.jpg"), "to": str(tmp_path / "best/c.jpg")}
        log.write(json.dumps(entry) + '\n{"do": "mo')
    assert undo(outcome.log).refused == []
    assert state(tmp_path) == before


@pytest.mark.parametrize("text", ["", "x", "{}\n", '{"grmp_score": "transfer", "version": 1}\n{"do": "rm"}\n'])
def test_other_files_are_no_logs(tmp_path: Path, text: str) -> None:
    """One message, and the file stays."""
    (tmp_path / "log").write_text(text)
    with pytest.raises(DataError, match="is no log"):
        undo(tmp_path / "log")
    assert (tmp_path / "log").read_text() == text
