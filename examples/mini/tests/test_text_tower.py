"""Contrastive tuning on tiny synthetic photos made here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captions import class_scene, class_scenes
from open_clip.model import CLIP
from photos import (
    NIGHT,
    Photo,
    PhotoFeatures,
    encode_photos,
    image_tower,
    is_night,
    night_view,
    read_photos,
    views_of,
)
from PIL import Image
from text_tower import (
    ContrastiveConfig,
    DualEncoder,
    hold_out,
    multi_positive_nce,
    train_dual_encoder,
)
from torch.nn import functional as F

from grmp_score.config import SCENES
from grmp_score.errors import ConfigError, DataError
from grmp_score.model.clip import build_clip

VISION_CFG: dict[str, Any] = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 64}
TEXT_CFG: dict[str, Any] = {"context_length": 32, "vocab_size": 1024, "width": 64, "heads": 2, "layers": 1}
CONFIG = ContrastiveConfig(steps=60, n_class=8, n_kind=4, lr=3e-3, holdout=0.3)
# Ten classes of each of four scenes; photos of one scene share a colour, which can be learned.
COLOURS = {
    "animal": (170, 90, 60),
    "cityscape": (120, 120, 130),
    "plant": (60, 170, 60),
    "human": (230, 180, 200),
}


def class_ids(scene: str, n: int) -> list[str]:
    """The first `n` ImageNet classes of a scene."""
    return [wordnet_id for wordnet_id, known in class_scenes().items() if known.scene == scene][:n]


@pytest.fixture(scope="module")
def pairs_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noisy one-colour photos with class names."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "wordnet_id"])
        for scene, colour in COLOURS.items():
            for w in class_ids(scene, 10):
                pixels = np.clip(rng.normal(colour, 12, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{w}.png")
                writer.writerow([f"{w}.png", f"thing {w[-3:]}", w])
    return folder / "pairs.csv"


@pytest.fixture(scope="module")
def vision_state() -> dict[str, torch.Tensor]:
    """A random image tower."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = CLIP(embed_dim=8, vision_cfg=VISION_CFG, text_cfg=TEXT_CFG).visual.state_dict()
    return {k: v for k, v in state.items() if k != "proj"}


@pytest.fixture(scope="module")
def cached(pairs_csv: Path, vision_state: dict[str, torch.Tensor]) -> PhotoFeatures:
    """What the image tower says about two views of every photo."""
    tower = image_tower(VISION_CFG, vision_state, [1, 2])
    return encode_photos(tower, read_photos(pairs_csv), size=32, views=2, seed=0)


@pytest.fixture(scope="module")
def trained(pairs_csv: Path, vision_state: dict[str, torch.Tensor]) -> DualEncoder:
    """One tiny dual encoder that several tests look at."""
    options: dict[str, Any] = {"readout_blocks": [1, 2], "text_cfg": TEXT_CFG, "embed_dim": 16, "config": CONFIG}
    return train_dual_encoder(VISION_CFG, vision_state, pairs_csv, **options, seed=3, views=3)


def test_result_is_a_model_of_this_package(trained: DualEncoder) -> None:
    """Configuration and weights make a model by strict loading, also after a JSON round trip."""
    model_cfg = json.loads(json.dumps(trained.model_cfg))
    assert model_cfg["readout_blocks"] == [1, 2]
    build_clip(model_cfg).load_state_dict(trained.state_dict, strict=True)
    assert all(v.dtype == torch.float32 for v in trained.state_dict.values())


def test_image_tower_is_unchanged(trained: DualEncoder, vision_state: dict[str, torch.Tensor]) -> None:
    """The image tower comes back bit for bit; only its head is new."""
    for name, tensor in vision_state.items():
        if not name.startswith("ln_post."):
            assert torch.equal(trained.state_dict[f"visual.{name}"], tensor)
    assert trained.state_dict["visual.ln_post.weight"].shape == (256,)
    assert trained.state_dict["visual.proj"].shape == (256, 16)


def test_scenes_are_learned(trained: DualEncoder) -> None:
    """On photos of classes never seen, scenes told apart by colour are recognised far above chance."""
    report = trained.report
    assert report["held_out"] == 12
    assert report["majority_rate"] == pytest.approx(0.25)
    assert report["scene_accuracy"] >= 0.75
    assert report["balanced_accuracy"] == pytest.approx(np.mean(list(report["scene_recall"].values())))
    assert set(report["scene_recall"]) == set(COLOURS)
    json.dumps(report)


def test_same_seed_same_weights(
    pairs_csv: Path, vision_state: dict[str, torch.Tensor], cached: PhotoFeatures
) -> None:
    """The same seed gives the same weights whatever the global random state; another seed gives others."""
    short = ContrastiveConfig(steps=3, n_class=4, n_kind=2)

    def train(seed: int) -> DualEncoder:
        torch.rand(7)
        options: dict[str, Any] = {"readout_blocks": [1, 2], "text_cfg": TEXT_CFG, "embed_dim": 8, "config": short}
        return train_dual_encoder(VISION_CFG, vision_state, pairs_csv, **options, features=cached, seed=seed)

    first, again, other = train(3), train(3), train(4)
    assert all(torch.equal(again.state_dict[k], v) for k, v in first.state_dict.items())
    assert again.report == first.report
    assert not torch.equal(other.state_dict["token_embedding.weight"], first.state_dict["token_embedding.weight"])


def test_progress_counts_every_stage_to_its_end(
    pairs_csv: Path, vision_state: dict[str, torch.Tensor], cached: PhotoFeatures
) -> None:
    """Features at hand replace the image tower's run."""
    seen: list[tuple[str, int, int]] = []
    result = train_dual_encoder(
        *(VISION_CFG, vision_state, pairs_csv),
        readout_blocks=[1, 2],
        text_cfg=TEXT_CFG,
        embed_dim=8,
        config=ContrastiveConfig(steps=2, n_class=4, n_kind=2),
        features=cached,
        progress=lambda *event: seen.append(event),
    )
    assert seen == [("measure", 1, 2), ("measure", 2, 2), ("fit", 1, 2), ("fit", 2, 2)]
    assert result.report["views"] == 2


def test_unsuitable_arguments(
    pairs_csv: Path, vision_state: dict[str, torch.Tensor], cached: PhotoFeatures
) -> None:
    """A too wide common space and features of other photos are refused."""
    options: dict[str, Any] = {"readout_blocks": [1, 2], "text_cfg": TEXT_CFG}
    arguments = (VISION_CFG, vision_state, pairs_csv)
    with pytest.raises(ConfigError, match="embed_dim"):
        train_dual_encoder(*arguments, **options, embed_dim=257, features=cached)
    wrong = PhotoFeatures(torch.zeros(3, 1, 256), torch.ones(3, 1, 9, dtype=torch.bool))
    with pytest.raises(ConfigError, match="expected 40 photos"):
        train_dual_encoder(*arguments, **options, embed_dim=8, features=wrong)


def test_loss_with_one_positive_each_is_clips() -> None:
    """With a diagonal truth the loss is CLIP's symmetric cross-entropy."""
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(multi_positive_nce(logits, torch.eye(5, dtype=torch.bool)), expected)


def test_loss_shares_the_target_and_skips_empty_rows() -> None:
    """Targets are uniform over the positives, by hand in NumPy; rows and columns without any do not count."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3))
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool)
    weight = np.array([1.0, 3.0, 7.0, 2.0])

    def rows(z: Any, t: Any) -> Any:
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        return np.array([-log_p[i][t[i]].mean() if t[i].any() else 0.0 for i in range(len(z))])

    to_text = (rows(logits, truth) * weight)[[0, 1, 3]].sum() / weight[[0, 1, 3]].sum()
    to_image = rows(logits.T, truth.T)[:2].mean()
    got = multi_positive_nce(torch.tensor(logits), torch.tensor(truth), torch.tensor(weight))
    assert got.item() == pytest.approx((to_text + to_image) / 2)


def test_loss_without_any_positive_is_zero() -> None:
    """If nothing is true of anything there is nothing to learn, and no NaN."""
    assert multi_positive_nce(torch.randn(3, 2), torch.zeros(3, 2, dtype=torch.bool)).item() == 0.0


def test_smoothing_spreads_the_target() -> None:
    """With full smoothing the target is uniform, whatever is true."""
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(3, 3, dtype=torch.bool)
    smooth = multi_positive_nce(logits, torch.eye(3, dtype=torch.bool), smoothing=1.0)
    assert torch.allclose(smooth, multi_positive_nce(logits, everything))


def test_hold_out_takes_whole_classes_of_every_scene() -> None:
    """Held-out classes come from every scene, none is split, and the seed decides which."""
    ids = [w for scene in COLOURS for w in class_ids(scene, 10)]
    photos = [Photo(Path(f"{w}-{copy}.png"), w, w) for w in ids for copy in range(2)]
    chosen = hold_out(photos, 0.2, seed=0)
    inside = {photos[i].wordnet_id for i in chosen}
    assert len(chosen) == 16
    assert len(inside) == 8
    assert {class_scene(w).scene for w in inside} == set(COLOURS)
    assert chosen == hold_out(photos, 0.2, seed=0) != hold_out(photos, 0.2, seed=1)


def test_views_are_reproducible_and_labelled(pairs_csv: Path) -> None:
    """Views depend on seed and index only; outdoors the last one is printed as night and says so."""
    photos = read_photos(pairs_csv)
    animal, city = photos[0], photos[10]
    first, truth = views_of(animal, 0, views=8, size=32, seed=0)
    assert first.shape == (8, 3, 32, 32)
    assert first.dtype == np.float32
    assert np.array_equal(first, views_of(animal, 0, views=8, size=32, seed=0)[0])
    assert not np.array_equal(first[2:], views_of(animal, 0, views=8, size=32, seed=1)[0][2:])
    assert truth[:, SCENES.index("animal")].all()
    assert truth.sum() == 8
    dark, truth = views_of(city, 10, views=4, size=32, seed=0)
    assert truth[:, NIGHT].tolist() == [False, False, False, True]
    assert dark[3].mean() < dark[2].mean() - 0.5


def test_night_is_dark() -> None:
    """A dark photo counts as night, a day photo does not until it is printed as night."""
    day = Image.new("RGB", (32, 32), (140, 150, 160))
    assert not is_night(day)
    assert is_night(night_view(day, np.random.default_rng(0)))
    assert is_night(Image.new("RGB", (32, 32), (20, 20, 30)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,text\na.png,cat\n", "missing column wordnet_id"),
        ("image,text,wordnet_id\n", "no pairs"),
        ("image,text,wordnet_id\na.png,cat,n1\n", "n1"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    """A list without a column, without rows or with an unknown class is refused with the reason."""
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_photos(tmp_path / "pairs.csv")
