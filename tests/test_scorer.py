"""`Scorer`: the same image always scores the same, and one bad file never ends a run."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import grmp_score
from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, ImageReadError
from grmp_score.model.quality_clip import p_high
from grmp_score.pipeline.inference import GPU_PASS, in_passes, of_pass_size, on_all_cores
from grmp_score.score import FailedScore, Score
from grmp_score.scorer import Scorer, ScorerOptions
from grmp_score.weights.folder import Weights

from .conftest import Photo, make_photo, patch_tensor, random_weights


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """A scorer with the tiny random model."""
    return Scorer(tiny_weights, device="cpu", workers=2)


@pytest.fixture
def images(photo: Photo) -> list[Image.Image]:
    """Twelve different pictures of several sizes."""
    return [photo(40 + 3 * i, 35 + 7 * (i % 5), seed=i) for i in range(12)]


def test_score_is_the_models_mean(scorer: Scorer, photo: Photo) -> None:
    """The value is the mean of p(high) over the patches that the preprocessing cuts."""
    image = photo()
    with torch.inference_mode():
        patches = patch_tensor(image, scorer.preprocess).split(1)
        by_hand = p_high(torch.cat([scorer.model(patch) for patch in patches]).double())
    score = scorer.score(image)
    assert score.patch_values == pytest.approx(by_hand.tolist(), abs=1e-5)
    assert score.value == pytest.approx(statistics.mean(score.patch_values), abs=1e-12)
    assert (score.width, score.height, score.path, score.error) == (80, 60, None, None)
    assert score.value is not None and 0 <= score.value <= 1


def test_scores_differ_between_pictures(scorer: Scorer, images: list[Image.Image]) -> None:
    """The random model is no constant, so that the equalities below mean something."""
    values = [score.value for score in scorer.score_many(images)]
    assert len(set(values)) == 12
    assert statistics.stdev(v for v in values if v is not None) > 0.01


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
@pytest.mark.parametrize("workers", [1, 4])
def test_an_image_scores_the_same_in_any_company(
    tiny_weights: Weights, scorer: Scorer, images: list[Image.Image], batch_size: int, workers: int
) -> None:
    """Alone, in any batch, in any order and with any number of threads the score is exactly the same."""
    alone = [scorer.score(image) for image in images]
    other = Scorer(tiny_weights, device="cpu", batch_size=batch_size, workers=workers)
    assert list(other.score_many(images)) == alone
    order = torch.randperm(12, generator=torch.Generator().manual_seed(batch_size)).tolist()
    assert list(other.score_many(images[i] for i in order)) == [alone[i] for i in order]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_cores_changes_nothing(scorer: Scorer, images: list[Image.Image], threads: int) -> None:
    """Scores are exactly the same whatever number of threads torch may use, and that number is left as it was."""
    before = torch.get_num_threads()
    expected = list(scorer.score_many(images))
    try:
        torch.set_num_threads(threads)
        assert list(scorer.score_many(images)) == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_begins_meanwhile_may_use_all_cores() -> None:
    """That the model computes each patch on one core is no other thread's concern."""
    before, seen = torch.get_num_threads(), []

    def compute(item: torch.Tensor) -> torch.Tensor:
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        return item

    try:
        torch.set_num_threads(2)
        on_all_cores(compute, torch.zeros(4, 1).split(1))
    finally:
        torch.set_num_threads(before)
    assert seen == [2] * 4


def test_a_failing_pass_leaves_the_number_of_threads() -> None:
    """When the model raises, torch still has its threads back."""

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no model")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="no model"):
            on_all_cores(fail, torch.zeros(4, 1).split(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_pass_of_a_gpu_has_one_size() -> None:
    """Patches are passed on in their order; what fills the last pass stands behind them."""
    gpu, patches = torch.device("cuda"), torch.arange(1.0, GPU_PASS + 8).view(-1, 1, 1, 1)
    parts = in_passes(lambda part: part, patches, gpu)
    passes = [of_pass_size(part, gpu) for part in parts]
    assert {len(filled) for filled in passes} == {GPU_PASS}
    assert torch.equal(torch.cat([f[: len(p)] for f, p in zip(passes, parts, strict=True)]), patches)
    assert not passes[-1][len(parts[-1]) :].any()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_an_image_scores_the_same_in_any_company(
    tiny_weights: Weights, scorer: Scorer, images: list[Image.Image], precision: str
) -> None:
    """Alone and in any batch the score is exactly the same, and near that of the CPU."""
    one = Scorer(tiny_weights, device="cuda", precision=precision)
    alone = [one.score(image) for image in images]
    for batch_size in (1, 5, 100):
        other = Scorer(tiny_weights, device="cuda", precision=precision, batch_size=batch_size)
        assert list(other.score_many(images)) == alone
    expected = [scorer.score(image).value for image in images]
    assert [s.value for s in alone] == pytest.approx(expected, abs=1e-4 if precision == "float32" else 2e-2)


def test_a_joined_pass_agrees(scorer: Scorer, images: list[Image.Image]) -> None:
    """Patches of many images in one pass, as on a GPU, give the same numbers to rounding."""
    patches = torch.cat([patch_tensor(image, scorer.preprocess) for image in images])
    with torch.inference_mode():
        together = p_high(scorer.model(patches).double()).view(12, -1).mean(dim=1)
    alone = [score.value for score in scorer.score_many(images)]
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["a.png", "b.bmp", "c.tiff", "d.ppm", "e.webp", "no extension"])
def test_name_and_lossless_format_do_not_matter(scorer: Scorer, photo: Photo, tmp_path: Path, name: str) -> None:
    """The same pixels score the same under any name and in any lossless format."""
    path = tmp_path / name
    fmt = {"bmp": "BMP", "tiff": "TIFF", "ppm": "PPM", "webp": "WEBP"}.get(name.split(".")[-1], "PNG")
    photo().save(path, fmt, **({"lossless": True} if fmt == "WEBP" else {}))
    from_file, from_memory = scorer.score(path), scorer.score(photo())
    assert dataclasses.replace(from_file, path=None, content_hash=None) == from_memory
    assert from_file.path == str(path)
    assert from_file.content_hash == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_upright_size_and_score(scorer: Scorer, photo: Photo) -> None:
    """A turned photo with its EXIF tag scores as the upright one, with the upright size."""
    image = photo(80, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    turned = scorer.score(buffer.getvalue())
    assert dataclasses.replace(turned, content_hash=None) == scorer.score(image)
    assert (turned.width, turned.height) == (80, 60)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_statistics(values: list[float]) -> None:
    """Mean, sample deviation and standard error are those of the patch values; equal ones tell no error."""
    score = Score.from_patches(tuple(values), path="x", width=1, height=2)
    assert score.value == pytest.approx(statistics.fmean(values), abs=1e-12)
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    assert score.std == pytest.approx(std, abs=1e-9)
    if len(set(values)) > 1:
        assert score.standard_error == pytest.approx(std / math.sqrt(len(values)), abs=1e-9)
    else:
        assert score.standard_error is None
    assert score.patch_values == tuple(values)
    assert min(values) - 1e-15 <= score.value <= max(values) + 1e-15


def test_an_image_no_larger_than_a_patch_has_no_standard_error(scorer: Scorer, photo: Photo) -> None:
    """All its patches are the same, which says nothing about how sure the score is."""
    score = scorer.score(photo(20, 20))
    assert (score.std, score.standard_error) == (0.0, None) and len(score.patch_values) == 4
    assert scorer.score(photo(33, 32, seed=1)).standard_error is not None


def test_short_readable_representations(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """A number with its spread, the words that are known, and the name."""
    photo().save(tmp_path / "a.png")
    score = scorer.score(tmp_path / "a.png")
    assert repr(score) == f"Score({score.value:.3f} ± {score.standard_error:.3f}, {str(tmp_path / 'a.png')!r})"
    assert repr(Score(0.5, verdict="good")) == "Score(0.500, good)"
    assert repr(scorer) == "Scorer('tiny', 4 patches, device 'cpu')"


# -------------------------------------------------------------------------- errors


def test_errors_are_values_in_order(scorer: Scorer, photo: Photo, tmp_path: Path) -> None:
    """Bad files give the reason, in their place; the rest is scored."""
    good = tmp_path / "good.png"
    photo().save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "empty.jpg").touch()
    names = ["missing.png", "good.png", "cut.png", "good.png", "text.jpg", "empty.jpg", "good.png", "."]
    scores = list(scorer.score_many(tmp_path / name for name in names))
    assert [score.path for score in scores] == [str(tmp_path / name) for name in names]
    for name, score in zip(names, scores, strict=True):
        if name == "good.png":
            assert isinstance(score, Score) and score.value == scorer.score(good).value and score.error is None
        else:
            assert isinstance(score, FailedScore) and score.error
            with pytest.warns(DeprecationWarning, match="isinstance"):  # as in version 0.1
                assert score.value is None
            assert str(tmp_path) not in score.error
    assert scores[0].error == "no such file"


def test_only_bad_inputs(scorer: Scorer) -> None:
    """A stream without one readable image, and an empty one, end in order."""
    failed = list(scorer.score_many(["/no/1.png", b"", b"x", None]))  # type: ignore[list-item]
    assert [type(score) for score in failed] == [FailedScore] * 4
    assert list(scorer.score_many([])) == []


def test_a_single_bad_image_raises(scorer: Scorer, tmp_path: Path) -> None:
    """Asked for one image, the scorer raises."""
    with pytest.raises(ImageReadError, match="no such file"):
        scorer.score(tmp_path / "x.png")


# ----------------------------------------------------------------------- streaming


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 2)])
def test_streaming_is_lazy_and_bounded(tiny_weights: Weights, photo: Photo, batch_size: int, workers: int) -> None:
    """Nothing is read before the first score is asked for, and never more than a few images ahead."""
    scorer = Scorer(tiny_weights, device="cpu", batch_size=batch_size, workers=workers)
    image, taken = photo(), 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield image

    stream = scorer.score_many(endless())
    assert taken == 0
    for given_back in range(1, 30):
        next(stream)
        assert taken - given_back <= workers + 2 * batch_size
    stream.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("grmp-score-read")]


def test_a_failing_source_is_not_swallowed(scorer: Scorer, photo: Photo) -> None:
    """An error of the caller's own iterator reaches the caller, and the threads end."""

    def failing() -> Iterator[Image.Image]:
        yield photo()
        raise RuntimeError("the list is broken")

    with pytest.raises(RuntimeError, match="the list is broken"):
        list(scorer.score_many(failing()))
    assert not [t for t in threading.enumerate() if t.name.startswith("grmp-score-read")]


# ------------------------------------------------------------------------ settings


@pytest.mark.parametrize("background", ["nonsense", (1, 2), (0, 0, 256), "#12345"])
def test_a_background_that_is_no_colour_is_refused_at_once(background: Any) -> None:
    """Before any image is read."""
    with pytest.raises(ConfigError, match="unknown colour"):
        Scorer(background=background)


def test_the_spelling_of_a_background_does_not_matter(tiny_weights: Weights) -> None:
    """One colour has one key, and white the key that it has always had."""
    keys = {Scorer(tiny_weights, background=b).settings_key for b in ("white", "#FFFFFF", "#fff", (255, 255, 255))}
    assert len(keys) == 1 and Scorer(tiny_weights).background == "white"
    assert Scorer(tiny_weights, background="black").background == "#000000"


def test_options_together_and_single_ones(tiny_weights: Weights) -> None:
    """Single ones win; one that does not exist is named."""
    options = ScorerOptions(device="cpu", patches=3, workers=2)
    scorer = Scorer(tiny_weights, options, patches=5)
    assert scorer.options == dataclasses.replace(options, patches=5)
    assert (scorer.preprocess.patches, scorer.workers) == (5, 2)
    with pytest.raises(TypeError, match="patchs"):
        Scorer(tiny_weights, patchs=5)


def test_patches_override(tiny_weights: Weights, photo: Photo, tmp_path: Path) -> None:
    """Another number of patches is used and saved, and leaves the weights it was made of."""
    scorer = Scorer(tiny_weights, device="cpu", patches=7)
    assert len(scorer.score(photo()).patch_values) == 7
    assert scorer.config.preprocess.patches == 4 and tiny_weights.config.preprocess.patches == 4
    again = Scorer.from_pretrained(scorer.save_pretrained(tmp_path / "w"), device="cpu")
    assert again.score(photo()) == scorer.score(photo())
    back = Scorer.from_pretrained(tmp_path / "w", device="cpu", patches=4)
    assert back.score(photo()) == Scorer(tiny_weights, device="cpu").score(photo())


def test_a_center_layout_with_more_patches(tiny_config: ModelConfig, photo: Photo) -> None:
    """More patches than the one in the middle become random ones."""
    preprocess = dataclasses.replace(tiny_config.preprocess, patches=1, layout="center")
    weights = random_weights(dataclasses.replace(tiny_config, preprocess=preprocess))
    one, more = Scorer(weights, device="cpu"), Scorer(weights, device="cpu", patches=3)
    assert len(one.score(photo()).patch_values) == 1 and one.score(photo()).std == 0.0
    assert len(more.score(photo()).patch_values) == 3


@pytest.mark.parametrize("setting", ["patches", "batch_size", "workers"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_below_one(tiny_weights: Weights, setting: str, value: int) -> None:
    """Zero patches, images or threads are refused."""
    with pytest.raises(ConfigError, match="at least"):
        Scorer(tiny_weights, device="cpu", **{setting: value})  # type: ignore[arg-type]


def test_devices(tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown device, and one that is not there, are refused; auto takes the best that is there."""
    with pytest.raises(ConfigError, match="unknown device 'gpu0'"):
        Scorer(tiny_weights, device="gpu0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ConfigError, match="no usable") as caught:
            Scorer(tiny_weights, device=name)
        assert "cpu" in str(caught.value.hint)
    assert Scorer(tiny_weights).device == torch.device("cpu")


def test_the_model_is_frozen(scorer: Scorer) -> None:
    """Scoring weights do not ask for gradients."""
    assert not any(p.requires_grad for p in scorer.model.parameters()) and not scorer.model.training


# -------------------------------------------------------------------------- import


def test_import_is_light() -> None:
    """Importing the package loads neither torch nor open_clip nor the Hub's client; asking for Scorer does."""
    code = (
        "import sys, grmp_score; dir(grmp_score); "
        "heavy = {'torch', 'open_clip', 'huggingface_hub', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_public_names() -> None:
    """Everything in `__all__` is there, and nothing that is not."""
    assert grmp_score.Scorer is Scorer and grmp_score.Score is Score
    assert set(grmp_score.__all__) <= set(dir(grmp_score))
    assert all(getattr(grmp_score, name) is not None for name in grmp_score.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Skorer'"):
        _ = grmp_score.Skorer


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("images", ["a.jpg", b"bytes", Path("a.jpg")])
def test_score_many_of_one_image_is_a_mistake(model: str, images: Any) -> None:
    """Its letters are no images."""
    with pytest.raises(ConfigError, match="several images"):
        next(Scorer.from_pretrained(model).score_many(images))


def test_a_file_open_as_text_is_named(model: str) -> None:
    """The reason says how to open it, alone and in a stream."""
    scorer = Scorer.from_pretrained(model)
    with pytest.raises(ImageReadError, match="mode 'rb'"):
        scorer.score(io.StringIO("x"))  # type: ignore[arg-type]
    (failed,) = scorer.score_many([io.StringIO("x")])  # type: ignore[list-item]
    assert isinstance(failed, FailedScore) and "mode 'rb'" in failed.error


# ------------------------------------------------------------- the caller's process


@pytest.mark.parametrize("threads", [1, 2])
def test_the_caller_s_state_of_torch_changes_no_score(model: str, threads: int) -> None:
    """Autocast, another default type, gradients switched off: the same value, and the state is as it was."""
    photo, usual = make_photo(60, 50), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        wanted = Scorer.from_pretrained(model).score(photo).value
        old = Scorer.from_pretrained(model)
        for dtype in (torch.float64, torch.bfloat16, torch.float32):
            torch.set_default_dtype(dtype)
            with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                assert old.score(photo).value == wanted == Scorer.from_pretrained(model).score(photo).value
                assert torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
            assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(usual)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_forks_after_scoring(model: str) -> None:
    """Both the scorer that was made before and a new one work in the child, as gunicorn --preload needs it."""
    code = f"""
import multiprocessing, torch
torch.set_num_threads(2)
from grmp_score import Scorer
from PIL import Image
photo = Image.new("RGB", (900, 700), "teal")
scorer = Scorer.from_pretrained({model!r}, patches=4)
wanted = scorer.score(photo).value

def score(new):
    return (Scorer.from_pretrained({model!r}, patches=4) if new else scorer).score(photo).value

with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(score, [False, True, False, True]).get(60)
assert found == [wanted] * 4, (found, wanted)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=90
    )
    assert result.returncode == 0, result.stderr
