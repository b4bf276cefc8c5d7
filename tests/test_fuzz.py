"""Damaged files by the hundred: each is an image or an `ImageReadError`, quickly, and nothing is printed."""

from __future__ import annotations

import numpy as np
import pytest

from grmp_score.errors import ImageReadError
from grmp_score.images import read_image

from .fuzzing import FORMATS, damaged, originals


def test_the_originals_are_sound() -> None:
    """Without damage every file is an image."""
    for files in originals().values():
        for data in files:
            assert sorted(read_image(data).size) == [48, 64]


def test_the_files_are_always_the_same() -> None:
    """A seed gives the same files in every run, of all formats and kinds of damage."""
    first, again = list(damaged(72)), list(damaged(72))
    assert first == again and first != list(damaged(72, seed=1))
    assert len({name.split(" ", 1)[1] for name, _ in first}) == 6 * len(FORMATS)


def test_two_hundred_damaged_files(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing but an image or an `ImageReadError` comes of any, the same at a second try, and no decoder prints."""
    images = 0
    for name, data in damaged(200):
        results = []
        for _ in range(2):
            try:
                image = read_image(data, max_pixels=10_000_000)
            except ImageReadError as error:
                results.append(error.reason)
                assert error.reason and "\n" not in error.reason, name
            else:
                assert image.mode == "RGB" and np.asarray(image).shape[2] == 3
                images += 1
                results.append(image.tobytes().hex()[:1000])
        assert results[0] == results[1], name
    assert 50 < images / 2 < 150
    assert capfd.readouterr() == ("", "")
