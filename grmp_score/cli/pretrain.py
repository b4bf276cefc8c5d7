"""``grmp-score pretrain``"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from grmp_score.cli.options import device_option
from grmp_score.cli.progress import progress_bar
from grmp_score.errors import GrmpScoreError, MissingExtraError


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
    "--method",
    type=click.Choice(["meta", "ordinary"]),
    default="meta",
    help="Meta-learning, or plain training on the pooled tasks.",
)
@click.option(
    "--train",
    type=click.Choice(["prompts", "text", "visual", "blocks"]),
    default="prompts",
    help="What is trained; blocks: prompts and the last four image blocks.",
)
@click.option("--n-visual", type=click.IntRange(0), default=8, help="Visual prompt tokens per block.")
@click.option("--epochs", type=click.IntRange(1), default=50, help="Passes over all tasks.")
@click.option("--tasks-per-step", type=click.IntRange(1), default=5, help="k, tasks per outer step.")
@click.option("--inner-steps", type=click.IntRange(1), default=1, help="Support/query step pairs per task.")
@click.option("--inner-lr", type=float, default=1e-4, help="alpha (Adam).")
@click.option("--block-lr", type=float, default=1e-5, help="Learning rate of the blocks.")
@click.option(
    "--adam",
    type=click.Choice(["fresh", "kept"]),
    default="fresh",
    help="Adam's moments: new for every task, or kept.",
)
@click.option("--warm-up", type=click.IntRange(0), default=0, help="Outer steps of warm-up.")
@click.option("--outer-lr", type=float, default=1e-2, help="beta.")
@click.option("--support-batch", type=click.IntRange(1), default=75, help="Images per support step.")
@click.option("--query-batch", type=click.IntRange(1), default=50, help="Images per query step.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    help="Train on this family of distortions only; may be repeated.  [default: all]",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the image tower; bfloat16 is about twice as fast where the processor knows it.",
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
    n_visual: int,
    jobs: int | None,
    device: str,
    resume: bool,
    **settings: Any,
) -> None:
    """Stage 1: meta-learn prompts over distortion types.

    Give at least one source.  --references needs no data set and no licence: your clean photos are distorted
    in 30 ways at 5 levels and labelled by full-reference metrics.  The folder gets the weights, the prepared
    crops, a checkpoint, log.csv and log.png.

    The defaults are the paper's settings, which want a GPU; the last example is what one core does in a quarter of
    an hour.

    \b
    Examples:
      grmp-score pretrain --references clean/ -o my-stage1
      grmp-score pretrain --tid2013 TID2013/ --kadid10k KADID-10k/ -m ViT-B-16-quickgelu:openai -o stage1
      grmp-score pretrain --references clean/ -o quick --adam kept --inner-lr 1e-3 --outer-lr 1 \\
          --epochs 5 --tasks-per-step 2 --support-batch 12 --query-batch 8
    """
    if not (references or kadid10k or tid2013):
        raise click.UsageError("give at least one of --references, --kadid10k, --tid2013")
    from grmp_score import weights
    from grmp_score.config import PromptConfig
    from grmp_score.pipeline.inference import pick_device
    from grmp_score.report.plots import plot_pretraining
    from grmp_score.trainer.data import sources
    from grmp_score.trainer.pretrain.crops import cut_crops
    from grmp_score.trainer.pretrain.meta import LogRow, PretrainConfig
    from grmp_score.trainer.pretrain.run import CHECKPOINT, LOG, PLOT, pretrain

    config = PretrainConfig(**settings)
    if (output / weights.CONFIG).exists() and not resume:
        raise GrmpScoreError("already holds weights", path=output, hint="Choose another folder")
    if (output / CHECKPOINT).exists() and not resume:
        raise GrmpScoreError("holds a stopped run", path=output, hint="Add --resume, or choose another folder")
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
    with progress_bar("Preparing", len(sources.by_reference(items)), unit="references") as progress:
        crops = cut_crops(
            items,
            output / "prepared",
            patch_size=base.config.preprocess.patch_size,
            jobs=jobs or os.cpu_count() or 1,
            progress=lambda *_: progress(),
        )
    steps = config.epochs * -(-len(crops.tasks(config.groups)) // config.tasks_per_step)
    with progress_bar("Training", steps, unit="steps") as progress:

        def on_step(row: LogRow) -> None:
            progress(row.step - progress.done)

        pretrain(
            crops,
            output,
            config,
            base=base,
            prompts=PromptConfig(n_visual=n_visual),
            resume=resume,
            device=str(pick_device(device)),
            on_step=on_step,
        )
    try:
        plot_pretraining(output / LOG, output / PLOT)
    except MissingExtraError as error:
        click.echo(f"Note: {error}", err=True)
    click.echo(f"wrote {output}; use it with: grmp-score PATHS --model {output}", err=True)
