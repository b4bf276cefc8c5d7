"""``grmp-score [score] PATHS...``"""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from grmp_score.cli.progress import progress_bar
from grmp_score.inputs import find_images
from grmp_score.report.rows import FORMATS, make_writer

if TYPE_CHECKING:
    from grmp_score.scorer import Score


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))
@click.option(
    "-m",
    "--model",
    default=None,
    metavar="MODEL",
    help="Weights folder, Hub repository (owner/name) or bundled model.  [default: mini, which needs no network]",
)
@click.option(
    "--filename", default=None, metavar="FILE.pt", help="Official checkpoint in that folder or repository."
)
@click.option("--revision", default=None, help="Branch, tag or commit of the Hub repository.")
@click.option(
    "-f",
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Form of the output.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, not to the screen.",
)
@click.option(
    "--patches", type=click.IntRange(1), help="Patches per image.  [default: the weights' own, usually 10]"
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
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
    if filename is not None and model is None:
        raise click.UsageError("--filename needs --model, the folder or repository it lies in")
    files = list(find_images(paths))
    if not files:
        raise click.UsageError(f"no images found in: {', '.join(paths)}")
    # torch takes seconds to import: after the arguments are known to be right, not before.
    from grmp_score.scorer import Scorer

    warnings.filterwarnings("ignore", module=r"PIL\..*")  # odd files become error rows, not warnings
    options = {"device": device, "patches": patches, "batch_size": batch_size, "workers": workers}
    if model is None:  # not by its name: a folder of that name must not take its place
        scorer = Scorer(**options)  # type: ignore[arg-type]
    else:
        scorer = Scorer.from_pretrained(model, filename=filename, revision=revision, **options)  # type: ignore[arg-type]
    failed = 0
    with _destination(output) as stream:
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


@contextlib.contextmanager
def _destination(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # File names are passed on byte by byte; where the screen cannot show a letter, its code.
            utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        yield sys.stdout
        return
    try:
        with open(output, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield file
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from error


__all__ = ["Score", "command"]
