"""The phases of stage 2: which parameters each trains, by which optimizer, for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from grmp_score.errors import ConfigError
from grmp_score.model.clip import adapted_names
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.fewshot import FewShotConfig

VISUAL_PROMPTS = "visual_prompts.tokens"
SHIFT = "clip.visual.ln_post.bias"
#: What the closed-form phase changes.
HEAD = ["clip.visual.proj", SHIFT, "clip.text_projection"]

PhaseName = Literal["head", "text", "all"]


def trained_names(model: QualityCLIP, config: FewShotConfig) -> list[str]:
    """Names in `QualityCLIP` of the parameters that stage 2 trains by gradient descent.

    ``visual_prompts.tokens`` holds the prompts of all blocks; those of the frozen trunk have no gradient, are not
    decayed, and so stay as they are.
    """
    if config.train == "head":
        return []
    names = ["text_prompt.ctx"]
    if config.train_visual_prompts:
        if model.visual_prompts is None:
            raise ConfigError(
                f"train_visual_prompts is on, but {model.config.name!r} has no visual prompts to train",
                hint="Turn it off, or start from a model with n_visual above 0 in its prompts",
            )
        names.append(VISUAL_PROMPTS)
    if config.train == "blocks":
        names += [f"clip.{n}" for n in adapted_names(model.clip, model.config.adapted_blocks)]
    return names


def on_image_side(name: str) -> bool:
    """Whether a parameter changes the image features."""
    return name.startswith(("clip.visual.", "visual_prompts."))


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer and one learning-rate schedule.

    Attributes:
        name: ``"head"``, ``"text"`` or ``"all"``.
        names: what is trained.
        epochs: length of the schedule.
        optimizer: ``"sgd"``, ``"adamw"``, or ``"exact"``: one step, in closed form.
        lr: peak learning rate.
        warm_up_epochs: at the start.
    """

    name: PhaseName
    names: list[str]
    epochs: int
    optimizer: Literal["sgd", "adamw", "exact"]
    lr: float
    warm_up_epochs: int

    def steps_per_epoch(self, rows: int, batch_size: int) -> int:
        """Steps in a pass over so many training rows."""
        return 1 if self.optimizer == "exact" else math.ceil(rows / batch_size)

    @property
    def text_side(self) -> list[str]:
        """The parameters that do not change the image features."""
        return [n for n in self.names if not on_image_side(n)]

    @property
    def image_side(self) -> list[str]:
        """The parameters that do; without any the un-adapted features serve and the image head is not run."""
        return [n for n in self.names if on_image_side(n)]

    def rate(self, step: int, steps_per_epoch: int, warm_up_lr: float) -> float:
        """Learning rate of step 0, 1, ...: constant warm-up, then half a cosine down to 0 (CoOp)."""
        warm_up = self.warm_up_epochs * steps_per_epoch
        if step < warm_up:
            return min(warm_up_lr, self.lr)
        done = (step - warm_up) / max(1, self.epochs * steps_per_epoch - warm_up)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def phases_of(model: QualityCLIP, config: FewShotConfig) -> list[Phase]:
    """The phases that these settings ask for, in order."""
    names = trained_names(model, config)
    phases = []
    if config.fits_head:
        there = {name for name, _ in model.named_parameters()}
        phases.append(Phase("head", [n for n in HEAD if n in there], 1, "exact", 0.0, 0))
    if config.text_first_epochs:
        text = [n for n in names if not on_image_side(n)]
        phases.append(Phase("text", text, config.text_first_epochs, "adamw", config.text_first_lr, 0))
    if config.epochs and names:
        rate, warm_up = config.learning_rate, config.warm_up_epochs
        phases.append(Phase("all", names, config.epochs, config.optimizer, rate, warm_up))
    return phases
