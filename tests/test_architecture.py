"""The map of the package: packages import one way, never in a circle, and a few rules hold everywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import grmp_score

ROOT = Path(grmp_score.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]

#: Package or module at the top -> those it may import.  A line names lines above it alone: there is no circle.
MAY_IMPORT: dict[str, set[str]] = {
    "_moved": set(),
    "errors": set(),
    "files": set(),
    "display": set(),
    "config": {"errors"},
    "images": {"errors"},
    "sidecars": {"errors", "files", "images"},
    "notebook": {"errors", "display", "images"},
    "model": {"errors", "config"},
    "score": {"config", "images", "notebook"},
    "weights": {"errors", "config", "files", "model"},
    "explain": {"config", "model", "notebook", "score"},
    "pipeline": {"errors", "config", "images", "model", "score"},
    "scorer": {"errors", "config", "images", "model", "score", "weights", "explain", "pipeline"},
    "integrations": {"errors", "images", "pipeline", "score", "scorer", "weights"},
    "trainer": {
        *("errors", "config", "files", "images", "sidecars", "model", "score", "weights", "pipeline", "scorer"),
    },
    "report": {
        *("errors", "config", "display", "files", "images", "score", "weights", "explain", "scorer"),
        *("trainer",),
    },
    "label": {"errors", "display", "files", "images", "model", "scorer", "trainer", "report", "weights"},
    "cli": {
        *("errors", "config", "display", "files", "images", "model", "score", "weights", "pipeline", "scorer"),
        *("integrations", "sidecars", "trainer", "report", "label"),
    },
}


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Absolute dotted names that a module imports, lazily too, but not for type checking only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node, path)


def place(path: Path) -> str:
    """The package or module at the top level that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def file(request: pytest.FixtureRequest) -> Path:
    """Every source file in turn."""
    path: Path = request.param
    return path


def test_the_rules_allow_no_circle() -> None:
    """A line of the rules names lines above it alone, and every package has a line."""
    known: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= known, f"{name}: {allowed - known} come later"
        known.add(name)
    assert {place(path) for path in FILES} == known


def test_imports_go_one_way(file: Path) -> None:
    """A module imports from its own package and those that the rules name; the top level only for the version."""
    for name in imports(ast.parse(file.read_text()), file):
        if name.split(".")[0] == "grmp_score":
            target = name.split(".")[1]
            allowed = {"__version__", place(file), *MAY_IMPORT[place(file)]}
            assert target in allowed, f"{place(file)} imports {name}"


def test_only_the_model_knows_open_clip(file: Path) -> None:
    """Everything else uses the towers and the tokenizer of `grmp_score.model`."""
    used = {name.split(".")[0] for name in imports(ast.parse(file.read_text()), file)}
    assert place(file) == "model" or "open_clip" not in used


def test_only_the_command_line_prints(file: Path) -> None:
    """Library code neither prints nor exits."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(call) for call in calls}
    assert place(file) == "cli" or not names & {"print", "sys.exit", "exit", "quit"}


def test_every_file_says_what_it_is_for(file: Path) -> None:
    """It begins with a docstring."""
    assert ast.get_docstring(ast.parse(file.read_text()))
