"""``grmp-score report PATHS... -o report.html``"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from grmp_score.cli.options import (
    background_option,
    cache_option,
    device_option,
    exclude_option,
    max_pixels_option,
    model_options,
    open_scorer,
    overwrite_option,
    patches_option,
    speed_options,
)
from grmp_score.cli.overwriting import check_output
from grmp_score.cli.progress import progress_bar
from grmp_score.images.find import EXCLUDED, find_images

_OUTSIDE = (
    "a link that leads out of the folders named; it was not read (name the folder it leads to, if it belongs here)"
)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    help="The page to write; its folder must exist.",
)
@overwrite_option
@exclude_option
@click.option(
    "--labels",
    "labels_from",
    type=click.Path(path_type=Path),
    help="Your own labels, a CSV or a folder of rated images: shown next to the scores, with where both disagree "
    "most.",
)
@click.option("--title", help="Heading of the page.  [default: the names of PATHS]")
@click.option(
    "--thumbnail",
    type=click.IntRange(48, 640),
    default=200,
    help="Longer side of thumbnails in pixels; decides the size of the page.",
)
@model_options
@patches_option
@device_option
@background_option
@max_pixels_option
@cache_option
@speed_options
def command(
    paths: tuple[str, ...],
    output: Path,
    overwrite: bool,
    exclude: tuple[str, ...],
    labels_from: Path | None,
    title: str | None,
    thumbnail: int,
    cache: Path | None,
    **given: Any,
) -> None:
    """Score images and write one web page about them.

    The page holds a thumbnail of every image, sortable and filterable by score, a histogram, the best and the
    worst, near duplicates with the best shot marked, and what could not be scored.  Of near duplicates you can pick
    those to keep and save their paths as a list.  It is one file that needs no network, about 10 KB per image.
    Links lead to the images where they are.  PATHS are as for grmp-score score; links that lead out of them are not
    followed.  Ctrl-C ends the run with a page of what is done.

    \b
    Examples:
      grmp-score report photos/ -o report.html
      grmp-score report photos/ -o summer.html --title "Summer" --cache scores.sqlite
      grmp-score report photos/ --labels mine.csv --model my-camera -o taste.html

    Exit status: 0 everything was scored, 1 something could not be (named in the page), 2 wrong usage.
    """
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"cannot write {output}: no such folder")
    check_output(output, [*paths, *([] if labels_from is None else [labels_from])], overwrite=overwrite)
    # A file named twice, or by itself and by its folder, is one image.
    files = list(
        {
            os.path.abspath(f) if "://" not in f else f: f
            for f in find_images(paths, exclude=[*EXCLUDED, *exclude])
        }.values()
    )
    if not files:
        raise click.UsageError(f"no images found in: {', '.join(paths)}")

    from grmp_score.pipeline.cache import ScoreCache
    from grmp_score.report.gallery import Gallery
    from grmp_score.report.html import ReportInfo, write_page
    from grmp_score.report.links import AllowedFiles
    from grmp_score.report.rows import WeightsInfo
    from grmp_score.score import FailedScore

    labels = None
    if labels_from is not None:
        from grmp_score.trainer.data.labels import read_labels

        labels = read_labels(labels_from)
    scorer = open_scorer(given)
    may_be_shown = AllowedFiles(paths)
    with (
        ScoreCache(cache) if cache else nullcontext() as known,
        Gallery(thumbnail) as gallery,
        progress_bar("Scoring", len(files), unit="images") as progress,
    ):

        def allowed() -> Iterator[str]:
            for file in files:
                if file in may_be_shown:
                    yield file
                else:
                    gallery.failures.append(FailedScore(_OUTSIDE, path=file))
                    progress()

        stopped = False
        try:
            for score in scorer.score_many(allowed(), cache=known, on_image=gallery.keep_thumbnail):
                gallery.add(score)
                progress()
        except KeyboardInterrupt:  # what took hours is not thrown away
            stopped = True
        done = len(gallery.images) + len(gallery.failures)
        info = ReportInfo(
            title=title or f"Image quality of {', '.join(paths)}",
            weights=WeightsInfo.of(scorer),
            patches=scorer.preprocess.patches,
            created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            note=f"Stopped after {done} of {len(files)} images." if stopped else "",
        )
        write_page(output, gallery, info, labels)
    failed = len(gallery.failures)
    click.echo(f"{output}: {len(gallery.images)} images", err=True)
    if stopped:
        raise KeyboardInterrupt
    if failed:
        click.echo(f"{failed} of {len(files)} images could not be scored", err=True)
        sys.exit(1)
