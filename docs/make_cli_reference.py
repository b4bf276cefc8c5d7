"""Writes docs/cli.md from the commands themselves: python docs/make_cli_reference.py

A test fails when the page differs from what this writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from grmp_score.cli.main import COMMANDS, cli

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 100
INTRODUCTION = """# Command line

<!-- Written by docs/make_cli_reference.py from the commands; do not edit. -->

What `--help` shows, for every command. Results go to stdout, everything else to stderr. Exit status: 0 everything
was scored, 1 something could not be (it is named), 2 wrong usage, 130 interrupted.
"""


def reference() -> str:
    """The text of the page."""
    group = click.Context(cli, info_name="grmp-score", **cli.context_settings)
    parts = [INTRODUCTION, f"## grmp-score\n\n{_help('grmp-score', cli, None)}"]
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parts.append(f"## grmp-score {name}\n\n{_help(name, command, group)}")
    return "\n".join(parts)


def _help(name: str, command: click.Command, parent: click.Context | None) -> str:
    with click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **{**cli.context_settings, **command.context_settings},
    ) as context:
        text = command.get_help(context)
    return "```text\n" + "\n".join(line.rstrip() for line in click.unstyle(text).splitlines()) + "\n```\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
