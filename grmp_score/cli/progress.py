"""Progress on stderr: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from grmp_score.trainer.adapt.config import Progress as Step

#: Seconds between two lines where there is no terminal.
LINE_SECONDS = 60.0


class Progress:
    """How far a piece of work is; this one shows nothing.

    Attributes:
        label: what is done, e.g. "Scoring".
        total: how much there is to do; None while it is not known.  May be set while the work goes on.
        unit: what is counted, e.g. "images".
        done: how much has been done.
        note: shown in the place of unit and pace, if there is one.
        shown: whether anybody sees it, so that it is worth finding out the total.
    """

    shown = False

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit, self.done, self.note = label, total, unit, done, ""

    def __call__(self, more: int = 1) -> None:
        """Takes note of work done."""
        self.done += more
        self.show()

    def show(self) -> None:
        """Brings what is shown up to date, when it is time to."""

    def details(self, pace: float | None) -> str:
        """What stands behind the count: the note, or the unit and how many of it are done in a second."""
        return self.note or self.unit + (f", {pace:.1f}/s" if pace else "")


class _Lines(Progress):
    """A line a minute: how far it is, the pace since the last line, and the time left at that pace."""

    shown = True

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        super().__init__(label, total, unit, done)
        self._line_at, self._line_done = time.monotonic(), done  # when the last line came, and how far it was

    def show(self) -> None:
        more = self.done - self._line_done
        if more <= 0:
            return
        now = time.monotonic()
        seconds = now - self._line_at
        if seconds < LINE_SECONDS:
            return
        count, left = str(self.done), ""
        if self.total is not None:
            count, left = f"{count}/{self.total}", f", {_duration((self.total - self.done) * seconds / more)} left"
        line = f"{self.label}: {count}{', ' if self.note else ' '}{self.details(more / seconds)}{left}"
        print(line, file=sys.stderr, flush=True)
        self._line_at, self._line_done = now, self.done


class _Bar(Progress):
    """A bar of rich's, with the time left."""

    shown = True

    def __init__(self, bars: RichProgress, label: str, total: int | None, unit: str, done: int = 0) -> None:
        super().__init__(label, total, unit, done)
        self._bars, self._task = bars, bars.add_task(label, total=total, completed=done, details=unit)

    def show(self) -> None:
        details = self.details(self._bars.tasks[0].speed)
        self._bars.update(self._task, completed=self.done, total=self.total, details=details)


@contextlib.contextmanager
def progress_bar(
    label: str, total: int | None, *, unit: str, done: int = 0, streaming: bool = False, quiet: bool = False
) -> Iterator[Progress]:
    """Yields what is told of every step; a bar vanishes when it is done.

    Args:
        label, total, unit, done: as in `Progress`.
        streaming: results go to stdout meanwhile.
        quiet: no progress at all.
    """
    if not quiet and not sys.stderr.isatty():
        yield _Lines(label, total, unit, done)
    elif quiet or (streaming and sys.stdout.isatty()):
        # Results on the same terminal would be torn apart by a live bar, so it is only shown when stdout goes
        # elsewhere or is held back until the end.
        yield Progress(label, total, unit, done)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what the other columns leave
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            TimeRemainingColumn(),
        )
        # What is said on stderr meanwhile comes above the bar.  Stdout may be a pipe, and results go through it.
        console = Console(stderr=True)
        with RichProgress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
            yield _Bar(bars, label, total, unit, done)


#: Stage of an adaptation -> what it does, and the unit of its steps.
_STAGES = {
    "reading": ("Reading", "images"),
    "cross-validation": ("Validating", "steps"),
    "training": ("Training", "steps"),
    "testing": ("Testing", "images"),
}
#: Phase of the training -> what is trained in it.
_PHASES = {"head": "closed form", "text": "text side", "all": "all"}


@contextlib.contextmanager
def training_progress() -> Iterator[Callable[[Step], None]]:
    """Yields what `adapt` reports its steps to: one display after another, with phase, loss and validation SRCC."""
    stage, loss, srcc, progress = "", "", "", Progress("", None, "")
    with contextlib.ExitStack() as current:

        def report(step: Step) -> None:
            nonlocal stage, progress, loss, srcc
            if step.stage != stage:
                current.close()
                stage, loss, srcc = step.stage, "", ""
                label, unit = _STAGES[stage]
                if not sys.stderr.isatty():
                    print(f"{label}: {step.total} {unit}", file=sys.stderr, flush=True)
                progress = current.enter_context(progress_bar(label, step.total, unit=unit, done=step.done))
            if step.row is not None:
                # A step reports its loss or a validation SRCC, never both: the last of each is shown.
                if step.row.loss is not None:
                    kl = step.row.semantic_loss
                    loss = f", loss {step.row.loss:.3f}" + ("" if kl is None else f", L_kl {kl:.2g}")
                if step.row.validation_srcc is not None:
                    srcc = f", validation SRCC {step.row.validation_srcc:.3f}"
                progress.note = f"{_PHASES[step.row.phase]}{loss}{srcc}"
            progress.total = step.total
            progress(step.done - progress.done)

        yield report


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
