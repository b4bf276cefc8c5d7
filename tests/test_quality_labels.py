"""Quality labels: orientation of the metrics, properties of the ranking, and severity."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from grmp_score.trainer.data.distortions import DISTORTIONS, LEVELS, distort
from grmp_score.trainer.data.quality_labels import METRICS, full_reference_scores, rank_labels

# Whole numbers keep the monotone maps below exact, so that they neither merge nor split ties.
columns = st.integers(1, 12).flatmap(
    lambda n: st.lists(arrays(np.float64, n, elements=st.integers(-9, 9)), min_size=1, max_size=4)
)


def photo(seed: int = 0, side: int = 128) -> NDArray[np.uint8]:
    """A photo-like picture: 1/f texture in three channels over smooth shading, with sharp coloured discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1
    picture = np.empty((side, side, 3))
    for c in range(3):
        texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency, (side, side))
        picture[..., c] = 0.45 + 0.2 * x - 0.1 * y + 0.08 * texture / texture.std()
    for _ in range(6):
        cy, cx, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.2)
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        picture[inside] = 0.6 * rng.uniform(0, 1, 3) + 0.4 * picture[inside]
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def test_every_metric_prefers_the_reference_and_names_its_scores() -> None:
    """A copy of the reference scores higher than a blurred and a noisy version under each metric."""
    image = photo()
    versions = [image, distort(image, "gaussian_blur", 2), distort(image, "white_noise", 2)]
    scores = full_reference_scores(image, versions)
    assert list(scores) == list(METRICS)
    for values in scores.values():
        assert values.shape == (3,) and values.dtype == np.float64
        assert values[0] > values[1] and values[0] > values[2]


@pytest.mark.parametrize("name", ["color_saturation_1", "color_saturation_2", "color_diffusion"])
def test_every_metric_sees_colour(name: str) -> None:
    """Distortions that touch hardly anything but colour lower every metric."""
    image = photo()
    for values in full_reference_scores(image, [image, distort(image, name, 4)]).values():
        assert values[0] > values[1]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["gaussian_blur", "lens_blur", "white_noise", "impulse_noise", "jpeg", "jpeg2000"])
def test_labels_fall_with_every_level(name: str, seed: int) -> None:
    """For blur, noise and compression a higher level has a lower label, even among the other types."""
    image = photo(seed)
    others = [distort(image, other, 3) for other in ("darken", "pixelate", "color_shift")]
    labels = rank_labels(full_reference_scores(image, [distort(image, name, x) for x in LEVELS] + others))
    assert np.all(np.diff(labels[: len(LEVELS)]) < 0), labels


def test_every_distortion_type_falls_from_mild_to_worst() -> None:
    """Level 1 of each type is labelled better than its level 5, among all types together."""
    image = photo()
    versions = [distort(image, name, level) for name in DISTORTIONS for level in (1, 5)]
    labels = rank_labels(full_reference_scores(image, versions)).reshape(-1, 2)
    failed = [name for name, (mild, worst) in zip(DISTORTIONS, labels, strict=True) if not mild > worst]
    assert not failed


def test_an_image_scores_the_same_alone_and_in_any_company() -> None:
    """Chunks of the batch leave no trace: scores do not depend on the other versions."""
    image = photo()
    versions = [distort(image, "jpeg", 1 + i % 5, seed=i) for i in range(11)]
    together = full_reference_scores(image, versions)
    alone = full_reference_scores(image, versions[10:])
    for name in METRICS:
        np.testing.assert_allclose(together[name][10], alone[name][0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (700, 401)])
def test_odd_flat_and_large_images_have_finite_scores(shape: tuple[int, int]) -> None:
    """Sizes that no whole factor divides, and images without any structure, give finite scores."""
    flat = np.full((*shape, 3), 255, dtype=np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for reference in (flat, noisy):
        for values in full_reference_scores(reference, [flat, noisy, np.zeros_like(flat)]).values():
            assert np.isfinite(values).all()


def test_no_versions_give_no_scores_and_no_labels() -> None:
    """An empty list is answered by empty arrays."""
    scores = full_reference_scores(photo(), [])
    assert all(values.shape == (0,) for values in scores.values())
    assert rank_labels(scores).shape == (0,)


def test_images_of_another_shape_or_type_are_refused() -> None:
    """The message names the image, what was expected and what was got."""
    image = photo()
    with pytest.raises(ValueError, match=r"distorted image 1: expected the reference's shape \[128, 128, 3\]"):
        full_reference_scores(image, [image, image[:64]])
    with pytest.raises(ValueError, match=r"reference: expected an RGB uint8 array.*got float64"):
        full_reference_scores((image / 255).astype(np.float64), [image])
    with pytest.raises(ValueError, match="at least 32x32"):
        full_reference_scores(image[:20], [image[:20]])


def test_without_piq_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing optional package is an ImportError with the command that installs it."""
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(ImportError, match=r"pip install 'grmp_score\[train\]'"):
        full_reference_scores(photo(), [photo()])


@given(columns)
def test_labels_are_bounded_below_the_reference(values: list[NDArray[np.float64]]) -> None:
    """Labels lie in [0, 1 - 1/n] and their mean is that of the ranks, whatever the scores."""
    labels = rank_labels({str(i): column for i, column in enumerate(values)})
    n = len(values[0])
    assert labels.shape == (n,)
    assert labels.min() >= 0 and labels.max() <= 1 - 1 / n + 1e-12
    assert labels.mean() == pytest.approx((n - 1) / (2 * n))


@given(columns)
def test_only_the_order_within_a_metric_counts(values: list[NDArray[np.float64]]) -> None:
    """Any strictly increasing map of a metric leaves the labels as they are."""
    plain = rank_labels({str(i): column for i, column in enumerate(values)})
    mapped = rank_labels({str(i): np.exp(column / (i + 2)) * 7 - 3 for i, column in enumerate(values)})
    np.testing.assert_allclose(plain, mapped, atol=1e-12)


@given(columns, st.integers(0, 999))
def test_the_order_of_versions_does_not_matter(values: list[NDArray[np.float64]], seed: int) -> None:
    """Permuting the versions permutes the labels."""
    order = np.random.default_rng(seed).permutation(len(values[0]))
    plain = rank_labels({str(i): column for i, column in enumerate(values)})
    moved = rank_labels({str(i): column[order] for i, column in enumerate(values)})
    np.testing.assert_allclose(plain[order], moved, atol=1e-12)


def test_a_known_case_with_ties() -> None:
    """Ties share their mean rank and the mean is taken over metrics."""
    labels = rank_labels({"a": np.array([1.0, 1.0, 5.0, 3.0]), "b": np.array([0.0, 2.0, 4.0, 4.0])})
    np.testing.assert_allclose(labels, [(0.5 + 0) / 8, (0.5 + 1) / 8, (3 + 2.5) / 8, (2 + 2.5) / 8])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one metric"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "one length"),
        ({"a": np.zeros((3, 2))}, "one-dimensional"),
        ({"a": np.array([1.0, np.nan])}, "got a with NaN"),
    ],
)
def test_unusable_scores_are_refused(scores: dict[str, NDArray[np.float64]], message: str) -> None:
    """No metric, differing lengths and NaN raise ValueError instead of giving labels."""
    with pytest.raises(ValueError, match=message):
        rank_labels(scores)
