"""The docs folder is true: the reference is what the commands say, code runs, commands and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from grmp_score.cli.main import cli

from .cli_tools import with_bundled
from .test_examples import arguments, name_of
from .warm import Warm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
PYTHON = [
    (page.name, i, code)
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]
#: Lines of code blocks and words in backticks; the reference is made of real help texts already.
COMMANDS = [
    (page.name, line.split("  #")[0].strip())
    for page in PAGES
    if page.name != "cli.md"
    for line in re.findall(
        r"(?:^(?: {4})?|`)((?:\w+=\S+ )?grmp-score [^`]*?)(?:`|$)", page.read_text(), re.MULTILINE
    )
    if not re.fullmatch(r"grmp-score .*\\", line)
]


def test_the_reference_is_current() -> None:
    """docs/cli.md is what the commands say; python docs/make_cli_reference.py writes it anew."""
    # In a process of its own: click remembers the help option of whoever asked first.
    code = "import runpy, sys; sys.stdout.write(runpy.run_path(sys.argv[1])['reference']())"
    done = subprocess.run(
        [sys.executable, "-c", code, DOCS / "make_cli_reference.py"],
        capture_output=True,
        encoding="utf-8",
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == done.stdout


@pytest.mark.parametrize(("page", "number", "code"), PYTHON, ids=[f"{page}-{i}" for page, i, _ in PYTHON])
def test_python_blocks_run(page: str, number: int, code: str, bundled: Path, warm: Warm) -> None:
    """Every Python block of the docs runs as it is, with a tiny model, and says nothing on stderr."""
    if "pandas" in code:
        pytest.importorskip("pandas")
    done = warm.run(with_bundled(bundled, code), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert done.stdout


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_are_understood(page: str, line: str) -> None:
    """Every grmp-score line of the docs is understood, down to the last option."""
    words = arguments(line)
    if words == ["--help"]:
        return
    name = name_of(line)
    sub = cli.get_command(click.Context(cli), name)
    assert sub is not None
    if words == [name] or "--help" in words:  # the name of a command, in a sentence
        assert len(words) <= 2
        return
    if "info MODEL" in line or not words:
        words = ["info"] if words else ["score", "x"]
    sub.make_context(name, words[1:] if words[0] == name else words)


def test_links_lead_somewhere() -> None:
    """Relative links between pages, and files named in backticks with a folder."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (DOCS / target).exists(), f"{page.name}: {target}"
        for target in re.findall(r"`((?:examples|grmp_score|tests|docs)/[\w/.-]+\.\w+)`", text):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
