"""Which parameters of a `QualityCLIP` adaptation changes, by their names there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from grmp_score.errors import ConfigError
from grmp_score.model.clip import adapted_names
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.config import FewShotConfig

CONTEXT = "text_prompt.ctx"
#: Holds the prompts of all blocks; those of the frozen trunk have no gradient, are not decayed, and so stay as they
#: are.
VISUAL_PROMPTS = "visual_prompts.tokens"
PROJECTION, SHIFT, TEXT_PROJECTION = "clip.visual.proj", "clip.visual.ln_post.bias", "clip.text_projection"


def closed_form_names(model: QualityCLIP) -> list[str]:
    """Names of what the closed form changes; not every CLIP has a text projection."""
    there = {name for name, _ in model.named_parameters()}
    return [name for name in (PROJECTION, SHIFT, TEXT_PROJECTION) if name in there]


def trained_names(model: QualityCLIP, config: FewShotConfig) -> list[str]:
    """Names of what gradient descent trains.

    Raises:
        ConfigError: there are no visual prompts to train.
    """
    if config.train == "head":
        return []
    names = [CONTEXT]
    if config.train_visual_prompts:
        if model.visual_prompts is None:
            raise ConfigError(
                f"train_visual_prompts is on, but {model.config.name!r} has no visual prompts to train",
                hint="Turn it off, or start from a model with n_visual above 0 in its prompts",
            )
        names.append(VISUAL_PROMPTS)
    if config.train == "blocks":
        names += [f"clip.{name}" for name in adapted_names(model.clip, model.config.adapted_blocks)]
    return names


def on_image_side(name: str) -> bool:
    """Whether a parameter changes the image features."""
    return name.startswith(("clip.visual.", "visual_prompts."))


def values_of(model: QualityCLIP, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of these parameters as they are now."""
    named = dict(model.named_parameters())
    return {name: named[name].detach().clone() for name in names}


@torch.no_grad()
def set_values(model: QualityCLIP, values: Mapping[str, Tensor]) -> None:
    """Overwrites these parameters, in place."""
    named = dict(model.named_parameters())
    for name, value in values.items():
        named[name].copy_(value)
