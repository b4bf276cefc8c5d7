"""The console that tables and summaries are printed on."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console_on(stream: IO[str], *, highlight: bool = True) -> Console:
    """A rich console that writes to a stream.

    Rich's own ends the program with status 1 when the reader of its output has gone; this one raises
    `BrokenPipeError` as every other way of writing does.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Plain(file=stream, highlight=highlight)
