"""``grmp-score [score] PATHS...``"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import click

from grmp_score.cli.options import (
    check_source,
    device_option,
    format_option,
    model_options,
    open_scorer,
    output_option,
    patches_option,
)
from grmp_score.cli.output import destination
from grmp_score.cli.progress import progress_bar
from grmp_score.inputs import find_images
from grmp_score.report.rows import FORMATS, make_writer


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))
@model_options
@format_option(FORMATS)
@output_option
@patches_option
@device_option
@click.option("--batch-size", type=click.IntRange(1), help="Images per pass.  [default: 1 on a CPU, else 16]")
@click.option("--workers", type=click.IntRange(1), help="Threads that read images.  [default: cores, at most 4]")
def command(
    paths: tuple[str, ...],
    model: str | None,
    filename: str | None,
    revision: str | None,
    output_format: str,
    output: Path | None,
    patches: int | None,
    device: str,
    batch_size: int | None,
    workers: int | None,
) -> None:
    """Score images.

    PATHS are image files and folders (searched recursively, hidden files skipped).  The score is the mean
    probability of "high quality" over the patches of an image: 0 is bad, 1 is good.

    \b
    Examples:
      grmp-score photos/
      grmp-score photos/*.jpg --format csv -o scores.csv
      grmp-score -- adapt            (a file that is called like a command)

    Exit status: 0 everything was scored, 1 something could not be (named in its row), 2 wrong usage.
    """
    check_source(model, filename)
    files = list(find_images(paths))
    if not files:
        raise click.UsageError(f"no images found in: {', '.join(paths)}")
    warnings.filterwarnings("ignore", module=r"PIL\..*")  # odd files become error rows, not warnings
    scorer = open_scorer(
        model, filename, revision, device=device, patches=patches, batch_size=batch_size, workers=workers
    )
    failed = 0
    with destination(output) as stream:
        writer = make_writer(output_format, stream, model=scorer.config.name)
        streaming = output is None and output_format != "table"
        with progress_bar("Scoring", len(files), unit="images", streaming=streaming) as advance:
            for score in scorer.score_many(files):
                failed += score.error is not None
                writer.write(score)
                advance(1)
        writer.close()
    if failed:
        click.echo(f"{failed} of {len(files)} images could not be scored", err=True)
        sys.exit(1)
