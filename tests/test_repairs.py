"""Complete pictures that break a rule beside their pixels; several pictures in one TIFF; HDR; odd depths."""

from __future__ import annotations

import io
import logging
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from grmp_score.images import decoders, read_image
from grmp_score.images.colour import to_rgb
from grmp_score.images.formats import hdr_transfer

from .conftest import make_photo
from .odd_pictures import dng, encoded, pixels, png16, refused, tiff, wide_gamut_profile

PHOTO = make_photo(96, 80)
GREY = np.asarray(PHOTO.convert("L"))


def chunk(kind: bytes, body: bytes, *, right: bool = True) -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + body) ^ (not right)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with these behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


# ------------------------------------------------------------------------- complete


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"tEXt", b"a\0b", right=False)],
        [chunk(b"tIME", bytes(7), right=False)],
        [chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"x" * (2 << 20))],
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20)))],
        [chunk(b"tEXt", b"k\0" + b"x" * 200_000)] * 12,
    ],
    ids=["checksum of text", "checksum of time", "long text", "packed text", "much text"],
)
def test_side_chunks_of_png(chunks: list[bytes]) -> None:
    """They are not the picture."""
    data = encoded(PHOTO, "PNG")
    assert np.array_equal(pixels(with_chunk(data, *chunks)), np.asarray(PHOTO))


def test_a_profile_larger_than_a_megabyte_is_applied() -> None:
    """Pillow unpacks no more than that by itself."""
    profile = wide_gamut_profile()
    large = struct.pack(">I", len(profile) + (1 << 21)) + profile[4:] + bytes(1 << 21)
    small = pixels(with_chunk(encoded(PHOTO, "PNG"), chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))))
    found = pixels(with_chunk(encoded(PHOTO, "PNG"), chunk(b"iCCP", b"p\0\0" + zlib.compress(large))))
    assert not np.array_equal(small, np.asarray(PHOTO)) and np.array_equal(found, small)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_without_its_end_marker(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """All pixels are there: read and noted.  With some bytes less it is truncated."""
    data = encoded(PHOTO.convert(mode), "JPEG", quality=90)
    caplog.set_level(logging.INFO, "grmp_score.images")
    assert np.array_equal(pixels(data[:-2]), pixels(data))
    assert "end marker is missing" in caplog.text
    for lost in (12, 40, len(data) // 2):
        assert refused(data[:-lost]).reason == "the file is truncated (JPEG)"


def test_progressive_jpeg_without_its_end_marker_is_refused() -> None:
    """Whole passes may be missing, which nothing shows."""
    assert "truncated" in refused(encoded(PHOTO, "JPEG", progressive=True)[:-2]).reason


# ------------------------------------------------------------------ several pictures


def pages(*pictures: tuple[np.ndarray, int], below: bool = False, photometric: str | None = None) -> bytes:
    """A TIFF of pictures, each with its NewSubfileType; ``below``: all but the first are in its SubIFDs."""
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, (values, kind) in enumerate(pictures):
            options: dict[str, Any] = {"subfiletype": kind, "metadata": None}
            if below and number == 0:
                options["subifds"] = len(pictures) - 1
            if values.ndim == 2 and photometric:
                options["photometric"] = photometric
            writer.write(values, **options)
    return file.getvalue()


LARGE, SMALL = np.asarray(PHOTO), np.asarray(PHOTO.resize((24, 20)))


@pytest.mark.parametrize("below", [False, True])
def test_the_full_picture_and_not_its_thumbnail(below: bool) -> None:
    """Where the first one is said to be reduced, the largest of the others."""
    data = pages((SMALL, 1), (np.asarray(PHOTO.resize((48, 40))), 1), (LARGE, 0), below=below)
    assert np.array_equal(pixels(data), LARGE)
    assert np.array_equal(pixels(pages((LARGE, 0), (SMALL, 1), below=below)), LARGE)
    assert np.array_equal(pixels(pages((SMALL, 0), (LARGE, 0))), SMALL)  # two pages of a document


@pytest.mark.parametrize("name", ["a.nef", "a.tif", "a.jpg", None])
def test_a_sensor_below_a_thumbnail_is_camera_raw(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any name, as bytes and inside of an archive: developed, or the error that names the extra."""
    mosaic = np.tile(np.linspace(0, 60000, 96).astype(np.uint16), (80, 1))
    data = pages((SMALL, 1), (mosaic, 0), below=True, photometric="CFA")
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    sources: list[Any] = [data]
    if name is not None:
        (tmp_path / name).write_bytes(data)
        with zipfile.ZipFile(tmp_path / "card.zip", "w") as archive:
            archive.writestr(name, data)
        sources = [tmp_path / name, f"zip://{name}::file://{tmp_path}/card.zip"]
        pytest.importorskip("fsspec")
    for source in sources:
        assert "grmp_score[raw]" in refused(source).reason


def test_the_name_does_not_make_a_picture_raw() -> None:
    """A plain TIFF or PNG under a RAW name is what it is, so that a cached score holds for every name."""
    for data in (tiff(LARGE), encoded(PHOTO, "PNG")):
        assert np.array_equal(pixels(data, name="x.nef"), LARGE)
    pytest.importorskip("rawpy")
    assert np.array_equal(pixels(dng(), name="x.dng"), pixels(dng(), name="x.tif"))


# ---------------------------------------------------------------------------- depths


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("colour", [False, True])
def test_depths_between_8_and_16_bits(bits: int, colour: bool) -> None:
    """BitsPerSample says what white is."""
    pytest.importorskip("imagecodecs")
    tifffile = pytest.importorskip("tifffile")
    values = LARGE if colour else GREY
    file = io.BytesIO()
    deep = (values.astype(np.float64) / 255 * (2**bits - 1)).round().astype(np.uint16)
    packed = __import__("imagecodecs").packints_encode(deep.reshape(deep.shape[0], -1), bits)
    rows = packed if isinstance(packed, bytes) else bytes(packed)
    channels = 3 if colour else 1
    tags = {258: ("H", [bits] * channels), 279: ("I", [len(rows)])}
    data = tiff(deep, extra=tags)
    data = data[: len(data) - deep.nbytes] + rows
    file.write(data)
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        assert np.array_equal(opened.pages.first.asarray(), deep)
    found = pixels(data)
    assert np.abs(found.astype(int) - np.asarray(Image.fromarray(values).convert("RGB"))).max() <= 1


def test_deep_grey_with_alpha_or_a_transparent_grey() -> None:
    """What is transparent lies over the background."""
    half = np.zeros_like(GREY)
    half[:, 48:] = 255
    data = tiff(np.stack([GREY.astype(np.uint16) * 257, half.astype(np.uint16) * 257], axis=-1))
    wanted = np.where(half == 255, GREY, 255)
    assert np.abs(pixels(data)[..., 0].astype(int) - wanted).max() <= 1
    deep = np.where(half == 255, np.minimum(GREY, 200).astype(np.uint16) * 257, 60000).astype(np.uint16)
    keyed = with_chunk(png16(deep), chunk(b"tRNS", struct.pack(">H", 60000)))
    assert np.abs(pixels(keyed)[..., 0].astype(int) - np.where(half == 255, np.minimum(GREY, 200), 255)).max() <= 1


# --------------------------------------------------------------------------- colours


def linear_profile(name: str) -> bytes:
    """sRGB's colours with a straight curve, under a name."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    body = b"curv" + bytes(8)  # no entries: a straight line
    for at in range(132, 132 + 12 * count, 12):
        if bytes(data[at : at + 4]) in (b"rTRC", b"gTRC", b"bTRC"):
            start = struct.unpack_from(">I", data, at + 4)[0]
            data[start : start + 12] = body
            struct.pack_into(">I", data, at + 8, 12)
    wide = name.ljust(8)[:8]
    return bytes(data).replace("sRGB bui".encode("utf-16-be"), wide.encode("utf-16-be"))


@pytest.mark.parametrize("name", ["sRGB lin", "Other li"])
def test_a_profile_is_known_by_what_it_does(name: str) -> None:
    """Linear sRGB of GIMP and Krita has "sRGB" in its name and is brighter."""
    found = pixels(encoded(PHOTO, "PNG", icc_profile=linear_profile(name)))
    assert found.mean() > np.asarray(PHOTO).mean() + 20
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(pixels(encoded(PHOTO, "PNG", icc_profile=plain)), np.asarray(PHOTO))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_holds_for_grey_with_alpha_too(mode: str) -> None:
    """Alpha stays what it is."""
    image = Image.fromarray(GREY).convert(mode)
    image.info["icc_profile"] = grey_profile()
    assert np.asarray(to_rgb(image)).mean() > GREY.mean() + 10


def grey_profile() -> bytes:
    """A grey profile with a straight curve."""
    tags = {
        b"kTRC": b"curv" + bytes(8),
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"desc": b"mluc\0\0\0\0"
        + struct.pack(">II", 1, 12)
        + b"enUS"
        + struct.pack(">II", 8, 28)
        + "grey".encode("utf-16-be"),
    }
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x04200000, b"mntr", b"GRAY", b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize(("number", "name"), [(16, "PQ"), (18, "HLG"), (1, None), (13, None)])
def test_hdr_is_refused_with_the_reason(number: int, name: str | None) -> None:
    """PNG and AVIF say their transfer function; its brightness is not that of sRGB."""
    data = with_chunk(encoded(PHOTO, "PNG"), chunk(b"cICP", bytes([9, number, 0, 1])))
    box = b"\0\0\0\x1cftypavif" + bytes(16) + b"\0\0\0\x13colrnclx" + struct.pack(">HHHB", 9, number, 9, 128)
    assert hdr_transfer(box) == name
    if name is None:
        assert np.array_equal(pixels(data), np.asarray(PHOTO))
    else:
        assert f"HDR picture ({name})" in refused(data).reason and "HDR" in refused(box).reason


# --------------------------------------------------------------------------- programs


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xd7\xcd\xc6\x9a" + bytes(60)]
)
def test_no_format_that_starts_a_program_is_tried(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS runs Ghostscript, wherever it is installed."""

    def started(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    assert "not an image" in refused(data, name="x.jpg").reason
    assert {"EPS", "WMF", "MPEG", "PDF", "HDF5"}.isdisjoint(decoders._FORMATS)


def test_every_other_format_of_pillow_is_read_as_before() -> None:
    """What Pillow can write and read back, it reads here."""
    for name, mode in (
        ("BMP", "RGB"),
        ("DDS", "RGB"),
        ("GIF", "L"),
        ("ICO", "RGB"),
        ("PCX", "RGB"),
        ("PPM", "RGB"),
    ):
        assert read_image(encoded(PHOTO.resize((32, 32)).convert(mode), name)).size == (32, 32), name
    for name in ("SGI", "TGA", "TIFF", "WEBP", "JPEG2000", "QOI"):
        assert read_image(encoded(PHOTO, name)).size == PHOTO.size, name
