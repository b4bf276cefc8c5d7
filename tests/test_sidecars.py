"""Ratings in sidecars and images, in the forms of several programs; scores written into sidecars."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grmp_score.errors import DataError
from grmp_score.sidecars.ratings import read_rating, sidecar_to_write, stars_of, write_score
from grmp_score.sidecars.xmp import XMP, Packet

from .conftest import make_photo
from .xmp_forms import BROKEN, FORMS, packet

ATTRIBUTE = '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="{}"/>'


def rated(value: object) -> bytes:
    """A packet with this rating."""
    return packet(ATTRIBUTE.format(value), "test")


@pytest.fixture(name="photo")
def photo_fixture(tmp_path: Path) -> Path:
    """A JPEG without metadata."""
    path = tmp_path / "IMG.jpg"
    make_photo(32, 24, seed=0).save(path)
    return path


@pytest.fixture(params=FORMS, name="form")
def form_fixture(request: pytest.FixtureRequest) -> tuple[bytes, float]:
    """Every form in turn."""
    return FORMS[request.param]


def test_every_form_is_read_beside_an_image_and_inside(photo: Path, form: tuple[bytes, float]) -> None:
    """The stars are the same from both kinds of sidecar and from the image."""
    data, stars = form
    for sidecar in (photo.with_name("IMG.jpg.xmp"), photo.with_suffix(".XMP")):
        sidecar.write_bytes(data)
        assert read_rating(str(photo)).stars == stars
        sidecar.unlink()
    Image.open(photo).save(photo.with_name("IN.jpg"), xmp=data)
    assert read_rating(str(photo.with_name("IN.jpg"))).stars == stars


def test_every_form_is_updated_and_every_other_byte_is_kept(photo: Path, form: tuple[bytes, float]) -> None:
    """What was written is read again; without it the bytes are the old ones, and the photo is as it was."""
    before, (data, _) = photo.read_bytes(), form
    sidecar = photo.with_name("IMG.jpg.xmp")
    sidecar.write_bytes(data)
    assert write_score(str(photo), 0.61234, 4, overwrite=True)
    new = sidecar.read_bytes()
    read = Packet(new)
    assert read.get(XMP, "Rating") == "4" and read.get("urn:grmp_score:xmp:1.0/", "Score") == "0.6123"
    assert photo.read_bytes() == before
    # Every piece of the old file is there in its order: only values went, and attributes came.
    at = 0
    old = Packet(data).get(XMP, "Rating")
    for piece in data.split(b"Rating"):
        kept = piece.removeprefix(b"/").removeprefix(f'="{old}'.encode()).removeprefix(f">{old}".encode())
        for part in (kept[:20], kept[-20:].replace(b"<xmp:", b"").replace(b"</xmp:", b"")):
            at = max(at, new.index(part, 0))
    assert len(new) - len(data) < 200
    assert write_score(str(photo), 0.61234, 4) and sidecar.read_bytes() == new


def test_an_attribute_is_replaced_and_nothing_else(photo: Path) -> None:
    """The bytes around the value are the same, and the new properties stand together behind the element's name."""
    data = FORMS["lightroom, attribute"][0]
    changed = Packet(data).set(XMP, "xmp", "Rating", "5").data
    assert changed == data.replace(b'xmp:Rating="3"', b'xmp:Rating="5"')
    element = FORMS["exiftool"][0]
    assert Packet(element).set(XMP, "xmp", "Rating", "2").data == element.replace(b">1<", b">2<")
    bare = packet('<rdf:Description note="a > b/>"/>', "test")  # allowed, though nobody writes it
    assert Packet(bare).set(XMP, "xmp", "Rating", "2").get(XMP, "Rating") == "2"
    foreign = FORMS["no rating, and the usual prefix means something else"][0]
    added = Packet(foreign).set(XMP, "xmp", "Rating", "2").data
    assert added == foreign.replace(
        b"<rdf:Description", b'<rdf:Description xmlns:xmp0="http://ns.adobe.com/xap/1.0/" xmp0:Rating="2"'
    )


@given(st.sampled_from(sorted(FORMS)), st.integers(0, 2000), st.binary(max_size=3))
def test_damaged_packets_are_read_or_refused(name: str, at: int, noise: bytes) -> None:
    """Whatever a file holds, there is a packet or a `DataError`, and what can be read can be set."""
    data = FORMS[name][0]
    at = min(at, len(data))
    try:
        damaged = Packet(data[:at] + noise + data[at + len(noise) :])
        assert damaged.set(XMP, "xmp", "Rating", "2").get(XMP, "Rating") == "2"
    except DataError as error:
        assert str(error)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_xmp_is_one_plain_message(photo: Path, name: str) -> None:
    """It names the file and what was found; the file stays."""
    data, message = BROKEN[name]
    sidecar = photo.with_name("IMG.jpg.xmp")
    sidecar.write_bytes(data)
    for action in (lambda: read_rating(str(photo)), lambda: write_score(str(photo), 0.5, 3)):
        with pytest.raises(DataError, match=message) as caught:
            action()
        assert str(sidecar) in str(caught.value) and "\n" not in str(caught.value)
    assert sidecar.read_bytes() == data


def test_utf_16_is_read_and_not_changed(photo: Path) -> None:
    """XMP may be UTF-16; no program writes it."""
    sidecar = photo.with_name("IMG.jpg.xmp")
    sidecar.write_bytes(rated(3).decode().replace("\ufeff", "", 1).encode("utf-16"))
    assert read_rating(str(photo)).stars == 3
    with pytest.raises(DataError, match="UTF-16"):
        write_score(str(photo), 0.5, 3)


def test_the_sidecar_for_the_image_alone_counts_most(photo: Path) -> None:
    """Then the one of all IMG.*, then the image; a contradiction is known, and 0 in a sidecar is one."""
    image = str(photo)
    Image.open(photo).save(photo, xmp=rated(1))
    assert read_rating(image).stars == 1
    photo.with_suffix(".xmp").write_bytes(rated(2))
    assert (read_rating(image).stars, read_rating(image).embedded) == (2, 1)
    photo.with_name("IMG.jpg.xmp").write_bytes(rated(3))
    assert read_rating(image).stars == 3
    photo.with_name("IMG.jpg.xmp").write_bytes(rated(0))
    assert (read_rating(image).stars, read_rating(image).embedded) == (0, 1)
    photo.with_name("IMG.jpg.xmp").write_bytes(FORMS["no rating"][0])
    assert read_rating(image).stars == 2


@pytest.mark.parametrize(
    ("tag", "value", "stars"),
    [
        (0x4746, 4, 4),
        (0x4746, 0, 0),
        (0x4749, 1, 1),
        (0x4749, 25, 2),
        (0x4749, 50, 3),
        (0x4749, 75, 4),
        (0x4749, 99, 5),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif(tmp_path: Path, tag: int, value: int, stars: float, suffix: str) -> None:
    """Rating and RatingPercent, in every format that has EXIF."""
    exif = Image.Exif()
    exif[tag] = value
    path = tmp_path / f"IMG.{suffix}"
    make_photo(32, 24, seed=0).save(path, exif=exif)
    assert read_rating(str(path)).stars == stars


@pytest.mark.parametrize("value", ["7", "-2", "five", "99", "6"])
def test_values_that_are_no_rating_are_known(photo: Path, value: str) -> None:
    """They are kept for the report, and count as not rated."""
    photo.with_name("IMG.jpg.xmp").write_bytes(rated(value))
    rating = read_rating(str(photo))
    assert (rating.stars, rating.odd) == (0, value)


def test_broken_images_have_no_rating(tmp_path: Path) -> None:
    """Nor does one that is missing; they are told where pixels are read."""
    for name, data in (("a.jpg", b"\xff\xd8\xff\xe1"), ("b.jpg", b""), ("c.heic", b"\0\0\0\x18ftypheic")):
        (tmp_path / name).write_bytes(data)
        assert read_rating(str(tmp_path / name)).stars == 0
    assert read_rating(str(tmp_path / "missing.jpg")).stars == 0


def test_somebodys_rating_is_kept(photo: Path) -> None:
    """In a sidecar or in the image, also one that agreed with a score once; one of our own is no obstacle."""
    image, sidecar = str(photo), photo.with_name("IMG.jpg.xmp")
    Image.open(photo).save(photo, xmp=rated(5))
    assert not write_score(image, 0.5, 3) and not sidecar.exists()
    assert write_score(image, 0.9, 5) and not read_rating(image).ours  # agrees, and is still somebody's
    assert not write_score(image, 0.5, 3) and read_rating(image).stars == 5
    assert write_score(image, 0.5, 3, overwrite=True) and read_rating(image).ours
    assert write_score(image, 0.7, 4) and read_rating(image).stars == 4  # ours may change
    assert write_score(image, 0.5, 3) and read_rating(image).given == 0
    sidecar.write_bytes(sidecar.read_bytes().replace(b'xmp:Rating="3"', b'xmp:Rating="1"'))
    old = sidecar.read_bytes()
    assert not write_score(image, 0.5, 3) and sidecar.read_bytes() == old
    assert write_score(image, 0.5, 3, overwrite=True) and read_rating(image).stars == 3


def test_which_sidecar_is_written(tmp_path: Path) -> None:
    """The one that is there; a new one is IMG.xmp for camera RAW, else IMG.jpg.xmp; a shared one is the RAW's."""
    raw, jpg = tmp_path / "IMG.CR2", tmp_path / "IMG.jpg"
    jpg.touch()
    assert sidecar_to_write(str(jpg)) == str(tmp_path / "IMG.jpg.xmp")
    (tmp_path / "IMG.xmp").touch()
    assert sidecar_to_write(str(jpg)) == str(tmp_path / "IMG.xmp")
    raw.touch()
    assert sidecar_to_write(str(jpg)) == str(tmp_path / "IMG.jpg.xmp")
    assert sidecar_to_write(str(raw)) == str(tmp_path / "IMG.xmp")
    (tmp_path / "IMG.CR2.xmp").touch()
    assert sidecar_to_write(str(raw)) == str(tmp_path / "IMG.CR2.xmp")
    assert sidecar_to_write(str(tmp_path / "b.nef")) == str(tmp_path / "b.xmp")
    assert sidecar_to_write(str(tmp_path / "b.dng")) == str(tmp_path / "b.dng.xmp")


def test_stars_follow_the_verdicts() -> None:
    """Five verdicts are five to one stars; other models cut 0..1 in fifths."""
    limits = [("excellent", 0.9), ("good", 0.5), ("fair", 0.4), ("poor", 0.3), ("bad", 0.0)]
    assert [stars_of(score, limits) for score in (0.95, 0.9, 0.5, 0.45, 0.3, 0.0)] == [5, 5, 4, 3, 2, 1]
    assert [stars_of(score) for score in (1.0, 0.8, 0.79, 0.4, 0.2, 0.1, 0.0)] == [5, 5, 4, 3, 2, 1, 1]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_reads_what_was_written(photo: Path) -> None:
    """An outside judge: the same stars and all other tags as before, for every form and for a new sidecar."""

    def tags(*files: Path) -> list[dict[str, object]]:
        done = subprocess.run(
            ["exiftool", "-j", "-G1", "-XMP:all", *map(str, files)], capture_output=True, check=True
        )
        found: list[dict[str, object]] = json.loads(done.stdout)
        return found

    old, new = [], [photo.with_name("IMG.jpg.xmp")]
    write_score(str(photo), 0.75, 4)
    for i, (data, _) in enumerate(FORMS.values()):
        image = photo.with_name(f"{i}.jpg")
        image.touch()
        old.append(photo.with_name(f"old{i}.xmp"))
        new.append(photo.with_name(f"{i}.jpg.xmp"))
        old[-1].write_bytes(data)
        new[-1].write_bytes(data)
        write_score(str(image), 0.75, 4, overwrite=True)
    before, (made, *after) = tags(*old), tags(*new)
    assert made["XMP-xmp:Rating"] == 4 and made["XMP-grmp:Score"] == 0.75
    ours = {"SourceFile", "XMP-xmp:Rating", "XMP-grmp:Score", "XMP-grmp:Stars"}
    for a, b, name in zip(before, after, FORMS, strict=True):
        assert {k: v for k, v in a.items() if k not in ours} == {k: v for k, v in b.items() if k not in ours}, name
        if "something else" not in name:
            assert b.get("XMP-xmp:Rating") == 4, (name, b)


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("tag", ["XMP:Rating", "EXIF:Rating", "XMP:RatingPercent", "EXIF:RatingPercent"])
def test_what_exiftool_embeds_is_read(photo: Path, tag: str) -> None:
    """Stars in XMP and EXIF, as percent too."""
    value = "75" if "Percent" in tag else "4"
    subprocess.run(["exiftool", "-q", "-overwrite_original", f"-{tag}={value}", str(photo)], check=True)
    assert read_rating(str(photo)).stars == 4


def test_ratings_are_values() -> None:
    """Nothing is said about an image without metadata."""
    assert dataclasses.asdict(read_rating("missing.jpg")) == {
        "stars": 0,
        "pick": 0,
        "source": None,
        "odd": None,
        "embedded": None,
        "darktable": False,
        "ours": False,
    }
