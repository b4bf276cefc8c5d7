"""``grmp-score adapt``"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grmp_score.cli.options import (
    device_option,
    know_versions,
    label_options,
    label_source,
    model_options,
    note_left_out,
    open_labels,
    open_scorer,
    output_stem,
    split_by_option,
)
from grmp_score.cli.output import destination
from grmp_score.cli.progress import training_progress
from grmp_score.display import printable
from grmp_score.errors import ConfigError, DataError, GrmpScoreError, TrainingDivergedError
from grmp_score.trainer.adapt.config import PRESETS, FewShotConfig

if TYPE_CHECKING:
    from grmp_score.scorer import Scorer
    from grmp_score.trainer.adapt.run import Adapted
    from grmp_score.trainer.data.labels import Labels
    from grmp_score.weights.folder import Weights


def _take_preset(context: click.Context, _: click.Parameter, name: str | None) -> str | None:
    """Makes the values of a preset the defaults, so that every option wins over them."""
    if name is not None:
        context.default_map = dataclasses.asdict(FewShotConfig.preset(name))
    return name


# The defaults are the library's own.
@click.command(context_settings={"default_map": dataclasses.asdict(FewShotConfig())})
@label_options
@click.option(
    "--shots",
    type=click.IntRange(4),
    help="Images to train on, drawn evenly over the scores; the others are the test part.  [default: all]",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    help="Labels of images to test on instead: a CSV with the same columns, or a folder.",
)
@split_by_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write; must not exist yet.  [default: that of --labels with -adapted, here]",
)
@model_options
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    is_eager=True,
    callback=_take_preset,
    help="Fine-tuning as in the paper.  paper: few images, plain SGD with all of them in every step, 210 steps.  "
    "paper-full: many images, AdamW, 9 epochs.  Options given besides it win over its values.",
)
@click.option("--name", help="Name of the new weights.  [default: that of the folder]")
@click.option(
    "--train",
    type=click.Choice(["head", "prompts", "blocks"]),
    help="head: the quality direction of the image features, in closed form.  prompts: the text prompt.  blocks: "
    "head, and then text prompt and last four blocks of both towers by gradient descent.",
)
@click.option("--head-first/--no-head-first", help="With blocks: begin with the closed form; the paper does not.")
@click.option("--train-visual-prompts", is_flag=True, help="Also train the visual prompts of those blocks.")
@click.option(
    "--prompt-dropout", type=click.FloatRange(0, 1, max_open=True), help="Of the visual prompts of those blocks."
)
@click.option(
    "--epochs",
    type=click.IntRange(0),
    help="With prompts and blocks: most passes over the images; cross-validation chooses how many.",
)
@click.option(
    "--text-first-epochs", type=click.IntRange(0), help="Most passes before these that train the text side alone."
)
@click.option("--optimizer", type=click.Choice(["sgd", "adamw"]), help="sgd is the paper's few-shot recipe.")
@click.option("--lr", type=float, help="Peak learning rate.  [default: by --optimizer and --train]")
@click.option("--momentum", type=click.FloatRange(0, 1, max_open=True), help="Of sgd.")
@click.option("--weight-decay", type=click.FloatRange(0), help="Of everything but visual prompts.")
@click.option(
    "--schedule",
    type=click.Choice(["plateau", "cosine", "constant"]),
    help="Of the learning rate: times 0.3 whenever the training loss stops falling; down to 0; or none.",
)
@click.option("--warm-up-epochs", type=click.IntRange(0), help="At a rate of 1e-5 before that.")
@click.option("--batch-size", type=click.IntRange(1), help="Images per step.")
@click.option(
    "--qgr-lambda",
    type=click.FloatRange(0),
    help="Strength of the gradient regularisation (eq. 8); 0 switches it off.",
)
@click.option(
    "--qgr-max-kl",
    type=click.FloatRange(0, min_open=True),
    help="L_kl (eq. 7, in nats) above which lambda is lowered to 1, so that it does not run away.",
)
@click.option(
    "--teacher",
    metavar="NAME:TAG",
    help="The original CLIP for eq. 7, for converted weights, which do not hold it: ViT-B-16-quickgelu:openai.  "
    "[default: the original blocks of the start model]",
)
@click.option(
    "--qgr-form",
    type=click.Choice(["per_parameter", "global"]),
    help="Applied to every tensor by itself, or to all as one.",
)
@click.option(
    "--crops",
    "crops_per_image",
    type=click.IntRange(1),
    help="Crops that are cut from every image, to draw from.  [default: as many as for scoring]",
)
@click.option("--crops-per-step", type=click.IntRange(1), help="How many of them stand for an image in a step.")
@click.option("--crops-per-epoch", type=click.IntRange(1), help="How often an image comes up in an epoch.")
@click.option("--flips/--no-flips", help="Also train on the mirrored crops.")
@click.option(
    "--token-share",
    type=click.FloatRange(0, 1, min_open=True),
    help="Of a crop's image tokens, drawn anew in every step: fewer make faster steps.",
)
@click.option(
    "--folds",
    type=click.IntRange(0),
    help="Of the cross-validation on the training images; 0: none, all epochs are run.",
)
@click.option("--look-every", type=click.IntRange(1), help="Epochs from one look at the held-out fold to the next.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of the training; auto is bfloat16 where the processor is fast at it.",
)
@device_option
@click.option("--seed", type=click.IntRange(0), help="Of the draw, and all else random.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped, with the same options.")
@click.pass_context
def command(
    context: click.Context,
    /,
    labels: Path | None,
    test: Path | None,
    output: Path | None,
    name: str | None,
    resume: bool,
    **given: Any,
) -> None:
    """Learn what you call good from 50 to 200 of your own labels.

    Labels are a CSV, the stars that the images of a folder have already, or two folders, of good and of bad images.
    Of stars is said how many there are of each; 0 counts as not rated, and where a sidecar and the image differ
    the sidecar counts.  A rejected image (-1) counts as 0 stars.

    The folder that is written holds a model for `grmp-score PATHS --model FOLDER`, its card, results.json,
    training.csv and two pictures.  It is measured on images that were not trained on, next to the model before
    and to a ridge regression; if one of them does better, you are told.

    \b
    Examples:
      grmp-score adapt --labels mine.csv --shots 100
      grmp-score adapt --labels photos/
      grmp-score adapt --good keep/ --bad reject/
      grmp-score adapt --labels mine.csv --test other.csv -o my-camera
      grmp-score adapt --labels mine.csv --shots 50 --train prompts --seed 1
      grmp-score adapt --labels mine.csv --shots 50 --preset paper --qgr-max-kl 1

    Exit status: 0 done, 1 training failed or some test images could not be scored (named on stderr), 2 wrong
    usage or labels, 130 interrupted (continue with --resume).
    """
    settings = {field.name for field in dataclasses.fields(FewShotConfig)}
    config = FewShotConfig(**{k: value for k, value in given.items() if k in settings})
    source = label_source(labels, given)
    output = output or Path(f"{output_stem(source)}-adapted")
    work = output.parent / f".{output.name}.partial"
    _check_folders(output, work, resume)
    known = open_labels(labels, given)
    tested = None if test is None else open_labels(test, given)
    _check_rows(known, tested, config.shots)
    scorer = open_scorer(given)
    if config.train_visual_prompts and not scorer.config.prompts.n_visual:
        raise click.UsageError(f"--train-visual-prompts: {scorer.config.name} has no visual prompts")
    from grmp_score.report.adaptation import write_summary
    from grmp_score.report.folder import publish
    from grmp_score.report.text import direction, ends
    from grmp_score.trainer.data.splits import divide

    known, tested = know_versions(known, tested)
    note_left_out(tested or known, divide(known, config.shots, config.seed, tested).left_out)
    try:
        adapted = _adapt(scorer, known, tested, config, work, resume)
        measured = adapted.results["measured_on"] == "test"  # not where all of a test file was left out
        weights = publish(
            adapted,
            scorer.weights,
            folder=output.name,
            name=name,
            model=given["model"],
            test=test if measured else None,
        )
        _write(adapted, weights, work, output, known.score_column)
    except KeyboardInterrupt:
        click.echo(_farewell(context, work), err=True)
        sys.exit(130)
    results = weights.config.results
    with destination(None) as stream:
        unit = printable(known.score_column)
        stream.write(f"{unit}: {direction(known.higher_is_better)} ({ends(known)})\n\n")
        write_summary(stream, results, unit=known.score_column, span=known.scale.maximum - known.scale.minimum)
        photos = os.path.join(os.path.dirname(known.paths[0]) or ".", "")
        stream.write(f"\nThe new model is in {output}.  Use it with:\n")
        stream.write(f"  grmp-score {shlex.join([photos, '--model', str(output)])}\n")
    for image in results["unscored"]:
        click.echo(f"{test or source}: row {image['row']}: {image['path']!r}: {image['error']}", err=True)
    if results["unscored"]:
        click.echo(f"{len(results['unscored'])} test images could not be scored", err=True)
        sys.exit(1)


def _check_folders(output: Path, work: Path, resume: bool) -> None:
    """The result must be new; a run that was stopped is continued on request only."""
    if os.path.lexists(output):
        raise GrmpScoreError("already exists", path=output, hint="Name another folder with -o, or remove this one")
    if os.path.lexists(work) and not resume:
        raise GrmpScoreError(
            f"an unfinished run for {output} is here",
            path=work,
            hint="Continue it with --resume, or remove this folder to start anew",
        )


def _check_rows(labels: Labels, test: Labels | None, shots: int | None) -> None:
    """There are enough rows, and no image is both trained and tested on."""
    if shots is not None and shots > len(labels):
        raise DataError(
            f"labels of {len(labels)} images, expected at least {shots}",
            path=labels.source,
            hint="Label more images, or lower --shots",
        )
    if test is None:
        return
    trained = {_identity(path): row for path, row in zip(labels.paths, labels.rows, strict=True)}
    both = [(row, path) for path, row in zip(test.paths, test.rows, strict=True) if _identity(path) in trained]
    if both:
        row, path = both[0]
        raise DataError(
            f"row {row}: {str(path)!r} is also in row {trained[_identity(path)]} of {labels.source} "
            f"({len(both)} such images); what is trained on cannot be tested on",
            path=test.source,
            hint="Remove these rows from one of the files, or leave out --test",
        )


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of one file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _adapt(
    scorer: Scorer, labels: Labels, test: Labels | None, config: FewShotConfig, work: Path, resume: bool
) -> Adapted:
    """`adapt` with a bar; a work folder that nothing can be continued from is removed."""
    from grmp_score.trainer.adapt.checkpoint import CHECKPOINT
    from grmp_score.trainer.adapt.run import adapt

    work.mkdir(parents=True, exist_ok=True)
    try:
        with training_progress() as progress:
            return adapt(scorer, labels, config, test=test, work=work, resume=resume, progress=progress)
    except ConfigError as error:
        if error.path == str(work / CHECKPOINT):
            hint = f"Give the same options, labels and model as before, or remove {work} to start anew"
            raise ConfigError(error.reason, path=error.path, hint=hint) from error
        raise
    except TrainingDivergedError as error:
        shutil.rmtree(work)  # to continue would only end there again
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    finally:
        if work.is_dir() and not (work / CHECKPOINT).is_file():
            shutil.rmtree(work)


def _write(adapted: Adapted, weights: Weights, work: Path, output: Path, unit: str) -> None:
    """Writes all files aside and moves the folder into place in one step."""
    from grmp_score.report.folder import write_folder

    folder = work / "result"
    if folder.exists():  # of a run that was killed here
        shutil.rmtree(folder)
    note = write_folder(folder, weights, adapted.history, adapted.test_predictions, unit=unit)
    if note is not None:
        click.echo(f"Note: {note}", err=True)
    os.rename(folder, output)
    shutil.rmtree(work)


def _farewell(context: click.Context, work: Path) -> str:
    """What to say on Ctrl-C: how to continue, if there is anything to continue."""
    words = ["grmp-score", "adapt"]
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if not given or name == "resume":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[-1])
        else:
            words += [parameter.opts[-1], str(value)]
    if not work.is_dir():
        return f"Interrupted before anything was learned.  Start again with:\n  {shlex.join(words)}"
    return f"Interrupted.  Continue with:\n  {shlex.join([*words, '--resume'])}"
