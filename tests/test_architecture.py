"""The map of the package: every module imports only from lower ranks, and a few rules hold everywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import grmp_score

ROOT = Path(grmp_score.__file__).parent
RANKS = [
    {"errors"},
    {"config", "formats", "remote"},
    {"arrays", "guard", "inputs", "metrics", "tokenizer", "turn", "meaning", "tensors", "cache", "quick_gelu"},
    {"colour", "decode", "checksum"},
    {"images"},
    {"patches", "backbone", "score"},
    {"prompts", "prepare"},
    {"model", "hub"},
    {"weights", "inference", "stream"},
    {"official", "explain"},
    {"scorer"},
    {"frames", "cluster"},
    {"ray"},
    {"trainer", "report"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Absolute dotted names that a module imports, lazily too, but not for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ("grmp_score", *path.relative_to(ROOT).parts[:-1])
            base = ".".join([*package[: len(package) + 1 - node.level], *filter(None, [node.module])])
            module = base if node.level else str(node.module)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, path)


def room(path: Path) -> str:
    """The module or subpackage at the top level that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def file(request: pytest.FixtureRequest) -> Path:
    """Every source file in turn."""
    path: Path = request.param
    return path


def test_imports_go_downwards(file: Path) -> None:
    """A module imports from its own room or from lower ranks, and the top level only for the version."""
    for name in imports(ast.parse(file.read_text()), file):
        if name.split(".")[0] == "grmp_score":
            target = name.split(".")[1]
            allowed = target in ("__version__", room(file)) or RANK[target] < RANK[room(file)]
            assert allowed, f"{room(file)} imports {name}"


def test_open_clip_has_two_importers(file: Path) -> None:
    """For scoring only `backbone` and `tokenizer` know open_clip; the trainer may."""
    if room(file) not in ("backbone", "tokenizer", "trainer"):
        assert "open_clip" not in {name.split(".")[0] for name in imports(ast.parse(file.read_text()), file)}


def test_only_the_command_line_prints(file: Path) -> None:
    """Library code neither prints nor exits."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call) for call in calls}
    assert room(file) == "cli" or not names & {"print", "sys.exit", "exit", "quit"}


def test_files_are_short(file: Path) -> None:
    """A file is a room with one purpose, of at most 400 lines, that begins by saying which."""
    text = file.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text))


def test_the_map_is_complete() -> None:
    """Every room has a rank, and every rank a room, but for rooms that are still to be built."""
    rooms = {room(path) for path in FILES}
    assert rooms <= set(RANK)
    assert set(RANK) - rooms <= {"report", "trainer", "cli"}
