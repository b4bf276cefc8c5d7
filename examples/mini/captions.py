"""Captions for photos that are labelled with an ImageNet-1k class.

The quality-aware gradient regularisation compares models on nine scene prompts, the scene categories of
the SPAQ data set (Fang et al., CVPR 2020). ImageNet has objects, not scenes, so `scenes.csv` gives every
class (by WordNet id) a kind ("dog", "bridge", "food") and the scene its photos usually show: clothes are
mostly worn, so they are "human"; boats lie on open water, so they are "landscape"; weapons, aircraft and
documents are "others". No class means "night": that label comes from the photo, see `photos.is_night`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from grmp_score.config import SCENES
from grmp_score.errors import DataError
from grmp_score.model.tokenizer import Tokenizer

#: The prompt of eq. (7), used with its grammar as published ("a photo of a animal").
SCENE_PROMPT = "a photo of a {}"
SCENE_PROMPTS = [SCENE_PROMPT.format(scene) for scene in SCENES]

# Templates that hold for every image. None speaks of quality: what that means is left to prompt learning.
CLASS_TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "a photo of a {kind}, the {}",
    "a photo of a {}, a kind of {kind}",
    "a {} in a {scene} scene",
    "a photo of a {scene}, showing a {}",
)
KIND_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a photo of some {}")
SCENE_TEMPLATES = (
    SCENE_PROMPT,
    SCENE_PROMPT,
    "{}",
    "a {} photo",
    "a picture of a {}",
    "a photo of a {} scene",
)

# Plain words by which people name the same scenes; they tie common vocabulary to the nine prompts.
SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "animal": ("animal", "wild animal", "pet", "wildlife"),
    "cityscape": ("cityscape", "city", "street", "building", "town"),
    "human": ("human", "person", "man or woman", "people"),
    "indoor": ("indoor", "room", "interior", "furniture", "home"),
    "landscape": ("landscape", "nature", "mountain or sea", "sky and water", "outdoor view"),
    "night": ("night", "dark night", "night scene"),
    "plant": ("plant", "flower", "fruit or vegetable", "leaves"),
    "still-life": ("still-life", "object", "thing", "still life"),
    "others": ("others", "other things", "something else"),
}


class ClassScene(NamedTuple):
    """Kind and scene of one ImageNet class."""

    kind: str
    scene: str


@lru_cache(maxsize=1)
def class_scenes() -> dict[str, ClassScene]:
    """WordNet id -> kind and scene (never "night") of all 1,000 classes of ImageNet-1k."""
    text = (Path(__file__).parent / "scenes.csv").read_text(encoding="utf-8")
    return {row["wordnet_id"]: ClassScene(row["kind"], row["scene"]) for row in csv.DictReader(text.splitlines())}


def class_scene(wordnet_id: str) -> ClassScene:
    """Kind and scene of one class, for example `ClassScene(kind="fish", scene="animal")` of "n01440764"."""
    if wordnet_id not in class_scenes():
        raise DataError(f"wordnet_id: expected a class of ImageNet-1k such as n01440764, got {wordnet_id!r}")
    return class_scenes()[wordnet_id]


def class_captions(name: str, wordnet_id: str) -> list[str]:
    """Captions true of one class only, by its name such as "tench" and its WordNet id."""
    kind, scene = class_scene(wordnet_id)
    return [template.format(name, kind=kind, scene=scene) for template in CLASS_TEMPLATES]


def kind_captions(kind: str) -> list[str]:
    """Captions true of every class of one kind, such as "a photo of a dog"."""
    return [template.format(kind) for template in KIND_TEMPLATES]


def scene_captions(scene: str) -> list[str]:
    """Captions true of every photo of one of the nine scenes, the prompt of eq. (7) first."""
    return [template.format(scene) for template in SCENE_TEMPLATES] + [
        template.format(word) for word in SCENE_WORDS[scene][1:] for template in SCENE_TEMPLATES[1:]
    ]


class CaptionSet:
    """All captions of a list of photos, tokenised once, and the photos they are true of.

    Attributes:
        class_tokens, kind_tokens, scene_tokens: per class, kind and scene, int64 [captions, context_length].
        class_of, kind_of: int64 [N], which class and kind each photo has; scenes belong to views instead.
    """

    def __init__(self, named: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> None:
        """Takes the class name and WordNet id of each photo."""
        name_of = {wordnet_id: name for name, wordnet_id in named}
        classes = sorted(name_of)
        kinds = sorted({class_scene(c).kind for c in classes})
        self.class_tokens = [tokenizer(class_captions(name_of[c], c)) for c in classes]
        self.kind_tokens = [tokenizer(kind_captions(k)) for k in kinds]
        self.scene_tokens = [tokenizer(scene_captions(s)) for s in SCENES]
        self.class_of = torch.tensor([classes.index(c) for _, c in named])
        self.kind_of = torch.tensor([kinds.index(class_scene(c).kind) for _, c in named])


def draw(tokens: Sequence[Tensor], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` of the subjects in random order (all if fewer): their indices [n], one random caption of each [n, T]."""
    chosen = torch.randperm(len(tokens), generator=generator)[:n]
    rows = []
    for i in chosen.tolist():
        pick = int(torch.randint(len(tokens[i]), (), generator=generator))
        rows.append(tokens[i][pick])
    return chosen, torch.stack(rows)
