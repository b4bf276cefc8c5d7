"""``grmp-score protocol``"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grmp_score.cli.options import (
    device_option,
    know_versions,
    label_options,
    label_source,
    model_options,
    open_labels,
    open_scorer,
    output_stem,
    patches_option,
    split_by_option,
)
from grmp_score.cli.output import destination
from grmp_score.cli.overwriting import check_output
from grmp_score.cli.progress import Progress, progress_bar
from grmp_score.display import printable
from grmp_score.errors import MissingExtraError
from grmp_score.trainer.methods import METHODS, make_methods

if TYPE_CHECKING:
    from grmp_score.trainer.comparison import Step


class SeveralValues(click.Command):
    """A command whose options with ``multiple`` take several values at once: ``--shots 50 100``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spelled: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in several else ""
            elif option and spelled[-1] != option:
                spelled.append(option)
            spelled.append(word)
        return super().parse_args(ctx, spelled)


@click.command(cls=SeveralValues)
@label_options
@split_by_option
@click.option(
    "--shots",
    type=click.IntRange(4),
    multiple=True,
    default=(50, 100, 200),
    metavar="N...",
    help="Images to train on, drawn evenly over the scores.",
)
@click.option(
    "--splits", type=click.IntRange(1), default=10, metavar="N", help="Random divisions, with seeds 0 to N - 1."
)
@click.option(
    "--test-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    help="Of all images, to test on; the same ones for all methods and shots of a split.",
)
@click.option(
    "--methods",
    type=click.Choice(METHODS),
    multiple=True,
    default=METHODS,
    metavar="NAME...",
    help=f"What is compared: {', '.join(METHODS)}.",
)
@click.option(
    "--qgr-lambda",
    type=click.FloatRange(0),
    multiple=True,
    default=(0.0, 5.0),
    metavar="X...",
    help="Of the method paper, each in turn; 0 is without QGR.",
)
@click.option("--epochs", type=click.IntRange(1), default=210, help="Of the method paper, at most.")
@click.option(
    "--folds",
    type=click.IntRange(0),
    default=3,
    help="Of the method paper: cross-validation on the shots chooses the number of epochs; 0: all of them are run.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="float32",
    help="Of the method paper's training.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the single results, one JSON line each; what is there is not run again.  Plot and image features "
    "go beside it.  [default: that of --labels with -protocol.jsonl, here]",
)
@model_options
@patches_option
@device_option
def command(
    labels: Path | None,
    shots: tuple[int, ...],
    splits: int,
    test_share: float,
    methods: tuple[str, ...],
    qgr_lambda: tuple[float, ...],
    epochs: int,
    folds: int,
    precision: str,
    output: Path | None,
    **given: Any,
) -> None:
    """Compare methods on many splits of your labels, as the paper does.

    Every split sets a test part aside, draws the shots from the others, and measures each method on the test part:
    the un-adapted model, a ridge regression on its features, the closed form of `grmp-score adapt`, the paper's
    few-shot recipe without and with gradient regularisation, and CoOp (the text context alone).  Printed are
    median, least and largest SRCC and PLCC.  A run that was stopped goes on with the same command.

    The first three take seconds per split once the images are read; the paper's recipe reads those of every split
    anew and trains for 210 steps on each fold and on all shots: hours on a CPU, where --epochs 60 --folds 0
    --precision auto is what can be waited for.

    \b
    Examples:
      grmp-score protocol --labels set.csv --methods un-adapted ridge closed-form
      grmp-score protocol --labels live.csv --split-by ref --shots 50 100 200 --splits 10 --test-share 0.2
      grmp-score protocol --labels set.csv --methods paper --qgr-lambda 0 1 5 -o paper.jsonl

    Exit status: 0 done, 1 a training diverged (named on stderr), 2 wrong usage or labels, 130 interrupted.
    """
    source = label_source(labels, given)
    output = output or Path(f"{output_stem(source)}-protocol.jsonl")
    check_output(output, [source], overwrite=True)  # a file that holds no cells is refused where it is read
    known = open_labels(labels, given)
    scorer = open_scorer(given)
    from grmp_score.report.plots import plot_protocol
    from grmp_score.report.protocol import rows_of, write_table
    from grmp_score.trainer.comparison import ProtocolConfig, compare

    config = ProtocolConfig(tuple(dict.fromkeys(shots)), splits, test_share)
    split_by = given["split_by"] or "references" if known.references else "near duplicates"
    known, _ = know_versions(known)
    lambdas = tuple(dict.fromkeys(qgr_lambda))
    wanted = make_methods(methods, lambdas, epochs=epochs, folds=folds, precision=precision)
    with _progress() as progress:
        outcome = compare(scorer, known, wanted, config, output, split_by=split_by, progress=progress)
    for failure in outcome.failures:
        click.echo(failure, err=True)
    if outcome.cells:
        title = f"{printable(os.path.join(*known.source.parts[-2:]))}, {scorer.config.name}, split by {split_by}"
        with destination(None) as stream:
            write_table(stream, outcome.cells, title=title)
        try:
            plot_protocol(rows_of(outcome.cells), title, output.with_suffix(".protocol.png"))
        except MissingExtraError as error:
            click.echo(f"Note: {error}", err=True)
    if outcome.failures:
        click.echo(f"{len(outcome.failures)} trainings diverged", err=True)
        sys.exit(1)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """Yields what `compare` reports to: one display for the images, one for the cells."""
    stage, progress = "", Progress("", None, "")
    with contextlib.ExitStack() as current:

        def report(step: Step) -> None:
            nonlocal stage, progress
            if step.stage != stage:
                current.close()
                stage = step.stage
                label, unit = {"reading": ("Reading", "images"), "measuring": ("Measuring", "cells")}[stage]
                progress = current.enter_context(progress_bar(label, step.total, unit=unit))
            progress.note = step.note
            progress(step.done - progress.done)

        yield report
