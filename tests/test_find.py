"""From what is named to images: folders, patterns, lists, addresses; in a stream, in order, nothing twice."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import grmp_score
from grmp_score.errors import DataError, MissingExtraError
from grmp_score.images.find import EXCLUDED, find_images, read_list


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files below, hidden ones, other files, and glob characters in names; it is the current one."""
    for name in (
        *("b.png", "a.JPG", "Z.tif", "notes.txt", ".hidden.png", "below/c.webp", "below/deep/d.cr2", "below/e.txt"),
        *(
            ".trash/d.png",
            "above/x.heic",
            "photo[1].jpg",
            "photo1.jpg",
            "set [2024]/f.png",
            "what?.png",
            "star*.png",
        ),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


ALL = [
    *("Z.tif", "a.JPG", "b.png", "photo1.jpg", "photo[1].jpg", "star*.png", "what?.png", "above/x.heic"),
    *("below/c.webp", "below/deep/d.cr2", "set [2024]/f.png"),
]


def found(*names: str, patterns: bool = True) -> list[str]:
    """What the names give."""
    return list(find_images(names, patterns=patterns))


def test_folder(tree: Path) -> None:
    """A folder gives the images in it and below, sorted, files first, without hidden ones and other files."""
    assert found(str(tree)) == [str(tree / name) for name in ALL]
    assert found(".") == [f"./{name}" for name in ALL]
    assert found("below/", "above") == ["below/c.webp", "below/deep/d.cr2", "above/x.heic"]


def test_named_files_are_passed_on(tree: Path) -> None:
    """What is named itself is passed on whatever it is, in the order given, also twice and when missing."""
    assert found("notes.txt", "missing.jpg", "b.png", "b.png") == ["notes.txt", "missing.jpg", "b.png", "b.png"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png", "star*.png", "what?.png"]),
        ("?.png", ["b.png"]),
        ("[ab].*", ["a.JPG", "b.png"]),
        ("b*", ["b.png", "below/c.webp", "below/deep/d.cr2"]),
        ("*/*.webp", ["below/c.webp"]),
        ("**/*.png", ["b.png", "star*.png", "what?.png", "set [2024]/f.png"]),
        ("below/**", ["below/c.webp", "below/e.txt", "below/deep/d.cr2"]),
        ("**/d.*", ["below/deep/d.cr2"]),
        (".hid*", [".hidden.png"]),
        ("photo[1].jpg", ["photo[1].jpg"]),
        ("photo[0-9].jpg", ["photo1.jpg"]),
        ("set [2024]/*", ["set [2024]/f.png"]),
        ("*/deep/*", ["below/deep/d.cr2"]),
        ("s*/*.png", ["set [2024]/f.png"]),
        ("a*/*", ["above/x.heic"]),
        ("**/deep/*.cr2", ["below/deep/d.cr2"]),
        ("b*/**/d*", ["below/deep/d.cr2"]),
        ("b*/", ["below/c.webp", "below/deep/d.cr2"]),
        ("set [2024]/f.png", ["set [2024]/f.png"]),
        ("what?.png", ["what?.png"]),
        ("*.gif", ["*.gif"]),
        ("none*/x.png", ["none*/x.png"]),
        ("notes.txt/*", ["notes.txt/*"]),
    ],
)
def test_patterns(tree: Path, pattern: str, expected: list[str]) -> None:
    """A quoted pattern gives what a shell would; a file of that very name comes first; no match passes through."""
    assert found(pattern) == expected
    if pattern != expected[0]:
        assert found(f"{tree}/{pattern}") == [f"{tree}/{name}" for name in expected]


def test_lists_are_taken_literally(tree: Path) -> None:
    """Names from a program are no patterns, but folders among them are expanded."""
    assert found("*.png", "above", patterns=False) == ["*.png", "above/x.heic"]


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
def test_links_and_pipes(tree: Path) -> None:
    """Loops of links end; links to files are followed; broken ones and pipes are passed on to become error rows."""
    folder = tree / "links"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to(tree)
    (folder / "folder.jpg").symlink_to(tree / "below")
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / "good.jpg").symlink_to("../a.JPG")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    expected = [f"links/{name}" for name in ("broken.jpg", "good.jpg", "pipe.png", "self.jpg")]
    assert found("links") == expected
    assert found("links/loop") == [name.replace("links", "links/loop") for name in expected]
    assert [name for name in found("**/*.jpg") if name.startswith("links")] == expected[:2] + expected[3:]


@pytest.mark.skipif(sys.platform != "linux", reason="the file system must take any bytes")
def test_names_that_are_not_utf_8(tree: Path) -> None:
    """Any bytes are a name, in folders and in lists."""
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    (tree / "below" / name).touch()
    assert f"below/{name}" in found("below")
    assert found("below/caf*") == [f"below/{name}"]
    assert list(read_list(io.BytesIO(os.fsencode(name) + b"\n"))) == [name]


def test_folder_that_may_not_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be listed is passed on, to become an error row, and its neighbours are found."""
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert found("below", "above") == ["below", "above/x.heic"]
    assert "./below" in found(".") and "./set [2024]/f.png" in found(".")


def test_finding_imports_neither_numpy_nor_pillow() -> None:
    """The command line looks for images, and answers `--help`, without waiting for either."""
    code = "import sys, grmp_score.images.find; sys.exit(bool({'numpy', 'PIL'} & sys.modules.keys()))"
    root = str(Path(grmp_score.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}).returncode == 0


def test_the_search_streams(tree: Path) -> None:
    """Nothing is listed before it is asked for, and the names are taken one by one."""
    taken: list[str] = []

    def names() -> Iterator[str]:
        for name in ("above", "below", "missing"):
            taken.append(name)
            yield name

    stream = find_images(names())
    assert next(stream) == "above/x.heic" and taken == ["above"]
    (tree / "below" / "b.png").touch()
    assert next(stream) == "below/b.png" and taken == ["above", "below"]
    matches = find_images(["*/*.[hp]*"])
    assert next(matches) == "above/x.heic"
    (tree / "set [2024]" / "late.png").touch()
    assert list(matches) == ["below/b.png", "set [2024]/f.png", "set [2024]/late.png"]


# -------------------------------------------------------------------------- skipped


def test_what_is_not_a_person_s_photo_is_skipped_and_told(tree: Path) -> None:
    """Thumbnails and waste baskets of drives, backups, excluded names; a folder named itself is looked into."""
    extra = ("@eaDir/b.png/SYNO.jpg", "#recycle/x.jpg", "__MACOSX/._b.png", "Thumbs.db", "b.png~", "RAW/r.jpg")
    for name in extra:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    told: dict[str, str] = {}
    names = [os.path.normpath(n) for n in find_images(["."], exclude=[*EXCLUDED, "RAW"], skipped=told.__setitem__)]
    assert names == [os.path.normpath(n) for n in ALL]
    told = {os.path.normpath(name): why for name, why in told.items()}
    excluded = {"@eaDir", "#recycle", "__MACOSX", "Thumbs.db", "b.png~", "RAW"}
    assert {name for name, why in told.items() if why == "excluded by name"} == excluded
    assert {".hidden.png", ".trash"} <= {name for name, why in told.items() if why == "hidden"}
    assert told["notes.txt"] == told[os.path.join("below", "e.txt")] == "not named like an image"
    assert found("@eaDir") == ["@eaDir/b.png/SYNO.jpg"]


def test_pictures_with_no_suffix_or_with_a_size_behind_it(tmp_path: Path) -> None:
    """The first bytes tell the former; web sites write the latter."""
    (tmp_path / "four").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "letter").write_text("Dear all")
    for name in ("a.jpg_large", "b.jpeg-orig", "c.png!d", "d.jpg2", "e.xjpg_large", "f.psd"):
        (tmp_path / name).touch()
    names = [os.path.basename(name) for name in find_images([str(tmp_path)])]
    assert names == ["a.jpg_large", "b.jpeg-orig", "c.png!d", "f.psd", "four"]


# --------------------------------------------------------------------------- lists


class Slow(io.BytesIO):
    """A stream that gives a few bytes at a time, as a pipe does."""

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read1(5)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b"a.png\nb.png", ["a.png", "b.png"]),
        (b"a.png\r\n\r\n\nb.png\r\n", ["a.png", "b.png"]),
        (b"\xef\xbb\xbfa.png\n", ["a.png"]),
        (b"a.p\0b\nc.png\0 d\0", ["a.p", "b\nc.png", " d"]),
        (b"a\r\0", ["a\r"]),
        (b"", []),
        (b"\n\n", []),
        (" ü.png \n".encode(), [" ü.png "]),
    ],
)
def test_lists(data: bytes, expected: list[str]) -> None:
    """Newlines or NULs end a name; blanks in names are kept, empty names are not."""
    assert list(read_list(io.BytesIO(data))) == expected
    assert list(read_list(Slow(data))) == expected


def test_a_list_is_passed_on_as_it_arrives() -> None:
    """A name is given out when it is complete and not when the list ends."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream:
        names = read_list(stream)
        os.write(writer, b"a.png\nb.p")
        assert next(names) == "a.png"
        os.write(writer, b"ng\n")
        assert next(names) == "b.png"
        os.close(writer)
        assert list(names) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("text", ["imgA.jpg\r\nimgB.jpg\r\n", "below/caf\u00e9 \U0001f600.png\na.jpg", "pictures"])
def test_lists_in_other_encodings(encoding: str, text: str) -> None:
    """PowerShell and editors on Windows write UTF-16, with and without a byte order mark."""
    if encoding.startswith("utf-16-") and not text.isascii():
        text = "\ufeff" + text
    data = text.encode(encoding)
    expected = text.removeprefix("\ufeff").replace("\r", "").split("\n")
    for stream in (io.BytesIO(data), Slow(data)):
        assert list(read_list(stream)) == [name for name in expected if name]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfea\0\n\0b", "list.txt: not valid UTF-16.*Save the list as UTF-8"),
        (b"\xff\xfe\x00\xd8a\0", "not valid UTF-16"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "got a picture.*grmp-score list.txt"),
        (b"PK\x03\x04" + bytes(20), "got a ZIP archive"),
        (b"a.jpg\n/\n", "names '/', a whole disk.*as an argument"),
        (b"//\0", "a whole disk"),
        ("a.jpg\n/\n".encode("utf-16"), "a whole disk"),
    ],
)
def test_what_is_no_list_of_images(data: bytes, message: str) -> None:
    """Said instead of looking for files named by chance."""
    with pytest.raises(DataError, match=message):
        list(read_list(io.BytesIO(data), "list.txt"))


# ------------------------------------------------------------------------ addresses


def test_addresses(tree: Path) -> None:
    """Folders and patterns in remote file systems are expanded like local ones, their addresses kept whole."""
    fsspec = pytest.importorskip("fsspec")
    with zipfile.ZipFile(tree / "a.zip", "w") as archive:
        for name in ("b.png", "a.jpg", "n.txt", "below/c.png", ".hidden/d.png", "below/.e.png"):
            archive.writestr(name, b"x")
    outer = f"::file://{tree}/a.zip"
    assert found(f"zip://{outer}") == [f"zip://{n}{outer}" for n in ("a.jpg", "b.png", "below/c.png")]
    assert found(f"zip://below{outer}") == [f"zip://below/c.png{outer}"]
    assert found(f"zip://*.png{outer}") == [f"zip://b.png{outer}"]
    assert found(f"zip://**/*.png{outer}", f"zip://no*{outer}")[-1] == f"zip://no*{outer}"
    for name in ("z.png", "x/y.jpg", "x/.h.jpg"):
        with fsspec.open(f"memory://inputs/{name}", "wb") as file:
            file.write(b"x")
    expanded = found("memory://inputs", "memory://inputs/x/*.jpg", "memory://none.png", "memory://nothing")
    assert [name.replace(":///", "://") for name in expanded] == [
        *("memory://inputs/z.png", "memory://inputs/x/y.jpg", "memory://inputs/x/y.jpg"),
        *("memory://none.png", "memory://nothing"),
    ]
    for name in [*expanded[:3], *found(f"zip://{outer}")]:
        with fsspec.open(name, "rb") as file:
            assert file.read() == b"x"
    assert found((tree / "below").as_uri()) == [
        (tree / "below/c.webp").as_uri(),
        (tree / "below/deep/d.cr2").as_uri(),
    ]
    assert found("nosuch://bucket/folder", "zip://x::file:///none.zip") == [
        "nosuch://bucket/folder",
        "zip://x::file:///none.zip",
    ]


def test_addresses_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fsspec the first address says what to install."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"grmp_score\[remote\]"):
        found("s3://bucket/folder")


def test_addresses_without_their_driver() -> None:
    """Where the protocol's own package is missing, it is named."""
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="pip install s3fs"):
            found("s3://bucket/folder")
    else:
        pytest.skip("s3fs is installed")
