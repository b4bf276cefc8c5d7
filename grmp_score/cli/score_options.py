"""The options of ``grmp-score score``, and the checks that need nothing but them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import click

from grmp_score.cli.options import (
    all_of,
    background_option,
    cache_option,
    device_option,
    engine_options,
    exclude_option,
    max_pixels_option,
    model_options,
    output_option,
    patches_option,
    speed_options,
)
from grmp_score.errors import ConfigError
from grmp_score.report.resume import NEEDED
from grmp_score.report.rows import FIELDS, describe_columns, parse_fields
from grmp_score.report.select import Selection
from grmp_score.report.writers import FIELD_FORMATS, FORMATS, RESUMABLE

#: What stands for a list of images on standard input.
STDIN = "-"

#: Suffix of an output file -> its format.
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

EPILOG = f"""\b
Fields of csv, tsv, jsonl and parquet:
{describe_columns()}

\b
Exit status:
  0    everything was scored
  1    something could not be (named in its row, or on stderr where rows are selected)
  2    wrong usage, or the run could not go on
  130  interrupted by Ctrl-C; what was done has been written

\b
Environment:
  NO_COLOR        no colours
  HF_HUB_OFFLINE  1: never use the network

Results go to stdout, everything else to stderr.  With -o FILE results are collected in FILE.partial, which takes
the place of FILE at the end; if a run is stopped, --resume FILE goes on with it."""

#: Headings of the help, by the option that each stands above.
HEADINGS = {
    "from_file": "Inputs",
    "output_format": "Output",
    "sort": "Selection",
    "copy_to": "Acting on the scores",
    "resume": "Going on, and not doing things twice",
    "model": "Model",
    "device": "Speed",
    "verbose": "Other options",
}

score_options = all_of(
    click.option(
        "--from-file",
        multiple=True,
        metavar="LIST",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Also score what this file lists, one name a line or separated by NULs.  May be given several times.",
    ),
    exclude_option,
    background_option,
    max_pixels_option,
    click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        help="Form of the output.  [default: by the suffix of the file, else table]",
    ),
    output_option,
    click.option("--fields", metavar="A,B,C", help="Columns to write, in this order.  [default: all, see below]"),
    click.option("-0", "--null", is_flag=True, help="End paths with NUL instead of a newline, for xargs -0."),
    click.option(
        "--explain",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Write a picture for every image shown: where its patches lie, and which parts look good or bad.",
    ),
    click.option(
        "--sort",
        type=click.Choice(["none", "score", "name"]),
        default="none",
        help="Order of the rows: that of the inputs, best first, or A to Z.",
    ),
    click.option("--asc/--desc", "ascending", default=None, help="Direction of --sort."),
    click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N best, best first."),
    click.option(
        "--bottom", type=click.IntRange(1), metavar="N", help="Only the N worst, worst first; with --top, both."
    ),
    click.option("--min-score", type=float, metavar="X", help="Only images that score X or more."),
    click.option("--max-score", type=float, metavar="X", help="Only images that score X or less."),
    click.option(
        "--copy-to",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Copy the images shown to this folder, with their XMP sidecars.  Nothing is written over; a log for "
        "--undo is left there.",
    ),
    click.option(
        "--move-to", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Or move them."
    ),
    click.option(
        "--link-to", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Or make symbolic links."
    ),
    click.option(
        "--undo",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="LOG",
        help="Take back what a log of --copy-to, --move-to or --link-to says; nothing is scored.",
    ),
    click.option(
        "--write-xmp",
        is_flag=True,
        help="Write stars and score into the XMP sidecars of the images shown: the one that is there, else "
        "IMG.jpg.xmp, or IMG.xmp for camera RAW.  Images stay as they are, and so does another rating that an "
        "image has, unless with --overwrite.",
    ),
    click.option(
        "--resume",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Go on with the results in FILE (csv, tsv or jsonl): what has a row there is not scored again.  "
        "Begins a new file if there is none.",
    ),
    cache_option,
    click.option(
        "--trust-mtime",
        is_flag=True,
        help="With --cache: do not even read files whose path, size and modification time are known.",
    ),
    model_options,
    patches_option,
    device_option,
    speed_options,
    engine_options,
    click.option("--ray", is_flag=True, help="Compute on a Ray cluster."),
    click.option("--address", help="With --ray: of the cluster, or auto.  [default: one on this machine]"),
    click.option("-v", "--verbose", is_flag=True, help="Say what is used and how long it took."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no summary on stderr."),
)


class ScoreCommand(click.Command):
    """A command whose help shows its options under `HEADINGS`, as in a manual."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = ""
        for parameter in self.get_params(ctx):
            heading = HEADINGS.get(parameter.name or "", heading)
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def check(options: SimpleNamespace) -> None:
    """Checks everything that can be checked before a file is opened, and works out what follows from it.

    Args:
        options: what was given, by the names of the parameters.  ``output_format`` becomes the one that is used,
            ``fields`` a tuple where some were given; new are ``selection``, ``transfer`` (how and where to the
            images go, or None), and ``streaming``: whether rows go to stdout one by one.

    Raises:
        click.UsageError: some options do not go together.
    """
    o = options
    file = o.output or o.resume
    kind = o.output_format or SUFFIXES.get(Path(file or "").suffix.lower(), "table")
    for wrong, message in (
        (
            not o.paths and not o.from_file,
            "Missing argument 'PATHS...'; name images or folders, or - or --from-file for a list",
        ),
        ((*o.paths, *map(str, o.from_file)).count(STDIN) > 1, "standard input (-) can be read only once"),
        (o.verbose and o.quiet, "--verbose and --quiet contradict each other"),
        (o.output and o.resume, "--resume FILE is where results go; leave out --output"),
        (o.null and kind != "paths", "--null goes with --format paths"),
        (
            o.fields is not None and kind not in FIELD_FORMATS,
            f"--fields goes with --format {', '.join(FIELD_FORMATS[:-1])} or {FIELD_FORMATS[-1]}",
        ),
        (kind == "parquet" and file is None, "--format parquet needs -o FILE"),
        (o.trust_mtime and o.cache is None, "--trust-mtime goes with --cache"),
        (o.address is not None and not o.ray, "--address goes with --ray"),
        (o.cache is not None and o.ray, "--cache does not work with --ray"),
        (o.ascending is not None and o.sort == "none", "--asc and --desc go with --sort"),
    ):
        if wrong:
            raise click.UsageError(message)
    ways = [("copy", o.copy_to), ("move", o.move_to), ("link", o.link_to)]
    chosen = [(how, folder) for how, folder in ways if folder is not None]
    if len(chosen) > 1:
        raise click.UsageError("--copy-to, --move-to and --link-to exclude each other")
    o.transfer = chosen[0] if chosen else None
    if o.resume is not None and (o.transfer or o.write_xmp):
        raise click.UsageError("--resume scores what is missing; act on the scores in a run without it")
    o.output_format = kind
    if o.fields is not None:
        try:
            o.fields = parse_fields(o.fields)
        except ConfigError as error:
            raise click.BadParameter(error.reason, param_hint="--fields") from error
    o.selection = Selection(
        sort=o.sort,
        descending=None if o.ascending is None else not o.ascending,
        top=o.top,
        bottom=o.bottom,
        minimum=o.min_score,
        maximum=o.max_score,
    )
    o.streaming = file is None and not o.selection.waits
    if o.resume is not None:
        _check_resume(o)


def _check_resume(o: SimpleNamespace) -> None:
    if o.output_format not in RESUMABLE:
        raise click.UsageError(
            f"--resume needs a file in one of the formats {', '.join(RESUMABLE)}, not {o.output_format}"
        )
    if o.selection != Selection():
        raise click.UsageError(
            "--resume writes all rows as they come; leave out --sort, --top, --bottom and limits"
        )
    missing = [name for name in NEEDED if name not in (o.fields or FIELDS)]
    if missing:
        raise click.UsageError(f"--resume needs the field {missing[0]!r}; add it to --fields")
