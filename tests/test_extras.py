"""What messages say about packages that are missing is true."""

from __future__ import annotations

import ast
import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

import grmp_score
from grmp_score.errors import MissingExtraError
from grmp_score.images.remote import _no_driver

SOURCES = sorted(Path(grmp_score.__file__).parent.rglob("*.py"))


def brought_by(extra: str) -> str:
    """What an extra installs, as one text."""
    requirements = metadata("grmp_score").get_all("Requires-Dist") or []
    return " ".join(r.lower() for r in requirements if re.search(rf"extra == ['\"]{extra}['\"]", r))


def told() -> list[tuple[str, str, str]]:
    """File, package and extra of every error in the source that tells what to install."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError":
                package, extra = (a.value if isinstance(a, ast.Constant) else "" for a in node.args[1:3])
                found.append((path.name, str(package), str(extra)))
    return found


@pytest.mark.parametrize(("file", "package", "extra"), told())
def test_the_extra_that_is_named_brings_the_package(file: str, package: str, extra: str) -> None:
    """pip install 'grmp_score[extra]' mends it."""
    assert extra
    if package:
        assert re.search(
            rf"\b{re.escape(package.lower())}(?![\w-])", brought_by(extra).replace("fsspec[http]", "fsspec aiohttp")
        )


def test_all_texts_with_pip_install_name_an_extra_or_a_package() -> None:
    """Extras in texts and documents exist."""
    known = set(metadata("grmp_score").get_all("Provides-Extra") or [])
    root = Path(grmp_score.__file__).parents[1]
    documents = [p for p in (*root.glob("*.md"), *root.glob("docs/*.md")) if p.is_file()]
    for path in (*SOURCES, *documents):
        for extras in re.findall(r"grmp_score\[([\w, ]+)\]", path.read_text(encoding="utf-8")):
            assert {e.strip() for e in extras.split(",")} <= known, path


def test_https_and_s3_name_what_serves_them() -> None:
    """aiohttp comes with the extra; drivers of other protocols do not, and are named themselves."""
    error = _no_driver(
        "https://x/y.jpg", ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')
    )
    assert (
        isinstance(error, MissingExtraError) and error.hint == "Install it with: pip install 'grmp_score[remote]'"
    )
    assert (
        _no_driver("s3://x/y.jpg", ImportError("Install s3fs to access S3")).hint
        == "Install it with: pip install s3fs"
    )
