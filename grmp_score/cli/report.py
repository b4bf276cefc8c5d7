"""``grmp-score report PATHS... -o report.html``"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import click

from grmp_score import __version__
from grmp_score.cli.options import check_source, device_option, model_options, open_scorer, patches_option
from grmp_score.cli.progress import progress_bar
from grmp_score.images.find import find_images

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
    show_default=True,
    help="The page to write; its folder must exist.",
)
@click.option("--title", help="Heading of the page.  [default: the names of PATHS]")
@click.option(
    "--thumbnail",
    type=click.IntRange(48, 640),
    default=200,
    show_default=True,
    help="Longer side of thumbnails in pixels; decides the size of the page.",
)
@model_options
@patches_option
@device_option
@click.option(
    "--background", default="white", show_default=True, metavar="COLOUR", help="What lies under transparency."
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    help="Refuse images of more pixels (width x height).  [default: 250 million]",
)
@click.option(
    "--cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.sqlite",
    help="Keep scores in this file and look them up there, by content.  Several runs may share it.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images per pass.  [default: 1 on a CPU, else 16]")
@click.option("--workers", type=click.IntRange(1), help="Threads that read images.  [default: cores, at most 4]")
def command(
    paths: tuple[str, ...],
    output: Path,
    title: str | None,
    thumbnail: int,
    model: str | None,
    filename: str | None,
    revision: str | None,
    patches: int | None,
    device: str,
    background: str,
    max_pixels: int | None,
    cache: Path | None,
    batch_size: int | None,
    workers: int | None,
) -> None:
    """Score images and write one web page about them.

    The page holds a thumbnail of every image, sortable and filterable by score, a histogram, the best and the
    worst, near duplicates with the best shot marked, and what could not be scored.  It is one file that needs no
    network, about 10 KB per image.  Links lead to the images where they are.  PATHS are as for grmp-score score;
    links that lead out of them are not followed.  Ctrl-C ends the run with a page of what is done.

    \b
    Examples:
      grmp-score report photos/ -o report.html
      grmp-score report photos/ -o summer.html --title "Summer" --cache scores.sqlite

    Exit status: 0 everything was scored, 1 something could not be (named in the page), 2 wrong usage.
    """
    check_source(model, filename)
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"cannot write {output}: no such folder")
    # A file named twice, or by itself and by its folder, is one image.
    files = list({os.path.abspath(f) if "://" not in f else f: f for f in find_images(paths)}.values())
    if not files:
        raise click.UsageError(f"no images found in: {', '.join(paths)}")

    from grmp_score.images.read import MAX_PIXELS
    from grmp_score.pipeline.cache import ScoreCache
    from grmp_score.report.gallery import Failure, Fence, Gallery
    from grmp_score.report.html import Facts, write_page
    from grmp_score.score import verdict_limits

    scorer = open_scorer(
        model,
        filename,
        revision,
        device=device,
        patches=patches,
        batch_size=batch_size,
        workers=workers,
        background=background,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    fence = Fence(paths)
    with (
        ScoreCache(cache) if cache else nullcontext() as known,
        Gallery(thumbnail) as gallery,
        progress_bar("Scoring", len(files), unit="images") as advance,
    ):

        def allowed() -> Iterator[str]:
            for file in files:
                if fence.inside(file):
                    yield file
                else:
                    gallery.failures.append(Failure(file, _OUTSIDE))
                    advance(1)

        stopped = False
        try:
            for score in scorer.score_many(allowed(), cache=known, on_image=gallery.look):
                gallery.add(score)
                advance(1)
        except KeyboardInterrupt:  # what took hours is not thrown away
            stopped = True
        done = len(gallery.shots) + len(gallery.failures)
        facts = Facts(
            title=title or f"Image quality of {', '.join(paths)}",
            model=scorer.config.name,
            checksum=scorer.checksum,
            patches=scorer.preprocess.patches,
            created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            verdicts=verdict_limits(scorer.config.reference_percentiles),
            note=f"Stopped after {done} of {len(files)} images." if stopped else "",
        )
        write_page(output, gallery, facts)
    failed = len(gallery.failures)
    click.echo(f"{output}: {len(gallery.shots)} images", err=True)
    if stopped:
        raise KeyboardInterrupt
    if failed:
        click.echo(f"{failed} of {len(files)} images could not be scored", err=True)
        sys.exit(1)
