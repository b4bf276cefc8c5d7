"""The bundled model "mini": complete, small, offline, and right about the example photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from grmp_score import Scorer
from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD
from grmp_score.trainer.data.distortions import distort
from grmp_score.weights.folder import BUNDLED

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """The default scorer."""
    return Scorer()


@pytest.fixture(scope="module")
def scores(scorer: Scorer) -> dict[str, float]:
    """Scores of the example photos by file name."""
    return {Path(s.path or "").name: s.value for s in scorer.score_many(sorted(PHOTOS.glob("*.jpg")))}


def test_fits_into_48_megabytes() -> None:
    """All bundled weights together stay under the limit."""
    assert sum(f.stat().st_size for f in BUNDLED.rglob("*") if f.is_file()) < 48e6


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the default scorer opens no socket."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert Scorer().score(PHOTOS / "cat.jpg").error is None


def test_example_photos_are_ordered_as_a_person_would(scores: dict[str, float]) -> None:
    """In every scene the photo as taken scores above its spoilt versions."""
    for name, value in scores.items():
        original = name.split("_")[0].removesuffix(".jpg") + ".jpg"
        if name != original:
            assert scores[original] > value + 0.05, (original, name)


def test_golden_scores(scores: dict[str, float]) -> None:
    """The scores are those recorded when the model was bundled (by tests/golden/README.md's command)."""
    golden = json.loads((Path(__file__).parent / "golden" / "example_photos.json").read_text())
    assert scores.keys() == golden.keys()
    for name, value in scores.items():
        assert value == pytest.approx(golden[name], abs=2e-3), name


def test_int8_is_near(scores: dict[str, float]) -> None:
    """Of the example photos no score moves by a hundredth."""
    for score in Scorer(device="cpu", precision="int8").score_many(sorted(PHOTOS.glob("*.jpg"))):
        assert score.value == pytest.approx(scores[Path(score.path or "").name], abs=0.01), score.path


def test_large_images_may_be_reduced_first(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which moves no score by 0.005: an enlarged photo, and many side by side."""
    photos = [Image.open(file).convert("RGB") for file in sorted(PHOTOS.glob("*.jpg"))]
    tiles = Image.new("RGB", (4096, 3072))
    for i in range(48):
        tiles.paste(photos[i % len(photos)].resize((512, 512)), (i % 8 * 512, i // 8 * 512))
    large = [tiles, photos[-2].resize((4000, 3000), Image.Resampling.LANCZOS)]
    reduced = [scorer.score(image).value for image in large]
    monkeypatch.setattr("grmp_score.model.patches._REDUCING_GAP", 1e9)
    assert reduced == pytest.approx([scorer.score(image).value for image in large], abs=0.005)


def test_results_and_cached_scores_are_still_found() -> None:
    """The checksum in rows of results and the key of cached scores, recorded when the model was bundled."""
    scorer = Scorer()
    assert scorer.checksum == "363f9e97954ac224"
    assert scorer.settings_key.hex() == "8b1740bf7d2fd1db5389e6145109b17c63d7ddda8c2fd95e7769caef09f9324f"


def test_scores_fall_with_severity() -> None:
    """More blur, noise and JPEG mean lower scores, by a clear step."""
    scorer = Scorer(patches=3)
    clean = np.asarray(Image.open(PHOTOS / "astronaut.jpg").convert("RGB"))
    for kind in ("gaussian_blur", "white_noise", "jpeg"):
        values = [scorer.score(clean).value, *(scorer.score(distort(clean, kind, level)).value for level in (3, 5))]
        assert values == sorted(values, reverse=True), (kind, values)
        assert values[0] - values[-1] > 0.1, (kind, values)


def test_stored_text_features_are_current(scorer: Scorer) -> None:
    """The stored text features are what the text tower gives for the stored context."""
    with torch.no_grad():
        assert torch.allclose(scorer.model.encode_quality(), scorer.model.text_features, atol=1e-5)
        assert torch.allclose(scorer.model.encode_scenes(), scorer.model.scene_features, atol=1e-5)


def test_configuration_says_what_it_is(scorer: Scorer) -> None:
    """Percentiles, results, provenance and ImageNet statistics (DINOv2's) are in the configuration."""
    config = scorer.config
    assert config.preprocess.mean == IMAGENET_MEAN and config.preprocess.std == IMAGENET_STD
    assert config.preprocess.patches == 8
    for name in ("clean", "distorted_level_5"):
        percentiles = config.reference_percentiles[name]
        assert len(percentiles) == 101 and percentiles == sorted(percentiles)
    assert config.backbone.sha256 and config.results and config.training["recipe"]


def test_card_is_the_one_in_weights_cards() -> None:
    """The card next to the weights and the one for readers are the same, and its header is the Hub's YAML."""
    from huggingface_hub import ModelCard

    card = (BUNDLED / "mini" / "README.md").read_text(encoding="utf-8")
    assert card == (ROOT / "weights_cards" / "mini.md").read_text(encoding="utf-8")
    data = ModelCard(card).data
    assert data.library_name == "grmp_score" and data.license and data.pipeline_tag
