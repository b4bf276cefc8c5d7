"""Stage 1 from start to finish: labelled images and the backbone of a model in, weights out."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from grmp_score import weights
from grmp_score.config import ModelConfig, PromptConfig
from grmp_score.errors import DataError, GrmpScoreError, WeightsError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.pipeline.inference import pick_device
from grmp_score.scorer import Scorer
from grmp_score.trainer.data.sources import Item, references_items
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops, cut_crops
from grmp_score.trainer.pretrain.meta import LogRow, MetaTrainer
from grmp_score.weights import Weights

CHECKPOINT, LOG, PLOT = "checkpoint.pt", "log.csv", "log.png"

#: Seconds between checkpoints.
CHECKPOINT_EVERY = 120.0


def pretrain(
    data: str | Path | Sequence[Item] | TrainingCrops | None,
    folder: str | Path,
    config: PretrainConfig | None = None,
    *,
    base: str | Weights | None = None,
    prompts: PromptConfig | None = None,
    name: str | None = None,
    references: Sequence[str] | None = None,
    resume: bool = False,
    jobs: int = 1,
    device: str = "auto",
    on_step: Callable[[LogRow], None] | None = None,
) -> Scorer:
    """Stage 1: meta-learns prompts over distortion types, and saves the resulting weights.

    ``folder`` becomes a weights folder, with ``checkpoint.pt``, ``log.csv`` and the crops (``prepared/``) in it.
    A run that was stopped, at any time and also by Ctrl-C, ends in the same weights when it is resumed.

    Args:
        data: a folder of clean photos, which are distorted and labelled here; or items of data sets (see
            `grmp_score.trainer.data.sources`); or crops that are cut already.  None goes with ``method="none"``.
        folder: what to write.
        config: settings; None takes the defaults.  See `PretrainConfig.preset`.
        base: whose backbone, preprocessing and blocks to take; its prompts are not used.  Weights, a folder or
            repository of weights, ``NAME:TAG`` of open_clip (``"ViT-B-16-quickgelu:openai"``), or None for the
            bundled model.
        prompts: shape of the new prompts, in the place of that of the settings (`PretrainConfig.prompts`).
        name: what to call the model; None takes the folder's name.
        references: references to train on, as `TrainingCrops.references` names them; all by default.
        resume: continue from ``folder/checkpoint.pt`` if there is one.
        jobs: processes that cut crops.
        device: where to train: ``"auto"``, ``"cpu"``, ``"cuda"`` ...
        on_step: called after each outer step.

    Returns:
        A scorer with the new weights, read from ``folder``.

    Raises:
        GrmpScoreError: ``folder`` holds weights or a stopped run and ``resume`` is False, or the loss is no longer
            finite.
        ConfigError: settings that make no sense, with which nothing can be learned (`PretrainConfig.check_reach`),
            or that differ from those of the run to be resumed.
        DataError: the data is not what it should be.
        MissingExtraError: clean photos are to be labelled and `piq` is not installed.
    """
    folder, config = Path(folder), config or PretrainConfig()
    checkpoint = folder / CHECKPOINT
    if not resume and (checkpoint.exists() or (folder / weights.CONFIG).exists()):
        raise GrmpScoreError("holds an earlier run", path=folder, hint="Resume it, or choose another folder")
    base = base if isinstance(base, Weights) else weights.load_base(base)
    if prompts is None:
        prompts = config.prompts
    else:
        config = dataclasses.replace(config, n_visual=prompts.n_visual, prompt_norm=prompts.prompt_norm)
    new = ModelConfig(
        name=name or folder.resolve().name,
        backbone=base.config.backbone,
        prompts=prompts,
        preprocess=base.config.preprocess,
        adapted_blocks=base.config.adapted_blocks,
    )
    model = new_model(new, base, seed=config.seed)
    if config.method == "none":
        weights_of(model, base, [], {"stage_1": _record(config, 0)}).save(folder)
        return Scorer(weights.load(str(folder)), device=device)
    if isinstance(data, str | Path):
        data = references_items(data)
    if data is None:
        raise DataError("nothing to train on: no images are given")
    if not isinstance(data, TrainingCrops):
        size = base.config.preprocess.patch_size
        data = cut_crops(data, folder / "prepared", patch_size=size, views=config.views, jobs=jobs)
    trainer = MetaTrainer(model, data, config, references=references, device=pick_device(device))
    trainer.check_reach()
    if resume and checkpoint.is_file():
        trainer.load_checkpoint(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    saved = time.monotonic()
    try:
        for row in trainer.run():
            if on_step is not None:
                on_step(row)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                trainer.save_checkpoint(checkpoint)
                saved = time.monotonic()
    finally:  # however it ended, what is done is kept
        trainer.save_checkpoint(checkpoint)
        write_log(trainer.state.log, folder / LOG)
    trained_weights(trainer, base).save(folder)
    return Scorer(weights.load(str(folder)), device=device)


def new_model(config: ModelConfig, base: Weights, *, seed: int) -> QualityCLIP:
    """A model with base weights and fresh, unfolded prompts.

    Args:
        config: its prompts and backbone.
        base: all tensors of the backbone.
        seed: of the prompts' initial values.

    Raises:
        WeightsError: the base weights do not fit the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = QualityCLIP(config, unfolded_prompts=True)
    try:
        model.clip.load_state_dict({k: v.to(torch.float32) for k, v in base.backbone_state().items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # torch writes several lines
        raise WeightsError(f"the base weights do not fit their configuration: {reason}") from error
    return model


def trained_weights(trainer: MetaTrainer, base: Weights) -> Weights:
    """What a run has trained, as it is stored: see `weights_of`.

    The trainer's model is turned into the model that is loaded later; the run is over.
    """
    training = {
        "stage_1": _record(trainer.config, trainer.state.step),
        "tasks": trainer.tasks,
        "support_references": len(trainer.support),
        "query_references": len(trainer.query),
    }
    blocks = [name for name in trainer.parameters if name.startswith("clip.")]
    return weights_of(trainer.model, base, blocks, training)


def weights_of(model: QualityCLIP, base: Weights, blocks: list[str], training: dict[str, Any]) -> Weights:
    """A model as it is stored: prompts folded, trained blocks in float16, text features anew; it is changed on the
    way.

    Args:
        model: on base weights.
        base: its base weights.
        blocks: names of the other parameters that were trained.
        training: what the configuration says about it.
    """
    model = model.to("cpu").eval()
    if model.visual_prompts is not None:
        model.visual_prompts.fold()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in blocks:
                parameter.copy_(parameter.to(torch.float16))
    model.refresh_text()
    config = dataclasses.replace(model.config, training={**model.config.training, **training})
    return Weights(config, weights.adapter_of(model, blocks), base.backbone, base.card, origin="stage 1")


def _record(config: PretrainConfig, outer_steps: int) -> dict[str, Any]:
    """Settings as the weights' configuration keeps them."""
    return {**dataclasses.asdict(config), "groups": list(config.groups), "outer_steps": outer_steps}


def write_log(rows: Sequence[LogRow], path: Path) -> None:
    """The run's log as CSV, one row per outer step."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(LogRow)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
