"""`Scorer.explain`: where patches lie, what they say, and the heat map."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from grmp_score import ImageReadError, Scorer
from grmp_score.config import Preprocess
from grmp_score.explain import DENSE_PATCHES, MAP_SIZE, dense_layout, heat_map
from grmp_score.images.read import read_image
from grmp_score.model.patches import cut_patches, patch_boxes, patch_corners, patch_layout, resize
from grmp_score.weights.folder import Weights

from .conftest import Photo, make_photo, patch_tensor
from .test_patches import preprocesses

SCALES = Preprocess(resize="shorter", size=48, patch_size=32, scales=(1.0, 0.75), layout="grid")
side = st.integers(1, 300)


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """A random model that looks at two scales, as the bundled one does."""
    config = dataclasses.replace(tiny_weights.config, preprocess=SCALES)
    return Scorer(dataclasses.replace(tiny_weights, config=config), device="cpu")


# ------------------------------------------------------------------------ places


def cut_by_hand(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    """Patches cut scale by scale from images resized one by one."""
    parts = []
    for number, scale in enumerate(preprocess.scales):
        count = len(range(number, preprocess.patches, len(preprocess.scales)))
        here = dataclasses.replace(preprocess, patches=count, scales=(1.0,))
        pixels = torch.from_numpy(np.array(resize(image, preprocess, scale)))
        for y, x in patch_corners(pixels.shape[0], pixels.shape[1], here):
            parts.append(pixels[y : y + preprocess.patch_size, x : x + preprocess.patch_size])
    values = torch.stack(parts).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return (values - mean) / std


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.75), (0.5, 1.0, 0.75)])
def test_the_layout_is_that_of_the_patches(scales: tuple[float, ...]) -> None:
    """`make_patches` cuts where `patch_layout` says, bit for bit."""
    image = make_photo(150, 90)
    p = dataclasses.replace(SCALES, scales=scales)
    assert torch.equal(patch_tensor(image, p), cut_by_hand(image, p))
    assert np.array_equal(patch_tensor(image, p), cut_patches(image, patch_layout(150, 90, p), p))


@settings(max_examples=150, deadline=None)
@given(side, side, preprocesses(), st.sampled_from([(1.0,), (1.0, 0.75), (0.3, 1.0)]))
@example(1, 300, Preprocess(patch_size=8), (1.0, 0.75))
def test_boxes_lie_in_the_image(width: int, height: int, p: Preprocess, scales: tuple[float, ...]) -> None:
    """Whatever the resize rule, every box has an area within the upright image."""
    p = dataclasses.replace(p, scales=scales[: p.patches])
    boxes = patch_boxes(width, height, patch_layout(width, height, p), p.patch_size)
    assert boxes.shape == (p.patches, 4)
    assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_boxes_grow_with_the_scale() -> None:
    """Without a resize rule a patch covers its own side; at half the scale, twice as much."""
    p = Preprocess(patch_size=32, patches=4, scales=(1.0, 0.5), layout="grid")
    boxes = patch_boxes(200, 120, patch_layout(200, 120, p), 32)
    assert (boxes[:, 2:] - boxes[:, :2]).tolist() == [[32, 32]] * 2 + [[64, 64]] * 2
    assert boxes[:, :2].min() == 0 and boxes[:, 2].max() == 200 and boxes[3].tolist() == [136, 28, 200, 92]


def test_a_box_shows_what_the_patch_shows() -> None:
    """The box of a patch, cut from the photo and shrunk, looks like the patch."""
    image = make_photo(400, 300).filter(ImageFilter.GaussianBlur(2))
    p = dataclasses.replace(SCALES, size=150, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    boxes = patch_boxes(400, 300, patch_layout(400, 300, p), 32)
    for box, patch in zip(boxes.tolist(), patch_tensor(image, p), strict=True):
        cut = image.resize((32, 32), Image.Resampling.BICUBIC, box=tuple(box))
        assert np.abs(np.asarray(cut) / 255 - patch.permute(1, 2, 0).numpy()).mean() < 0.02


# -------------------------------------------------------------------- heat map


@settings(max_examples=150, deadline=None)
@given(side, side, preprocesses(), st.integers(1, 60))
@example(300, 1, Preprocess(patch_size=1), 48)
def test_a_dense_layout_keeps_to_its_limit(width: int, height: int, p: Preprocess, limit: int) -> None:
    """Never more patches than allowed; those at the edges are there; every map is finite and within 0..1."""
    layout = dense_layout(width, height, p, limit)
    count = sum(len(part.corners) for part in layout)
    for part in layout:
        assert (part.corners >= 0).all()
        assert part.corners.max(axis=0).tolist() == [part.height - p.patch_size, part.width - p.patch_size]
    assert count <= max(limit, sum(2 ** sum(s > p.patch_size for s in (q.width, q.height)) for q in layout))
    heat = heat_map(width, height, layout, np.random.default_rng(0).random(count), p.patch_size)
    assert heat.shape == (height, width) and heat.dtype == np.float32
    assert np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1


@pytest.mark.parametrize("size", [(90, 60), (3000, 500), (20, 400)])
def test_equal_patches_make_a_flat_map(size: tuple[int, int]) -> None:
    """Where all patches say the same, so does every point of the map."""
    layout = dense_layout(*size, SCALES)
    count = sum(len(part.corners) for part in layout)
    heat = heat_map(*size, layout, np.full(count, 0.3), SCALES.patch_size)
    assert np.ptp(heat) < 1e-6 and heat[0, 0] == pytest.approx(0.3)


def test_the_map_lies_where_the_patches_lie() -> None:
    """One good patch among bad ones lights up its own place, at the map's size."""
    layout = dense_layout(1000, 500, SCALES)
    values = np.zeros(sum(len(part.corners) for part in layout))
    corner = layout[0].corners[3]
    values[3] = 1.0
    heat = heat_map(1000, 500, layout, values, SCALES.patch_size)
    assert heat.shape == (MAP_SIZE // 2, MAP_SIZE)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    centre = (corner + SCALES.patch_size / 2) * [500 / layout[0].height, 1000 / layout[0].width] * MAP_SIZE / 1000
    assert abs(x - centre[1]) < 30 and y <= centre[0]  # at the edge the map only rises


# ------------------------------------------------------------------------ scorer


def test_an_explanation_has_the_score(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """The score is the one of `score`, and the patches are those it is the mean of."""
    path = tmp_path / "a.png"
    photo(120, 90).save(path)
    explanation = scorer.explain(str(path))
    assert explanation.score == scorer.score(str(path))
    assert tuple(p.p_high for p in explanation.patches) == explanation.score.patch_values
    assert [p.scale for p in explanation.patches] == [1.0] * 5 + [0.75] * 5
    assert 2 <= explanation.dense_patches <= DENSE_PATCHES
    again = scorer.explain(str(path))
    assert again.patches == explanation.patches and np.array_equal(again.heat, explanation.heat)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "I;16", "CMYK", "1"])
def test_a_picture_is_explained_like_its_file(scorer: Scorer, photo: Photo, tmp_path: Path, mode: str) -> None:
    """Reading first and explaining then gives the values of the file, whatever kind of picture it is."""
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257).save(path)
    elif mode == "P":
        photo().convert("P").save(path, transparency=3)
    else:
        photo().convert(mode).save(path)
    assert scorer.explain(read_image(path)).score.patch_values == scorer.score(path).patch_values


def test_places_are_in_the_upright_image(scorer: Scorer, photo: Photo) -> None:
    """A photo that is turned by its EXIF orientation is explained as people see it."""
    stored, exif, buffer = photo(160, 80), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turned by a quarter
    stored.save(buffer, "PNG", exif=exif)
    explanation = scorer.explain(buffer.getvalue())
    assert (explanation.score.width, explanation.score.height) == (80, 160)
    assert explanation.heat.shape == (160, 80)
    assert max(p.box[2] for p in explanation.patches) == 80
    assert max(p.box[3] for p in explanation.patches) == 160


def test_a_plain_image_has_a_plain_map(scorer: Scorer) -> None:
    """Nothing stands out where there is nothing."""
    heat = scorer.explain(Image.new("RGB", (150, 100), (90, 120, 60))).heat
    assert np.ptp(heat) < 1e-5


def test_an_unreadable_image_is_an_error(scorer: Scorer, tmp_path: Path) -> None:
    """What cannot be read cannot be explained."""
    with pytest.raises(ImageReadError, match="no such file"):
        scorer.explain(tmp_path / "none.jpg")


def test_blur_shows_on_its_side() -> None:
    """With the bundled model, the blurred half of a photo is the worse half of the map (of twelve patches)."""
    photo = Image.open(Path(__file__).parents[1] / "examples/photos/coffee.jpg").convert("RGB")
    blurred = photo.filter(ImageFilter.GaussianBlur(4)).crop((0, 0, 300, 400))
    photo.paste(blurred, (0, 0))
    scorer = Scorer(device="cpu", patches=2)
    layout = dense_layout(*photo.size, scorer.preprocess, limit=12)
    values = scorer.engine.p_high(cut_patches(photo, layout, scorer.preprocess))
    heat = heat_map(*photo.size, layout, np.array(values), scorer.preprocess.patch_size)
    half = heat.shape[1] // 2
    assert heat[:, half:].mean() > heat[:, :half].mean() + 0.1
