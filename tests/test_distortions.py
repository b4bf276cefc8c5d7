"""The distortion types: shape, determinism, severity, any size, and clear errors."""

from __future__ import annotations

import itertools
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import features

from grmp_score.trainer.data.distortions import DISTORTIONS, LEVELS, blur, distort, filters, noise, spatial

RANDOM = {
    "motion_blur",
    "color_shift",
    "white_noise",
    "white_noise_color_component",
    "impulse_noise",
    "multiplicative_noise",
    "denoise",
    "jitter",
    "non_eccentricity_patch",
    "color_block",
    "mean_shift",
    "contrast_change",
}
KADID_GROUPS = {
    "blurs": 3,
    "color": 5,
    "compression": 4,
    "noise": 5,
    "brightness_change": 3,
    "spatial": 5,
    "sharpness_contrast": 2,
}


@lru_cache(maxsize=4)
def photo(seed: int = 0, height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    """A photo-like picture: smooth shading, 1/f texture, sharp coloured shapes and a little fine detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1
    picture = np.empty((height, width, 3))
    texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency, (height, width))
    for c in range(3):
        own = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.3, (height, width))
        a, b = rng.uniform(-0.3, 0.3, 2)
        picture[..., c] = (
            0.45 + a * x + b * y + 0.08 * texture / texture.std() + 0.04 * own / max(float(own.std()), 1e-9)
        )
    for _ in range(6):
        cy, cx, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        picture[inside] = 0.6 * rng.uniform(0, 1, 3) + 0.4 * picture[inside]
    stripes = (x > 0.6) & (y > 0.6)
    picture[stripes] += 0.1 * np.sign(np.sin(60 * (x + 0.5 * y)))[stripes][:, None]
    return (np.clip(picture, 0.02, 0.98) * 255).astype(np.uint8)


def mse(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean squared error on the 0..255 scale."""
    return float(np.mean((a.astype(np.float64) - b) ** 2))


def test_the_table_holds_the_25_kadid_types_and_two_modern_codecs() -> None:
    """Names are the keys and the group sizes are KADID-10k's, with WebP and AVIF added to compression."""
    assert len(DISTORTIONS) == 27
    assert all(name == entry.name for name, entry in DISTORTIONS.items())
    groups = [entry.group for entry in DISTORTIONS.values()]
    assert {group: groups.count(group) for group in groups} == KADID_GROUPS


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_level_keeps_the_shape_and_the_input_and_repeats_exactly(name: str) -> None:
    """A distorted image has its own memory, the same shape and dtype, and is the same twice."""
    image = photo(1, 96, 110)
    before = image.copy()
    for level in LEVELS:
        np.random.seed(level)
        first = distort(image, name, level, seed=3)
        np.random.seed(level + 10)
        second = distort(image, name, level, seed=3)
        assert first.shape == image.shape and first.dtype == np.uint8
        assert not np.shares_memory(first, image)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_seed_matters_exactly_where_the_type_is_random(name: str) -> None:
    """Over eight seeds a random type gives more than one result, a deterministic one gives one."""
    image = photo(1, 96, 110)
    results = {distort(image, name, 4, seed=seed).tobytes() for seed in range(8)}
    assert (len(results) > 1) == (name in RANDOM)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_squared_error_rises_with_every_level(name: str, seed: int) -> None:
    """For every type level 1 changes the image and each further level is farther from the clean one."""
    image = photo(seed, 192, 192)
    errors = [mse(distort(image, name, level, seed=seed), image) for level in LEVELS]
    assert errors[0] > 0
    assert all(a < b for a, b in itertools.pairwise(errors)), errors


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(16, 61),
    width=st.integers(16, 61),
    name=st.sampled_from(sorted(DISTORTIONS)),
    level=st.sampled_from(LEVELS),
    seed=st.integers(0, 2**32),
)
def test_any_size_from_16_pixels_works(height: int, width: int, name: str, level: int, seed: int) -> None:
    """Odd, small and oblong images of random pixels keep their shape."""
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert distort(image, name, level, seed=seed).shape == image.shape


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_smallest_and_flat_images_work(name: str) -> None:
    """A 16x16 image of one colour and a strip of 16x97 raise no warning at the worst level."""
    for shape in ((16, 16), (16, 97)):
        for value in (0, 255):
            flat = np.full((*shape, 3), value, dtype=np.uint8)
            assert distort(flat, name, 5).shape == flat.shape


def test_a_view_with_negative_strides_is_accepted() -> None:
    """A flipped view gives what its contiguous copy gives."""
    view = photo(1, 96, 110)[:, ::-1]
    np.testing.assert_array_equal(distort(view, "jpeg", 3), distort(view.copy(), "jpeg", 3))


def test_two_images_get_different_noise_under_one_seed() -> None:
    """The pixels take part in the seed, so the noise pattern is no constant to be learnt."""
    one, two = np.full((32, 32, 3), 100, np.uint8), np.full((32, 32, 3), 110, np.uint8)
    residuals = [distort(x, "white_noise", 3).astype(int) - x for x in (one, two)]
    assert abs(np.corrcoef(residuals[0].ravel(), residuals[1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gausian_blur"}, "unknown distortion: expected one of gaussian_blur,.*got 'gausian_blur'"),
        ({"level": 0}, "expected one of 1 to 5.*got 0"),
        ({"level": 6}, "expected one of 1 to 5.*got 6"),
        ({"seed": -1}, "at least 0; got -1"),
        (
            {"image": np.zeros((32, 32), np.uint8)},
            r"expected an RGB uint8 array.*got ndarray uint8 \[32, 32\]",
        ),
        ({"image": np.zeros((32, 32, 3), np.float32)}, "got ndarray float32"),
        ({"image": np.zeros((15, 32, 3), np.uint8)}, "at least 16x16 pixels; got 15x32"),
        ({"image": "photo.jpg"}, "got str"),
    ],
)
def test_wrong_arguments_say_what_was_expected_and_got(arguments: dict[str, object], message: str) -> None:
    """Unknown names, levels, seeds and images raise ValueError with the remedy in the text."""
    good: dict[str, object] = {"image": photo(), "name": "jpeg", "level": 1, "seed": 0}
    with pytest.raises(ValueError, match=message):
        distort(**{**good, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "codec"), [("jpeg2000", "JPEG2000"), ("avif", "AVIF"), ("webp", "WEBP")])
def test_a_missing_codec_is_named(name: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the codec in Pillow only this distortion fails, and it says which codec is missing."""
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(RuntimeError, match=f"needs the {codec} codec"):
        distort(photo(), name, 1)


def test_distorting_does_not_load_torch() -> None:
    """Processes that only distort start quickly: torch is not loaded, even after use."""
    code = (
        "import sys, numpy as np; from grmp_score.trainer.data.distortions import DISTORTIONS, distort;"
        "[distort(np.zeros((16, 16, 3), np.uint8), n, 3) for n in DISTORTIONS];"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def gaussian_kernel(sigma: float) -> NDArray[np.float64]:
    """What the Gaussian filter makes of a single white pixel."""
    point = np.zeros((41, 41, 1), dtype=np.float32)
    point[20, 20] = 1
    return filters.gaussian(point, sigma)[..., 0].astype(np.float64)


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian_kernel(0.6),
        gaussian_kernel(5.0),
        blur.disk_kernel(8.0),
        *(blur.line_kernel(18.0, angle) for angle in (0.0, 0.4, 1.6, 3.1)),
    ],
)
def test_blur_kernels_keep_the_mean_and_do_not_shift(kernel: NDArray[np.float64]) -> None:
    """Kernels have odd sides, no negative weight, sum 1 and their centre of mass in the middle."""
    assert kernel.shape[0] % 2 == kernel.shape[1] % 2 == 1
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-6)
    y, x = np.indices(kernel.shape)
    centre = ((kernel * y).sum(), (kernel * x).sum())
    np.testing.assert_allclose(centre, (kernel.shape[0] // 2, kernel.shape[1] // 2), atol=1e-5)


def test_blurs_repeat_the_border() -> None:
    """A half-plane that touches the border stays as bright there as it was."""
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, :32] = 200
    for name in ("gaussian_blur", "lens_blur", "motion_blur"):
        blurred = distort(image, name, 5)
        assert (blurred[:, 0] == 200).all() and (blurred[:, -1] == 0).all(), name


def test_lab_round_trip_and_known_colours() -> None:
    """Lab and back is exact to a rounding step, white is (100, 0, 0), and pure red is the textbook value."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(filters.to_uint8(filters.lab_to_rgb(filters.rgb_to_lab(image))), image)
    known = filters.rgb_to_lab(np.array([[[255, 255, 255], [255, 0, 0]]], dtype=np.uint8))
    expected = np.array([[100, 0, 0], [53.24, 80.09, 67.20]])
    np.testing.assert_allclose(known[0], expected, atol=0.02)


def test_value_quantisation_is_optimal_and_keeps_few_values() -> None:
    """The table has as many values as asked for and no random partition of a histogram does better."""
    rng = np.random.default_rng(0)
    histogram = rng.integers(0, 50, 256)
    values = np.arange(256)
    for classes in (2, 5, 20):
        table = spatial._optimal_table(histogram, classes)
        assert len(np.unique(table)) <= classes
        best = float((histogram * (values - table.astype(float)) ** 2).sum())
        for _ in range(50):
            label = np.searchsorted(np.sort(rng.choice(255, classes - 1, replace=False)), values)
            total = np.bincount(label, histogram)
            mean = np.bincount(label, histogram * values) / np.maximum(total, 1)
            # Rounding the means to 8 bits may cost up to a quarter per pixel.
            assert best <= float((histogram * (values - mean[label]) ** 2).sum()) + 0.25 * histogram.sum()


def test_the_denoiser_removes_noise() -> None:
    """On a smooth picture most of the noise is gone, and the result is nearer to the clean one."""
    ramp = np.linspace(40, 200, 96)
    image = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], 120 + np.zeros((96, 96))], -1)
    clean = image.astype(np.uint8)
    for level in LEVELS:
        assert mse(distort(clean, "denoise", level), clean) < 0.2 * 65025 * noise.DENOISED_VARIANCE[level - 1]
