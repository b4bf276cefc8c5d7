"""Options and checks that several commands share: a model, images, labels, results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from grmp_score.cli.progress import progress_bar
from grmp_score.display import printable
from grmp_score.errors import ConfigError, DataError

if TYPE_CHECKING:
    from grmp_score.scorer import Scorer
    from grmp_score.trainer.data.labels import Indices, Labels

F = TypeVar("F", bound=Callable[..., Any])

#: How many images are named in one line.
NAMED = 20


def all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator that adds several options, in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


#: What `open_scorer` needs to find a model.
model_options = all_of(
    click.option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Weights folder, Hub repository (owner/name), bundled model, or NAME:TAG of open_clip's weights, "
        "asked with CLIP-IQA's two texts.  [default: mini, which needs no network]",
    ),
    click.option("--filename", metavar="FILE.pt", help="Official checkpoint in that folder or repository."),
    click.option("--revision", help="Branch, tag or commit of the Hub repository."),
)

device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", help="Where to compute."
)

engine_options = all_of(
    click.option(
        "--engine",
        type=click.Choice(["auto", "onnxruntime", "torch"]),
        default="auto",
        show_default="the former on CPUs",
        help="What computes: ONNX Runtime (CPUs alone, starts at once) or torch.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
        default="auto",
        show_default="float32",
        help="Of the model's products: bfloat16 with torch, int8 with ONNX Runtime.",
    ),
)

patches_option = click.option(
    "--patches", type=click.IntRange(1), help="Patches per image.  [default: the weights' own, usually 10]"
)


def _known_colour(context: click.Context, parameter: click.Parameter, text: str) -> str:
    if text != "white":  # Pillow, which knows the names of colours, need not be imported for the usual one
        from grmp_score.images import parse_colour

        try:
            parse_colour(text)
        except ConfigError as error:
            raise click.BadParameter(f"{text!r} is no colour; expected a name or #rrggbb") from error
    return text


background_option = click.option(
    "--background", default="white", metavar="COLOUR", callback=_known_colour, help="What lies under transparency."
)

max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(1),
    metavar="N",
    help="Refuse images of more pixels (width x height).  [default: 250 million]",
)

cache_option = click.option(
    "--cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.sqlite",
    help="Keep scores in this file and look them up there, by content.  Several runs may share it.",
)

#: The options of `Scorer` that decide how fast it works.
speed_options = all_of(
    click.option(
        "--batch-size", type=click.IntRange(1), help="Images per pass.  [default: 1 to 8 on a CPU, else 16]"
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Threads that read images.  [default: cores, at most 4]"
    ),
)

exclude_option = click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Skip files and folders of such a name inside of folders, besides thumbnails and waste baskets of drives "
    "(@eaDir, #recycle, Thumbs ...), which always are.  May be given several times.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Also replace a file that holds no results of grmp-score."
)
output_option = all_of(
    click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write to this file, not to the screen.",
    ),
    overwrite_option,
)


#: What `open_labels` needs.
label_options = all_of(
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="CSV with a header: a column of images, a column of scores.  Or a folder of images that have stars "
        "(XMP or EXIF, in the image or in a sidecar IMG.xmp or IMG.jpg.xmp).",
    ),
    click.option(
        "--good",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Instead of --labels: folder of images that you like ...",
    ),
    click.option("--bad", type=click.Path(path_type=Path), metavar="DIR", help="... and of those that you do not."),
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

split_by_option = click.option(
    "--split-by",
    metavar="COLUMN",
    help="Column with the name of the photo that an image is a version of; versions of one photo are never trained "
    "and tested on.  [default: ref, reference or group; without one near duplicates are found]",
)


def open_scorer(given: Mapping[str, Any]) -> Scorer:
    """A scorer of the named model, or of the bundled one.

    Args:
        given: the options of the command; those of `model_options` and of `ScorerOptions` are used.  What is None
            keeps the library's default.

    Raises:
        click.UsageError: ``--filename`` without ``--model``, the place it lies in.
        HubError, WeightsError, ConfigError: as `Scorer.from_pretrained`.
    """
    if given["filename"] is not None and given["model"] is None:
        raise click.UsageError("--filename needs --model, the folder or repository it lies in")
    # Torch and NumPy take long to import: after the arguments are known to be right, not before.
    from grmp_score.scorer import Scorer, ScorerOptions

    names = [field.name for field in dataclasses.fields(ScorerOptions)]
    options = {name: given[name] for name in names if given.get(name) is not None}
    if given["model"] is None:  # not by its name: a folder of that name must not take its place
        return Scorer(**options)
    return Scorer.from_pretrained(given["model"], filename=given["filename"], revision=given["revision"], **options)


def label_source(labels: Path | None, given: Mapping[str, Any]) -> Path:
    """The file or folder that labels come from, by which results are named: that of the good images, of two.

    Raises:
        click.UsageError: neither ``--labels`` nor ``--good`` with ``--bad``, or both.
    """
    good, bad = given["good"], given["bad"]
    if (good is None) != (bad is None):
        raise click.UsageError("--good and --bad go together")
    if (labels is None) == (good is None):
        raise click.UsageError(
            "name the labels: --labels with a CSV or a folder of rated images, or --good DIR and --bad DIR"
        )
    source: Path = labels if labels is not None else good
    return source


def output_stem(source: Path) -> str:
    """What results are called, by the source of their labels."""
    return source.resolve().name if source.is_dir() else source.stem


def open_labels(file: Path | None, given: Mapping[str, Any]) -> Labels:
    """Reads labels by the `label_options`; the hints of errors name options of the command line.

    What was found in a folder is said on stderr.

    Args:
        file: CSV or folder of rated images; None for ``--good`` and ``--bad``.
        given: the options of the command.
    """
    names = ("images", "image_column", "score_column", "lower_is_better")
    options = {name: given[name] for name in names}
    if file is None:
        from grmp_score.trainer.data.folders import read_good_and_bad

        if any(value is not None for value in options.values()):
            words = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise click.UsageError(f"{words} are for a CSV; leave them out with --good and --bad")
        labels = read_good_and_bad(given["good"], given["bad"])
    else:
        labels = _read_labels(file, reference_column=given.get("split_by"), **options)
    for note in labels.notes:
        click.echo(f"{labels.source}: {printable(note)}", err=True)
    return labels


def _read_labels(file: Path, **options: Any) -> Labels:
    from grmp_score.trainer.data.labels import read_labels

    try:
        return read_labels(file, **options)
    except DataError as error:
        hint = re.sub(r"\((\w+)=\.\.\.\)", lambda m: f"(--{m[1].replace('_', '-')})", error.hint or "")
        raise DataError(error.reason, path=error.path, hint=hint or None) from error


def know_versions(labels: Labels, test: Labels | None = None) -> tuple[Labels, Labels | None]:
    """Labels, and those to test on, that say which images are versions of one photo.

    Where a file has no column for it all images are looked at, with a progress bar; files of the same bytes go
    together in any case.
    """
    from grmp_score.trainer.data.splits import find_references

    parts = [labels] if test is None else [labels, test]
    with progress_bar("Comparing", sum(map(len, parts)), unit="images") as progress:
        parts = find_references(parts, progress=progress)
    return parts[0], None if test is None else parts[1]


def note_left_out(tested: Labels, left_out: Indices) -> None:
    """Names on stderr the images that are not tested on for the sake of those that are trained on."""
    if not len(left_out):
        return
    names = [f"{printable(tested.paths[i].name)!r} (row {tested.rows[i]})" for i in left_out]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    what = "image is a version" if len(names) == 1 else "images are versions"
    click.echo(
        f"Note: {tested.source}: {len(names)} {what} of photos to train on and left out of the test part: "
        f"{', '.join(names[:NAMED])}{more}",
        err=True,
    )
