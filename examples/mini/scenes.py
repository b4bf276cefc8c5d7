"""Scene words and captions for photos that are labelled with an ImageNet-1k class.

The quality-aware gradient regularisation compares models on nine scene prompts, the scene categories of
the SPAQ data set (Fang et al., CVPR 2020). ImageNet has objects, not scenes, so `scenes.csv` gives every
class (by WordNet id) a kind ("dog", "bridge", "food") and the scene its photos usually show: clothes are
mostly worn, so they are "human"; boats lie on open water, so they are "landscape"; weapons, aircraft and
documents are "others". No class means "night": that label comes from the photo, see `pairs.is_night`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from grmp_score.config import SCENES
from grmp_score.errors import ConfigError, DataError

SCENE_PROMPT = "a photo of a {}"
"""The prompt of eq. (7), used with its grammar as published ("a photo of a animal")."""

NIGHT = SCENES.index("night")

# Templates that hold for every image. None speaks of quality: the dual encoder must not know about it yet.
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
def _table() -> dict[str, ClassScene]:
    """WordNet id -> kind and scene, all 1,000 classes of ImageNet-1k."""
    text = (Path(__file__).parent / "scenes.csv").read_text(encoding="utf-8")
    return {row["wordnet_id"]: ClassScene(row["kind"], row["scene"]) for row in csv.DictReader(text.splitlines())}


def class_scene(wordnet_id: str) -> ClassScene:
    """Look up kind and scene of an ImageNet-1k class.

    Args:
        wordnet_id: such as "n01440764".

    Returns:
        For example `ClassScene(kind="fish", scene="animal")`; the scene is one of `SCENES`, never "night".

    Raises:
        DataError: the id is not a class of ImageNet-1k.
    """
    try:
        return _table()[wordnet_id]
    except KeyError:
        raise DataError(
            f"wordnet_id: expected a class of ImageNet-1k such as n01440764, got {wordnet_id!r}"
        ) from None


def scene_prompts() -> list[str]:
    """The nine prompts of eq. (7), in the order of `SCENES`."""
    return [SCENE_PROMPT.format(scene) for scene in SCENES]


def class_captions(name: str, wordnet_id: str) -> list[str]:
    """Captions true of this class only, without any word on quality.

    Args:
        name: class name, such as "tench".
        wordnet_id: its WordNet id.

    Returns:
        One caption per template of `CLASS_TEMPLATES`.
    """
    kind, scene = class_scene(wordnet_id)
    return [template.format(name, kind=kind, scene=scene) for template in CLASS_TEMPLATES]


def kind_captions(kind: str) -> list[str]:
    """Captions true of every class of one kind, such as "a photo of a dog"."""
    return [template.format(kind) for template in KIND_TEMPLATES]


def scene_captions(scene: str) -> list[str]:
    """Captions true of every photo of one scene, the prompt of eq. (7) first.

    Raises:
        ConfigError: `scene` is not one of `SCENES`.
    """
    if scene not in SCENE_WORDS:
        raise ConfigError(f"scene: expected one of {', '.join(SCENES)}; got {scene!r}")
    words: Sequence[str] = SCENE_WORDS[scene]
    return [template.format(scene) for template in SCENE_TEMPLATES] + [
        template.format(word) for word in words[1:] for template in SCENE_TEMPLATES[1:]
    ]
