"""The script itself: it starts, and README.md tells of all its stages."""

from __future__ import annotations

from pathlib import Path

import make_mini
from click.testing import CliRunner


def test_the_command_starts() -> None:
    """Its help names the inputs."""
    result = CliRunner().invoke(make_mini.main, ["--help"])
    assert result.exit_code == 0
    assert all(option in result.output for option in ("--dinov2", "--pairs", "--references", "--work"))


def test_readme_tells_all_stages_in_their_order() -> None:
    """The table of stages is that of the script."""
    text = Path(make_mini.__file__).with_name("README.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "--" not in line]
    assert tuple(rows) == make_mini.STAGES
