"""Stage 1 from start to finish: a base dual encoder and prepared tasks in, weights out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grmp_score import weights
from grmp_score.config import ModelConfig, PromptConfig
from grmp_score.errors import GrmpScoreError, MissingExtraError, WeightsError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.pretrain.crops import Prepared
from grmp_score.trainer.pretrain.meta import LogRow, MetaConfig, MetaTrainer, write_log
from grmp_score.weights.folder import Weights

CHECKPOINT, LOG, PLOT = "checkpoint.pt", "log.csv", "log.png"

#: Seconds between checkpoints.
CHECKPOINT_EVERY = 120.0


def new_model(config: ModelConfig, base: Mapping[str, Tensor], *, seed: int) -> QualityCLIP:
    """A model with base weights and fresh, unfolded prompts.

    Args:
        config: its prompts and backbone.
        base: base weights by their open_clip names; all of them.
        seed: of the prompts' initial values.

    Raises:
        WeightsError: the base weights do not fit the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QualityCLIP(config, unfolded_prompts=True)
    try:
        model.clip.load_state_dict({k: v.to(torch.float32) for k, v in base.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # torch writes several lines
        raise WeightsError(f"the base weights do not fit their configuration: {reason}") from error
    return model


def pretrain(
    config: ModelConfig,
    base: Weights,
    data: Prepared,
    meta: MetaConfig,
    folder: str | Path,
    *,
    references: list[str] | None = None,
    start: Weights | None = None,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[MetaTrainer, LogRow], None] | None = None,
) -> Weights:
    """Runs stage 1 and returns the resulting weights; checkpoint, log and plot go to ``folder``.

    Args:
        config: of the new model; its name, prompts and preprocessing.
        base: whose backbone to start from; its adapter is not used.
        data: prepared tasks.
        meta: settings.
        folder: for ``checkpoint.pt``, ``log.csv`` and ``log.png``.
        references: references to train on; all by default.
        start: weights of an earlier run to go on from, instead of fresh prompts; same backbone and prompts.
        resume: continue from ``folder/checkpoint.pt`` if there is one.
        device: where to compute.
        on_step: called after each outer step.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if start is None:
        model = new_model(config, base.backbone_state(), seed=meta.seed)
    else:
        model = dataclasses.replace(start, config=config).build()
    trainer = MetaTrainer(model, data, meta, references=references, device=device)
    checkpoint = folder / CHECKPOINT
    if resume and checkpoint.is_file():
        trainer.load_checkpoint(checkpoint)
    saved = time.monotonic()
    try:
        for row in trainer.run():
            if on_step is not None:
                on_step(trainer, row)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                trainer.save_checkpoint(checkpoint)
                saved = time.monotonic()
    except GrmpScoreError:
        raise  # the parameters are spoilt: the last good checkpoint stays
    except BaseException:
        trainer.save_checkpoint(checkpoint)  # interrupted: what is done is kept
        raise
    else:
        trainer.save_checkpoint(checkpoint)
    finally:
        write_log(trainer.log, folder / LOG)
    return finish(trainer, base)


def finish(trainer: MetaTrainer, base: Weights) -> Weights:
    """Folds the prompts, rounds the trained blocks to the float16 they are stored in, and recomputes the text
    features, so that the model in memory equals the one that is loaded later."""
    model = trainer.model.to("cpu").eval()
    if model.visual_prompts is not None:
        model.visual_prompts.fold()
    blocks = [name for name in trainer.parameters if name.startswith("clip.")]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in blocks:
                parameter.copy_(parameter.to(torch.float16))
    model.refresh_text()
    settings = dataclasses.asdict(trainer.config)
    training: dict[str, Any] = {
        "stage_1": {**settings, "groups": list(trainer.config.groups), "outer_steps": trainer.step},
        "tasks": trainer.tasks,
        "support_references": len(trainer.support),
        "query_references": len(trainer.query),
    }
    config = dataclasses.replace(model.config, training={**model.config.training, **training})
    return Weights(config, weights.adapter_of(model, blocks), base.backbone, base.card, origin="stage 1")


def base_config(base: Weights, *, name: str, prompts: PromptConfig, adapted_blocks: int = 4) -> ModelConfig:
    """Configuration of a new model on the backbone and preprocessing of another one."""
    source = base.config
    return ModelConfig(
        name=name,
        backbone=source.backbone,
        prompts=prompts,
        preprocess=source.preprocess,
        adapted_blocks=adapted_blocks,
    )


def plot_log(rows: list[LogRow], path: Path) -> None:
    """Support and query loss against outer steps, as a picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the plot of the run", "matplotlib", "train") from error
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = [row.step for row in rows]
    axes.plot(steps, [row.support_loss for row in rows], label="support (before the inner step)", linewidth=1)
    axes.plot(steps, [row.query_loss for row in rows], label="query (at the adapted parameters)", linewidth=1)
    axes.set(xlabel="outer step", ylabel="binary cross-entropy (eq. 3)", title="Stage 1")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
