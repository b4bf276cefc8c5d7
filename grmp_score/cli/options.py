"""Options and checks that several commands share: opening a model, reading labels, writing results."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from grmp_score.errors import DataError

if TYPE_CHECKING:
    from grmp_score.scorer import Scorer
    from grmp_score.trainer.data.labels import Labels

F = TypeVar("F", bound=Callable[..., Any])


def model_options(command: F) -> F:
    """Adds the options that `open_scorer` takes, but for those of `Scorer`."""
    options = (
        click.option(
            "-m",
            "--model",
            default=None,
            metavar="MODEL",
            help="Weights folder, Hub repository (owner/name) or bundled model.  "
            "[default: mini, which needs no network]",
        ),
        click.option(
            "--filename", default=None, metavar="FILE.pt", help="Official checkpoint in that folder or repository."
        ),
        click.option("--revision", default=None, help="Branch, tag or commit of the Hub repository."),
    )
    for option in reversed(options):
        command = option(command)
    return command


device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)

patches_option = click.option(
    "--patches", type=click.IntRange(1), help="Patches per image.  [default: the weights' own, usually 10]"
)

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, not to the screen.",
)


def format_option(formats: Sequence[str]) -> Callable[[F], F]:
    """Adds ``--format``, passed as ``output_format``; the table is the default."""
    return click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(formats),
        default="table",
        show_default=True,
        help="Form of the output.",
    )


def label_options(command: F) -> F:
    """Adds the options that `open_labels` takes."""
    options = (
        click.option(
            "--labels",
            required=True,
            type=click.Path(path_type=Path),
            help="CSV with a header: a column of images, a column of scores.",
        ),
        click.option(
            "--images",
            type=click.Path(path_type=Path),
            help="Folder that relative image paths start from.  [default: the CSV's]",
        ),
        click.option("--image-column", help="[default: image, path, file or filename]"),
        click.option("--score-column", help="[default: mos, score, rating, quality, label or dmos]"),
        click.option(
            "--lower-is-better/--higher-is-better",
            default=None,
            help="Direction of the scores.  [default: lower for a column named dmos, else higher]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def open_labels(
    labels: Path,
    images: Path | None,
    image_column: str | None,
    score_column: str | None,
    lower_is_better: bool | None,
    *,
    minimum: int = 5,
) -> Labels:
    """Reads labels; the hints of errors name options of the command line."""
    from grmp_score.trainer.data.labels import read_labels

    try:
        return read_labels(
            labels,
            images=images,
            image_column=image_column,
            score_column=score_column,
            lower_is_better=lower_is_better,
            minimum=minimum,
        )
    except DataError as error:
        hint = re.sub(r"\((\w+)=\.\.\.\)", lambda m: f"(--{m[1].replace('_', '-')})", error.hint or "")
        raise DataError(error.reason, path=error.path, hint=hint or None) from error


def check_rows(labels: Labels, test: Labels | None, shots: int | None) -> None:
    """There are enough rows, and no image is both trained and tested on."""
    if shots is not None and shots > len(labels):
        raise DataError(
            f"labels of {len(labels)} images, expected at least {shots}",
            path=labels.source,
            hint="Label more images, or lower --shots",
        )
    if test is None:
        return
    seen = {_identity(path): row for path, row in zip(labels.paths, labels.rows, strict=True)}
    both = [
        (row, path, seen[_identity(path)])
        for path, row in zip(test.paths, test.rows, strict=True)
        if _identity(path) in seen
    ]
    if both:
        row, path, other = both[0]
        raise DataError(
            f"row {row}: {str(path)!r} is also in row {other} of {labels.source} ({len(both)} such images); what "
            "is trained on cannot be tested on",
            path=test.source,
            hint="Remove these rows from one of the files, or leave out --test",
        )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def check_source(model: str | None, filename: str | None) -> None:
    """Refuses a checkpoint's name without the place it lies in."""
    if filename is not None and model is None:
        raise click.UsageError("--filename needs --model, the folder or repository it lies in")


def open_scorer(model: str | None, filename: str | None, revision: str | None, **options: Any) -> Scorer:
    """A scorer of the named model, or of the bundled one.

    Args:
        model, filename, revision: what `model_options` give.
        options: those of `Scorer`.
    """
    # Torch and NumPy take long to import: after the arguments are known to be right, not before.
    from grmp_score.scorer import Scorer

    if model is None:  # not by its name: a folder of that name must not take its place
        return Scorer(**options)
    return Scorer.from_pretrained(model, filename=filename, revision=revision, **options)
