"""A folder of more than sixty odd files: what people's archives hold, and what should become of each.

    python -m tests.odd_files FOLDER

Every image shows the same picture (`reference`), so its score is known: that of the reference, or for kinds that
cannot hold its colours that of the grey or the black-and-white picture.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from .odd_pictures import bomb, broken_exif, deep, dng, encoded, oriented, png16, tiff, wide_gamut_profile


@dataclass(frozen=True)
class OddFile:
    """One file and what is expected.

    Attributes:
        name: path below the folder.
        like: ``"colour"``, ``"grey"`` or ``"bits"``: scored like that variant of the picture; ``"image"``: scored,
            but with another picture; ``"error"``: not scored.
        exact: the pixels are those of the variant, within rounding of one level.
    """

    name: str
    like: str
    exact: bool = False


def reference(width: int = 320, height: int = 240) -> Image.Image:
    """A smooth picture with some texture, which survives chroma subsampling and palettes."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(9 * x + 4 * y + phase) * np.cos(7 * y - 3 * x * phase) for phase in (0.3, 0.7, 1.1)]
    texture = 0.04 * np.sin(160 * x) * np.sin(140 * y)
    values = 0.5 + 0.3 * np.stack(waves, axis=-1) + texture[..., None]
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


def variants() -> dict[str, Image.Image]:
    """The pictures that `OddFile.like` speaks of."""
    image = reference()
    grey = image.convert("L")
    return {"colour": image, "grey": grey.convert("RGB"), "bits": grey.convert("1").convert("RGB")}


def make(folder: Path) -> list[OddFile]:
    """Fills an empty folder and says what is in it; kinds that this machine cannot make are left out."""
    files: list[OddFile] = []
    image, photos = reference(), folder
    grey = image.convert("L")

    def add(name: str, data: bytes | Callable[[], bytes], like: str, exact: bool = False) -> None:
        try:
            content = data if isinstance(data, bytes) else data()
            path = photos / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except (ImportError, KeyError, OSError):  # a codec, or a name that the file system does not take
            return
        files.append(OddFile(name, like, exact))

    png = encoded(image, "PNG")
    jpeg = encoded(image, "JPEG", quality=97, subsampling=0)

    for orientation in range(1, 9):
        add(f"orientation {orientation}.jpg", oriented(image, orientation, quality=97, subsampling=0), "colour")
    add("orientation 6.png", oriented(image, 6, "PNG"), "colour", True)
    add("orientation 8.tif", oriented(image, 8, "TIFF"), "colour", True)
    add("orientation 3.webp", oriented(image, 3, "WEBP", lossless=True), "colour", True)
    add("orientation 6 deep.tif", oriented(Image.fromarray(deep(grey)), 6, "TIFF"), "grey", True)

    # ------------------------------------------------------------------ depth
    opaque = np.full((*deep(image).shape[:2], 1), 65535, np.uint16)
    add("rgb 16.png", png16(deep(image)), "colour", True)
    add("rgba 16.png", png16(np.concatenate([deep(image), opaque], axis=-1)), "colour", True)
    add("grey 16.png", png16(deep(grey)), "grey", True)
    add("grey alpha 16.png", png16(np.concatenate([deep(grey)[..., None], opaque], axis=-1)), "grey", True)
    add("rgb 16.tif", tiff(deep(image)), "colour", True)
    add("grey 16.tif", tiff(deep(grey)), "grey", True)
    add("grey 32.tif", tiff(deep(grey).astype("u4") * 65537), "grey", True)
    add("grey signed 16.tif", tiff((deep(grey) // 2).astype("i2")), "grey", True)
    add("grey float.tif", tiff((np.asarray(grey) / 255).astype("f4")), "grey", True)
    add("grey white is zero 16.tif", tiff(65535 - deep(grey), photometric=0), "grey", True)
    add("grey.pgm", b"P5\n320 240\n65535\n" + deep(grey).astype(">u2").tobytes(), "grey", True)
    add("one bit.png", encoded(grey.convert("1"), "PNG"), "bits", True)
    add("one bit.tif", encoded(grey.convert("1"), "TIFF", compression="group4"), "bits", True)
    add("float 0 to 255.tif", tiff(np.asarray(grey).astype("f4")), "error")
    with contextlib.suppress(ImportError):
        import tifffile  # noqa: F401

        add("rgb float.tif", tiff((np.asarray(image) / 255).astype("f4")), "colour", True)
        add("rgb half planar.tif", tiff((np.asarray(image) / 255).astype("f2"), planar=True), "colour", True)
        add("rgb 16 planar.tif", tiff(deep(image), planar=True), "colour", True)
        add("grey double.tif", tiff(np.asarray(grey) / 255), "grey", True)

    # ----------------------------------------------------------------- colour
    swapped = Image.merge("RGB", [image.getchannel(c) for c in "GRB"])
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk = Image.fromarray(255 - np.asarray(image.convert("RGBX"))[..., [0, 1, 2]])
    inks = Image.merge("CMYK", [*cmyk.split(), Image.new("L", image.size, 0)])
    add("profile.png", encoded(swapped, "PNG", icc_profile=wide_gamut_profile()), "colour")
    add(
        "profile.jpg",
        encoded(swapped, "JPEG", quality=97, subsampling=0, icc_profile=wide_gamut_profile()),
        "colour",
    )
    add("profile srgb.jpg", encoded(image, "JPEG", quality=97, subsampling=0, icc_profile=srgb), "colour")
    add("profile broken.png", encoded(image, "PNG", icc_profile=b"\0" * 150), "colour", True)
    add("cmyk.jpg", encoded(inks, "JPEG", quality=97, subsampling=0), "colour")
    add("cmyk.tif", encoded(inks, "TIFF"), "colour", True)
    add("lab.tif", lambda: encoded(_lab(image), "TIFF"), "colour")
    add("palette.png", encoded(image.quantize(256), "PNG"), "image")
    add("grey.jpg", encoded(grey, "JPEG", quality=97), "grey")
    add("grey palette.png", encoded(grey.convert("P"), "PNG"), "grey", True)
    clear = image.convert("RGBA")
    clear.putalpha(Image.new("L", image.size, 255))
    add("alpha opaque.png", encoded(clear, "PNG"), "colour", True)
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    add("alpha.png", encoded(clear, "PNG"), "image")
    add("alpha.webp", encoded(clear, "WEBP", lossless=True), "image")

    # ---------------------------------------------------------------- formats
    add("a.webp", encoded(image, "WEBP", lossless=True), "colour", True)
    add("a.bmp", encoded(image, "BMP"), "colour", True)
    add("a.tga", encoded(image, "TGA"), "colour", True)
    add("a.jp2", lambda: encoded(image, "JPEG2000", irreversible=False), "colour", True)
    add("a.gif", encoded(grey, "GIF"), "grey", True)
    add("progressive.jpg", encoded(image, "JPEG", quality=97, subsampling=0, progressive=True), "colour")
    frames = [Image.new("RGB", image.size, colour) for colour in ("red", "blue")]
    add("moving.png", encoded(image, "PNG", save_all=True, append_images=frames), "colour", True)
    add("moving.webp", encoded(image, "WEBP", save_all=True, append_images=frames, lossless=True), "colour", True)
    add(
        "moving.gif",
        encoded(grey, "GIF", save_all=True, append_images=[f.convert("L") for f in frames]),
        "grey",
        True,
    )
    add("pages.tif", encoded(image, "TIFF", save_all=True, append_images=frames), "colour", True)
    add("a.avif", lambda: encoded(image, "AVIF", quality=95), "colour")
    add("iphone.heic", lambda: _heic(image), "colour")
    with contextlib.suppress(ImportError):
        import rawpy  # noqa: F401

        add("camera.dng", dng(), "image")
        add("camera truncated.dng", dng()[:-5000], "error")
    add("broken exif.jpg", broken_exif(image), "colour")
    add("png named.jpg", png, "colour", True)
    add("junk appended.jpg", jpeg + b"junk" * 500, "colour")
    add("one pixel.png", encoded(image.resize((1, 1)), "PNG"), "image")
    add("thin.png", encoded(image.resize((900, 3)), "PNG"), "image")

    # ------------------------------------------------------------------ names
    for name in (
        *("with  spaces .png", "new\nline.png", "tab\t.png", "quote'\".png", "emoji 📷🌄.png", "ünïcödé.png"),
        *("[brackets]*?.png", "-dash.png", "semi;colon$HOME`.png", "back\\slash.png", "UPPER.PNG", "two.dots..png"),
        *("x" * 200 + ".png", "below/deeper/still.png", "日本語.png", "\u202egnp.png", "adapt.png", "#hash%20.png"),
    ):
        add(name, png, "colour", True)
    add(os.fsdecode(b"latin caf\xe9 \xff.png"), png, "colour", True)

    # ---------------------------------------------------------- what is broken
    add("empty.jpg", b"", "error")
    add("one byte.png", b"\x89", "error")
    for data, suffix in ((jpeg, "jpg"), (png, "png"), (encoded(image, "WEBP"), "webp"), (tiff(deep(image)), "tif")):
        add(f"truncated.{suffix}", data[: len(data) // 2], "error")
    add("html.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "error")
    add("text.png", b"this is not an image\n" * 30, "error")
    add("zeros.jpg", bytes(5000), "error")
    add("pdf.tif", b"%PDF-1.7\n" + bytes(100), "error")
    add("video.heic", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200), "error")
    add("garbage.cr2", np.random.default_rng(0).bytes(3000), "error")
    add("bomb.png", bomb(), "error")
    add("directory beyond the end.tif", b"II*\0" + (5000).to_bytes(4, "little") + bytes(100), "error")
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0xFF
    add("damaged.png", bytes(damaged), "error")

    if os.name != "nt":
        for name, target in (("broken.jpg", "nowhere.jpg"), ("loop.jpg", "loop.jpg"), ("ping.jpg", "pong.jpg")):
            (photos / f"link {name}").symlink_to(f"link {target}")
            files.append(OddFile(f"link {name}", "error"))
        (photos / "link pong.jpg").symlink_to("link ping.jpg")
        files.append(OddFile("link pong.jpg", "error"))
        (photos / "link.png").symlink_to("rgb 16.png")
        files.append(OddFile("link.png", "colour", True))
        (photos / "below" / "loop").symlink_to(photos, target_is_directory=True)
        os.mkfifo(photos / "pipe.jpg")
        files.append(OddFile("pipe.jpg", "error"))
        add("secret.png", png, "colour", True)
        (photos / "secret.png").chmod(0)
        if not os.access(photos / "secret.png", os.R_OK):  # root may read everything
            files[-1] = OddFile("secret.png", "error")
    # Not looked at in a folder:
    (photos / ".hidden.png").write_bytes(png)
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(png)
    return files


def _lab(image: Image.Image) -> Image.Image:
    convert = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        "RGB",
        "LAB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    result = ImageCms.applyTransform(image, convert)
    assert result is not None
    return result


def _heic(image: Image.Image) -> bytes:
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=95)
    return buffer.getvalue()


def _main(arguments: list[str]) -> Any:
    folder = Path(arguments[0])
    folder.mkdir(parents=True)
    for file in make(folder):
        print(file.like, repr(file.name))


if __name__ == "__main__":
    _main(sys.argv[1:])
