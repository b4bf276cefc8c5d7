"""What ``grmp-score score`` does with images by their scores: sidecars, copies, moves, links, and undoing it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import click

from grmp_score.display import printable
from grmp_score.errors import GrmpScoreError
from grmp_score.images.remote import is_address
from grmp_score.report.rows import WeightsInfo
from grmp_score.score import AnyScore, Score
from grmp_score.sidecars.ratings import stars_of, write_score
from grmp_score.sidecars.transfer import Outcome, transfer
from grmp_score.sidecars.transfer import undo as take_back

_DONE = {"copy": "copied to", "move": "moved to", "link": "linked in"}


class Actions:
    """Takes the selected scores one by one; sidecars are written at once, files go elsewhere at the end.

    Attributes:
        refused: how many images something could not be done with; they have been named on stderr.
    """

    def __init__(self, options: SimpleNamespace, model: WeightsInfo) -> None:
        self.refused = 0
        self._options, self._limits = options, model.verdict_limits
        self._chosen: list[str] = []
        self._written, self._kept = 0, 0

    def take(self, score: AnyScore) -> None:
        """One of the scores that are shown."""
        if not isinstance(score, Score) or score.path is None:
            return
        self._chosen.append(score.path)
        if not self._options.write_xmp:
            return
        try:
            if is_address(score.path):
                raise GrmpScoreError("no file on this disk, which a sidecar could lie beside", path=score.path)
            stars = stars_of(score.value, self._limits)
            if write_score(score.path, score.value, stars, overwrite=self._options.overwrite):
                self._written += 1
            else:
                self._kept += 1
        except (GrmpScoreError, OSError) as error:
            self.refused += 1
            click.echo(printable(str(error)), err=True)

    def finish(self) -> None:
        """All scores were taken: copies, moves or links, and says what was done."""
        if self._options.write_xmp and not self._options.quiet:
            kept = f"; {_images(self._kept)} kept the rating they have (--overwrite replaces it)"
            click.echo(f"Sidecars of {_images(self._written)} written{kept if self._kept else ''}", err=True)
        if self._options.transfer is None:
            return
        how, folder = self._options.transfer
        outcome = transfer(self._chosen, folder, how)
        _name(outcome)
        self.refused += len(outcome.refused)
        if not self._options.quiet:
            click.echo(f"{_images(outcome.done)} {_DONE[how]} {folder}", err=True)
            if outcome.log is not None:
                click.echo(f"Undo it with: {shlex.join(['grmp-score', '--undo', str(outcome.log)])}", err=True)


def undo(log: Path) -> None:
    """``--undo LOG``: says what was put back, and names what was not."""
    outcome = take_back(log)
    _name(outcome)
    click.echo(f"{outcome.done} file{'' if outcome.done == 1 else 's'} put back", err=True)
    if outcome.refused:
        click.echo(f"{len(outcome.refused)} left as they are; try again with the same log", err=True)
        sys.exit(1)


def _name(outcome: Outcome) -> None:
    for path, why in outcome.refused:
        click.echo(f"{printable(path)}: {printable(why)}", err=True)


def _images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"
