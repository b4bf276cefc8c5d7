"""What a notebook shows of a score and of an explanation, whatever images are called."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grmp_score.display import colours
from grmp_score.explain import Explanation
from grmp_score.score import Score

from .conftest import make_photo

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "\" onload='alert(1)' x=\".png",
    "<b><script>alert(1).png",
    "new\nline \udcff {{ value }}.png",
]


def score_of(path: str | None) -> Score:
    """A good score of an image."""
    return Score(0.75, 0.1, 0.03, (0.7, 0.8), path, 640, 480, verdict="good")


def explanation_of(path: str | None) -> Explanation:
    """An explanation that is bad on the left and good on the right."""
    heat = np.tile((np.arange(400) >= 200).astype(np.float32), (300, 1))
    return Explanation(score_of(path), (), heat, 40)


def pictures(html: str) -> list[Image.Image]:
    """The pictures that the HTML holds."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A photo on disk, turned by its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    make_photo(640, 480).save(tmp_path / "a b.png", exif=exif)
    return str(tmp_path / "a b.png")


def test_a_score_shows_its_picture_with_a_bar_and_the_verdict(path: str) -> None:
    """The picture is upright, at most 320 pixels long, and inside of the HTML."""
    html = score_of(path)._repr_html_()
    assert [picture.size for picture in pictures(html)] == [(240, 320)]
    assert "width:75.0%" in html and "<b>0.750</b> ± 0.030, good" in html and "a b.png" in html


def test_an_explanation_shows_picture_and_heat_map_side_by_side(path: str) -> None:
    """Both at most 320 pixels long; the map in the colours of the scale."""
    photo, heat_map = pictures(explanation_of(path)._repr_html_())
    assert (photo.size, heat_map.size) == ((240, 320), (320, 240))
    for column, value in ((20, 0.0), (300, 1.0)):
        difference = np.asarray(heat_map)[120, column].astype(int) - colours(np.array(value))
        assert np.abs(difference).max() < 8


@pytest.mark.parametrize("gone", [None, "nothing.png", "https://example.org/a.png", ".", "a\0b"])
def test_without_a_readable_file_there_is_the_bar_alone(gone: str | None) -> None:
    """Images from memory, deleted files, folders; addresses are not fetched."""
    html = score_of(gone)._repr_html_()
    assert "<img" not in html and "width:75.0%" in html and "<b>0.750</b>" in html
    assert len(pictures(explanation_of(gone)._repr_html_())) == 1  # the heat map


def test_a_file_that_is_no_image_any_more_is_no_error(tmp_path: Path) -> None:
    """It may have been replaced since it was scored."""
    (tmp_path / "a.png").write_bytes(b"no image")
    assert "<img" not in score_of(str(tmp_path / "a.png"))._repr_html_()


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(name: str, tmp_path: Path) -> None:
    """Markup in a name is shown, not followed, whether there is such a file or not."""
    file = tmp_path / name
    make_photo().save(file)

    def elements(html: str) -> list[str]:
        html.encode("utf-8")
        return re.findall(r"<(\w+)(?: [\w:-]+=\"[^\"<>]*\")*>", html)

    for show in (score_of, explanation_of):
        plain = elements(show("a.png")._repr_html_())
        assert elements(show(name)._repr_html_()) == plain
        with_picture = show(str(file))._repr_html_()
        assert len(elements(with_picture)) == len(plain) + 1
        assert with_picture.count("<") == 2 * len(elements(with_picture)) - with_picture.count("<img")


def test_reprs_are_one_short_line() -> None:
    """The number with its spread, the verdict, the name; of an explanation also the map."""
    assert repr(score_of("a.png")) == "Score(0.750 ± 0.030, good, 'a.png')"
    assert repr(explanation_of("a.png")) == (
        "Explanation(Score(0.750 ± 0.030, good, 'a.png'), 0 patches, heat 300x400 from 0.00 to 1.00)"
    )
