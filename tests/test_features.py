"""What is kept per crop equals what the model computes anew, and every way of keeping it gives the same."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grmp_score.config import Backbone, ModelConfig, Preprocess
from grmp_score.errors import ConfigError, DataError, GrmpScoreError, ImageReadError
from grmp_score.images.read import read_image
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.features import (
    Activations,
    CropReader,
    compute_activations,
    native_precision,
    shared_part,
    teacher_of,
)
from grmp_score.trainer.data.labels import Labels
from grmp_score.weights.folder import Weights

from .conftest import TINY_CLIP, patch_tensor, random_weights, randomise
from .fewshot_data import make_labels


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Five pictures."""
    return make_labels(tmp_path / "pictures", 5)


@pytest.fixture
def model(tiny_weights: Weights) -> QualityCLIP:
    """The tiny model."""
    return tiny_weights.build().requires_grad_(False)


def compute(model: QualityCLIP, labels: Labels, **settings: Any) -> Activations:
    """In float32 and without a teacher unless said otherwise."""
    settings = {"teacher": None, "dtype": torch.float32, **settings}
    return compute_activations(model, labels, CropReader(model.config.preprocess), **settings)


def test_everything_equals_the_model_on_the_scorers_own_crops(
    model: QualityCLIP, tiny_weights: Weights, labels: Labels
) -> None:
    """Tokens, features and the teacher's probabilities of every crop."""
    teacher, _ = teacher_of(tiny_weights)
    found = compute(model, labels, teacher=teacher)
    assert found.tokens is not None and found.scenes is not None and found.plain == 4
    assert found.tokens.shape == (5, 4, 5, 32) and found.features.shape == (5, 4, 16)
    for i, path in enumerate(labels.paths):
        patches = patch_tensor(read_image(path), model.config.preprocess)
        one_by_one = torch.cat([model.image.trunk(patch[None]) for patch in patches])
        assert torch.equal(found.tokens[i], one_by_one)
        torch.testing.assert_close(found.features[i], model.image(patches))
        torch.testing.assert_close(found.features[i], model.image.head(found.tokens[i]))
        p_sem = teacher.scene_logits(teacher.image(patches), teacher.encode_scenes()).softmax(-1)
        torch.testing.assert_close(found.scenes[i], p_sem)
    torch.testing.assert_close(found.scenes.sum(-1), torch.ones(5, 4))


def test_mirrored_crops_follow_the_plain_ones(model: QualityCLIP, labels: Labels) -> None:
    """With flips there are twice as many, and `plain` says where the mirrored ones begin."""
    plain, both = compute(model, labels), compute(model, labels, flips=True)
    assert both.features.shape[1] == 8 and both.plain == 4
    torch.testing.assert_close(both.features[:, :4], plain.features)
    patches = patch_tensor(read_image(labels.paths[2]), model.config.preprocess)
    torch.testing.assert_close(both.features[2, 4:], model.image(patches.flip(-1)))


def test_half_precision_costs_a_thousandth(model: QualityCLIP, labels: Labels) -> None:
    """float16 tokens are those of float32, rounded."""
    exact, half = compute(model, labels).tokens, compute(model, labels, dtype=torch.float16).tokens
    assert exact is not None and half is not None and half.dtype == torch.float16
    assert torch.equal(half, exact.to(torch.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_beyond_the_budget_a_file_holds_the_same(
    model: QualityCLIP, labels: Labels, tmp_path: Path, dtype: torch.dtype
) -> None:
    """The file lies in the given folder and leaves nothing behind."""
    work = tmp_path / "work"
    work.mkdir()
    kept = [compute(model, labels, dtype=dtype, folder=work, cache_bytes=n).tokens for n in (10**6, 0)]
    in_memory, in_file = kept
    assert in_memory is not None and in_file is not None
    assert torch.equal(in_memory, in_file) and in_file.dtype == dtype
    assert list(work.iterdir()) == []


def test_a_full_disk_is_said(
    model: QualityCLIP, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed into the file."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(GrmpScoreError, match=r"no room for 0\.0 GiB of activations: No space left"):
        compute(model, labels, cache_bytes=0, folder=tmp_path)


def test_tokens_that_do_not_fit_are_said(
    model: QualityCLIP, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 ends at 65504; the row is named, and float32 takes them."""
    trunk = model.image.trunk
    monkeypatch.setattr(model.image, "trunk", lambda patches: 1e5 * trunk(patches))
    with pytest.raises(GrmpScoreError, match=r"row 2: .*do not fit torch\.float16"):
        compute(model, labels, dtype=torch.float16)
    assert compute(model, labels).tokens is not None


def test_without_tokens_only_features_are_kept(model: QualityCLIP, labels: Labels) -> None:
    """For training the text side alone."""
    found = compute(model, labels, keep_tokens=False)
    assert found.tokens is None and found.scenes is None
    torch.testing.assert_close(found.features, compute(model, labels).features)


def test_an_unreadable_image_is_named_with_its_row(model: QualityCLIP, labels: Labels) -> None:
    """File, row and reason, in the CSV's name."""
    labels.paths[3].write_bytes(b"no image")
    counted: list[int] = []
    with pytest.raises(DataError, match=r"row 5: the image .*03\.png' cannot be read: ") as caught:
        compute(model, labels, progress=counted.append)
    assert caught.value.path == str(labels.source) and counted == [1, 1, 1]


def test_bfloat16_is_near_float32(model: QualityCLIP, labels: Labels) -> None:
    """And what it gives is stored in float32."""
    exact, fast = compute(model, labels).features, compute(model, labels, precision="bfloat16").features
    assert fast.dtype == torch.float32
    assert 0 < float((exact - fast).abs().max()) < 0.05


def test_images_are_read_in_order_with_errors_as_values(labels: Labels) -> None:
    """Whatever the number of threads."""
    preprocess = Preprocess(patch_size=32, patches=2)
    labels.paths[1].write_bytes(b"")
    for workers in (1, 3):
        read = list(CropReader(preprocess, workers=workers).read(labels.paths))
        assert [isinstance(r, ImageReadError) for r in read] == [False, True, False, False, False]
        last = read[4]
        assert isinstance(last, torch.Tensor)
        assert torch.equal(last, patch_tensor(read_image(labels.paths[4]), preprocess))


def test_the_native_precision_is_one_of_two() -> None:
    """And float32 where nothing is known of the device."""
    assert native_precision(torch.device("cpu")) in ("float32", "bfloat16")
    assert native_precision(torch.device("meta")) == "float32"


# ------------------------------------------------------------------------- teacher


def test_the_teacher_is_the_original_encoder_without_prompts(tiny_weights: Weights) -> None:
    """Where the weights hold original and tuned blocks, the teacher has the original ones."""
    original = randomise(QualityCLIP(tiny_weights.config), seed=5).clip.state_dict()
    both = dataclasses.replace(tiny_weights, backbone=original)
    teacher, what = teacher_of(both)
    assert what == "original backbone" and teacher.visual_prompts is None
    assert all(torch.equal(teacher.clip.state_dict()[k], v) for k, v in original.items())
    torch.testing.assert_close(teacher.scene_features, teacher.encode_scenes())
    assert not any(p.requires_grad for p in teacher.parameters())
    student = both.build()
    assert not torch.equal(student.clip.ln_final.weight, teacher.clip.ln_final.weight)


def test_a_teacher_without_originals_says_so(tiny_weights: Weights) -> None:
    """Weights that hold only the adapted blocks lend those."""
    teacher, what = teacher_of(tiny_weights)
    assert what == "start model without visual prompts"
    student = tiny_weights.build()
    for name, value in student.clip.state_dict().items():
        np.testing.assert_array_equal(teacher.clip.state_dict()[name].numpy(), value.numpy())


def test_a_teacher_with_the_same_image_tower_is_not_run_again(
    tiny_config: ModelConfig, labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without visual prompts and adapted image blocks teacher and start model see the same; with other blocks above
    the trunk, the teacher's own go on from the same tokens."""
    config = dataclasses.replace(tiny_config, prompts=dataclasses.replace(tiny_config.prompts, n_visual=0))
    weights = random_weights(config)
    originals = {k: v for k, v in weights.build().state_dict().items() if k.startswith("clip.")}
    original = {k.removeprefix("clip."): v for k, v in originals.items()}
    own = {k: v for k, v in weights.adapter.items() if not k.startswith("clip.")}
    weights = dataclasses.replace(weights, backbone=original, adapter=own)
    model, (teacher, _) = weights.build().requires_grad_(False), teacher_of(weights)

    @torch.no_grad()
    def separately() -> torch.Tensor:
        crops = [patch_tensor(read_image(path), config.preprocess) for path in labels.paths]
        return torch.stack([teacher.scene_logits(teacher.image(c)).softmax(-1) for c in crops])

    def found() -> torch.Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(teacher.image, "trunk", None)
            scenes = compute(model, labels, teacher=teacher).scenes
        assert scenes is not None
        return scenes

    assert shared_part(model, teacher) == "tower"
    torch.testing.assert_close(found(), separately())
    with torch.no_grad():
        teacher.clip.visual.ln_post.bias += 1
        teacher.clip.visual.transformer.resblocks[1].ln_1.bias += 1
    assert shared_part(model, teacher) == "trunk"
    torch.testing.assert_close(found(), separately())
    with torch.no_grad():
        teacher.clip.visual.transformer.resblocks[0].ln_1.bias += 1
    assert shared_part(model, teacher) is None
    with pytest.raises(TypeError):  # another trunk is run, which cannot be here
        found()


def test_another_teacher_can_be_named(tiny_config: ModelConfig, tiny_weights: Weights) -> None:
    """Its base stands in for the originals; the prompts and their words are those of the start model."""
    scenes = ("dog", "house")
    prompts = dataclasses.replace(tiny_config.prompts, scenes=scenes)
    start = random_weights(dataclasses.replace(tiny_config, prompts=prompts))
    original = randomise(QualityCLIP(tiny_config), seed=5).clip.state_dict()
    base = dataclasses.replace(tiny_weights, backbone=original, adapter={})
    teacher, what = teacher_of(start, base)
    assert what == "inline" and teacher.visual_prompts is None and len(teacher.scene_features) == 2
    assert all(torch.equal(teacher.clip.state_dict()[k], v) for k, v in original.items())
    large = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], "image_size": 48}}  # type: ignore[dict-item]
    other = dataclasses.replace(tiny_config, backbone=Backbone(model_cfg=large))
    with pytest.raises(ConfigError, match="takes patches of 48 pixels, but 'tiny' cuts them of 32"):
        teacher_of(start, random_weights(other))
