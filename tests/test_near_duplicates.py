"""Near duplicates: versions of one photo are found, other photos are not, whatever their number."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from grmp_score.display import shrink
from grmp_score.images.near_duplicates import THRESHOLD, fingerprint, near_duplicates

from .conftest import make_photo


def variants(photo: Image.Image) -> dict[str, Image.Image]:
    """The same scene: a little later, out of focus, edited, saved badly."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=15)
    w, h = photo.size
    return {
        "shifted": photo.crop((2, 2, w, h)),
        "blurred": photo.filter(ImageFilter.GaussianBlur(2)),
        "darker": ImageEnhance.Brightness(photo).enhance(0.7),
        "jpeg": Image.open(buffer),
        "smaller": photo.resize((w // 2, h // 2)),
    }


@pytest.mark.parametrize("name", ["shifted", "blurred", "darker", "jpeg", "smaller"])
def test_near_duplicates_have_near_fingerprints(name: str) -> None:
    """Another version of a photo is found to be the same, another photo is not."""
    photo = Image.open(Path(__file__).parents[1] / "examples/photos/astronaut.jpg")
    photo = photo.convert("RGB").resize((256, 256))
    prints = [fingerprint(p) for p in (photo, variants(photo)[name], make_photo(256, 256, 5))]
    assert len(prints[0]) == 16
    assert near_duplicates(prints) == [[0, 1]]


def test_example_photos_are_four_bursts() -> None:
    """The nine example photos are four scenes."""
    files = sorted((Path(__file__).parents[1] / "examples/photos").glob("*.jpg"))
    prints = [fingerprint(shrink(Image.open(f).convert("RGB"), 200)) for f in files]
    found = [[files[i].stem for i in group] for group in near_duplicates(prints)]
    assert [len(group) for group in found] == [3, 2, 2, 2]
    assert all(len({name.split("_")[0] for name in group}) == 1 for group in found)


def slow_groups(prints: list[bytes], threshold: int) -> list[list[int]]:
    """The rule of `near_duplicates`, one pair after another."""
    groups: list[list[int]] = []
    for i, one in enumerate(prints):
        number = int.from_bytes(one, "big")
        away = [(int.from_bytes(prints[g[0]], "big") ^ number).bit_count() for g in groups]
        if away and min(away) <= threshold:
            groups[away.index(min(away))].append(i)
        else:
            groups.append([i])
    return [group for group in groups if len(group) > 1]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_groups_are_what_comparing_all_pairs_finds(count: int) -> None:
    """The same groups come out as with whole numbers, one pair after another."""
    rng = np.random.default_rng(count)
    scenes = rng.integers(0, 256, (max(1, count // 8), 16), dtype=np.uint8)
    prints = []
    for _ in range(count):
        noise = np.packbits(rng.random((16, 8)) < rng.choice([0.0, 0.03, 0.1]), axis=1)[:, 0]
        prints.append((scenes[rng.integers(len(scenes))] ^ noise).tobytes())
    assert near_duplicates(prints) == slow_groups(prints, THRESHOLD)


def test_a_walk_of_small_steps_is_not_one_burst() -> None:
    """Members look like the first one, not only like their neighbour."""
    steps = [(2 ** (12 * i) - 1).to_bytes(16, "big") for i in range(10)]
    assert [len(group) for group in near_duplicates(steps, 18)] == [2] * 5
