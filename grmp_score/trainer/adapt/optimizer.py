"""How gradient descent goes: its stages, the optimizer of each, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.adapt.parameters import VISUAL_PROMPTS, on_image_side, trained_names


@dataclass(frozen=True)
class Stage:
    """A stretch of gradient descent with one optimizer and one learning-rate schedule.

    Attributes:
        name: ``"text"`` (the text side alone, first) or ``"all"`` (everything that is trained).
        names: the parameters that it trains.
        epochs: length of the schedule.
        stop: epochs after which it ends, at most ``epochs``; the cross-validation settles it.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: peak learning rate.
        warm_up_lr: learning rate of the warm-up; never above ``lr``.
        warm_up_epochs: at the start.
    """

    name: Literal["text", "all"]
    names: tuple[str, ...]
    epochs: int
    stop: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    warm_up_lr: float
    warm_up_epochs: int

    @property
    def text_side(self) -> list[str]:
        """The parameters that do not change the image features."""
        return [name for name in self.names if not on_image_side(name)]

    @property
    def image_side(self) -> list[str]:
        """The parameters that do; without any, image features are constants and no image block is run."""
        return [name for name in self.names if on_image_side(name)]

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Of step 0, 1, ...: constant while warming up, then half a cosine down to 0 (CoOp)."""
        warm_up = self.warm_up_epochs * steps_per_epoch
        if step < warm_up:
            return min(self.warm_up_lr, self.lr)
        done = (step - warm_up) / max(1, self.epochs * steps_per_epoch - warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def stages_of(model: QualityCLIP, config: FewShotConfig) -> list[Stage]:
    """The stages that these settings ask for, in order; none for the closed form alone."""
    names = trained_names(model, config)
    stages = []
    if config.text_first_epochs:
        text, epochs = tuple(name for name in names if not on_image_side(name)), config.text_first_epochs
        stages.append(Stage("text", text, epochs, epochs, "adamw", config.text_first_lr, config.text_first_lr, 0))
    if config.epochs and names:
        stages.append(
            Stage(
                "all",
                tuple(names),
                epochs=config.epochs,
                stop=config.epochs,
                optimizer=config.optimizer,
                lr=config.learning_rate,
                warm_up_lr=config.warm_up_lr,
                warm_up_epochs=config.warm_up_epochs,
            )
        )
    return stages


def make_optimizer(
    stage: Stage, parameters: Mapping[str, nn.Parameter], config: FewShotConfig
) -> torch.optim.Optimizer:
    """The optimizer of a stage; visual prompts are not decayed."""
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": d} for d in (config.weight_decay, 0.0)]
    for name in stage.names:
        groups[name == VISUAL_PROMPTS]["params"].append(parameters[name])
    groups = [group for group in groups if group["params"]]
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=stage.lr)
