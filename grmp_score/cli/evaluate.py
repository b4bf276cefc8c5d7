"""``grmp-score evaluate``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from grmp_score.cli.options import (
    device_option,
    label_options,
    label_source,
    model_options,
    open_labels,
    open_scorer,
    output_option,
    patches_option,
)
from grmp_score.cli.output import destination
from grmp_score.cli.overwriting import check_output
from grmp_score.cli.progress import progress_bar
from grmp_score.errors import DataError
from grmp_score.report.evaluation import FORMATS, write_json, write_table


@click.command()
@label_options
@model_options
@click.option(
    "--prompts",
    nargs=2,
    metavar="GOOD BAD",
    help="Ask the model with these two texts, as they are, instead of what it has learned.  [with NAME:TAG: "
    "'Good photo.' 'Bad photo.', which are CLIP-IQA's]",
)
@click.option("--by", metavar="COLUMN", help="Also measure every group of images with one value in this column.")
@click.option("--worst", type=click.IntRange(0), default=10, help="How many of the largest disagreements to list.")
@click.option(
    "-f", "--format", "output_format", type=click.Choice(FORMATS), default="table", help="Form of the output."
)
@output_option
@patches_option
@device_option
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the intervals.")
def command(
    labels: Path | None,
    prompts: tuple[str, str] | None,
    by: str | None,
    worst: int,
    output_format: str,
    output: Path | None,
    overwrite: bool,
    seed: int,
    **given: Any,
) -> None:
    """Measure how well a model agrees with your own labels.

    Every labelled image is scored; SRCC, KRCC, PLCC and RMSE say how well the scores follow the labels, with
    bootstrap 95 % intervals, per group, and with the images on which both differ most.  Use labels that the model
    was not trained on.

    The CSV may be on any numeric scale.  A column "rater" makes it one row per image and person: the mean opinion
    is used, and how well the raters agree is reported as the ceiling.  Instead of a CSV the labels can be the stars
    that the images of a folder have, or two folders, of good and of bad images.

    \b
    Examples:
      grmp-score evaluate --labels test.csv
      grmp-score evaluate --labels test.csv --model my-camera --by camera
      grmp-score evaluate --labels photos/
      grmp-score evaluate --labels test.csv --model ViT-B-16-quickgelu:openai
      grmp-score evaluate --labels test.csv --prompts "a sharp photo" "a blurry photo"
      grmp-score evaluate --labels votes.csv --images photos/ --score-column stars --format json -o result.json

    Exit status: 0 everything was scored, 1 some images could not be (named on stderr), 2 wrong usage or labels.
    """
    check_output(output, [label_source(labels, given)], overwrite=overwrite)
    known = open_labels(labels, given)
    check_output(output, known.paths, overwrite=overwrite)
    if by is not None:
        known.column(by)  # a misspelt name is better found before the scoring
    scorer = open_scorer(given)
    if prompts is not None:
        from grmp_score.scorer import Scorer
        from grmp_score.weights.zero_shot import with_prompts

        scorer = Scorer(with_prompts(scorer.weights, prompts), scorer.options)
    import numpy as np

    from grmp_score.trainer.evaluation import evaluate

    with destination(output) as stream:
        with progress_bar("Scoring", len(known), unit="images") as progress:
            result = evaluate(scorer, known, by, seed, worst, progress)
        name = scorer.config.name
        if output_format == "json":
            write_json(stream, result, known, model=name, patches=scorer.preprocess.patches, seed=seed, by=by)
        else:
            write_table(stream, result, known, model=name, by=by)
    scored = np.flatnonzero(~np.isnan(result.predictions))
    try:
        known.take(scored).check_direction(result.predictions[scored])
    except DataError as error:
        click.echo(f"Note: {error}", err=True)
    if result.unscored:
        for image in result.unscored:
            click.echo(f"{known.source}: row {image.row}: {str(image.path)!r}: {image.error}", err=True)
        click.echo(f"{len(result.unscored)} of {len(known)} images could not be scored", err=True)
        sys.exit(1)
