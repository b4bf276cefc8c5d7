"""``grmp-score [score] PATHS...``"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import click

from grmp_score.cli.options import open_scorer
from grmp_score.cli.output import append_text, destination, results_file
from grmp_score.cli.overwriting import check_output
from grmp_score.cli.progress import Progress, progress_bar
from grmp_score.cli.score_options import EPILOG, STDIN, ScoreCommand, check, score_options
from grmp_score.display import printable
from grmp_score.images.find import EXCLUDED, HIDDEN, find_images, read_list
from grmp_score.report.resume import Earlier, read_earlier
from grmp_score.report.rows import FIELDS, WeightsInfo
from grmp_score.report.table import TableWriter
from grmp_score.report.writers import (
    DELIMITERS,
    DelimitedWriter,
    JsonLinesWriter,
    ParquetWriter,
    PathsWriter,
    Writer,
    import_pyarrow,
)
from grmp_score.score import AnyScore, FailedScore, Score

if TYPE_CHECKING:
    from grmp_score.cli.actions import Actions
    from grmp_score.pipeline.cache import ScoreCache
    from grmp_score.scorer import Scorer


@click.command(cls=ScoreCommand, epilog=EPILOG)
@click.argument("paths", nargs=-1, type=click.Path(path_type=str))
@score_options
def command(**given: Any) -> None:
    """Score images: how good do they look, from 0 (bad) to 1 (good)?

    PATHS are image files, folders (searched recursively, hidden files skipped) and "-" for a list of them on
    standard input, separated by newlines or NULs.  Every image gives one row, in the order of the inputs, as soon
    as it is scored; one that cannot be read gives a row with the reason, and the run goes on.

    The score is the mean probability of "high quality" over the patches of an image.  The standard error is its
    spread over them: two images whose scores differ by less cannot be told apart.  The verdict is the grade that
    people would give, for models trained on their opinion, or says how the score compares with those of clean and
    of heavily distorted reference photos; models without such figures give none.

    \b
    Examples:
      grmp-score photos/
      grmp-score photos/ --bottom 20 --format paths
      grmp-score photos/ --format csv -o scores.csv
      grmp-score photos/ --min-score 0.6 --sort score --fields path,score,percentile --format tsv
      find photos -name '*.jpg' -print0 | grmp-score - --format paths -0 --top 50 | xargs -0 ls -l
      grmp-score photos/ --cache scores.sqlite --trust-mtime -o scores.jsonl
      grmp-score photos/ --resume scores.jsonl
      grmp-score photos/ --top 50 --copy-to best/
      grmp-score photos/ --write-xmp
      grmp-score -- adapt            (a file that is called like a command)
    """
    options = SimpleNamespace(**given)
    if options.undo is not None:
        from grmp_score.cli.actions import undo

        if options.paths or options.from_file:
            raise click.UsageError("--undo LOG takes back what was done and scores nothing; leave out the images")
        undo(options.undo)
        return
    check(options)
    inputs = [*options.paths, *options.from_file]
    check_output(options.output, inputs, overwrite=options.overwrite)
    skipped = Skipped(options.verbose)
    names, earlier = named_images(options.paths, options.from_file, options.exclude, skipped), Earlier()
    with contextlib.ExitStack() as stack:
        if options.resume is not None:
            options.output = stack.enter_context(results_file(options.resume, resume=True))
            earlier = read_earlier(options.output, options.output_format)
            names = earlier.remaining(names)
            if options.fields is not None and earlier.fields not in (None, options.fields):
                have = ",".join(earlier.fields or ())
                raise click.UsageError(f"the rows in {options.resume} have the fields {have}; --fields differs")
            options.fields = earlier.fields or options.fields
        count, actions = Count(done=earlier.rows, failed=earlier.failed), None
        first = next(names, None)
        if first is None and not earlier.rows:
            skipped.say()
            places = ", ".join([*options.paths, *map(str, options.from_file)])
            raise click.UsageError(f"no images found in: {places}")
        if first is not None:
            cache = stack.enter_context(open_cache(options)) if options.cache is not None else None
            scorer = open_scorer(given)
            model = WeightsInfo.of(scorer)
            if options.resume is not None:
                earlier.check(model, scorer.preprocess.patches, path=options.output)
            actions = open_actions(options, model)
            began = time.monotonic()
            scores = scored(options, scorer, chain([first], names), cache)
            # The first score before anything is written: weights that fit nothing are refused without a trace.
            scores = chain([next(scores)], scores)
            if options.verbose:
                say_what_is_used(scorer, cache, earlier)
            with (
                open_writer(options, model, earlier) as writer,
                contextlib.closing(counted(scores, count, options)) as scores,
            ):
                for score in options.selection.apply(scores):
                    writer.write(score)
                    if actions is not None:
                        actions.take(score)
                    if options.explain is not None and not isinstance(score, FailedScore):
                        explain(scorer, score, options.explain)
                if count.interrupted:
                    raise KeyboardInterrupt
            if actions is not None:
                actions.finish()
            if options.verbose:
                say_how_long_it_took(time.monotonic() - began, count.done - earlier.rows, scorer, cache)
    if not options.quiet:
        skipped.say()
    if count.failed and not options.quiet:
        click.echo(f"{count.failed} of {count.done} images could not be scored", err=True)
    if count.failed or (actions is not None and actions.refused):
        sys.exit(1)


class Skipped:
    """What folders hold and was not taken, by the reason, hidden entries aside; ``listed``: each is named."""

    def __init__(self, listed: bool) -> None:
        self._listed, self._counts = listed, Counter[str]()

    def __call__(self, path: str, why: str) -> None:
        if why == HIDDEN:
            return
        self._counts[why] += 1
        if self._listed:
            click.echo(f"skipped ({why}): {printable(path)}", err=True)

    def say(self) -> None:
        """One line on stderr, where anything was skipped."""
        parts = [f"{number:,} {why}" for why, number in sorted(self._counts.items())]
        if parts:
            more = "" if self._listed else "; -v lists them"
            click.echo(f"Skipped in folders: {', '.join(parts)}{more}", err=True)


def named_images(
    paths: Sequence[str],
    lists: Sequence[Path],
    exclude: Sequence[str] = (),
    skipped: Callable[[str, str], None] = lambda path, why: None,
) -> Iterator[str]:
    """The images behind arguments (``-``: a list on standard input) and in lists, one by one as they are found."""
    how: dict[str, Any] = {"exclude": [*EXCLUDED, *exclude], "skipped": skipped}
    for path in paths:
        if path == STDIN:
            yield from find_images(read_list(cast(BinaryIO, sys.stdin.buffer)), patterns=False, **how)
        else:
            yield from find_images([path], **how)
    for file in lists:
        with open(file, "rb") as stream:
            yield from find_images(read_list(stream, str(file)), patterns=False, **how)


def count_ahead(
    paths: Sequence[str], lists: Sequence[Path], exclude: Sequence[str], progress: Progress, *, less: int = 0
) -> None:
    """Counts the images in the background, for a progress display that knows its end.

    What can only be read once (standard input, pipes) or is far away (addresses) is not counted, nor is anything
    where nobody would see it.

    Args:
        paths, lists, exclude: as for `named_images`.
        progress: its ``total`` is set when the number is known.
        less: images that need no work.
    """
    if not progress.shown or STDIN in paths or any("://" in path for path in paths):
        return
    if not all(file.is_file() for file in lists):
        return

    def count() -> None:
        try:
            progress.total = max(0, sum(1 for _ in named_images(paths, lists, exclude)) - less)
        except Exception:
            return  # the same failure meets the images themselves, and is told there

    threading.Thread(target=count, name="grmp-score-count", daemon=True).start()


@dataclass
class Count:
    """How far a run is.

    Attributes:
        done: images that are scored or have failed, those of an earlier run included.
        failed: those of them that have failed.
        interrupted: whether Ctrl-C has ended the run.
    """

    done: int
    failed: int
    interrupted: bool = False


def counted(scores: Iterable[AnyScore], count: Count, options: SimpleNamespace) -> Generator[AnyScore, None, None]:
    """Passes scores on with a progress bar, which is gone when they end, and names failures that get no row.

    Ctrl-C ends the scores and nothing else: what has been scored is selected, sorted and written like a complete
    run.
    """
    named = options.verbose or options.selection.filters or options.output_format == "paths"
    with progress_bar("Scoring", None, unit="images", streaming=options.streaming, quiet=options.quiet) as progress:
        count_ahead(options.paths, options.from_file, options.exclude, progress, less=count.done)
        try:
            for score in scores:
                count.done += 1
                if isinstance(score, FailedScore):
                    count.failed += 1
                    if named and not options.quiet:
                        click.echo(f"{printable(score.path or '')}: {printable(score.error)}", err=True)
                progress()
                yield score
        except KeyboardInterrupt:
            count.interrupted = True


def scored(
    options: SimpleNamespace, scorer: Scorer, names: Iterable[str], cache: ScoreCache | None
) -> Iterator[AnyScore]:
    """The scores, computed here or on a Ray cluster."""
    if not options.ray:
        return scorer.score_many(names, cache=cache)
    from grmp_score.integrations.ray import score_paths
    from grmp_score.integrations.ray_cluster import ray_data

    ray_data()  # what is missing is said before anything is written
    return score_paths(
        names,
        model=scorer,
        address=options.address,
        workers=options.workers,
        batch_size=options.batch_size,
        background=scorer.background,
        max_pixels=scorer.max_pixels,
    )


@contextlib.contextmanager
def open_writer(options: SimpleNamespace, model: WeightsInfo, earlier: Earlier) -> Iterator[Writer]:
    """A writer of the chosen format to the chosen place; it is closed at the end, whatever happens."""
    fields = options.fields or FIELDS
    with contextlib.ExitStack() as stack:
        if options.output_format == "parquet":
            import_pyarrow()  # before a file is made
            file = stack.enter_context(results_file(options.output))
            writer: Writer = ParquetWriter(file, model, fields)
        elif options.resume is not None:
            os.truncate(options.output, earlier.size)  # without what was torn off
            stream = stack.enter_context(append_text(options.output))
            writer = text_writer(options, stream, model, fields, header=earlier.fields is None)
        else:
            stream = stack.enter_context(destination(options.output))
            writer = text_writer(options, stream, model, fields)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                writer.close()
            raise
        writer.close()


def text_writer(
    options: SimpleNamespace, stream: IO[str], model: WeightsInfo, fields: Sequence[str], *, header: bool = True
) -> Writer:
    """The writer of a format that is text."""
    kind = options.output_format
    if kind in DELIMITERS:
        return DelimitedWriter(stream, model, fields, delimiter=DELIMITERS[kind], header=header)
    if kind == "jsonl":
        return JsonLinesWriter(stream, model, fields)
    if kind == "paths":
        return PathsWriter(stream, "\0" if options.null else "\n")
    return TableWriter(stream, model, live=options.streaming and stream.isatty())


def open_actions(options: SimpleNamespace, model: WeightsInfo) -> Actions | None:
    """What is to be done with the images besides scoring them."""
    if options.transfer is None and not options.write_xmp:
        return None
    from grmp_score.cli.actions import Actions

    return Actions(options, model)


def open_cache(options: SimpleNamespace) -> ScoreCache:
    """The file of ``--cache``."""
    from grmp_score.pipeline.cache import ScoreCache

    return ScoreCache(options.cache, trust_mtime=options.trust_mtime)


def explain(scorer: Scorer, score: Score, folder: Path) -> None:
    """A picture that explains a score, for ``--explain``."""
    from grmp_score.report.explanation import write_explanation

    if score.path is not None:
        write_explanation(scorer, score.path, folder)


def say_what_is_used(scorer: Scorer, cache: ScoreCache | None, earlier: Earlier) -> None:
    """The notes of ``--verbose`` at the beginning."""
    click.echo(f"model {printable(scorer.config.name)}, checksum {scorer.checksum}", err=True)
    # Where a cache may know all scores, the model need not be made.
    engine = f", {described(scorer)}" if cache is None or scorer.is_built else ""
    click.echo(f"{scorer.preprocess.patches} patches per image{engine}", err=True)
    if earlier.rows:
        click.echo(f"{earlier.rows} images have been scored before", err=True)


def say_how_long_it_took(seconds: float, images: int, scorer: Scorer, cache: ScoreCache | None) -> None:
    """The note of ``--verbose`` at the end."""
    text = f"{images} images in {seconds:.1f} s ({images / max(seconds, 1e-9):.1f} per second)"
    if cache is not None:
        model = described(scorer) if scorer.is_built else "the model was not needed"
        text += f", {cache.hits} from the cache, {model}"
    click.echo(text, err=True)


def described(scorer: Scorer) -> str:
    """What computes, for ``--verbose``."""
    engine = scorer.engine
    return f"{engine.name} on {engine.device} in {engine.precision}"
