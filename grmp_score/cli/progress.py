"""Progress on stderr: a bar on a terminal; in a log file nothing, or for what takes minutes a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grmp_score.trainer.adapt.config import Progress as Step


#: Seconds between two lines about a stage where there is no terminal.
LINE_SECONDS = 60.0


class Advance:
    """Takes note of work done; what `progress_bar` yields.

    Attributes:
        total: how much there is to do, as far as is known; may be set while the work goes on.
        shown: whether anybody sees it, so that it is worth finding out.
    """

    shown = False

    def __init__(self, total: int | None = None) -> None:
        self.total = total

    def __call__(self, n: int) -> None:
        """``n`` more are done."""


@contextlib.contextmanager
def progress_bar(
    label: str, total: int | None, *, unit: str, streaming: bool = False, quiet: bool = False
) -> Iterator[Advance]:
    """Yields what is told of every step; a bar vanishes when it is done.

    Args:
        label: what is done, e.g. "Scoring".
        total: how much there is to do; None while it is not known.
        unit: what is counted, e.g. "images".
        streaming: results go to stdout meanwhile.
        quiet: no progress at all.
    """
    if quiet:
        yield Advance(total)
    elif not sys.stderr.isatty():
        yield _PaceLines(label, total, unit)
    elif streaming and sys.stdout.isatty():
        # Results on the same terminal would be torn apart by a live bar, so it is only shown when stdout goes
        # elsewhere or is held back until the end.
        yield Advance(total)
    else:
        with _live_bar(label, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _live_bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, pace="")

        class Bar(Advance):
            shown = True

            def __call__(self, n: int) -> None:
                speed = progress.tasks[0].speed
                pace = f", {speed:.1f}/s" if speed else ""
                progress.update(task, advance=n, total=self.total, pace=pace)

        yield Bar(total)


class _PaceLines(Advance):
    """A line a minute: how far it is, the pace since the last line, and the time left at that pace."""

    shown = True

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        super().__init__(total)
        self._label, self._unit, self._done = label, unit, 0
        self._at, self._before = time.monotonic(), 0  # at the last line

    def __call__(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._at < LINE_SECONDS:
            return
        pace = (self._done - self._before) / (now - self._at)
        of = "" if self.total is None else f"/{self.total}"
        left = "" if self.total is None else f", {_duration((self.total - self._done) / pace)} left"
        line = f"{self._label}: {self._done}{of} {self._unit}, {pace:.1f}/s{left}"
        print(line, file=sys.stderr, flush=True)
        self._at, self._before = now, self._done


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
