"""The options of ``grmp-score score``, and the checks that need nothing but them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from grmp_score.cli.options import F
from grmp_score.cli.sources import STDIN
from grmp_score.errors import ConfigError
from grmp_score.report.resume import NEEDED
from grmp_score.report.rows import FIELDS, describe_columns, parse_fields
from grmp_score.report.select import Selection
from grmp_score.report.writers import FIELD_FORMATS, FORMATS, RESUMABLE

#: Suffix of an output file -> its format.
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}

HELP_SECTIONS = {
    "Inputs": ("from_file", "background", "max_pixels"),
    "Output": ("output_format", "output", "fields", "null", "explain"),
    "Selection": ("sort", "order", "top", "bottom", "min_score", "max_score"),
    "Going on, and not doing things twice": ("resume", "cache", "trust_mtime"),
    "Model": ("model", "filename", "revision", "patches"),
    "Speed": ("device", "batch_size", "workers", "engine", "address"),
}

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

_OPTIONS = (
    click.option(
        "--from-file",
        multiple=True,
        metavar="LIST",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Also score what this file lists, one name a line or separated by NULs.  May be given several times.",
    ),
    click.option(
        "--background", default="white", show_default=True, metavar="COLOUR", help="What lies under transparency."
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        metavar="N",
        help="Refuse images of more pixels (width x height).  [default: 250 million]",
    ),
    click.option(
        "-f",
        "--format",
        "output_format",
        type=click.Choice(FORMATS),
        help="Form of the output.  [default: by the suffix of the file, else table]",
    ),
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
        show_default=True,
        help="Order of the rows: that of the inputs, best first, or A to Z.",
    ),
    click.option("--asc/--desc", "order", default=None, help="Direction of --sort."),
    click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N best, best first."),
    click.option(
        "--bottom", type=click.IntRange(1), metavar="N", help="Only the N worst, worst first; with --top, both."
    ),
    click.option("--min-score", type=float, metavar="X", help="Only images that score X or more."),
    click.option("--max-score", type=float, metavar="X", help="Only images that score X or less."),
    click.option(
        "--resume",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Go on with the results in FILE (csv, tsv or jsonl): what has a row there is not scored again.  "
        "Begins a new file if there is none.",
    ),
    click.option(
        "--cache",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE.sqlite",
        help="Keep scores in this file and look them up there, by content.  Several runs may share it.",
    ),
    click.option(
        "--trust-mtime",
        is_flag=True,
        help="With --cache: do not even read files whose path, size and modification time are known.",
    ),
    click.option("--batch-size", type=click.IntRange(1), help="Images per pass.  [default: 1 on a CPU, else 16]"),
    click.option(
        "--workers", type=click.IntRange(1), help="Threads that read images.  [default: cores, at most 4]"
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Compute in this process, or on a Ray cluster.",
    ),
    click.option("--address", help="With --engine ray: of the cluster, or auto.  [default: one on this machine]"),
    click.option("-v", "--verbose", is_flag=True, help="Say what is used and how long it took."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no summary on stderr."),
)


def settings_options(command: F) -> F:
    """Adds the options that `Settings.of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Settings:
    """Checked options; see the help of each."""

    from_file: tuple[Path, ...]
    output_format: str
    output: Path | None
    resume: Path | None
    fields: tuple[str, ...]
    own_fields: bool
    null: bool
    explain: Path | None
    selection: Selection
    cache: Path | None
    trust_mtime: bool
    engine: str
    address: str | None
    batch_size: int | None
    workers: int | None
    verbose: bool
    quiet: bool
    scorer_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def streaming(self) -> bool:
        """Whether rows go to stdout one by one."""
        return self.output is None and self.resume is None and not self.selection.waits

    @property
    def names_failures(self) -> bool:
        """Whether images that fail have no row that says so."""
        return self.verbose or self.selection.filters or self.output_format == "paths"

    @classmethod
    def of(cls, paths: tuple[str, ...], output: Path | None, options: dict[str, Any]) -> Settings:
        """Checks everything that can be checked before a file is opened; raises `click.UsageError`."""
        get = options.__getitem__
        if not paths and not get("from_file"):
            raise click.UsageError(
                "Missing argument 'PATHS...'; name images or folders, or - or --from-file for a list"
            )
        if (*paths, *map(str, get("from_file"))).count(STDIN) > 1:
            raise click.UsageError("standard input (-) can be read only once")
        if get("verbose") and get("quiet"):
            raise click.UsageError("--verbose and --quiet contradict each other")
        if output is not None and get("resume") is not None:
            raise click.UsageError("--resume FILE is where results go; leave out --output")
        kind = get("output_format") or SUFFIXES.get(Path(output or get("resume") or "").suffix.lower(), "table")
        for used, needed in (
            (get("null") and kind != "paths", "--null goes with --format paths"),
            (get("fields") is not None and kind not in FIELD_FORMATS, f"--fields goes with {_any(FIELD_FORMATS)}"),
            (kind == "parquet" and output is get("resume") is None, "--format parquet needs -o FILE"),
            (get("trust_mtime") and get("cache") is None, "--trust-mtime goes with --cache"),
            (get("address") is not None and get("engine") != "ray", "--address goes with --engine ray"),
            (get("cache") is not None and get("engine") == "ray", "--cache works with --engine local only"),
            (get("order") is not None and get("sort") == "none", "--asc and --desc go with --sort"),
        ):
            if used:
                raise click.UsageError(needed)
        fields = FIELDS
        if get("fields") is not None:
            try:
                fields = parse_fields(get("fields"))
            except ConfigError as error:
                raise click.BadParameter(error.reason, param_hint="--fields") from error
        selection = Selection(
            sort=get("sort"),
            descending=None if get("order") is None else not get("order"),
            top=get("top"),
            bottom=get("bottom"),
            minimum=get("min_score"),
            maximum=get("max_score"),
        )
        if get("resume") is not None:
            _check_resume(kind, fields, selection)
        scorer_options = {name: get(name) for name in ("batch_size", "workers")}
        if get("max_pixels") is not None:
            scorer_options["max_pixels"] = get("max_pixels")
        if get("background") != "white":
            scorer_options["background"] = _colour(get("background"))
        same = {
            name: get(name)
            for name in (
                *("from_file", "resume", "null", "explain", "cache", "trust_mtime", "engine", "address"),
                *("batch_size", "workers", "verbose", "quiet"),
            )
        }
        return cls(
            output_format=kind,
            output=output,
            fields=fields,
            own_fields=get("fields") is not None,
            selection=selection,
            scorer_options=scorer_options,
            **same,
        )

    def with_fields(self, fields: tuple[str, ...] | None) -> Settings:
        """These settings with the fields of the rows that a run goes on with."""
        if fields is None or fields == self.fields:
            return self
        if self.own_fields:
            raise click.UsageError(
                f"the rows in {self.resume} have the fields {','.join(fields)}; --fields differs"
            )
        return dataclasses.replace(self, fields=fields)


def _check_resume(kind: str, fields: tuple[str, ...], selection: Selection) -> None:
    if kind not in RESUMABLE:
        raise click.UsageError(f"--resume needs a file in one of the formats {', '.join(RESUMABLE)}, not {kind}")
    if selection != Selection():
        raise click.UsageError(
            "--resume writes all rows as they come; leave out --sort, --top, --bottom and limits"
        )
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise click.UsageError(f"--resume needs the field {missing[0]!r}; add it to --fields")


def _colour(text: str) -> str:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no colour; expected a name or #rrggbb", param_hint="--background"
        ) from error
    return text


def _any(names: tuple[str, ...]) -> str:
    return f"--format {', '.join(names[:-1])} or {names[-1]}"
