"""The README is true: its commands run and print what it shows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from grmp_score.cli.main import cli

from .cli_tools import run, with_bundled
from .warm import Warm

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for line in re.findall(r"^ {4}(grmp-score .*)$", README, flags=re.MULTILINE)
    + re.findall(r"`(grmp-score [^`]*)`", README)
    + re.findall(r"&& (grmp-score .*)$", README, flags=re.MULTILINE)
]


def test_quoted_agreement_is_in_the_results() -> None:
    """Every SRCC that the README names is a figure of docs/results.md."""
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    quoted = re.findall(r"SRCC (?:rises from )?(\S+)", README)
    assert len(quoted) >= 2
    assert all(re.fullmatch(r"0\.\d{3}", figure) and figure in results for figure in quoted), quoted


@pytest.mark.usefixtures("bundled")
def test_table_of_example_photos_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """`grmp-score examples/photos` prints these rows; the scores are the recorded ones, as in test_bundled."""
    shown = re.search(r"grmp-score examples/photos\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    assert shown is not None
    monkeypatch.chdir(ROOT)
    printed = run("examples/photos").stdout
    row = re.compile(r"^(\S+\.jpg) +(\d\.\d+) .* (\d+x\d+)$", re.MULTILINE)
    assert [(name, size) for name, _, size in row.findall(shown[1])] == [
        (name, size) for name, _, size in row.findall(printed)
    ]
    golden = json.loads((ROOT / "tests" / "golden" / "example_photos.json").read_text())
    assert {name: float(score) for name, score, _ in row.findall(shown[1])} == pytest.approx(golden, abs=0.003)


def test_python_example_runs(bundled: Path, warm: Warm) -> None:
    """The README's scoring example runs as it is."""
    example = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    result = warm.run(with_bundled(bundled, example), cwd=ROOT)
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 3 and 0 < float(lines[0].split()[0]) < 1
    assert lines[2] == "missing.jpg no such file"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_they_show(command: str) -> None:
    """Every grmp-score line of the README is understood, down to the last option."""
    words = shlex.split(command.replace("PATHS...", "photos"))[1:]
    context = click.Context(cli)
    cli.parse_args(context, list(words))
    name, sub, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None and sub is not None
    sub.make_context(name, rest, parent=context)
