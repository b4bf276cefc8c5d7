"""``grmp-score pretrain``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import click

from grmp_score.cli.options import device_option
from grmp_score.cli.overwriting import check_folder
from grmp_score.cli.progress import progress_bar
from grmp_score.errors import GrmpScoreError, MissingExtraError
from grmp_score.trainer.pretrain.config import PRESETS, PretrainConfig, Trained, epoch_steps, value_of


def given(name: str) -> str:
    """What the help text says about an option whose default is the preset's."""

    def shown(preset: str) -> str:
        value = value_of(preset, name)
        return ("on" if value else "off") if isinstance(value, bool) else str(value)

    values = {preset: shown(preset) for preset in PRESETS}
    first, *others = values
    differing = "".join(f"; {preset}: {values[preset]}" for preset in others if values[preset] != values[first])
    return f"[default: {values[first]}{differing}]"


@click.command()
@click.option(
    "--references", type=click.Path(path_type=Path), help="Folder of clean photos; distorted and labelled here."
)
@click.option("--kadid10k", type=click.Path(path_type=Path), help="KADID-10k as distributed (dmos.csv, images/).")
@click.option(
    "--tid2013", type=click.Path(path_type=Path), help="TID2013 as distributed (mos_with_names.txt, ...)."
)
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write."
)
@click.option(
    "-m",
    "--model",
    help="Whose backbone to start from, or NAME:TAG of open_clip (ViT-B-16-quickgelu:openai).  [default: mini]",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="reptile",
    help="Values of the options below: reptile resets the working copy for every task and learns within the "
    "budget of a CPU; authors is what the authors' code does.",
)
@click.option(
    "--method",
    type=click.Choice(["meta", "ordinary", "none"]),
    help="Meta-learning, plain training on the pooled tasks, or none: the prompts as they are drawn.  "
    + given("method"),
)
@click.option(
    "--train",
    type=click.Choice(list(get_args(Trained))),
    help="What is trained; prompts that are not are not in the model.  prompts: text and visual ones; text, "
    "visual: one kind; blocks: prompts and the last four image blocks; towers: the last four blocks of both "
    "towers, without prompts.  " + given("train"),
)
@click.option("--n-visual", type=click.IntRange(0), help="Visual prompt tokens per block.  " + given("n_visual"))
@click.option(
    "--prompt-norm/--no-prompt-norm",
    default=None,
    help="A LayerNorm after the last block, with visual prompts.  " + given("prompt_norm"),
)
@click.option("--epochs", type=click.IntRange(1), help="Passes over all tasks.  " + given("epochs"))
@click.option(
    "--working-copy",
    type=click.Choice(["reset", "carried"]),
    help="Where a task starts: from theta, or from where the task before it ended.  " + given("working_copy"),
)
@click.option(
    "--tasks-per-step",
    type=click.IntRange(0),
    help="k, tasks per outer step; 0: those of one data set.  " + given("tasks_per_step"),
)
@click.option(
    "--inner-steps",
    type=click.IntRange(0),
    help="Support/query step pairs per task; 0: once through the support set.  " + given("inner_steps"),
)
@click.option("--inner-lr", type=float, help="alpha (Adam).  " + given("inner_lr"))
@click.option("--block-lr", type=float, help="Learning rate of the blocks.  " + given("block_lr"))
@click.option(
    "--adam",
    type=click.Choice(["fresh", "kept", "authors"]),
    help="Adam's moments: new for every task, kept, or kept through TID2013 alone.  " + given("adam"),
)
@click.option("--warm-up", type=click.IntRange(0), help="Outer steps of warm-up.  " + given("warm_up"))
@click.option("--outer-lr", type=float, help="beta.  " + given("outer_lr"))
@click.option("--outer-lr-end", type=float, help="Share of beta at the end.  " + given("outer_lr_end"))
@click.option("--support-batch", type=click.IntRange(1), help="Images per support step.  " + given("support_batch"))
@click.option("--query-batch", type=click.IntRange(1), help="Images per query step.  " + given("query_batch"))
@click.option("--query-share", type=float, help="Share of the query set.  " + given("query_share"))
@click.option(
    "--split-by",
    type=click.Choice(["reference", "image"]),
    help="Query images show other photos, or are other images, drawn at every visit.  " + given("split_by"),
)
@click.option(
    "--label-range",
    type=click.Choice(["data_set", "task"]),
    help="Labels are 0 to 1 over the data set, or over each support or query set.  " + given("label_range"),
)
@click.option(
    "--views",
    type=click.Choice(["scales", "squeezed"]),
    help="Crops at three scales, or the image squeezed into a square.  " + given("views"),
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Train on this family of distortions only; may be repeated.  [default: all]",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the image tower; bfloat16 is about twice as fast where the processor knows it.  " + given("precision"),
)
@click.option("--seed", type=int, default=0, help="Seed of everything random.")
@click.option("--jobs", type=click.IntRange(1), help="Processes that prepare images.  [default: cores]")
@device_option
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
def command(
    references: Path | None,
    kadid10k: Path | None,
    tid2013: Path | None,
    output: Path,
    model: str | None,
    preset: str,
    jobs: int | None,
    device: str,
    resume: bool,
    **settings: Any,
) -> None:
    """Stage 1: meta-learn prompts over distortion types.

    Give at least one source.  --references needs no data set and no licence: your clean photos are distorted
    in 30 ways at 5 levels and labelled by full-reference metrics.  The folder gets the weights, the prepared
    crops, a checkpoint, log.csv and log.png.

    --preset authors is the paper as it was run: it wants a GPU, and both data sets.  The paper's ablations (tables
    4 and 5) are options of any preset:

    \b
      all prompts                    (nothing)
      meta + text only               --train text
      meta + visual only             --train visual
      meta without prompts           --train towers
      both without meta, ordinary    --method ordinary
      no stage 1                     --method none

    \b
    Examples:
      grmp-score pretrain --references clean/ -o my-stage1
      grmp-score pretrain --tid2013 TID2013/ --kadid10k KADID-10k/ -m ViT-B-16-quickgelu:openai \\
          --preset authors -o stage1
      grmp-score pretrain --references clean/ -o text-only --train text --epochs 5
      grmp-score pretrain --method none -o untrained
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    config = PretrainConfig.preset(preset, **settings)
    if not (references or kadid10k or tid2013 or config.method == "none"):
        raise click.UsageError("give at least one of --references, --kadid10k, --tid2013")
    from grmp_score import weights
    from grmp_score.pipeline.inference import pick_device
    from grmp_score.report.plots import plot_pretraining
    from grmp_score.trainer.data import sources
    from grmp_score.trainer.pretrain.crops import cut_crops
    from grmp_score.trainer.pretrain.meta import LogRow
    from grmp_score.trainer.pretrain.run import CHECKPOINT, LOG, PLOT, pretrain

    if (output / weights.CONFIG).exists() and not resume:
        raise GrmpScoreError("already holds weights", path=output, hint="Choose another folder")
    if (output / CHECKPOINT).exists() and not resume:
        raise GrmpScoreError("holds a stopped run", path=output, hint="Add --resume, or choose another folder")
    if not resume and not (output / "prepared").is_dir():
        check_folder(output)
    items = []
    if tid2013:
        items += sources.tid2013_items(tid2013)
    if kadid10k:
        items += sources.kadid10k_items(kadid10k)
    if references:
        items += sources.references_items(references)
    unknown = sorted(set(config.groups) - {i.group for i in items})
    if unknown:
        raise click.UsageError(
            f"no distortions of the family {unknown[0]!r}; there are {', '.join(sorted({i.group for i in items}))}"
        )
    base = weights.load_base(model)
    if config.method == "none":
        pretrain(None, output, config, base=base, resume=resume, device=str(pick_device(device)))
        click.echo(f"wrote {output}; use it with: grmp-score PATHS --model {output}", err=True)
        return
    with progress_bar("Preparing", len(sources.by_reference(items)), unit="references") as progress:
        crops = cut_crops(
            items,
            output / "prepared",
            patch_size=base.config.preprocess.patch_size,
            views=config.views,
            jobs=jobs or os.cpu_count() or 1,
            progress=lambda *_: progress(),
        )
    steps = config.epochs * len(epoch_steps(crops.tasks(config.groups), config.tasks_per_step))
    with progress_bar("Training", steps, unit="steps") as progress:

        def on_step(row: LogRow) -> None:
            progress(row.step - progress.done)

        pretrain(
            crops,
            output,
            config,
            base=base,
            resume=resume,
            device=str(pick_device(device)),
            on_step=on_step,
        )
    try:
        plot_pretraining(output / LOG, output / PLOT)
    except MissingExtraError as error:
        click.echo(f"Note: {error}", err=True)
    click.echo(f"wrote {output}; use it with: grmp-score PATHS --model {output}", err=True)
