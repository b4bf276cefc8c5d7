"""From a file to the picture: every orientation, depth, colour and format looks as people see it."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from grmp_score.images import orientation as orientations
from grmp_score.images import read_image

from .conftest import make_photo
from .odd_pictures import deep, dng, encoded, float_of, oriented, pixels, png16, refused, tiff, wide_gamut_profile

PHOTO = make_photo(60, 40)
RGB = np.asarray(PHOTO).astype(int)
GREY = np.asarray(PHOTO.convert("L")).astype(int)
GREY_16 = deep(PHOTO.convert("L"))


def grey(value: int, size: tuple[int, int] = (3, 2)) -> np.ndarray:
    """A uniform grey picture [H, W, 3]."""
    return np.full((size[1], size[0], 3), value, dtype=np.uint8)


# --------------------------------------------------------------------- orientation

#: What a viewer does for each value of the EXIF tag, on arrays [H, W, 3].
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def tagged(image: Image.Image, orientation: int, fmt: str, **options: Any) -> bytes:
    """A file of the picture as it is, with an orientation stated."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, fmt, exif=exif, **options)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, fmt: str) -> None:
    """All eight orientations are shown upright."""
    data = tagged(PHOTO, orientation, fmt, **({"lossless": True} if fmt == "WEBP" else {}))
    as_stored = RGB
    if fmt == "JPEG":
        with Image.open(io.BytesIO(data)) as stored:
            as_stored = np.asarray(stored)
    assert np.array_equal(pixels(data), UPRIGHT[orientation](as_stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist(orientation: int) -> None:
    """A nonsensical orientation leaves the picture as it is."""
    assert np.array_equal(pixels(tagged(PHOTO, orientation, "PNG")), RGB)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"nonsense", id="no directory"),
        pytest.param(
            b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x0112, 2, 2, b"x") + bytes(4), id="a letter"
        ),
    ],
)
def test_nonsense_in_place_of_exif(block: bytes) -> None:
    """A camera's broken EXIF block does not make its picture unreadable."""
    assert pixels(encoded(PHOTO, "JPEG", exif=b"Exif\0\0" + block)).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_of_deep_grey(orientation: int) -> None:
    """Deep images are turned upright too."""
    data = tagged(Image.fromarray(GREY_16), orientation, "TIFF")
    assert np.array_equal(pixels(data), UPRIGHT[orientation](np.repeat(GREY[..., None], 3, axis=2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_unusual_tiff(orientation: int) -> None:
    """Pictures that Pillow does not read are turned upright too."""
    pytest.importorskip("tifffile")
    data = tiff(float_of(PHOTO, "f4"), extra={0x0112: ("H", [orientation])})
    assert np.array_equal(pixels(data), UPRIGHT[orientation](RGB))


@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientation_of_a_large_picture(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way through the disk, taken by large pictures, gives the same pixels; without a disk there is another."""
    image = make_photo(70, 600)
    data = oriented(image, orientation, "PNG")
    monkeypatch.setattr(orientations, "LARGE", 1)
    assert np.array_equal(pixels(data), np.asarray(image))

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(orientations.tempfile, "TemporaryFile", full)
    assert np.array_equal(pixels(data), np.asarray(image))


def test_a_temporary_file_that_cannot_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the picture has been moved to the disk and is lost there, that is an error and not an empty picture."""

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(orientations, "LARGE", 1)
    monkeypatch.setattr(orientations.tempfile, "TemporaryFile", Broken)
    assert "Input/output error" in refused(oriented(PHOTO, 6, "PNG")).reason


def test_nothing_is_applied_twice() -> None:
    """What is read carries neither orientation nor profile, so reading it again changes nothing."""
    data = oriented(PHOTO, 6, "PNG", icc_profile=wide_gamut_profile())
    once = read_image(data)
    assert np.array_equal(pixels(once), np.asarray(once))
    assert not once.info and not once.getexif()


# -------------------------------------------------------------------- transparency


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_white(fmt: str) -> None:
    """Alpha mixes with white: clear is white, opaque the colour, half the mean."""
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 100, 0, 0), (200, 100, 0, 255), (200, 100, 0, 128)])
    array = pixels(encoded(image, fmt, **({"lossless": True, "exact": True} if fmt == "WEBP" else {})))
    np.testing.assert_allclose(array[0], [(255, 255, 255), (200, 100, 0), (227, 177, 127)], atol=1)


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBa", "La"])
def test_other_modes_with_alpha_lie_over_white(mode: str) -> None:
    """Grey, palette and premultiplied alpha are mixed with white as well."""
    rgba = Image.new("RGBA", (3, 2), (100, 100, 100, 128))
    image = rgba.convert("LA").convert("La") if mode == "La" else rgba.convert(mode)
    np.testing.assert_allclose(pixels(image), grey(177), atol=3)


def test_grey_png_with_alpha() -> None:
    """A grey PNG file with alpha is mixed with white."""
    np.testing.assert_allclose(pixels(encoded(Image.new("LA", (3, 2), (0, 64)), "PNG")), grey(191), atol=1)


@pytest.mark.parametrize("fmt", ["PNG", "GIF"])
def test_transparent_palette_entry_is_white(fmt: str) -> None:
    """A palette image's transparent colour becomes white, its other colours stay."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert pixels(encoded(image, fmt, transparency=0))[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_palette_with_many_transparencies() -> None:
    """A palette with an alpha for every entry is mixed by each entry's own."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putdata([0, 1])
    array = pixels(encoded(image, "PNG", transparency=bytes([128, 255])))
    np.testing.assert_allclose(array[0], [(127, 127, 127), (200, 100, 50)], atol=1)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 10)])
def test_transparent_colour_key(mode: str, key: Any) -> None:
    """The one transparent colour of an opaque PNG becomes white."""
    array = pixels(encoded(Image.new(mode, (3, 2), key), "PNG", transparency=key))
    assert np.array_equal(array, grey(255))


# ------------------------------------------------------------------- modes and frames


@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
def test_cmyk(fmt: str) -> None:
    """Print colours become RGB: no ink is white, full black is black."""
    for ink, value in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)):
        np.testing.assert_allclose(pixels(encoded(Image.new("CMYK", (3, 2), ink), fmt)), grey(value), atol=2)


def test_one_bit() -> None:
    """Black and white stay black and white."""
    image = Image.new("1", (2, 1))
    image.putdata([0, 255])
    assert pixels(encoded(image, "PNG"))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "P", "RGBX", "YCbCr", "HSV", "LAB"])
def test_other_modes(mode: str) -> None:
    """A mid grey stays one in every mode."""
    rgb = Image.new("RGB", (3, 2), (128, 128, 128))
    if mode == "LAB":
        image = Image.new("LAB", (3, 2), (137, 128, 128))
    else:
        image = rgb.quantize(4) if mode == "P" else rgb.convert(mode)
    np.testing.assert_allclose(pixels(image), grey(128), atol=4)


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(fmt: str) -> None:
    """Of several frames the first is read."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert pixels(data)[4, 4].tolist() == [255, 0, 0]


# --------------------------------------------------------------------------- depth


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png16(deep(PHOTO)), id="png 16"),
        pytest.param(png16(np.dstack([deep(PHOTO), np.full((40, 60), 65535, np.uint16)])), id="png 16 alpha"),
        pytest.param(tiff(deep(PHOTO)), id="tiff 16"),
        pytest.param(encoded(PHOTO, "TIFF", compression="tiff_lzw"), id="tiff lzw"),
        pytest.param(encoded(PHOTO, "JPEG2000", irreversible=False), id="jpeg 2000"),
        pytest.param(b"P6\n60 40\n65535\n" + deep(PHOTO).astype(">u2").tobytes(), id="ppm 16"),
    ],
)
def test_deep_colour(data: bytes) -> None:
    """Colour of 16 bits per channel is the 8-bit picture, within rounding."""
    assert np.abs(pixels(data) - RGB).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(float_of(PHOTO, "f4"), id="f4"),
        pytest.param(float_of(PHOTO, "f2"), id="f2"),
        pytest.param(float_of(PHOTO, "f8"), id="f8"),
        pytest.param(deep(PHOTO).astype("u4") * 65537, id="u4"),
    ],
)
def test_tiff_colour_that_pillow_does_not_read(values: np.ndarray) -> None:
    """Floating-point and 32-bit colour in TIFF is the 8-bit picture."""
    pytest.importorskip("tifffile")
    assert np.abs(pixels(tiff(values)) - RGB).max() <= 1
    assert np.abs(pixels(tiff(values, planar=True)) - RGB).max() <= 1


def test_deep_planes_one_after_another() -> None:
    """16-bit TIFF with separate planes keeps its colours, which Pillow alone mixes up."""
    pytest.importorskip("tifffile")
    assert np.array_equal(pixels(tiff(deep(PHOTO), planar=True)), RGB)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png16(GREY_16), id="png"),
        pytest.param(png16(np.dstack([GREY_16, np.full_like(GREY_16, 65535)])), id="png alpha"),
        pytest.param(tiff(GREY_16), id="u2"),
        pytest.param(encoded(Image.fromarray(GREY_16.astype(">u2")), "TIFF"), id="u2 big-endian"),
        pytest.param(tiff((GREY_16 // 2).astype("i2")), id="i2"),
        pytest.param(tiff(GREY_16.astype("u4") * 65537), id="u4"),
        pytest.param(tiff(GREY_16.astype("u4")), id="16 bits in u4"),
        pytest.param(tiff((GREY_16.astype("i8") * 32768).astype("i4")), id="i4"),
        pytest.param(tiff(float_of(PHOTO.convert("L"), "f4")), id="f4"),
        pytest.param(tiff(65535 - GREY_16, photometric=0), id="u2 white is zero"),
        pytest.param(tiff((65535 - GREY_16).astype(np.uint8), photometric=0), id="u1 white is zero"),
        pytest.param(tiff(1 - float_of(PHOTO.convert("L"), "f4"), photometric=0), id="f4 white is zero"),
        pytest.param(b"P5\n60 40\n65535\n" + GREY_16.astype(">u2").tobytes(), id="pgm"),
        pytest.param(b"P5\n60 40\n1023\n" + (GREY_16 // 64).astype(">u2").tobytes(), id="pgm of 10 bits"),
        pytest.param(b"Pf\n60 40\n-1\n" + float_of(PHOTO.convert("L"), "<f4")[::-1].tobytes(), id="pfm"),
    ],
)
def test_deep_grey(data: bytes) -> None:
    """Grey of any depth, sign and polarity is the 8-bit picture, within rounding."""
    assert np.abs(pixels(data) - GREY[..., None]).max() <= 1


@pytest.mark.parametrize("dtype", ["f8", "f2"])
def test_grey_floats_that_pillow_does_not_read(dtype: str) -> None:
    """Doubles and halves are read as well, also where white is zero."""
    pytest.importorskip("tifffile")
    values = float_of(PHOTO.convert("L"), dtype)
    assert np.abs(pixels(tiff(values)) - GREY[..., None]).max() <= 1
    assert np.abs(pixels(tiff(1 - values, photometric=0)) - GREY[..., None]).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_floats_on_another_scale(channels: int) -> None:
    """A floating-point file on a scale of 0..255 is refused with its range, and not read as white."""
    if channels == 3:
        pytest.importorskip("tifffile")
    values = np.asarray(PHOTO if channels == 3 else PHOTO.convert("L")).astype("f4")
    assert "more than half of them" in refused(tiff(values)).reason


def test_highlights_above_white() -> None:
    """Some values above 1 are highlights and clipped."""
    values = np.full((4, 4), 0.5, "f4")
    values[0] = 8.0
    assert pixels(tiff(values))[:, 0, 0].tolist() == [255, 128, 128, 128]


def test_32_bit_integers() -> None:
    """32-bit integers up to 65535 are a 16-bit picture in a wide type, beyond it they have the type's range."""
    narrow = Image.fromarray(np.array([[-5, 0, 32768, 65535]], dtype=np.int32))
    assert pixels(encoded(narrow, "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]
    assert pixels(narrow)[0, :, 0].tolist() == [0, 0, 128, 255]
    wide = Image.fromarray(np.array([[-5, 0, 2**30, 2**31 - 1]], dtype=np.int32))
    assert pixels(encoded(wide, "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_float_tiff() -> None:
    """Floats are taken as 0..1; infinities and NaN do not spread."""
    values = np.array([[0.0, 0.5, 1.0, -3.0, 7.0, np.nan, np.inf, -np.inf]], dtype=np.float32)
    array = pixels(encoded(Image.fromarray(values), "TIFF"))
    assert array[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0, 255, 0]


# -------------------------------------------------------------------------- colour


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_embedded_profile(fmt: str) -> None:
    """An embedded profile is applied; this one swaps red and green."""
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    options = {"quality": 98} if fmt == "JPEG" else {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(image, fmt, icc_profile=wide_gamut_profile(), **options)
    np.testing.assert_allclose(pixels(data)[8, 8], [30, 200, 60], atol=4)


def test_profile_and_transparency() -> None:
    """A profile applies to the picture and not to the background."""
    image = Image.new("RGBA", (2, 1), (200, 30, 60, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    data = encoded(image, "PNG", icc_profile=wide_gamut_profile())
    array = pixels(data, background=(10, 90, 0))
    np.testing.assert_allclose(array[0], [[30, 200, 60], [10, 90, 0]], atol=1)


def test_profile_of_a_palette() -> None:
    """A palette's colours go through the profile."""
    image = Image.new("RGB", (8, 8), (200, 30, 60)).quantize(2)
    np.testing.assert_allclose(
        pixels(encoded(image, "PNG", icc_profile=wide_gamut_profile()))[0, 0], [30, 200, 60], atol=1
    )


def test_srgb_profile_changes_nothing() -> None:
    """The usual profile leaves every pixel alone."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(pixels(encoded(PHOTO, "PNG", icc_profile=profile)), RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "I;16"])
@pytest.mark.parametrize("profile", [b"nonsense", wide_gamut_profile()[:300], b"\0" * 200])
def test_broken_profile(mode: str, profile: bytes) -> None:
    """A broken profile is ignored."""
    image = Image.fromarray(GREY_16) if mode == "I;16" else PHOTO.convert(mode)
    data = encoded(image, "TIFF", icc_profile=profile)
    assert np.array_equal(pixels(data), pixels(encoded(image, "TIFF")))


@pytest.mark.parametrize("mode", ["L", "CMYK", "LAB"])
def test_profile_of_another_space(mode: str) -> None:
    """A profile that does not fit the picture's colour space does no harm."""
    image = Image.new("LAB", (8, 8), (137, 128, 128)) if mode == "LAB" else PHOTO.convert(mode)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = pixels(encoded(image, "TIFF"))
    assert np.abs(pixels(encoded(image, "TIFF", icc_profile=profile)) - plain).max() <= 1


def cmyk_profile() -> bytes:
    """The least CMYK profile: a table of 2x2x2x2 grid points, grey by the lack of black ink alone."""

    def tag(kind: bytes, body: bytes) -> bytes:
        return (kind + b"\0\0\0\0" + body).ljust((8 + len(body) + 3) // 4 * 4, b"\0")

    grid = b"".join(
        bytes([255 if k == 0 else 0, 128, 128]) for _c in (0, 1) for _m in (0, 1) for _y in (0, 1) for k in (0, 1)
    )
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = tag(b"mft1", bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3)
    text = tag(b"desc", struct.pack(">I", 5) + b"test\0" + bytes(78))
    white = tag(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061))
    parts = [(b"desc", text), (b"wtpt", white), (b"A2B0", table), (b"A2B1", table)]
    at, directory, body = 128 + 4 + 12 * len(parts), b"", b""
    for name, data in parts:
        directory += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ") + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + directory + body


@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile(fmt: str) -> None:
    """A CMYK profile is applied: by this one coloured inks print nothing and black ink alone counts."""
    for ink, value in (((200, 0, 0, 0), 255), ((0, 120, 250, 255), 0)):
        image = Image.new("CMYK", (16, 16), ink)
        with_profile = pixels(encoded(image, fmt, icc_profile=cmyk_profile()))[8, 8]
        np.testing.assert_allclose(with_profile, [value] * 3, atol=3)
    assert pixels(encoded(Image.new("CMYK", (16, 16), (200, 0, 0, 0)), fmt))[8, 8, 0] < 100


# ------------------------------------------------------------------------- formats


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic(orientation: int, tmp_path: Path) -> None:
    """An iPhone's photo is read, upright."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image = make_photo(128, 96)
    data = io.BytesIO()
    turned = image.rotate({1: 0, 3: 180, 6: 90}[orientation], expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pillow_heif.from_pillow(turned).save(data, quality=95, exif=exif.tobytes())
    path = tmp_path / "named.jpg"
    path.write_bytes(data.getvalue())
    assert np.abs(pixels(path) - np.asarray(image)).mean() < 8
    assert "truncated" in refused(data.getvalue()[:-200]).reason
    assert "megapixels" in refused(path, max_pixels=100).reason


@pytest.mark.parametrize("orientation", [1, 6])
def test_avif(orientation: int) -> None:
    """AVIF is read, upright."""
    image = make_photo(128, 96)
    try:
        data = oriented(image, orientation, "AVIF", quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow does not write AVIF")
    assert np.abs(pixels(data) - np.asarray(image)).mean() < 8
    assert refused(data[: len(data) // 2]).reason


def test_raw(tmp_path: Path) -> None:
    """A camera's RAW photo is developed, by its suffix and by its content."""
    pytest.importorskip("rawpy")
    path = tmp_path / "x.dng"
    path.write_bytes(dng())
    array = pixels(path)
    assert array.shape == (96, 144, 3)
    levels = array[48, 4:-4].mean(axis=-1)
    assert (np.diff(levels) >= -3).all() and levels[0] < 80 and levels[-1] > 240
    assert np.array_equal(pixels(dng()), array)
    assert "megapixels" in refused(path, max_pixels=100).reason


def test_raw_that_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A truncated RAW file is an error, and nothing is written next to it."""
    pytest.importorskip("rawpy")
    data = dng()
    for number, content in enumerate((data[:-100], data[: len(data) // 2], b"text", data[:100])):
        path = tmp_path / f"{number}.dng"
        path.write_bytes(content)
        assert refused(path).path == str(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("package", "extra", "name", "data"),
    [
        ("pillow_heif", "heif", "x.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)),
        ("pillow_heif", "heif", "x.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100)),
        ("rawpy", "raw", "x.CR2", b"II*\0\x10\0\0\0CR\2\0" + bytes(100)),
        ("rawpy", "raw", "x.raf", b"FUJIFILMCCD-RAW 0201" + bytes(100)),
        ("rawpy", "raw", "x.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100)),
        ("rawpy", "raw", None, dng()),
        ("tifffile", "tiff", None, tiff(float_of(PHOTO, "f4"))),
        ("pillow_jxl", "jxl", "x.jpg", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60)),
    ],
)
def test_missing_extra(
    package: str, extra: str, name: str | None, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its package a format is not called damaged: the error says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(data, name=name)
    assert f"pip install 'grmp_score[{extra}]'" in error.reason and "not installed" in error.reason
    assert isinstance(error.__cause__, ImportError)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG"),
        (b"%PDF-1.7\n...", "PDF"),
        (b"PK\x03\x04" + bytes(60), "ZIP"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(60), "video"),
        (b"RIFF\x24\0\0\0AVI LIST" + bytes(60), "video"),
        (b"\xff\xd8\xff\xc4\0\x03\0\xff\xc3\0\x0b\x10" + bytes(60), "lossless JPEG of 16 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(60), "PostScript"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_what_a_file_is_instead(data: bytes, words: str) -> None:
    """A file that is no image but something known is called by its name."""
    assert refused(data).reason.startswith("not an image but ") and words in refused(data).reason


@pytest.mark.parametrize(
    "content",
    [b"just text\n" * 50, bytes(500), np.random.default_rng(0).bytes(2000)],
    ids=["text", "zeros", "random"],
)
def test_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    """Text and random bytes under an image's name are told to be no image."""
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    error = refused(path)
    assert error.path == str(path) and "not an image" in error.reason
    assert refused(content).path is None
