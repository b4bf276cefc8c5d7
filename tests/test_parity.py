"""The official model's numbers, stage by stage, from a checkpoint file in the authors' layout.

`parity/expected.npz` holds what the authors' own model computed from the weights that
`parity/reference_state.py` generates. The model of 150 million parameters is built twice (once from the
checkpoint, once from the converted folder); what needs no real size is tested with a small architecture.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from grmp_score import weights
from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD, PromptConfig
from grmp_score.errors import WeightsError
from grmp_score.model.quality_clip import p_high
from grmp_score.scorer import Scorer
from grmp_score.weights import official
from grmp_score.weights.official import load_official

from .conftest import make_photo
from .parity import reference_state
from .test_patches import cubic_resize

State = dict[str, Tensor]


def reference() -> State:
    """The reference weights under their official names."""
    arrays = reference_state.state(reference_state.load_manifest())
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the authors' model computed."""
    with np.load(reference_state.HERE / "expected.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def no_random_start() -> Iterator[None]:
    """Leave new modules as they are in memory: the draws take seconds and loading overwrites every tensor."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
            monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, no_random_start: None) -> weights.Weights:
    """The weights read from a real .pt file, which is gone again afterwards."""
    path = tmp_path_factory.mktemp("official") / "clive_50.pt"
    torch.save(reference(), path)
    loaded = load_official(path)
    path.unlink()
    return loaded


@pytest.fixture(scope="module")
def scorer(converted: weights.Weights) -> Scorer:
    """A scorer with the converted weights."""
    return Scorer(converted, device="cpu")


@pytest.fixture(scope="module")
def batch(scorer: Scorer) -> Tensor:
    """The four reference images, normalised as the converted weights say."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (scorer.config.preprocess.mean, scorer.config.preprocess.std)
    )
    return (torch.from_numpy(reference_state.images()) - mean) / std


@pytest.fixture(scope="module")
def image_features(scorer: Scorer, batch: Tensor) -> Tensor:
    """The image features of the four images, computed once."""
    with torch.inference_mode():
        return scorer.model.image(batch)


def test_tokens(scorer: Scorer, expected: dict[str, Tensor]) -> None:
    """The two prompts are tokenised as the authors' code does, full stop included."""
    assert torch.equal(scorer.model.text_prompt.tokens, expected["tokens"].long())


def test_text_features(scorer: Scorer, expected: dict[str, Tensor]) -> None:
    """The text tower with the learned context gives the official features."""
    torch.testing.assert_close(scorer.model.text_features, expected["text_features"], rtol=0, atol=1e-5)


def test_image_features(image_features: Tensor, expected: dict[str, Tensor]) -> None:
    """The image tower with deep prompts, folded, gives the official features."""
    torch.testing.assert_close(image_features, expected["image_features"], rtol=0, atol=1e-5)


def test_logits_and_p_high(scorer: Scorer, image_features: Tensor, expected: dict[str, Tensor]) -> None:
    """Logits and probabilities are the official ones."""
    logits = scorer.model.quality_logits(image_features)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-3)
    torch.testing.assert_close(p_high(logits), expected["p_high"], rtol=0, atol=1e-4)


def test_an_image_file_passes_the_authors_preprocessing(scorer: Scorer, tmp_path: Path) -> None:
    """A file is resized to 244x244 whatever its shape, cut at the centre and normalised by ImageNet."""
    image = make_photo(500, 300, seed=3)
    image.save(tmp_path / "photo.png")
    pixels = cubic_resize(np.asarray(image), 244, 244)[10:234, 10:234]
    by_hand = (pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    patch = torch.from_numpy(by_hand.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.inference_mode():
        wanted = p_high(scorer.model(patch)).item()
    score = scorer.score(tmp_path / "photo.png")
    assert score.value == pytest.approx(wanted, abs=1e-3)
    assert (score.std, len(score.patch_values), score.width, score.height) == (0.0, 1, 500, 300)


def test_converted_folder_gives_identical_logits(
    scorer: Scorer, converted: weights.Weights, batch: Tensor, tmp_path: Path
) -> None:
    """Saving and loading the converted weights changes no tensor, no setting and no logit."""
    folder = scorer.save_pretrained(tmp_path / "converted")
    again = Scorer.from_pretrained(folder, device="cpu")
    assert again.config.preprocess == converted.config.preprocess == official.PREPROCESS
    assert again.config.prompts == converted.config.prompts
    before, after = scorer.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.inference_mode():
        assert torch.equal(again.model(batch[:1]), scorer.model(batch[:1]))
    for file in folder.iterdir():
        file.unlink()  # 600 MB


# ------------------------------------------------- the layout alone, with a small architecture

SMALL_CLIP = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 56, "image_size": 224},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "vocab_size": 600, "context_length": 24},
}


def small_shape(key: str, shape: list[int]) -> list[int]:
    """An official shape with the sizes of `SMALL_CLIP`."""
    vision = key.startswith("image_encoder.")
    sizes = {768: 32, 512: 16 if key == "image_encoder.proj" else 32, 2304: 96, 3072: 128, 1536: 96, 2048: 128}
    sizes |= {100: 5, 197: 17, 11: 2, 49408: 600, 77: 24, 72: 19}
    small = [sizes.get(n, n) for n in shape]
    if key == "text_encoder.text_projection":
        return [32, 16]
    if vision and key.endswith("conv1.weight"):
        return [32, 3, 56, 56]
    return small


def small_state() -> State:
    """A checkpoint in the official layout for `SMALL_CLIP`."""
    manifest = reference_state.load_manifest()
    shapes = {}
    for key, shape in manifest.items():
        parts = key.split(".")
        block = int(parts[parts.index("resblocks") + 1]) if "resblocks" in parts else 0
        if block < (3 if key.startswith("image_encoder.") else 2):
            shapes[key] = small_shape(key, shape)
    return {key: torch.from_numpy(value) for key, value in reference_state.state(shapes).items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A small checkpoint, while conversion believes in the small architecture."""
    monkeypatch.setattr(official, "architecture", lambda name: SMALL_CLIP)
    yield small_state()


def scores(path: Path) -> Tensor:
    """Logits of two patches with a checkpoint file."""
    model = load_official(path).build()
    with torch.inference_mode():
        return model(torch.linspace(-2, 2, 2 * 3 * 224 * 224).reshape(2, 3, 224, 224))


@pytest.mark.parametrize(
    ("wrap", "form"),
    [
        (lambda s: s, "a state_dict"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "names with the prefix 'module.'"),
        (lambda s: {f"module.module.{k}": v for k, v in s.items()}, "names with the prefix 'module.module.'"),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, "prefix '_orig_mod.module.'"),
        (lambda s: {"state_dict": s, "epoch": 3}, "a state_dict in 'state_dict'"),
        (lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}, "a state_dict in 'model', names with"),
        (lambda s: {"model_state_dict": s, "optimizer": {"state": {}, "param_groups": []}}, "'model_state_dict'"),
        (lambda s: {"net": s, "best": np.float64(0.87), "srcc": [np.float32(0.5)]}, "a state_dict in 'net'"),
        (lambda s: {**s, "epoch": 3, "best": np.float64(0.87)}, "with other entries (epoch, best)"),
        (lambda s: {k: v.double() for k, v in s.items()}, "a state_dict"),
        (lambda s: {k: v for k, v in s.items() if "token_" not in k or "embedding" in k}, "a state_dict"),
        (lambda s: {**s, "prompt_learner.ctx": torch.zeros(4, 8)}, "without prompt_learner"),
        (lambda s: module_of(s), "a whole model (tests.test_parity.Module)"),
        (lambda s: {"net": module_of(s), "epoch": 1}, "a whole model (tests.test_parity.Module) in 'net'"),
    ],
)
def test_every_form_of_a_checkpoint(
    small: State, tmp_path: Path, wrap: Callable[[State], object], form: str
) -> None:
    """Wrappers, prefixes, other entries and whole models make no difference to the logits, and are named."""
    torch.save(small, tmp_path / "plain.pt")
    torch.save(wrap(small), tmp_path / "wrapped.pt")
    assert torch.equal(scores(tmp_path / "plain.pt"), scores(tmp_path / "wrapped.pt"))
    assert form in load_official(tmp_path / "wrapped.pt").config.training["form"]


def test_the_file_format_before_zip_archives(small: State, tmp_path: Path) -> None:
    """As written by torch until version 1.5."""
    torch.save(small, tmp_path / "plain.pt")
    torch.save({"state_dict": small}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(scores(tmp_path / "plain.pt"), scores(tmp_path / "old.pt"))


def test_a_checkpoint_of_stage_1_needs_its_base(small: State, tmp_path: Path) -> None:
    """It lacks the token embedding, which is that of the CLIP it was trained on."""
    torch.save(small, tmp_path / "stage2.pt")
    load_official(tmp_path / "stage2.pt").save(tmp_path / "base")
    embedding = small.pop("text_encoder.token_embedding.weight")
    torch.save(small, tmp_path / "stage1.pt")
    with pytest.raises(WeightsError, match="a checkpoint of stage 1, without"):
        load_official(tmp_path / "stage1.pt")
    weights = load_official(tmp_path / "stage1.pt", base=str(tmp_path / "base"))
    assert weights.config.training["form"].startswith("stage 1, a state_dict")
    assert torch.equal(weights.backbone_state()["token_embedding.weight"], embedding)
    assert torch.equal(
        weights.adapter["text_features"], load_official(tmp_path / "stage2.pt").adapter["text_features"]
    )


def test_converted_weights_have_the_authors_scene_words(small: State, tmp_path: Path) -> None:
    """Theirs is `still_life`, with an underscore; the name of a scene changes no checksum."""
    torch.save(small, tmp_path / "x.pt")
    loaded = load_official(tmp_path / "x.pt")
    assert "still_life" in loaded.config.prompts.scenes and "still-life" not in loaded.config.prompts.scenes
    plain = dataclasses.replace(loaded.config.prompts, scenes=PromptConfig().scenes)
    other = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, prompts=plain))
    assert other.checksum() == loaded.checksum()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(90), "a MATLAB file (.mat)"),
        (safetensors.torch.save({"a": torch.zeros(2)}), "a safetensors file"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    """A file of data next to the weights, or weights of another kind."""
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_official(tmp_path / "x.pt")
    assert reason in caught.value.reason


class Module(torch.nn.Module):
    """A model as somebody may have pickled it whole."""


def module_of(state: State) -> torch.nn.Module:
    """A model whose ``state_dict`` is this."""
    root = Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        here: torch.nn.Module = root
        for part in path:
            if part not in here._modules:
                here.add_module(part, Module())
            here = here._modules[part]  # type: ignore[assignment]
        here.register_parameter(leaf, torch.nn.Parameter(tensor))
    return root


def test_prompts_are_folded_as_the_authors_apply_them(small: State, tmp_path: Path) -> None:
    """The shared linear map stands multiplied into the prompts: first block first, bias included."""
    torch.save(small, tmp_path / "x.pt")
    tokens = load_official(tmp_path / "x.pt").adapter["visual_prompts.tokens"]
    weight, bias = (small[f"image_encoder.prompt_proj.{part}"].double().numpy() for part in ("weight", "bias"))
    first, deep = small["image_encoder.prompt_embeddings"], small["image_encoder.deep_prompt_embeddings"]
    for block, prompts in enumerate([first[0], *deep]):
        np.testing.assert_allclose(tokens[block].numpy(), prompts.double().numpy() @ weight.T + bias, atol=1e-5)


def test_a_folder_and_filename_name_a_checkpoint(small: State, tmp_path: Path) -> None:
    """`Scorer.from_pretrained(folder, filename=...)` scores with an official file."""
    torch.save(small, tmp_path / "x.pt")
    scorer = Scorer.from_pretrained(tmp_path, filename="x.pt", device="cpu")
    value = scorer.score(Image.new("RGB", (300, 200), "teal")).value
    assert value is not None and 0 <= value <= 1


class _Bomb:
    """Leaves a mark when its pickle is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_pickle_is_not_executed(small: State, tmp_path: Path, container: str) -> None:
    """Whatever a checkpoint holds besides tensors, nothing in it runs."""
    mark, path = tmp_path / "executed", tmp_path / "evil.pt"
    content = {**small, "epoch": _Bomb(mark)}
    if container == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"epoch": _Bomb(mark)}, protocol=2))
    if container == "torch":
        assert "with other entries (epoch)" in load_official(path).config.training["form"]
    else:
        with pytest.raises(WeightsError, match="not a readable checkpoint") as caught:
            load_official(path)
        assert caught.value.path == str(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Bomb(mark)))
    assert mark.exists(), "the mark is never left, so the test proves nothing"


@pytest.mark.parametrize("content", [b"", b"not a pickle at all", b"PK\x03\x04" + bytes(100)])
def test_damaged_checkpoints(tmp_path: Path, content: bytes) -> None:
    """Files that are no checkpoint at all are named as unreadable."""
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_official(path)
    assert caught.value.path == str(path)


def test_truncated_checkpoint(small: State, tmp_path: Path) -> None:
    """An interrupted copy of a checkpoint is an error."""
    path = tmp_path / "x.pt"
    torch.save(small, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(WeightsError):
        load_official(path)


def test_missing_file(tmp_path: Path) -> None:
    """A missing checkpoint is said to be missing."""
    with pytest.raises(WeightsError, match="no such file"):
        load_official(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": 1}}, 3])
def test_something_else_than_a_state_dict(tmp_path: Path, content: object) -> None:
    """A file that torch reads but that maps no names to tensors is told apart."""
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="not a state_dict"):
        load_official(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("prompt_learner2.ctx", "prompt_learner2.ctx"),
        ("image_encoder.prompt_proj.bias", "image_encoder.prompt_proj.bias"),
        ("image_encoder.prompt_norm.weight", "image_encoder.prompt_norm.weight"),
        ("image_encoder.proj", "visual.proj"),
        ("text_encoder.transformer.resblocks.1.ln_2.bias", "transformer.resblocks.1.ln_2.bias"),
    ],
)
def test_missing_tensors_are_named(small: State, tmp_path: Path, key: str, named: str) -> None:
    """Without one of its tensors a checkpoint is refused by that tensor's name."""
    del small[key]
    torch.save(small, tmp_path / "x.pt")
    with pytest.raises(WeightsError) as caught:
        load_official(tmp_path / "x.pt")
    assert named in caught.value.reason


@pytest.mark.parametrize(
    ("key", "shape", "named"),
    [
        ("prompt_learner2.ctx", (4, 31), "prompt_learner2.ctx"),
        ("prompt_learner2.ctx", (), "prompt_learner2.ctx"),
        ("image_encoder.prompt_embeddings", (5, 32), "image_encoder.prompt_embeddings"),
        ("image_encoder.prompt_embeddings", (), "image_encoder.prompt_embeddings"),
        ("image_encoder.deep_prompt_embeddings", (1, 5, 32), "image_encoder.deep_prompt_embeddings"),
        ("image_encoder.prompt_proj.weight", (32, 31), "image_encoder.prompt_proj.weight"),
        ("image_encoder.prompt_norm.bias", (31,), "visual_prompts.norm.bias"),
        ("text_encoder.ln_final.weight", (31,), "ln_final.weight"),
        ("image_encoder.unheard_of", (1,), "unheard_of"),
    ],
)
def test_misshapen_and_unknown_tensors_are_named(
    small: State, tmp_path: Path, key: str, shape: tuple[int, ...], named: str
) -> None:
    """A tensor of another shape or name than the layout's is refused by name."""
    small[key] = torch.zeros(shape)
    torch.save(small, tmp_path / "x.pt")
    with pytest.raises(WeightsError) as caught:
        load_official(tmp_path / "x.pt")
    assert named in caught.value.reason
