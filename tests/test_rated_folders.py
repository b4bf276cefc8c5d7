"""Labels from stars that images have already, and from two folders; acting on scores from the command line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from grmp_score import read_labels
from grmp_score.errors import DataError
from grmp_score.sidecars.ratings import write_score
from grmp_score.sidecars.xmp import OWN
from grmp_score.trainer.data.folders import read_good_and_bad

from .cli_tools import assert_usage_error, run
from .conftest import make_photo
from .xmp_forms import EXIV2, packet

PROPERTIES = 'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:digiKam="http://www.digikam.org/ns/1.0/"'


def rate(image: Path, properties: str, more: str = "") -> None:
    """Writes a sidecar for this image."""
    data = packet(f'<rdf:Description rdf:about="" {PROPERTIES} {more} {properties}/>', EXIV2)
    image.with_name(f"{image.name}.xmp").write_bytes(data)


@pytest.fixture(name="rated")
def rated_fixture(tmp_path: Path) -> Path:
    """Twelve photos, with 0, 1, 2, ... 5, 0, 1, ... stars."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        make_photo(40, 32, seed=i).save(folder / f"{i:02d}.jpg")
        rate(folder / f"{i:02d}.jpg", f'xmp:Rating="{i % 6}"')
    return folder


def test_a_folder_of_rated_images_is_labels(rated: Path) -> None:
    """0 and nothing are not rated, -1 is 0 stars; what was found is said."""
    (rated / "05.jpg.xmp").unlink()
    rate(rated / "11.jpg", 'xmp:Rating="-1"')
    labels = read_labels(rated)
    assert [path.name for path in labels.paths] == [f"{i:02d}.jpg" for i in (1, 2, 3, 4, 7, 8, 9, 10, 11)]
    np.testing.assert_array_equal(labels.scores, [1, 2, 3, 4, 1, 2, 3, 4, 0])
    assert (labels.score_column, labels.higher_is_better, labels.direction_given) == ("stars", True, True)
    assert labels.notes == (
        "9 of 12 images are rated: 2 with 4 stars, 2 with 3 stars, 2 with 2 stars, 2 with 1 star, 1 rejected; "
        "the others have no rating, or 0 stars",
    )


def test_what_is_ignored_is_said(rated: Path) -> None:
    """Odd values, sidecars that cannot be read, pick labels beside stars, and contradictions."""
    rate(rated / "01.jpg", 'xmp:Rating="7"')
    (rated / "02.jpg.xmp").write_bytes(b"")
    rate(rated / "03.jpg", 'digiKam:PickLabel="3"')
    make_photo(40, 32, seed=4).save(
        rated / "04.jpg", xmp=packet(f"<rdf:Description {PROPERTIES} xmp:Rating='1'/>", "")
    )
    labels = read_labels(rated)
    assert len(labels) == 7
    said = "\n".join(labels.notes)
    assert f"1 image with a rating other than -1 and 0 to 5 ('7') left out, as {rated / '01.jpg'}" in said
    assert f"1 image left out, because a sidecar cannot be read: {rated / '02.jpg.xmp'}: " in said
    assert f"1 image with a pick label and no stars left out, as {rated / '03.jpg'}" in said
    assert f"the sidecar's is taken ({rated / '04.jpg.xmp'}: with 4 stars, not with 1 star)" in said


def test_a_model_does_not_learn_from_its_own_stars(rated: Path) -> None:
    """Those that were written are left out until somebody changes them; a rating that agrees stays somebody's."""
    written = [str(rated / f"{i:02d}.jpg") for i in (0, 6)]
    assert all(write_score(image, 0.9, 5) for image in written)
    assert write_score(str(rated / "05.jpg"), 0.9, 5)  # has five stars already
    assert not write_score(str(rated / "04.jpg"), 0.9, 5)
    labels = read_labels(rated)
    assert [path.name for path in labels.paths] == [f"{i:02d}.jpg" for i in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)]
    assert f"2 images with stars that grmp-score wrote left out, as {written[0]}" in labels.notes
    sidecar = rated / "00.jpg.xmp"
    sidecar.write_bytes(sidecar.read_bytes().replace(b'xmp:Rating="5"', b'xmp:Rating="3"'))
    assert len(read_labels(rated)) == 11
    assert not write_score(written[0], 0.5, 2) and write_score(written[1], 0.5, 2)


def test_a_rejected_image_is_rejected_whatever_was_written(rated: Path) -> None:
    """digiKam's pick label counts more than stars, also than ours."""
    image = rated / "00.jpg"
    rate(image, 'xmp:Rating="4" digiKam:PickLabel="1" grmp:Stars="4"', f'xmlns:grmp="{OWN}"')
    labels = read_labels(rated)
    assert labels.scores[[path.name for path in labels.paths].index("00.jpg")] == 0


def test_pick_labels_are_labels_where_there_are_no_stars(rated: Path) -> None:
    """Rejected, pending, accepted."""
    for i in range(12):
        rate(rated / f"{i:02d}.jpg", f'xmp:Rating="0" digiKam:PickLabel="{i % 4}"')
    labels = read_labels(rated)
    assert labels.score_column == "pick" and labels.scores.tolist() == [0, 1, 2] * 3
    assert "3 rejected, 3 pending, 3 accepted" in labels.notes[0]


def test_ratings_of_a_program_are_doubted(rated: Path) -> None:
    """darktable's 1 star for everything, and nearly all the same."""
    for i in range(12):
        more = 'xmlns:darktable="http://darktable.sf.net/" darktable:xmp_version="5"'
        rate(rated / f"{i:02d}.jpg", f'xmp:Rating="{5 if i == 0 else 1}"', more)
    said = "\n".join(read_labels(rated).notes)
    assert "11 of 12 have the same rating, with 1 star" in said
    assert "darktable gives 1 star to every image it imports, and 11 have 1 star from it" in said


def test_too_few_and_all_the_same(rated: Path, tmp_path: Path) -> None:
    """One message each; options for tables are refused."""
    with pytest.raises(DataError, match="no columns"):
        read_labels(rated, score_column="stars")
    for sidecar in rated.glob("*.xmp"):
        rate(sidecar.with_suffix(""), 'xmp:Rating="3"')
    with pytest.raises(DataError, match="all images have the same rating"):
        read_labels(rated)
    for sidecar in list(rated.glob("*.xmp"))[4:]:
        sidecar.unlink()
    with pytest.raises(DataError, match="4 of 12 images are rated, expected at least 5"):
        read_labels(rated)


def test_two_folders_are_labels(rated: Path, tmp_path: Path) -> None:
    """1 and 0; every image once."""
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(3):
        make_photo(40, 32, seed=50 + i).save(bad / f"{i}.png")
    labels = read_good_and_bad(rated, bad)
    assert labels.scores.tolist() == [1] * 12 + [0] * 3 and labels.score_column == "good"
    (bad / "link.jpg").symlink_to(rated / "03.jpg")
    with pytest.raises(DataError, match=r"link.jpg: is the same file as .*03.jpg"):
        read_good_and_bad(rated, bad)
    with pytest.raises(DataError, match="no such folder"):
        read_good_and_bad(rated, tmp_path / "nothing")


def test_evaluate_and_adapt_take_them(
    rated: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found stars go to stderr, results to stdout; the model is named after the folder."""
    monkeypatch.chdir(tmp_path)
    result = run("evaluate", "--labels", "photos", "-m", model)
    assert result.exit_code == 0 and "10 of 10 images; stars 1 .. 5" in result.stdout
    assert result.stderr.startswith("photos: 10 of 12 images are rated: 2 with 5 stars")
    bad = tmp_path / "bad"
    bad.mkdir()
    for i in range(10):
        make_photo(40, 32, seed=50 + i).save(bad / f"{i}.png")
    result = run("adapt", "--good", "photos", "--bad", "bad/", "-m", model)
    assert result.exit_code == 0, result.output
    assert "12 good images in photos, 10 bad ones in bad" in result.stderr
    assert (tmp_path / "photos-adapted" / "config.json").is_file()


@pytest.mark.parametrize(
    "words",
    [(), ("--good", "photos"), ("--good", "photos", "--bad", "photos", "--labels", "photos")],
)
def test_labels_are_named_once(rated: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV or folder, or two folders."""
    monkeypatch.chdir(rated.parent)
    assert_usage_error(run("evaluate", *words), "--good")


def test_acting_on_scores(rated: Path, model: str, tmp_path: Path) -> None:
    """Sidecars are written, the best are moved with them, and undo puts them back; no photo changes."""

    def contents() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in rated.iterdir()}

    before = contents()
    result = run(rated, "--write-xmp", "-m", model)
    assert "kept the rating they have" in result.stderr and result.exit_code == 0
    photos = {name for name in before if name.endswith("jpg")}
    written = contents()
    assert {name: written[name] for name in photos} == {name: before[name] for name in photos}
    assert {name for name in before if before[name] != written[name]} >= {"00.jpg.xmp", "06.jpg.xmp"}
    best = tmp_path / "best"
    result = run(rated, "--top", 3, "--move-to", best, "-m", model, "-f", "paths")
    assert result.exit_code == 0 and "3 images moved to" in result.stderr
    names = {Path(line).name for line in result.stdout.splitlines()}
    assert {path.name for path in best.iterdir() if path.suffix != ".jsonl"} == names | {n + ".xmp" for n in names}
    log = next(best.glob("*.jsonl"))
    assert f"grmp-score --undo {log}" in result.stderr
    result = run("--undo", log)
    assert (result.exit_code, result.stdout) == (0, "") and "6 files put back" in result.stderr
    assert contents() == written and not best.exists()


def test_what_is_refused_ends_with_1(rated: Path, model: str, tmp_path: Path) -> None:
    """Broken sidecars and taken names are named on stderr; the rest is done."""
    (rated / "00.jpg.xmp").write_bytes(b"<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>")
    result = run(rated, "--write-xmp", "-m", model, "-f", "paths")
    assert result.exit_code == 1 and "00.jpg.xmp: holds a document type declaration" in result.stderr
    best = tmp_path / "best"
    for status in (0, 1):
        assert run(rated, "--top", 2, "--copy-to", best, "-m", model).exit_code == status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--copy-to", "a", "--move-to", "b"), "exclude each other"),
        (("--resume", "a.csv", "--write-xmp"), "--resume"),
        (("--undo", __file__), "leave out the images"),
    ],
)
def test_options_that_do_not_go_together(rated: Path, words: tuple[str, ...], message: str) -> None:
    """They are refused before anything is scored."""
    assert_usage_error(run(rated, *words), message)
