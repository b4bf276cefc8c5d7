"""Reading pictures: every mode as people see it, every failure an `ImageReadError`."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from grmp_score.errors import ImageReadError, ImageTooLargeError
from grmp_score.images.read import read_image

from .conftest import Photo, make_photo


def encoded(image: Image.Image, fmt: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def pixels(source: Any) -> np.ndarray:
    """What `read_image` makes of a source, after the properties every result has."""
    image = read_image(source)
    assert image.mode == "RGB"
    array = np.asarray(image)
    assert array.dtype == np.uint8 and array.shape == (image.height, image.width, 3)
    return array


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


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photo: Photo, orientation: int, fmt: str) -> None:
    """All eight orientations are shown upright."""
    image = photo(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, fmt, exif=exif, **({"lossless": True} if fmt == "WEBP" else {}))
    as_stored = np.asarray(image)
    if fmt == "JPEG":
        with Image.open(io.BytesIO(data)) as stored:
            as_stored = np.asarray(stored)
    assert np.array_equal(pixels(data), UPRIGHT[orientation](as_stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_does_not_exist(photo: Photo, orientation: int) -> None:
    """A nonsensical orientation leaves the picture as it is."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(24, 16)
    assert np.array_equal(pixels(encoded(image, "PNG", exif=exif)), np.asarray(image))


def test_nonsense_in_place_of_exif(photo: Photo) -> None:
    """A camera's broken EXIF block does not make its picture unreadable."""
    assert pixels(encoded(photo(24, 16), "JPEG", exif=b"Exif\0\0nonsense")).shape == (16, 24, 3)


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


# --------------------------------------------------------------------------- modes


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


def png16(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG file, written by hand."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


DEEP = np.array([[0, 257, 32768, 65535], [128 * 257, 1000, 60000, 300]], dtype=np.uint16)
SHALLOW = np.round(DEEP / 257.0).astype(np.uint8)


def test_16_bit_grey_png() -> None:
    """16-bit grey is scaled by its true range; Pillow alone would clip nearly all of it to white."""
    assert np.array_equal(pixels(png16(DEEP))[..., 0], SHALLOW)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_tiff(order: str) -> None:
    """16-bit TIFF in either byte order is scaled the same."""
    image = Image.fromarray(DEEP.astype(order))
    assert np.array_equal(pixels(encoded(image, "TIFF"))[..., 0], SHALLOW)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_16_bit_with_orientation(orientation: int) -> None:
    """Deep images are turned upright too."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(DEEP), "TIFF", exif=exif)
    assert np.array_equal(pixels(data), UPRIGHT[orientation](np.repeat(SHALLOW[..., None], 3, axis=2)))


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


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(fmt: str) -> None:
    """Of several frames the first is read."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert pixels(data)[4, 4].tolist() == [255, 0, 0]


# -------------------------------------------------------------------------- inputs


def test_all_kinds_of_sources_agree(photo: Photo, tmp_path: Path) -> None:
    """A path, its text, its bytes, an open file, a PIL image and an array are the same picture."""
    image = photo()
    path = tmp_path / "ünï côdé.png"
    image.save(path)
    data = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as opened:
        sources = [path, str(path), data, bytearray(data), io.BytesIO(data), file, opened, image, np.asarray(image)]
        for source in sources:
            assert np.array_equal(pixels(source), np.asarray(image))


def test_grey_arrays_and_views() -> None:
    """A grey array becomes RGB; arrays need not be contiguous."""
    array = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert np.array_equal(pixels(array), np.repeat(array[..., None], 3, axis=2))
    colour = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(pixels(colour[::-1, ::2, ::-1]), colour[::-1, ::2, ::-1])


def test_sources_are_left_as_they_are(photo: Photo) -> None:
    """Neither a PIL image nor an open file is changed or closed."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO(encoded(photo(24, 16), "PNG", exif=exif))
    read_image(file)
    assert not file.closed
    file.seek(0)
    with Image.open(file) as image:
        assert read_image(image).size == (16, 24)
        assert image.size == (24, 16) and image.getexif()[0x0112] == 6


# -------------------------------------------------------------------------- errors


def refused(source: Any) -> ImageReadError:
    """The error that a source gives."""
    with pytest.raises(ImageReadError) as caught:
        read_image(source)
    return caught.value


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is said to be missing."""
    error = refused(tmp_path / "x.png")
    assert (error.path, error.reason) == (str(tmp_path / "x.png"), "no such file")
    assert str(error) == f"{tmp_path / 'x.png'}: no such file"


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is said to be empty."""
    (tmp_path / "x.png").touch()
    error = refused(tmp_path / "x.png")
    assert (error.path, error.reason) == (str(tmp_path / "x.png"), "the file is empty")


def test_folder(tmp_path: Path) -> None:
    """A folder is told apart from an image."""
    error = refused(tmp_path)
    assert error.path == str(tmp_path) and "folder" in error.reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_fifo(tmp_path: Path) -> None:
    """A pipe, which could block for ever, is refused at once."""
    os.mkfifo(tmp_path / "pipe.png")
    error = refused(tmp_path / "pipe.png")
    assert error.path == str(tmp_path / "pipe.png") and "regular file" in error.reason


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_no_permission(photo: Photo, tmp_path: Path) -> None:
    """A file that may not be read is said to be so."""
    path = tmp_path / "x.png"
    photo().save(path)
    path.chmod(0)
    error = refused(path)
    assert error.path == str(path) and "permission" in error.reason


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_file(photo: Photo, tmp_path: Path, fmt: str) -> None:
    """Half a file is an error and not half a picture."""
    data = encoded(photo(120, 90), fmt)
    path = tmp_path / f"x.{fmt.lower()}"
    path.write_bytes(data[: len(data) // 2])
    error = refused(path)
    assert error.path == str(path) and error.reason


@pytest.mark.parametrize(
    "content", [b"just text\n" * 50, bytes(500), np.random.default_rng(0).bytes(2000), b"%PDF-1.7\n", b"<svg/>"]
)
def test_no_image_at_all(tmp_path: Path, content: bytes) -> None:
    """Text and random bytes under an image's name are told to be no image."""
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    error = refused(path)
    assert error.path == str(path) and "not an image" in error.reason
    assert refused(content).path is None


def test_errors_from_open_files_name_them(tmp_path: Path) -> None:
    """An open file's name is in the error."""
    path = tmp_path / "x.jpg"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        assert refused(file).path == str(path)
    assert refused(io.BytesIO(b"text")).path is None
    assert refused(b"").path is None


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.int64),
        np.zeros((4, 4, 3), dtype=np.complex64),
        np.zeros((4, 4, 2), dtype=np.uint8),
        np.zeros((4, 4, 5), dtype=np.uint8),
        np.zeros((3, 9, 9), dtype=np.uint8),
        np.zeros((1, 4, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros((4, 0), dtype=np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_that_are_no_picture(array: np.ndarray) -> None:
    """Arrays of another type or layout are refused with what was expected."""
    assert "array" in refused(array).reason


@pytest.mark.parametrize("source", [None, 3, 4.5, ["x.png"], object()])
def test_things_that_are_no_source(source: object) -> None:
    """Anything else is an `ImageReadError` too, so that one slip does not end a long run."""
    assert refused(source).path is None


def test_a_name_with_a_null_character() -> None:
    """A path that no file can have is an error like any other."""
    assert refused("a\0b.png").path == "a\0b.png"


def test_decompression_bomb(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture above the limit is refused before its pixels are unpacked; Pillow's own limit is left alone."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(photo(80, 60), "PNG")
    assert read_image(data).size == (80, 60)
    assert read_image(data, max_pixels=4800).size == (80, 60)
    with pytest.raises(ImageTooLargeError, match=r"megapixels, more than the limit .*max_pixels") as caught:
        read_image(data, max_pixels=4799, name="bomb.png")
    assert (caught.value.path, caught.value.pixels, caught.value.limit) == ("bomb.png", 4800, 4799)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_bomb_of_few_bytes() -> None:
    """A file of few bytes that states a hundred thousand pixels in each direction is refused by default."""
    chunk = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    head = struct.pack(">I", 13) + b"IHDR" + chunk + struct.pack(">I", zlib.crc32(b"IHDR" + chunk))
    with pytest.raises(ImageTooLargeError, match=r"10,000\.0 megapixels"):
        read_image(b"\x89PNG\r\n\x1a\n" + head + png16(DEEP)[33:])


@lru_cache(maxsize=1)
def samples() -> dict[str, bytes]:
    """Small files of the formats that people have, one with EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = make_photo(40, 30)
    return {fmt: encoded(image, fmt, exif=exif) for fmt in ("PNG", "JPEG", "WEBP")}


def survives(data: bytes) -> None:
    """Reading gives an RGB image or an `ImageReadError` and nothing else."""
    with contextlib.suppress(ImageReadError):
        assert read_image(data).mode == "RGB"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_any_flipped_bytes(fmt: str, flips: list[tuple[float, int]]) -> None:
    """A file with any bytes changed is an image or an `ImageReadError`."""
    data = bytearray(samples()[fmt])
    for place, change in flips:
        data[min(int(place * len(data)), len(data) - 1)] ^= change
    survives(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.floats(0, 1))
def test_any_prefix(fmt: str, fraction: float) -> None:
    """Any beginning of a file is an image or an `ImageReadError`."""
    data = samples()[fmt]
    survives(data[: int(fraction * len(data))])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x24\0\0\0WEBPVP8 "]),
    st.binary(max_size=200),
)
def test_any_bytes(head: bytes, tail: bytes) -> None:
    """Any bytes, also behind a true signature, are an image or an `ImageReadError`."""
    survives(head + tail)
