"""Colour, depth and formats beyond Pillow's defaults: every variant of a picture looks like the picture."""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile

from grmp_score.errors import ConfigError, ImageReadError, MissingExtraError
from grmp_score.images import orientation as orientations
from grmp_score.images.decoder_settings import decoder_settings
from grmp_score.images.read import image_bytes, read_image

from .conftest import make_photo
from .odd_pictures import broken_exif, deep, dng, encoded, oriented, png16, tiff, wide_gamut_profile


def pixels(source: Any, **options: Any) -> np.ndarray:
    """What is read, as whole numbers that can be subtracted."""
    image = read_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def refused(source: Any, **options: Any) -> ImageReadError:
    """The error that a source gives."""
    with pytest.raises(ImageReadError) as caught:
        read_image(source, **options)
    return caught.value


PHOTO = make_photo(60, 40)
RGB = np.asarray(PHOTO).astype(int)
GREY = np.asarray(PHOTO.convert("L")).astype(int)


# --------------------------------------------------------------------------- depth


def float_of(image: Image.Image, dtype: str) -> np.ndarray:
    """An 8-bit picture in 0..1."""
    return (np.asarray(image) / 255).astype(dtype)


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


GREY_16 = deep(PHOTO.convert("L"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png16(GREY_16), id="png"),
        pytest.param(png16(np.dstack([GREY_16, np.full_like(GREY_16, 65535)])), id="png alpha"),
        pytest.param(tiff(GREY_16), id="u2"),
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_an_unusual_tiff(orientation: int) -> None:
    """Pictures that Pillow does not read are turned upright too."""
    pytest.importorskip("tifffile")
    tag = {0x0112: ("H", [orientation])}
    ours = pixels(tiff(float_of(PHOTO, "f4"), extra=tag))
    assert np.array_equal(ours, pixels(tiff(np.asarray(PHOTO), extra=tag)))


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


@pytest.mark.parametrize(
    ("background", "value"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ((1, 2, 3), (1, 2, 3))]
)
def test_stated_background(background: Any, value: tuple[int, int, int]) -> None:
    """Clear pixels show the background, however it is stated."""
    data = encoded(Image.new("RGBA", (3, 2), (9, 9, 9, 0)), "PNG")
    assert pixels(data, background=background)[1, 2].tolist() == list(value)


@pytest.mark.parametrize("background", ["whitish", "#12", (1, 2), (1, 2, 300), None, "#11223344", ("a", "b", "c")])
def test_background_that_is_no_colour(background: Any) -> None:
    """A background that is no colour is a wrong setting, not a broken image."""
    with pytest.raises(ConfigError, match="unknown colour"):
        read_image(PHOTO, background=background)


def test_nothing_is_applied_twice() -> None:
    """What is read carries neither orientation nor profile, so reading it again changes nothing."""
    data = oriented(PHOTO, 6, "PNG", icc_profile=wide_gamut_profile())
    once = read_image(data)
    assert np.array_equal(pixels(once), np.asarray(once))
    assert not once.info and not once.getexif()


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
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL"),
    ],
)
def test_what_a_file_is_instead(data: bytes, words: str) -> None:
    """A file that is no image but something known is called by its name."""
    assert refused(data).reason.startswith("not an image but ") and words in refused(data).reason


# ------------------------------------------------------------------ arrays, tensors


@pytest.mark.parametrize(
    "array",
    [
        np.asarray(PHOTO),
        deep(PHOTO),
        deep(PHOTO).astype(">u2"),
        *(float_of(PHOTO, t) for t in ("f2", "f4", "f8")),
        np.dstack([np.asarray(PHOTO), np.full((40, 60), 255, np.uint8)]),
        np.asarray(PHOTO)[::-1][::-1],
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays(array: np.ndarray) -> None:
    """Arrays of every documented type are the same picture."""
    assert np.abs(pixels(array) - RGB).max() <= (1 if array.dtype.itemsize == 2 else 0)


def test_grey_and_bool_arrays() -> None:
    """Grey arrays with and without a channel, and black-and-white ones, become RGB."""
    grey = np.asarray(PHOTO.convert("L"))
    for array in (grey, grey[..., None], grey / 255, GREY_16):
        assert np.array_equal(pixels(array), np.repeat(GREY[..., None], 3, axis=2))
    assert pixels(np.array([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_alpha_of_an_array() -> None:
    """The fourth channel is laid over the background."""
    array = np.zeros((2, 2, 4))
    assert pixels(array, background="#0a0b0c")[0, 0].tolist() == [10, 11, 12]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors(dtype: torch.dtype) -> None:
    """Tensors with the channels first are the same picture, alone or as a batch of one."""
    array = np.asarray(PHOTO).transpose(2, 0, 1)
    if dtype == torch.uint8:
        tensor = torch.from_numpy(array.copy())
    elif dtype == torch.uint16:
        tensor = torch.from_numpy(array.astype(np.uint16) * 257)
    else:
        tensor = torch.from_numpy(array / 255).to(dtype).requires_grad_()
    for given in (tensor, tensor[None], tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert np.abs(pixels(given) - RGB).max() <= (1 if dtype in (torch.bfloat16, torch.float16) else 0)
    assert np.array_equal(pixels(tensor[:1]), pixels(tensor[0]))


def test_bool_tensor() -> None:
    """Black-and-white tensors are read."""
    assert pixels(torch.tensor([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize(
    ("source", "reason", "hint"),
    [
        (np.zeros((3, 40, 60)), r"\[3, 40, 60\]", "transpose"),
        (np.zeros((4, 4, 2)), r"\[4, 4, 2\]", None),
        (np.zeros((4, 4, 5), np.uint8), "C = 1, 3", None),
        (np.zeros((4, 4, 3), np.int64), "got int64", "uint8"),
        (np.zeros((4, 4), np.complex64), "got complex64", None),
        (np.full((4, 4), np.nan), "NaN", None),
        (np.array([[0, np.inf]]), "NaN or infinite", None),
        (np.full((4, 4, 3), 255.0), r"255\.\.255", "Divide"),
        (np.full((4, 4, 3), -0.5), "-0.5", "normalisation"),
        (np.zeros((0, 4, 3)), "no pixels", None),
        (torch.zeros(40, 60, 3), "expected a tensor", "permute"),
        (torch.zeros(2, 3, 4, 4), "batch", "one by one"),
        (torch.zeros(2, 4, 4), r"\[2, 4, 4\]", None),
        (torch.zeros(1, 5, 4, 4), r"\[1, 5, 4, 4\]", None),
        (torch.zeros(3), r"\[3\]", None),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "expected a tensor", "uint8"),
        (torch.full((3, 4, 4), 2.5), r"2\.5\.\.2\.5", "Divide"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), "complex64", None),
    ],
)
def test_arrays_and_tensors_that_are_refused(source: Any, reason: str, hint: str | None) -> None:
    """Another shape, type or range is named next to what was expected, with the remedy where there is one."""
    with pytest.raises(ImageReadError, match=reason) as caught:
        read_image(source)
    assert hint is None or hint in str(caught.value.hint)


def test_small_overshoot_is_rounding() -> None:
    """A resampled picture may leave 0..1 by a thousandth."""
    assert pixels(np.array([[-0.0005, 1.0005]]))[0, :, 0].tolist() == [0, 255]


# --------------------------------------------------------------------------- bytes


def test_image_bytes(tmp_path: Path) -> None:
    """The bytes of a file, whatever it is named by; errors are those of reading."""
    data = encoded(PHOTO, "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert [image_bytes(s) for s in (path, str(path), data, file)] == [data] * 4
    (tmp_path / "empty").touch()
    for source, reason in ((tmp_path / "empty", "empty"), (tmp_path, "folder"), ("missing.png", "no such file")):
        with pytest.raises(ImageReadError, match=reason) as caught:
            image_bytes(source)
        assert caught.value.path == str(source)


# -------------------------------------------------------------------- addresses


def test_addresses(tmp_path: Path) -> None:
    """Pictures in memory, on disk and in an archive are read by their addresses."""
    fsspec = pytest.importorskip("fsspec")
    data = encoded(PHOTO, "PNG")
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with fsspec.open("memory://grmp/x.png", "wb") as file:
        file.write(data)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("below/x.png", data)
    for address in ("memory://grmp/x.png", path.as_uri(), f"zip://below/x.png::file://{tmp_path}/a.zip"):
        assert np.array_equal(pixels(address), RGB)
        assert image_bytes(address) == data
    for address in ("memory://grmp/none.png", f"zip://none.png::file://{tmp_path}/a.zip", "nosuch://x/y.png"):
        assert refused(address).path == address


def test_addresses_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsspec an address says what to install."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    error = refused("s3://bucket/x.png")
    assert error.path == "s3://bucket/x.png" and "fsspec" in error.reason
    assert isinstance(error.__cause__, MissingExtraError) and "grmp_score[remote]" in error.reason


# ------------------------------------------------------------------------ quietness


def test_warnings_do_not_leak() -> None:
    """Pillow's warnings stay inside, also from several threads, and the process's filters are as before."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(broken_exif(PHOTO))) as image:
            image.getexif()
        assert seen, "this file should be noisy"
        seen.clear()
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: [read_image(broken_exif(PHOTO)) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not seen and list(warnings.filters) == before
    with pytest.raises(UserWarning, match="user"), warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(broken_exif(PHOTO))
        warnings.warn("user", stacklevel=1)


def test_truncated_files_stay_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library's wish for half pictures does not reach us, and is left in place."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(make_photo(200, 200), "JPEG")
    assert refused(data[: len(data) // 2]).reason == "the file is truncated (JPEG)"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    with decoder_settings(), decoder_settings():
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False
