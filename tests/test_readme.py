"""The README is true: its commands run and print what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from grmp_score.cli.main import cli

from .warm import Warm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for line in re.findall(r"^ {4}(grmp-score .*)$", README, flags=re.MULTILINE)
    + re.findall(r"`(grmp-score [^`]*)`", README)
    + re.findall(r"&& (grmp-score .*)$", README, flags=re.MULTILINE)
]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """One real process."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_table_of_example_photos_is_current() -> None:
    """`grmp-score examples/photos` prints the table that the README shows."""
    shown = re.search(r"```text\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    result = run("-c", "from grmp_score.cli.main import main; main()", "examples/photos")
    assert result.returncode == 0, result.stderr

    def values(text: str) -> dict[str, float]:
        return {name: float(score) for name, score in re.findall(r"^(\S+\.jpg)\s+(\d\.\d+)", text, re.MULTILINE)}

    printed = values(result.stdout)
    assert len(printed) == 9
    assert printed == pytest.approx(values(shown[1]), abs=0.003)


def test_python_example_runs(warm: Warm) -> None:
    """The README's scoring example runs as it is."""
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    result = warm.run(example, cwd=ROOT)
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 3 and 0 < float(lines[0].split()[0]) < 1
    assert lines[2].startswith("missing.jpg None")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_they_show(command: str) -> None:
    """Every grmp-score line of the README is understood, down to the last option."""
    words = shlex.split(command.replace("PATHS...", "photos"))[1:]
    context = click.Context(cli)
    cli.parse_args(context, list(words))
    name, sub, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None and sub is not None
    sub.make_context(name, rest, parent=context)
