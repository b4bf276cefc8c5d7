"""The scene table and the captions made from it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import captions
import pytest
from captions import SCENE_PROMPTS, class_captions, class_scene, kind_captions, scene_captions

from grmp_score.config import SCENES
from grmp_score.errors import DataError


def rows() -> list[dict[str, str]]:
    """The table as it is stored."""
    text = Path(captions.__file__).with_name("scenes.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def all_captions() -> list[str]:
    """Captions of a class, of a kind and of every scene."""
    return (
        class_captions("tench", "n01440764") + kind_captions("dog") + [c for s in SCENES for c in scene_captions(s)]
    )


def test_every_class_once() -> None:
    """The table has the 1,000 classes of ImageNet-1k, once, each with a scene that is not night."""
    ids = [row["wordnet_id"] for row in rows()]
    assert len(ids) == len(set(ids)) == 1000
    assert {row["scene"] for row in rows()} == set(SCENES) - {"night"}
    assert all(row["kind"] and row["kind"] == row["kind"].strip() for row in rows())


def test_animals_are_exactly_the_animal_range() -> None:
    """ImageNet-1k lists its 398 animals first, so the id alone tells an animal."""
    assert all((row["scene"] == "animal") == (row["wordnet_id"] < "n02666196") for row in rows())
    assert Counter(row["scene"] for row in rows())["animal"] == 398


def test_kinds_have_one_scene_each() -> None:
    """A kind never spans two scenes."""
    assert len({(row["kind"], row["scene"]) for row in rows()}) == len({row["kind"] for row in rows()})


@pytest.mark.parametrize(
    ("wordnet_id", "kind", "scene"),
    [
        ("n01440764", "fish", "animal"),  # tench
        ("n02099601", "dog", "animal"),  # golden retriever
        ("n02012849", "bird", "animal"),  # crane, the bird
        ("n03126707", "street", "cityscape"),  # crane, the machine
        ("n04366367", "bridge", "cityscape"),  # suspension bridge
        ("n10148035", "person", "human"),  # groom
        ("n04350905", "clothing", "human"),  # suit
        ("n03201208", "furniture", "indoor"),  # dining table
        ("n09472597", "landscape", "landscape"),  # volcano
        ("n11939491", "flower", "plant"),  # daisy
        ("n07720875", "vegetable", "plant"),  # bell pepper
        ("n07873807", "food", "still-life"),  # pizza
        ("n04536866", "instrument", "still-life"),  # violin
        ("n06359193", "document", "others"),  # web site
    ],
)
def test_known_classes(wordnet_id: str, kind: str, scene: str) -> None:
    """Classes that everybody would sort the same way are sorted that way."""
    assert class_scene(wordnet_id) == (kind, scene)


def test_unknown_class() -> None:
    """An id outside ImageNet-1k is named in the error."""
    with pytest.raises(DataError, match="n99999999"):
        class_scene("n99999999")


def test_scene_prompts_are_those_of_the_paper() -> None:
    """The nine prompts of eq. (7) come in the order and with the grammar of the official code."""
    assert len(SCENE_PROMPTS) == 9
    assert SCENE_PROMPTS[0] == "a photo of a animal"
    assert SCENE_PROMPTS[-2:] == ["a photo of a still-life", "a photo of a others"]


def test_captions_are_filled_in() -> None:
    """Captions carry name, kind and scene, and no placeholder is left."""
    of_class = class_captions("tench", "n01440764")
    assert {"tench", "a photo of a tench", "a photo of a tench, a kind of fish"} <= set(of_class)
    assert all("tench" in caption for caption in of_class)
    assert not any("{" in caption for caption in all_captions())


def test_scene_captions_start_with_the_prompt() -> None:
    """The prompt that is used later is among the captions that are trained, first."""
    assert [scene_captions(s)[0] for s in SCENES] == SCENE_PROMPTS


def test_captions_do_not_speak_of_quality() -> None:
    """No caption of what is shown contains a word on quality, which has captions of its own."""
    words = {"quality", "high", "low", "good", "bad", "sharp", "blurry", "noisy", "beautiful"}
    assert not any(words & set(caption.replace(",", "").split()) for caption in all_captions())
