"""Reading pictures: every kind of source gives the same picture, every failure is an `ImageReadError`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from grmp_score.errors import ConfigError, ImageReadError, ImageTooLargeError, MissingExtraError
from grmp_score.images import image_bytes, parse_colour, read_image
from grmp_score.images.decoder_settings import decoder_settings

from .conftest import make_photo
from .odd_pictures import bomb, broken_exif, deep, encoded, float_of, oriented, pixels, refused

PHOTO = make_photo(60, 40)
RGB = np.asarray(PHOTO).astype(int)
GREY = np.asarray(PHOTO.convert("L"))


# ------------------------------------------------------------------------ sources


def test_all_kinds_of_sources_agree(tmp_path: Path) -> None:
    """A path, its text, its bytes, an open file, a PIL image and an array are the same picture."""
    path = tmp_path / "ünï côdé.png"
    PHOTO.save(path)
    data = path.read_bytes()
    with path.open("rb") as file, Image.open(path) as opened:
        sources = [path, str(path), data, bytearray(data), io.BytesIO(data), file, opened, PHOTO, np.asarray(PHOTO)]
        for source in sources:
            assert np.array_equal(pixels(source), RGB)


def test_sources_are_left_as_they_are() -> None:
    """Neither a PIL image nor an open file is changed or closed."""
    file = io.BytesIO(oriented(PHOTO, 6, "PNG"))
    read_image(file)
    assert not file.closed
    file.seek(0)
    with Image.open(file) as image:
        assert read_image(image).size == (60, 40)
        assert image.size == (40, 60) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize("image", [PHOTO, PHOTO.convert("RGBA"), PHOTO.convert("L")], ids=lambda i: i.mode)
def test_the_result_is_a_picture_of_its_own(image: Image.Image) -> None:
    """Drawing into what was read does not change the image that it was read from."""
    before = image.tobytes()
    read_image(image).paste((1, 2, 3), (0, 0, 60, 40))
    assert image.tobytes() == before


class Pipe(io.BytesIO):
    """A stream that cannot go back."""

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_an_open_file_is_read_from_where_it_stands(kind: type[io.BytesIO]) -> None:
    """What lies before the position does not count, also where it is a picture itself."""
    before = encoded(Image.new("RGB", (9, 9)), "PNG")
    file = kind(before + encoded(PHOTO, "PNG"))
    file.read(len(before))
    assert np.array_equal(pixels(file), RGB)


def test_an_open_file_that_was_read_before() -> None:
    """A file object at its end is told apart from an empty file."""
    file = io.BytesIO(encoded(PHOTO, "PNG"))
    image_bytes(file)
    for read in (read_image, image_bytes):
        with pytest.raises(ImageReadError, match=r"at its end.*seek\(0\)"):
            read(file)


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


@pytest.mark.parametrize("source", [None, 3, 4.5, ["x.png"], object(), io.StringIO("text")])
def test_things_that_are_no_source(source: Any) -> None:
    """Anything else is an `ImageReadError` too, so that one slip does not end a long run."""
    assert refused(source).path is None


# --------------------------------------------------------------- arrays and tensors


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


def test_views() -> None:
    """Arrays need not be contiguous."""
    array = np.asarray(PHOTO)
    assert np.array_equal(pixels(array[::-1, ::2, ::-1]), RGB[::-1, ::2, ::-1])


def test_grey_and_bool_arrays() -> None:
    """Grey arrays with and without a channel, and black-and-white ones, become RGB."""
    for array in (GREY, GREY[..., None], GREY / 255, deep(PHOTO.convert("L"))):
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
    for same in (tensor, tensor[None], tensor.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert np.abs(pixels(same) - RGB).max() <= (1 if dtype in (torch.bfloat16, torch.float16) else 0)
    assert np.array_equal(pixels(tensor[:1]), pixels(tensor[0]))


def test_bool_tensor() -> None:
    """Black-and-white tensors are read."""
    assert pixels(torch.tensor([[True, False]])).tolist() == [[[255] * 3, [0] * 3]]


def test_small_overshoot_is_rounding() -> None:
    """A resampled picture may leave 0..1 by a thousandth."""
    assert pixels(np.array([[-0.0005, 1.0005]]))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("source", "reason", "hint"),
    [
        (np.zeros((3, 40, 60)), r"\[3, 40, 60\]", "transpose"),
        (np.zeros((3, 9, 9), np.uint8), r"expected an array.*\[3, 9, 9\]", "transpose"),
        (np.zeros((4, 4, 2)), r"\[4, 4, 2\]", None),
        (np.zeros((4, 4, 5), np.uint8), "C = 1, 3", None),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\[1, 4, 4, 3\]", None),
        (np.zeros(4, np.uint8), r"\[4\]", None),
        (np.zeros((4, 4, 3), np.int64), "got int64", "uint8"),
        (np.zeros((4, 4), np.complex64), "got complex64", None),
        (np.full((4, 4), np.nan), "NaN", None),
        (np.array([[0, np.inf]]), "NaN or infinite", None),
        (np.full((4, 4, 3), 255.0), r"255\.\.255", "Divide"),
        (np.full((4, 4, 3), -0.5), "-0.5", "normalisation"),
        (np.zeros((0, 4, 3)), "no pixels", None),
        (np.zeros((4, 0), np.uint8), "no pixels", None),
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


# ---------------------------------------------------------------------- background


@pytest.mark.parametrize(
    ("background", "value"),
    [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("#123", (17, 34, 51)), ((1, 2, 3), (1, 2, 3))],
)
def test_stated_background(background: Any, value: tuple[int, int, int]) -> None:
    """Clear pixels show the background, however it is stated."""
    data = encoded(Image.new("RGBA", (3, 2), (9, 9, 9, 0)), "PNG")
    assert pixels(data, background=background)[1, 2].tolist() == list(value)
    assert parse_colour(background) == value == parse_colour(value)


@pytest.mark.parametrize("background", ["whitish", "#12", (1, 2), (1, 2, 300), None, "#11223344", ("a", "b", "c")])
def test_background_that_is_no_colour(background: Any) -> None:
    """A background that is no colour is a wrong setting, not a broken image."""
    for use in (lambda: parse_colour(background), lambda: read_image(PHOTO, background=background)):
        with pytest.raises(ConfigError, match="unknown colour"):
            use()


# -------------------------------------------------------------------------- errors


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
def test_no_permission(tmp_path: Path) -> None:
    """A file that may not be read is said to be so."""
    path = tmp_path / "x.png"
    PHOTO.save(path)
    path.chmod(0)
    error = refused(path)
    assert error.path == str(path) and "permission" in error.reason


def test_an_image_without_pixels() -> None:
    """A picture of no width is refused."""
    assert refused(Image.new("RGB", (0, 5))).reason == "the image has no pixels: 0x5"


def test_a_name_with_a_null_character() -> None:
    """A path that no file can have is an error like any other."""
    assert refused("a\0b.png").path == "a\0b.png"


def test_errors_from_open_files_name_them(tmp_path: Path) -> None:
    """An open file's name is in the error."""
    path = tmp_path / "x.jpg"
    path.write_bytes(b"text")
    with path.open("rb") as file:
        assert refused(file).path == str(path)
    assert refused(io.BytesIO(b"text")).path is None
    assert refused(b"").path is None


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_file(tmp_path: Path, fmt: str) -> None:
    """Half a file is an error and not half a picture."""
    data = encoded(make_photo(120, 90), fmt)
    path = tmp_path / f"x.{fmt.lower()}"
    path.write_bytes(data[: len(data) // 2])
    error = refused(path)
    assert error.path == str(path) and error.reason


@pytest.mark.parametrize("read", [read_image, lambda data: read_image(Image.open(io.BytesIO(data)))])
def test_not_enough_memory(read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that does not fit is an error of this picture, and others can still be read."""

    def load(self: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageReadError, match="not enough memory"):
        read(encoded(PHOTO, "PNG"))


def test_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture above the limit is refused before its pixels are unpacked; Pillow's own limit is left alone."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encoded(make_photo(80, 60), "PNG")
    assert read_image(data).size == (80, 60)
    assert read_image(data, max_pixels=4800).size == (80, 60)
    with pytest.raises(ImageTooLargeError, match=r"megapixels, more than the limit .*max_pixels") as caught:
        read_image(data, max_pixels=4799, name="bomb.png")
    assert (caught.value.path, caught.value.pixels, caught.value.limit) == ("bomb.png", 4800, 4799)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_bomb_of_few_bytes() -> None:
    """A file of few bytes that states a hundred thousand pixels in each direction is refused by default."""
    with pytest.raises(ImageTooLargeError, match=r"10,000\.0 megapixels"):
        read_image(bomb())


# ----------------------------------------------------------- any damage, by hypothesis


@lru_cache(maxsize=1)
def samples() -> dict[str, bytes]:
    """Small files of the formats that people have, with EXIF."""
    return {fmt: oriented(make_photo(40, 30), 6, fmt) for fmt in ("PNG", "JPEG", "WEBP")}


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
def test_any_bytes(header: bytes, rest: bytes) -> None:
    """Any bytes, also behind a true signature, are an image or an `ImageReadError`."""
    survives(header + rest)


# -------------------------------------------------------------- the caller's process


def test_warnings_do_not_leak() -> None:
    """Pillow's warnings stay inside, also from several threads, and the process's filters are as before."""
    data = broken_exif(PHOTO)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(data)) as image:
            image.getexif()
        assert seen, "Pillow should warn about this file"
        seen.clear()
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: [read_image(data) for _ in range(20)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not seen and list(warnings.filters) == before
    with pytest.raises(UserWarning, match="user"), warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(data)
        warnings.warn("user", stacklevel=1)


def test_pillow_s_switches_belong_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a picture is read others may decode with the switches that they have set."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with decoder_settings(), decoder_settings():
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True and Image.MAX_IMAGE_PIXELS == 10
    data = encoded(make_photo(200, 200), "JPEG")
    assert read_image(data).size == (200, 200)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    assert refused(data[: len(data) // 2]).reason == "the file is truncated (JPEG)"
