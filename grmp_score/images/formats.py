"""Which files may hold pictures: suffixes to look for in folders, and what a file's first bytes say it is."""

from __future__ import annotations

import os

#: Camera RAW, read through the extra ``[raw]``.
RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos"}
    | {".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)

#: What is looked for in folders.  Files named one by one are tried whatever they are called.
SUFFIXES = RAW_SUFFIXES | {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".j2c", ".j2k", ".jfif", ".jp2"),
    *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".qoi", ".tga", ".tif", ".tiff", ".webp"),
}

#: How many of a file's first bytes the functions below look at.
HEAD = 512

_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb", b"II\x1a\0\0\0HEAPCCDR")

_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
    (b"\xff\x0a", "a JPEG XL image, which is not supported"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image, which is not supported"),
)


def family(head: bytes, name: str | None = None) -> str:
    """What reads a file: ``"raw"``, ``"heif"``, ``"avif"``, ``"tiff"`` or ``"other"`` (Pillow).

    Args:
        head: the first `HEAD` bytes.
        name: the file's name.  Most RAW formats are TIFF files whose first picture is a thumbnail, so that only
            the suffix tells them apart; in all other cases the content decides and not the name.
    """
    suffix = os.path.splitext(name)[1].lower() if name else ""
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(len(head), head[3] or 16), 4))}
        if b"crx " in brands:
            return "raw"
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIF_BRANDS or head[8:12] in (b"mif1", b"msf1"):
            return "heif"
    if head.startswith(_RAW) or (head.startswith(_TIFF) and head[8:10] == b"CR"):
        return "raw"
    if suffix in RAW_SUFFIXES and not head.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return "raw"
    return "tiff" if head.startswith(_TIFF) else "other"


def what_else(head: bytes) -> str | None:
    """What a file that is no picture is, in words, where its first bytes say so."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<svg", b"<?xml")) and (b"<svg" in text):
        return "an SVG drawing, which has no pixels"
    if head[4:8] == b"ftyp" or head[8:12] == b"AVI ":
        return "a video"
    return next((words for start, words in _OTHERS if head.startswith(start)), None)
