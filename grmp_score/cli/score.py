"""``grmp-score [score] PATHS...``"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from grmp_score.cli.options import (
    check_source,
    device_option,
    model_options,
    open_scorer,
    output_option,
    patches_option,
)
from grmp_score.cli.output import continuing, destination, replacing
from grmp_score.cli.progress import Advance, progress_bar
from grmp_score.cli.score_options import EPILOG, HELP_SECTIONS, Settings, settings_options
from grmp_score.cli.sections import sectioned
from grmp_score.cli.sources import count_ahead, named_images
from grmp_score.report.resume import Earlier
from grmp_score.report.rows import Model, printable
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

if TYPE_CHECKING:
    from grmp_score.pipeline.cache import ScoreCache
    from grmp_score.score import AnyScore
    from grmp_score.scorer import Scorer


@click.command(cls=sectioned(HELP_SECTIONS), epilog=EPILOG)
@click.argument("paths", nargs=-1, type=click.Path(path_type=str))
@settings_options
@output_option
@model_options
@patches_option
@device_option
def command(
    paths: tuple[str, ...],
    output: Path | None,
    model: str | None,
    filename: str | None,
    revision: str | None,
    patches: int | None,
    device: str,
    **options: Any,
) -> None:
    """Score images: how good do they look, from 0 (bad) to 1 (good)?

    PATHS are image files, folders (searched recursively, hidden files skipped) and "-" for a list of them on
    standard input, separated by newlines or NULs.  Every image gives one row, in the order of the inputs, as soon
    as it is scored; one that cannot be read gives a row with the reason, and the run goes on.

    The score is the mean probability of "high quality" over the patches of an image.  The standard error is its
    spread over them: two images whose scores differ by less cannot be told apart.  The verdict says how the score
    compares with those of clean and of heavily distorted reference photos; models without such figures give none.

    \b
    Examples:
      grmp-score photos/
      grmp-score photos/ --bottom 20 --format paths
      grmp-score photos/ --format csv -o scores.csv
      grmp-score photos/ --min-score 0.6 --sort score --fields path,score,percentile --format tsv
      find photos -name '*.jpg' -print0 | grmp-score - --format paths -0 --top 50 | xargs -0 ls -l
      grmp-score photos/ --cache scores.sqlite --trust-mtime -o scores.jsonl
      grmp-score photos/ --resume scores.jsonl
      grmp-score -- adapt            (a file that is called like a command)
    """
    check_source(model, filename)
    settings = Settings.of(paths, output, options)
    with contextlib.ExitStack() as stack:
        stream, earlier = None, Earlier()
        names = named_images(paths, settings.from_file)
        if settings.resume is not None:
            stream, earlier = stack.enter_context(continuing(settings.resume, settings.output_format))
            settings = settings.with_fields(earlier.fields)
            names = earlier.remaining(names)
        first = next(names, None)
        tally = Tally(settings, done=earlier.rows, failed=earlier.failed)
        if first is not None:
            cache = stack.enter_context(open_cache(settings)) if settings.cache is not None else None
            scorer = open_scorer(
                model,
                filename,
                revision,
                device=device,
                patches=patches,
                **settings.scorer_options,
            )
            about = Model.of(scorer.config, scorer.checksum)
            if settings.resume is not None:
                earlier.check(about, scorer.preprocess.patches, path=str(settings.resume))
            tally.begin(scorer, about)
            scores = scored(settings, scorer, chain([first], names), cache)
            # The first score before anything is written: weights that fit nothing are refused without a trace.
            scores = chain([next(scores)], scores)
            with progress_bar(
                "Scoring", None, unit="images", streaming=settings.streaming, quiet=settings.quiet
            ) as advance:
                count_ahead(paths, settings.from_file, advance, less=earlier.rows)
                with writing(settings, stream, about, header=earlier.fields is None) as writer:
                    for score in settings.selection.apply(tally.watch(scores, advance)):
                        writer.write(score)
                        if settings.explain is not None and score.path is not None and score.error is None:
                            explain(scorer, score.path, settings.explain)
                    # On Ctrl-C what has been scored is selected, sorted and written like a complete run.
                    writer.close()
                    if tally.interrupted:
                        raise KeyboardInterrupt
            tally.end(scorer, cache)
        elif not earlier.rows:
            raise click.UsageError(f"no images found in: {', '.join([*paths, *map(str, settings.from_file)])}")
    if tally.failed:
        tally.say(f"{tally.failed} of {tally.done} images could not be scored")
        sys.exit(1)


class Tally:
    """Counts what is done, and says on stderr what rows do not show."""

    def __init__(self, settings: Settings, *, done: int, failed: int) -> None:
        self.done, self.failed, self.interrupted = done, failed, False
        self._settings, self._before, self._began = settings, done, time.monotonic()

    def say(self, text: str) -> None:
        if not self._settings.quiet:
            click.echo(text, err=True)

    def begin(self, scorer: Scorer, model: Model) -> None:
        """Notes for ``--verbose`` on what is about to be used."""
        self._began = time.monotonic()
        if self._settings.verbose:
            self.say(f"model {printable(model.name)}, checksum {model.checksum}")
            device = f", device {scorer.device}" if scorer.is_built else ""
            self.say(f"{scorer.preprocess.patches} patches per image{device}")
            if self.done:
                self.say(f"{self.done} images have been scored before")

    def watch(self, scores: Iterable[AnyScore], advance: Advance) -> Iterator[AnyScore]:
        """Passes scores on.  Ctrl-C ends the stream; whoever consumes it can finish what it does."""
        try:
            for score in scores:
                self.done += 1
                self.failed += score.error is not None
                if score.error is not None and self._settings.names_failures:
                    self.say(f"{printable(score.path or '')}: {printable(score.error)}")
                advance(1)
                yield score
        except KeyboardInterrupt:
            self.interrupted = True

    def end(self, scorer: Scorer, cache: ScoreCache | None) -> None:
        """A summary for ``--verbose``."""
        if self._settings.verbose:
            seconds, images = time.monotonic() - self._began, self.done - self._before
            cached = ""
            if cache is not None:
                model = f"device {scorer.device}" if scorer.is_built else "the model was not needed"
                cached = f", {cache.hits} from the cache, {model}"
            self.say(f"{images} images in {seconds:.1f} s ({images / max(seconds, 1e-9):.1f} per second){cached}")


def scored(
    settings: Settings, scorer: Scorer, names: Iterable[str], cache: ScoreCache | None
) -> Iterator[AnyScore]:
    """The scores, computed here or on a Ray cluster."""
    if settings.engine == "local":
        return scorer.score_many(names, cache=cache)
    from grmp_score.integrations.ray import score_paths
    from grmp_score.integrations.ray_cluster import ray_data

    ray_data()  # what is missing is said before anything is written
    return score_paths(
        names,
        model=scorer,
        address=settings.address,
        workers=settings.workers,
        batch_size=settings.batch_size,
        background=scorer.background,
        max_pixels=scorer.max_pixels,
    )


def explain(scorer: Scorer, path: str, folder: Path) -> None:
    """A picture that explains a score, for ``--explain``."""
    from grmp_score.report.explanation import write_explanation

    write_explanation(scorer, path, folder)


def open_cache(settings: Settings) -> ScoreCache:
    from grmp_score.pipeline.cache import ScoreCache

    assert settings.cache is not None
    return ScoreCache(settings.cache, trust_mtime=settings.trust_mtime)


@contextlib.contextmanager
def writing(settings: Settings, stream: IO[str] | None, model: Model, *, header: bool) -> Iterator[Writer]:
    """A writer of the chosen format to the chosen place; closed also when something goes wrong."""
    with contextlib.ExitStack() as stack:
        if settings.output_format == "parquet":
            assert settings.output is not None
            import_pyarrow()  # before a file is made
            writer: Writer = ParquetWriter(stack.enter_context(replacing(settings.output)), model, settings.fields)
        else:
            text = stream or stack.enter_context(destination(settings.output))
            writer = text_writer(settings, text, model, header=header)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                writer.close()
            raise


def text_writer(settings: Settings, stream: IO[str], model: Model, *, header: bool) -> Writer:
    kind = settings.output_format
    if kind in DELIMITERS:
        return DelimitedWriter(stream, model, settings.fields, delimiter=DELIMITERS[kind], header=header)
    if kind == "jsonl":
        return JsonLinesWriter(stream, model, settings.fields)
    if kind == "paths":
        return PathsWriter(stream, "\0" if settings.null else "\n")
    return TableWriter(stream, model, live=settings.streaming and stream.isatty())
