"""Cutting patches: layouts, resize rules and normalisation."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from grmp_score import weights
from grmp_score.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, ModelConfig, Preprocess
from grmp_score.errors import ConfigError
from grmp_score.model.patches import make_patches, normalised, patch_corners, patch_layout, resize
from grmp_score.weights import official

from .conftest import make_photo, patch_tensor

PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
side = st.integers(1, 400)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    """Any valid preprocessing with patches of up to 48 pixels."""
    patch_size = draw(st.integers(1, 48))
    rule = draw(st.sampled_from(["none", "shorter", "exact"]))
    layout = draw(st.sampled_from(["random", "grid", "center"]))
    antialias = draw(st.booleans())
    return Preprocess(
        resize=rule,
        size=None if rule == "none" else patch_size + draw(st.integers(0, 40)),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic", *(["lanczos"] if antialias else [])])),
        antialias=antialias,
        patch_size=patch_size,
        patches=1 if layout == "center" else draw(st.integers(1, 12)),
        layout=layout,
        spread=draw(st.floats(0.01, 1.0)),
        seed=draw(st.integers(0, 3)),
    )


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random pixels [H, W, 3], the worst case for a resize rule."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=150, deadline=None)
@given(side, side, preprocesses())
@example(1, 1, Preprocess())
@example(400, 300, Preprocess())
@example(7, 400, Preprocess(resize="shorter", size=48, patch_size=48))
def test_any_size_gives_finite_patches_of_the_right_shape(height: int, width: int, p: Preprocess) -> None:
    """Every image gives [P, 3, S, S] float32, finite, within the range of normalised pixels."""
    patches = patch_tensor(Image.fromarray(noise(height, width)), p)
    assert patches.shape == (p.patches, 3, p.patch_size, p.patch_size)
    assert patches.dtype == torch.float32
    assert torch.isfinite(patches).all()
    values = patches * torch.tensor(p.std).view(3, 1, 1) + torch.tensor(p.mean).view(3, 1, 1)
    assert values.min() >= -1e-5 and values.max() <= 1 + 1e-5


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(0, 400), preprocesses())
def test_corners_lie_inside(extra_height: int, extra_width: int, p: Preprocess) -> None:
    """Every patch lies inside the image, and there are as many as asked for."""
    height, width = p.patch_size + extra_height, p.patch_size + extra_width
    corners = patch_corners(height, width, p)
    assert corners.shape == (p.patches, 2)
    assert (corners >= 0).all()
    assert (corners + p.patch_size <= [height, width]).all()


def test_corners_of_too_small_an_image() -> None:
    """Corners are never made up for an image without room."""
    with pytest.raises(ValueError, match="no patch"):
        patch_corners(31, 99, Preprocess(patch_size=32))


def test_patches_are_the_pixels() -> None:
    """Without resizing a patch holds the image's pixels at its corner, channels first, normalised."""
    pixels = noise(90, 70)
    p = Preprocess(patch_size=32, patches=6, seed=5)
    corners = patch_corners(90, 70, p)
    for (y, x), patch in zip(corners, patch_tensor(Image.fromarray(pixels), p), strict=True):
        cut = pixels[y : y + 32, x : x + 32].astype(np.float64) / 255
        by_hand = ((cut - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).transpose(2, 0, 1)
        np.testing.assert_allclose(patch.numpy(), by_hand, atol=1e-5)


@pytest.mark.parametrize("size", [(340, 250), (97, 640), (400, 300), (331, 517)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_patches_are_those_of_the_whole_image_resized(size: tuple[int, int], interpolation: str) -> None:
    """Though no more than the part they lie in is resized: at most 1 of 255 off, and that rarely."""
    image = make_photo(*size)
    p = Preprocess(
        "shorter", 64, interpolation, patch_size=32, patches=5, layout="grid", spread=0.5, scales=(1, 0.7)
    )  # type: ignore[arg-type]
    whole = []
    for part in patch_layout(*size, p):
        pixels = np.asarray(resize(image, p, part.scale))
        whole += [pixels[y : y + 32, x : x + 32] for y, x in part.corners.tolist()]
    off = make_patches(image, p) - normalised(np.stack(whole), p)
    off = np.abs(off * np.reshape(p.std, (1, 3, 1, 1))) * 255
    assert off.max() < 1.01 and np.mean(off > 0.5) < 0.01


@pytest.mark.parametrize("layout", ["random", "grid"])
def test_deterministic_and_independent_of_global_generators(layout: str) -> None:
    """The same image gives the same patches whatever other code does with random numbers, and disturbs none."""
    image = make_photo(120, 90)
    p = Preprocess(patch_size=32, layout=layout)
    first = patch_tensor(image, p)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        expected = (random.Random(seed).random(), np.random.RandomState(seed).rand())
        assert torch.equal(patch_tensor(image, p), first)
        assert (random.random(), np.random.rand()) == expected
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(3))


def test_seed_and_size_decide_random_positions() -> None:
    """Another seed or size gives other positions; those of a seed and size are the same for ever."""
    p = Preprocess(patch_size=32, patches=8)
    other = dataclasses.replace(p, seed=1)
    few = dataclasses.replace(p, patches=3)
    # Written down, because other positions would be other scores.
    assert patch_corners(300, 200, few).tolist() == [[147, 151], [102, 158], [44, 126]]
    assert patch_corners(301, 200, few).tolist() == [[154, 159], [66, 167], [49, 124]]
    assert patch_corners(200, 300, few).tolist() == [[92, 1], [138, 98], [57, 254]]
    assert not np.array_equal(patch_corners(300, 200, p), patch_corners(300, 200, other))


def test_random_positions_reach_everywhere() -> None:
    """Random corners are uniform over the image, borders included."""
    p = Preprocess(patch_size=32, patches=4000)
    corners = patch_corners(32 + 9, 32 + 19, p)
    assert set(corners[:, 0]) == set(range(10)) and set(corners[:, 1]) == set(range(20))
    assert abs(corners.mean(axis=0) - [4.5, 9.5]).max() < 0.5


@pytest.mark.parametrize(("height", "width", "corner"), [(32, 32, (0, 0)), (60, 100, (14, 34)), (61, 32, (14, 0))])
def test_center(height: int, width: int, corner: tuple[int, int]) -> None:
    """The centre layout has one patch, in the middle."""
    p = Preprocess(patch_size=32, patches=1, layout="center")
    assert patch_corners(height, width, p).tolist() == [list(corner)]


@pytest.mark.parametrize("count", [4, 6, 9, 10, 12, 16])
def test_grid_covers_the_corners(count: int) -> None:
    """A grid with more than one row and column begins and ends at the image's corners, all patches apart."""
    corners = {tuple(c) for c in patch_corners(200, 200, Preprocess(patch_size=32, patches=count, layout="grid"))}
    assert {(0, 0), (0, 168), (168, 0), (168, 168)} <= corners
    assert len(corners) == count


def test_grid_follows_the_shape_of_the_image() -> None:
    """A panorama gets one row, a strip one column, one patch the middle."""
    grid = Preprocess(patch_size=32, patches=4, layout="grid")
    assert {int(y) for y, _ in patch_corners(32, 600, grid)} == {0}
    assert {int(x) for _, x in patch_corners(600, 32, grid)} == {0}
    assert patch_corners(132, 232, dataclasses.replace(grid, patches=1)).tolist() == [[50, 100]]


@pytest.mark.parametrize("layout", ["grid", "random"])
def test_spread_keeps_patches_near_the_middle(layout: str) -> None:
    """With half the spread, corners keep to the middle half of the room, and reach its ends."""
    p = Preprocess(patch_size=32, patches=200, layout=layout, spread=0.5)
    corners = patch_corners(232, 432, p)
    assert (corners.min(axis=0) >= [50, 100]).all() and (corners.max(axis=0) <= [150, 300]).all()
    assert (corners.min(axis=0) <= [52, 104]).all() and (corners.max(axis=0) >= [148, 296]).all()


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.01, 1.0))
def test_a_spread_grid_is_centred(extra_height: int, extra_width: int, spread: float) -> None:
    """Whatever the spread, a grid lies as far from the left as from the right, to a pixel."""
    p = Preprocess(patch_size=32, patches=9, layout="grid", spread=spread)
    corners = patch_corners(32 + extra_height, 32 + extra_width, p)
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    assert np.abs(middle - np.array([extra_height, extra_width]) / 2).max() <= 0.5


@pytest.mark.parametrize("spread", [0.0, -0.1, 1.1, float("nan")])
def test_spread_is_a_share(spread: float) -> None:
    """A spread outside of (0, 1] is an error that names it."""
    with pytest.raises(ConfigError, match="spread"):
        Preprocess(spread=spread)


# ------------------------------------------------------------------ resize rules


@settings(max_examples=100, deadline=None)
@given(side, side, st.integers(1, 48))
def test_small_images_are_enlarged_to_the_patch(height: int, width: int, patch_size: int) -> None:
    """An image with a side below the patch is enlarged until it fits, others keep every pixel."""
    image = Image.fromarray(noise(height, width))
    resized = resize(image, Preprocess(patch_size=patch_size))
    if min(height, width) >= patch_size:
        assert resized is image
    else:
        assert min(resized.size) == patch_size
        enlarged = max(image.size) * patch_size / min(image.size)
        limit = max(*image.size, 40 * patch_size)
        assert max(resized.size) == pytest.approx(min(enlarged, limit), abs=0.51)


def test_thin_images_stay_bounded() -> None:
    """A line of pixels is enlarged to 40 patches at most, not to its aspect ratio."""
    assert resize(Image.new("RGB", (8000, 1)), Preprocess()).size == (40 * 224, 224)
    assert patch_tensor(Image.new("RGB", (1, 8000)), Preprocess(scales=(1.0, 0.5))).shape == (10, 3, 224, 224)


@settings(max_examples=100, deadline=None)
@given(side, side, st.integers(16, 80))
def test_shorter_never_enlarges(height: int, width: int, size: int) -> None:
    """The shorter side becomes `size` where it was longer; the aspect ratio stays; nothing grows."""
    image = Image.fromarray(noise(height, width))
    resized = resize(image, Preprocess(resize="shorter", size=size, patch_size=1))
    assert resized.width <= width and resized.height <= height
    assert min(resized.size) == min(size, height, width)
    assert max(resized.size) == pytest.approx(max(width, height) * min(resized.size) / min(width, height), abs=0.51)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(97, 61), (40, 300), (64, 64)])
def test_exact_with_antialias_is_pillows_resize(interpolation: str, size: tuple[int, int]) -> None:
    """With antialias the pixels are Pillow's, and the aspect ratio is not kept."""
    image = make_photo(*size)
    ours = resize(image, Preprocess(resize="exact", size=64, patch_size=64, interpolation=interpolation))
    pillows = image.resize((64, 64), Image.Resampling[interpolation.upper()])
    assert np.array_equal(np.asarray(ours), np.asarray(pillows))


def cubic_resize(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """OpenCV's cubic resize re-derived: half-pixel centres, replicated border, a = -0.75, no low-pass filter."""
    values = pixels.astype(np.float64)
    for axis, size in ((0, height), (1, width)):
        values = np.moveaxis(values, axis, 0)
        n = len(values)
        position = (np.arange(size) + 0.5) * n / size - 0.5
        base = np.floor(position).astype(int)
        result = np.zeros((size, *values.shape[1:]))
        for tap in range(-1, 3):
            t = np.abs(position - (base + tap))
            near = 1.25 * t**3 - 2.25 * t**2 + 1
            far = -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
            result += weight[:, None, None] * values[np.clip(base + tap, 0, n - 1)]
        values = np.moveaxis(result, 0, axis)
    return np.clip(np.round(values), 0, 255)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 100), st.integers(0, 5))
@example(300, 500, 244, 0)
def test_exact_without_antialias_is_opencvs_cubic(height: int, width: int, size: int, seed: int) -> None:
    """Without antialias every value is that of OpenCV's kernel, within 1 of 255."""
    pixels = noise(height, width, seed)
    p = Preprocess(resize="exact", size=size, patch_size=1, antialias=False)
    ours = np.asarray(resize(Image.fromarray(pixels), p)).astype(np.float64)
    assert np.abs(ours - cubic_resize(pixels, size, size)).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (97, 61), (37, 1000), (245, 243)])
def test_exact_without_antialias_equals_opencv(interpolation: str, shape: tuple[int, int]) -> None:
    """Where OpenCV is installed its own resize agrees within 1 of 255, and on most values exactly."""
    cv2 = pytest.importorskip("cv2")
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
    pixels = noise(*shape)
    p = Preprocess(resize="exact", size=244, interpolation=interpolation, antialias=False)
    ours = np.asarray(resize(Image.fromarray(pixels), p)).astype(int)
    difference = np.abs(ours - cv2.resize(pixels, (244, 244), interpolation=flag).astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.8


def test_antialias_matters() -> None:
    """The two ways to shrink give different pixels, so the setting cannot be ignored unseen."""
    image = Image.fromarray(noise(300, 300))
    with_filter = resize(image, Preprocess(resize="exact", size=64, patch_size=64))
    without = resize(image, Preprocess(resize="exact", size=64, patch_size=64, antialias=False))
    assert np.asarray(with_filter).std() < 0.5 * np.asarray(without).std()


# ----------------------------------------------------------------- normalisation


def test_mean_and_std_are_the_configs() -> None:
    """Statistics come from the configuration: another mean and std shift and scale the same pixels."""
    image = make_photo()
    plain = patch_tensor(image, Preprocess(patch_size=32, **PLAIN))
    assert plain.min() >= 0 and plain.max() <= 1
    shifted = patch_tensor(image, Preprocess(patch_size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)))
    by_hand = (plain - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    torch.testing.assert_close(shifted, by_hand)


def test_defaults_are_clips_and_the_authors_checkpoints_imagenets() -> None:
    """CLIP's statistics are the default; ImageNet's belong to the authors' checkpoints."""
    assert (Preprocess().mean, Preprocess().std) == (CLIP_MEAN, CLIP_STD)
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073) and CLIP_STD == (0.26862954, 0.26130258, 0.27577711)
    p = official.PREPROCESS
    assert (p.mean, p.std) == (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (p.resize, p.size, p.interpolation, p.antialias) == ("exact", 244, "bicubic", False)
    assert (p.patch_size, p.patches, p.layout) == (224, 1, "center")


def test_bundled_models_state_their_statistics() -> None:
    """Every bundled configuration writes its own mean and std out, CLIP's or ImageNet's."""
    for file in sorted(weights.BUNDLED.glob("*/config.json")):
        text = file.read_text()
        p = ModelConfig.from_json(text).preprocess
        assert '"mean"' in text and '"std"' in text
        assert (p.mean, p.std) in [(CLIP_MEAN, CLIP_STD), (IMAGENET_MEAN, IMAGENET_STD)]


def test_a_scale_named_twice_gets_twice_as_many_patches() -> None:
    """They are spread over the image like those of a scale named once, and come in the order of the scales."""
    many = Preprocess(patch_size=32, patches=8, scales=(1.0, 1.0, 1.0, 0.1), layout="grid")
    whole, small = patch_layout(200, 160, many)
    assert (whole.scale, len(whole.corners), small.scale, len(small.corners)) == (1.0, 6, 0.1, 2)
    alone = Preprocess(patch_size=32, patches=6, layout="grid")
    np.testing.assert_array_equal(whole.corners, patch_corners(160, 200, alone))
    assert min(small.width, small.height) == 32  # the whole image, as small as it may get


@pytest.mark.parametrize("patches", range(1, 12))
def test_any_number_of_patches_over_several_scales(patches: int) -> None:
    """Patches are dealt to the scales in turn; a scale may get few of them, or none."""
    many = Preprocess(patch_size=32, patches=10, scales=(1.0, 0.75, 0.5), layout="grid")
    preprocess = many.with_patches(patches)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    assert patch_tensor(image, preprocess).shape == (patches, 3, 32, 32)
