"""Progress on stderr: a bar on a terminal; in a log file nothing, or for what takes minutes a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grmp_score.trainer.fewshot import Progress as Step


@contextlib.contextmanager
def progress_bar(label: str, total: int, *, unit: str, streaming: bool = False) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances the bar; the bar vanishes when it is done.

    ``streaming``: results go to stdout meanwhile.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    # Results on the same terminal would be torn apart by a live bar above them, so it is only shown when
    # stdout goes elsewhere or is held back until the end (tables).
    hidden = not sys.stderr.isatty() or (streaming and sys.stdout.isatty())
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(label, total=total)
        yield lambda n: progress.update(task, advance=n)


#: Seconds between two lines about a stage where there is no terminal.
LINE_SECONDS = 60.0

_STAGES = {
    "reading": ("Reading", "images"),
    "cross-validation": ("Validating", "steps"),
    "training": ("Training", "steps"),
    "testing": ("Testing", "images"),
}
_PHASES = {"head": "closed form", "text": "text side", "all": "all"}


@contextlib.contextmanager
def training_progress() -> Iterator[Callable[[Step], None]]:
    """Yields what `adapt` reports its progress to: a bar for every stage with phase, loss and validation SRCC."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[seen]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    tasks: dict[str, TaskID] = {}
    seen = _Seen()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def show(step: Step) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bars.add_task(_STAGES[step.stage][0], seen="")
            bars.update(tasks[step.stage], completed=step.done, total=step.total, seen=seen.text(step))

        yield show


class _Seen:
    """The latest figures of a stage: a step reports its loss or a validation SRCC, never both."""

    def __init__(self) -> None:
        self._stage, self._loss, self._srcc = "", "", ""

    def text(self, step: Step) -> str:
        if step.stage != self._stage:
            self._stage, self._loss, self._srcc = step.stage, "", ""
        if step.row is None:
            return ""
        if step.row.loss is not None:
            self._loss = f", loss {step.row.loss:.3f}"
        if step.row.validation_srcc is not None:
            self._srcc = f", validation SRCC {step.row.validation_srcc:.3f}"
        return f"{_PHASES[step.row.phase]}{self._loss}{self._srcc}"


class _Lines:
    """A line when a stage begins, and one a minute while it lasts."""

    def __init__(self) -> None:
        self._stage, self._at, self._done, self._seen = "", 0.0, 0, _Seen()  # at the last line

    def __call__(self, step: Step) -> None:
        text, now = self._seen.text(step), time.monotonic()
        name, unit = _STAGES[step.stage]
        if step.stage != self._stage:
            line = f"{name}: {step.total} {unit}"
        elif now - self._at > LINE_SECONDS and step.done > self._done:
            # Steps of one phase take longer than those of another: the pace is that since the last line.
            left = (now - self._at) * (step.total - step.done) / (step.done - self._done)
            details = f", {text}" if text else ""
            line = f"{name}: {step.done}/{step.total}{details}, {_duration(left)} left"
        else:
            return
        print(line, file=sys.stderr, flush=True)
        self._stage, self._at, self._done = step.stage, now, step.done


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
