"""How gradient descent goes: its stages, the optimizer of each, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.adapt.parameters import VISUAL_PROMPTS, on_image_side, trained_names

#: What the learning rate is multiplied by on a plateau (the authors' code).
PLATEAU_FACTOR = 0.3
#: A plateau: epochs, one after another, whose mean loss is not below the least so far by this share of it.  The
#: authors' patience is not known.
PLATEAU_EPOCHS, PLATEAU_SHARE = 10, 1e-4


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
        schedule: of the learning rate after that.
        look_every: epochs from one look at the held-out rows to the next.
    """

    name: Literal["text", "all"]
    names: tuple[str, ...]
    epochs: int
    stop: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    warm_up_lr: float
    warm_up_epochs: int
    schedule: Literal["plateau", "cosine", "constant"] = "cosine"
    look_every: int = 1

    @property
    def text_side(self) -> list[str]:
        """The parameters that do not change the image features."""
        return [name for name in self.names if not on_image_side(name)]

    @property
    def image_side(self) -> list[str]:
        """The parameters that do; without any, image features are constants and no image block is run."""
        return [name for name in self.names if on_image_side(name)]

    @property
    def looks(self) -> list[int]:
        """Numbers of epochs after which the held-out rows are looked at: 0, some, and all."""
        return [*range(0, self.epochs, self.look_every), self.epochs]

    def learning_rate(self, step: int, steps_per_epoch: int, losses: Sequence[float] = ()) -> float:
        """Of step 0, 1, ...: constant while warming up, then by the schedule.

        ``losses``: of the steps before, for the schedule ``"plateau"``.
        """
        warm_up = self.warm_up_epochs * steps_per_epoch
        if step < warm_up:
            return min(self.warm_up_lr, self.lr)
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "plateau":
            return self.lr * PLATEAU_FACTOR ** plateaus(losses[warm_up:step], steps_per_epoch)
        done = (step - warm_up) / max(1, self.epochs * steps_per_epoch - warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def plateaus(losses: Sequence[float], steps_per_epoch: int) -> int:
    """How often the mean loss of an epoch has stopped falling, over the whole epochs among these steps' losses."""
    count, waited, least = 0, 0, math.inf
    for begin in range(0, len(losses) - steps_per_epoch + 1, steps_per_epoch):
        mean = math.fsum(losses[begin : begin + steps_per_epoch]) / steps_per_epoch
        waited += 1
        if mean < least * (1 - PLATEAU_SHARE):
            least, waited = mean, 0
        if waited == PLATEAU_EPOCHS:
            count, waited = count + 1, 0
    return count


def stages_of(model: QualityCLIP, config: FewShotConfig) -> list[Stage]:
    """The stages that these settings ask for, in order; none for the closed form alone."""
    names = trained_names(model, config)
    stages = []
    if config.text_first_epochs:
        text, epochs = tuple(name for name in names if not on_image_side(name)), config.text_first_epochs
        rate, every = config.text_first_lr, config.look_every
        stages.append(Stage("text", text, epochs, epochs, "adamw", rate, rate, 0, look_every=every))
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
                schedule=config.schedule,
                look_every=config.look_every,
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
