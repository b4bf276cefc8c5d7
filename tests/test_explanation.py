"""The picture that explains a score: what is drawn where, and where it is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from grmp_score import GrmpScoreError, ImageReadError, Scorer
from grmp_score.display import colour, colours, ink_on
from grmp_score.explain import Explanation, PatchValue
from grmp_score.report.explanation import draw_explanation, drawable, explanation_name, write_explanation
from grmp_score.score import Score
from grmp_score.weights.folder import Weights

from .conftest import Photo


def explained(width: int, height: int, values: tuple[float, ...] = (0.0, 1.0)) -> Explanation:
    """Patches side by side, and a map that is bad on the left and good on the right."""
    step = width / len(values)
    patches = tuple(PatchValue((i * step, 0, (i + 1) * step, height), 1.0, v) for i, v in enumerate(values))
    heat = np.tile((np.arange(64) >= 32).astype(np.float32), (48, 1))
    return Explanation(Score.from_patches(values, path="a.png", width=width, height=height), patches, heat, 12)


def holds(picture: Image.Image, wanted: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.asarray(picture) == wanted).all(axis=-1).sum())


def test_patches_are_outlined_in_their_colours() -> None:
    """A bad patch has the colour of bad, a good one the colour of good; a middling one is nowhere to be seen."""
    picture = draw_explanation(Image.new("RGB", (800, 600)), explained(800, 600), title="a", model="m")
    left, right = picture.crop((32, 118, 432, 718)), picture.crop((432, 118, 832, 718))
    assert holds(left, colour(0.0)) > 2000 and holds(right, colour(1.0)) > 2000
    assert holds(left, colour(1.0)) == holds(right, colour(0.0)) == 0


def test_the_map_is_next_to_the_photo() -> None:
    """The right panel is tinted bad on its left and good on its right, whatever colours the photo has."""
    photo = Image.new("RGB", (800, 600), (0, 255, 0))
    picture = np.asarray(draw_explanation(photo, explained(800, 600), title="a", model="m"))
    bad, good = picture[400, 32 + 800 + 24 + 100], picture[400, 32 + 800 + 24 + 700]
    assert bad[0] > bad[2] + 80 and good[2] > good[0] + 80


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (6000, 400), (224, 224)])
def test_any_shape_is_drawn(size: tuple[int, int]) -> None:
    """Specks, strips and panoramas have a picture of a size one can look at."""
    many = tuple(np.linspace(0, 1, 30))
    picture = draw_explanation(Image.new("RGB", size), explained(*size, many), title="名" * 300, model="m")
    assert 400 < picture.width <= 1700 and 200 < picture.height < 1700


def test_letters_that_the_font_lacks() -> None:
    """Accents are dropped, other scripts become question marks, and nothing unprintable is left."""
    assert drawable("café_ﬁn \n日本\udcff🙂.jpg") == "cafe_fin ?????.jpg"


def test_colours_are_told_apart() -> None:
    """The scale runs through three colours, clips beyond its ends, and always has a readable ink."""
    assert [colour(v) for v in (-1.0, 0.0, 2.0, 1.0)] == [(213, 94, 0)] * 2 + [(0, 114, 178)] * 2
    assert colours(np.zeros((2, 3))).shape == (2, 3, 3)
    # Blue grows all the way: what no colour-blindness but a very rare one takes away.
    assert (np.diff(colours(np.linspace(0, 1, 21))[:, 2].astype(int)) > 0).all()
    assert ink_on((255, 255, 255)) == (0, 0, 0) and ink_on((0, 0, 0)) == (255, 255, 255)


# ---------------------------------------------------------------------- writing


@given(st.text(st.characters(blacklist_characters="\0"), min_size=1, max_size=300))
def test_names_stay_in_the_folder(name: str) -> None:
    """Whatever an image is called, its picture has a short, plain name without a folder."""
    try:
        safe = explanation_name(name)
    except UnicodeEncodeError:  # half a character: no file has such a name
        return
    assert safe.isascii() and os.path.basename(safe) == safe and len(safe) < 90
    assert not safe.startswith((".", "-")) and safe.endswith(".jpg")


def test_names_never_collide() -> None:
    """Same name in another folder, another ending, or other odd letters: another picture; relative or not: one."""
    paths = ["a/x.jpg", "b/x.jpg", "a/x.png", "a/x y.jpg", "a/x_y.jpg", "a/X.jpg", "a/é.jpg", "a/ü.jpg"]
    names = [explanation_name(p) for p in paths]
    assert len({n.lower() for n in names}) == len(paths)
    assert explanation_name("a/../a/x.jpg") == explanation_name(os.path.abspath("a/x.jpg")) == names[0]


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """A random model."""
    return Scorer(tiny_weights, device="cpu")


def test_write(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """The folder is made, the picture lies in it alone, and a second run replaces it."""
    folder = tmp_path / "new" / "folder"
    image = tmp_path / "<b> é.png"
    photo(90, 60).save(image)
    for _ in range(2):
        written = write_explanation(scorer, image, folder)
        assert [p.name for p in folder.iterdir()] == [written.name] == [explanation_name(str(image))]
    with Image.open(written) as picture:
        assert picture.format == "JPEG" and picture.width > 1000


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_not_followed(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """A link that lies where the picture goes is replaced; the file behind it stays as it is."""
    image, folder, other = tmp_path / "a.png", tmp_path / "out", tmp_path / "precious"
    photo(90, 60).save(image)
    folder.mkdir()
    other.write_text("mine")
    (folder / explanation_name(str(image))).symlink_to(other)
    assert not write_explanation(scorer, image, folder).is_symlink()
    assert other.read_text() == "mine"


def test_errors_are_ours(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """An image that cannot be read and a folder that cannot be made are errors with the path."""
    with pytest.raises(ImageReadError, match="no such file"):
        write_explanation(scorer, tmp_path / "none.png", tmp_path)
    photo(90, 60).save(tmp_path / "a.png")
    with pytest.raises(GrmpScoreError, match="cannot write the explanation"):
        write_explanation(scorer, tmp_path / "a.png", tmp_path / "a.png" / "folder")
