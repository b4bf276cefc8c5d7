"""Which files may hold pictures: suffixes to look for in folders, and what a file's first bytes say it is."""

from __future__ import annotations

from grmp_score.errors import ImageReadError, ImageTooLargeError

#: Camera RAW, read through the extra ``[raw]``.
RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos"}
    | {".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)

#: What is looked for in folders.  Files named one by one are tried whatever they are called.
SUFFIXES = RAW_SUFFIXES | {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2c", ".j2k", ".jfif", ".jp2"),
    *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".psd"),
    *(".jxl", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
}

#: How many of a file's first bytes the functions below look at.
HEADER_LENGTH = 512

_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb", b"II\x1a\0\0\0HEAPCCDR")

_PICTURES = (b"8BPS", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"qoif", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")

_NOT_READ = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
    (b"%!PS", "a PostScript document"),
    (b"version https://git-lfs", "a Git LFS pointer to an image that was not fetched"),
)


def image_format(header: bytes) -> str:
    """The format of a file: ``"raw"``, ``"heif"``, ``"avif"``, ``"tiff"``, ``"jxl"`` or ``"other"``.

    Those that are "other" Pillow tells apart.  Many RAW formats are "tiff": see `grmp_score.images.tiff`.

    Args:
        header: the first `HEADER_LENGTH` bytes; the file's name does not count.
    """
    if header[4:8] == b"ftyp":  # of HEIF, AVIF, CR3 and videos: main brand, version, further brands
        length = min(len(header), header[3] or 16)
        brands = {header[8:12], *(header[at : at + 4] for at in range(16, length, 4))}
        if b"crx " in brands:
            return "raw"
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIF_BRANDS or header[8:12] in (b"mif1", b"msf1"):
            return "heif"
    if header.startswith(_RAW) or (header.startswith(_TIFF) and header[8:10] == b"CR"):
        return "raw"
    if header.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "jxl"
    return "tiff" if header.startswith(_TIFF) else "other"


def picture_in(header: bytes) -> bool:
    """Whether a file's first `HEADER_LENGTH` bytes are those of a picture, whatever the file is called."""
    return (
        image_format(header) != "other"
        or header.startswith(_PICTURES)
        or header[8:12] == b"WEBP"
        or (header[:2] == b"BM" and not any(header[6:10]))
    )


def check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    """Refuses a picture without pixels, or above the limit."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageReadError(f"the image has no pixels: {width}x{height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(width * height, max_pixels)


#: Transfer functions of HDR pictures by their number in ITU-T H.273.
_HDR = {16: "PQ", 18: "HLG"}


def hdr_transfer(begin: bytes) -> str | None:
    """Name of the HDR transfer function that the beginning of a file states; None for pictures of the usual kind.

    AVIF and HEIF have a box ``colr`` of the kind ``nclx``, PNG has a chunk ``cICP``.  Gain maps, which leave the
    picture itself as it is, are not meant.
    """
    at = begin.find(b"colrnclx")
    if at >= 0:
        return _HDR.get(int.from_bytes(begin[at + 10 : at + 12], "big"))
    at = begin.find(b"cICP") if begin.startswith(b"\x89PNG") else -1
    return _HDR.get(begin[at + 5]) if 0 <= at < len(begin) - 5 else None


def describe_non_image(header: bytes) -> str | None:
    """What a file that is no picture is, in words, where its first bytes say so."""
    text = header.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<svg", b"<?xml")) and (b"<svg" in text):
        return "an SVG drawing, which has no pixels"
    if header[4:8] == b"ftyp" or header[8:12] == b"AVI ":
        return "a video"
    return next((words for start, words in _NOT_READ if header.startswith(start)), None)
