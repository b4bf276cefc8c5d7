"""Stage 1 from a base model to weights on disk, its plot, and the evaluation of what was learned."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from grmp_score import weights
from grmp_score.config import ModelConfig, PromptConfig
from grmp_score.errors import ConfigError, DataError, GrmpScoreError, WeightsError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.scorer import Scorer
from grmp_score.trainer.data import sources
from grmp_score.trainer.pretrain import pretrain
from grmp_score.trainer.pretrain import run as stage_1
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops, load_crops
from grmp_score.trainer.pretrain.held_out import encode_crops, evaluate_held_out, predict
from grmp_score.trainer.pretrain.meta import LogRow, MetaTrainer
from grmp_score.trainer.pretrain.run import new_model, trained_weights
from grmp_score.weights.folder import Weights

from .cli_tools import run
from .conftest import Photo, make_photo, randomise
from .pretrain_data import CARRIED, FAST, TWO_SETS, assert_equal, state_of, toy_crops

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "stage_1.py"
TWO_PROMPTS = PromptConfig(n_visual=2)


@pytest.fixture(scope="module")
def crops() -> TrainingCrops:
    """Five tasks, five references."""
    return toy_crops()


@pytest.fixture
def base(tiny_config: ModelConfig) -> Weights:
    """Weights with a complete backbone, whose adapter plays no part."""
    model = randomise(QualityCLIP(tiny_config))
    backbone = {k: v.clone() for k, v in model.clip.state_dict().items()}
    return Weights(tiny_config, weights.adapter_of(model, []), backbone, origin="base")


def adapter_in(folder: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of a weights folder."""
    return dict(weights.load(folder).adapter)


# ------------------------------------------------------------------ end to end


@pytest.mark.parametrize("train", ["prompts", "text", "visual", "blocks", "towers"])
def test_the_weights_are_the_trained_model(
    base: Weights, crops: TrainingCrops, tiny_config: ModelConfig, tmp_path: Path, train: Any
) -> None:
    """Folded, rounded, built from memory or from disk: all give what the trained model gives."""
    config = dataclasses.replace(tiny_config, prompts=TWO_PROMPTS, adapted_blocks=1)
    backbone = {k: v.clone() for k, v in base.backbone_state().items()}
    settings = dataclasses.replace(FAST, train=train, block_lr=1e-3)
    trainer = MetaTrainer(new_model(config, base, seed=0), crops, settings)
    list(trainer.run())
    # Independently: a fresh model with theta, unfolded.
    unfolded = new_model(config, base, seed=0)
    with torch.no_grad():
        for name, value in trainer.state.theta.items():
            unfolded.get_parameter(name).copy_(value.half() if name.startswith("clip.") else value)
    unfolded.refresh_text()
    trained = trained_weights(trainer, base)
    built, loaded = trained.build(), weights.load(trained.save(tmp_path / "out")).build()
    assert_equal(state_of(built), state_of(loaded))
    patches = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Folding multiplies in another order, nothing else differs.
        torch.testing.assert_close(built(patches), unfolded.eval()(patches), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(trainer.model(patches), built(patches), atol=0, rtol=0)
        torch.testing.assert_close(built.text_features, built.encode_quality(), atol=1e-6, rtol=0)
        torch.testing.assert_close(built.scene_features, built.encode_scenes(), atol=1e-6, rtol=0)
    assert_equal(backbone, base.backbone_state())  # the base is not touched
    clip_names = {n.removeprefix("clip.") for n in trained.adapter if n.startswith("clip.")}
    assert bool(clip_names) == (train in ("blocks", "towers"))
    both = ("transformer.resblocks.1.", "ln_final.") if train == "towers" else ()
    assert all(n.startswith(("visual.transformer.resblocks.2.", "visual.ln_post.", *both)) for n in clip_names)


def test_the_folder_holds_weights_checkpoint_and_log(
    base: Weights, crops: TrainingCrops, tmp_path: Path, photo: Photo
) -> None:
    """The scorer that is returned is that of the folder; the log has one row per step, as the caller sees them."""
    rows: list[LogRow] = []
    scorer = pretrain(crops, tmp_path / "new", FAST, base=base, device="cpu", on_step=rows.append)
    again = Scorer.from_pretrained(tmp_path / "new", device="cpu")
    assert scorer.score(photo()) == again.score(photo())
    files = {"adapter.safetensors", "backbone.safetensors", "config.json", "README.md", "checkpoint.pt", "log.csv"}
    assert {p.name for p in (tmp_path / "new").iterdir()} == files
    with open(tmp_path / "new" / "log.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["step", "epoch", "support_loss", "query_loss", "seconds"]
    assert [(r["step"], r["epoch"]) for r in written] == [(str(n), "1" if n < 4 else "2") for n in range(1, 7)]
    assert [float(r["query_loss"]) for r in written] == [r.query_loss for r in rows]


def test_provenance_is_recorded(base: Weights, crops: TrainingCrops, tmp_path: Path) -> None:
    """The configuration says what the weights were trained on and how."""
    used = crops.references()[:4]
    options: dict[str, Any] = {"base": base, "prompts": TWO_PROMPTS, "references": used, "device": "cpu"}
    pretrain(crops, tmp_path / "mine", FAST, **options)
    config = weights.load(tmp_path / "mine").config
    assert config.training["stage_1"] == {
        **dataclasses.asdict(dataclasses.replace(FAST, n_visual=2)),
        "groups": [],
        "outer_steps": 6,
    }
    assert config.training["tasks"] == crops.tasks()
    assert (config.training["support_references"], config.training["query_references"]) == (3, 1)
    assert config.name == "mine" and config.prompts == TWO_PROMPTS
    assert config.preprocess == base.config.preprocess
    assert config.backbone.model_cfg == base.config.backbone.model_cfg
    pretrain(crops, tmp_path / "other", FAST, name="a name", **options)
    assert weights.load(tmp_path / "other").config.name == "a name"


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five clean photos, of which two distortions are made instead of thirty."""
    (tmp_path / "clean").mkdir()
    for i in range(5):
        make_photo(48, 40, seed=i).save(tmp_path / "clean" / f"{i}.png")

    def few(folder: Path) -> list[sources.Item]:
        kept = ("references/clean", "references/jpeg", "references/gaussian_blur")
        return [i for i in all_items(folder) if i.task in kept]

    all_items = sources.references_items
    monkeypatch.setattr(sources, "references_items", few)
    monkeypatch.setattr(stage_1, "references_items", few)
    return tmp_path / "clean"


def test_a_folder_of_clean_photos_is_enough(base: Weights, clean: Path, tmp_path: Path) -> None:
    """Photos are distorted, labelled and cut on the way; the base is named as a scorer's weights are."""
    pretrain(clean, tmp_path / "out", FAST, base=str(base.save(tmp_path / "base")), device="cpu")
    assert weights.load(tmp_path / "out").config.training["tasks"] == [
        "references/gaussian_blur",
        "references/jpeg",
    ]
    assert len(load_crops(tmp_path / "out" / "prepared").items) == 5 * (1 + 2 * 5)


# ------------------------------------------------------------ stopped, resumed


@pytest.mark.parametrize("preset", ["reptile", "authors"])
@pytest.mark.parametrize("where", ["after a step", "inside a step"])
def test_an_interrupted_run_continues_to_the_same_weights(
    base: Weights, tmp_path: Path, where: str, preset: str
) -> None:
    """Ctrl-C keeps what is done; resuming ends in the same files as never having stopped."""
    settings, crops, calls_done = {
        "reptile": (dataclasses.replace(FAST, adam="kept", outer_lr_end=0.1), toy_crops(), 9),
        "authors": (CARRIED, toy_crops(TWO_SETS, squeezed=True), 25),
    }[preset]
    adam_step, calls = torch.optim.Adam.step, itertools.count(1)

    def stop_after_step(row: LogRow) -> None:
        if where == "after a step" and row.step == 2:
            raise KeyboardInterrupt

    def stop_inside_step(self: torch.optim.Adam) -> None:
        adam_step(self)
        if where == "inside a step" and next(calls) == calls_done:  # step 3 has begun
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.Adam, "step", stop_inside_step)
        pretrain(crops, tmp_path / "a" / "mine", settings, base=base, device="cpu", on_step=stop_after_step)
    assert len((tmp_path / "a" / "mine" / "log.csv").read_text().splitlines()) == 1 + 2
    assert not (tmp_path / "a" / "mine" / "config.json").exists()
    steps: list[int] = []
    options: dict[str, Any] = {"base": base, "device": "cpu", "on_step": lambda row: steps.append(row.step)}
    pretrain(crops, tmp_path / "a" / "mine", settings, resume=True, **options)
    pretrain(crops, tmp_path / "b" / "mine", settings, resume=True, **options)  # there is nothing to resume
    assert steps == [3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    for name in ("adapter.safetensors", "config.json"):
        assert (tmp_path / "a" / "mine" / name).read_bytes() == (tmp_path / "b" / "mine" / name).read_bytes()


def test_settings_that_cannot_learn_are_refused(base: Weights, crops: TrainingCrops, tmp_path: Path) -> None:
    """Before a step is taken, with the remedy."""
    with pytest.raises(ConfigError, match=r"can move by more than 0\.0012 in 6 outer steps") as caught:
        pretrain(crops, tmp_path / "a", dataclasses.replace(FAST, outer_lr=1e-2), base=base, device="cpu")
    assert caught.value.hint == "Raise inner_lr, outer_lr or epochs"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("train", ["text", "visual", "towers"])
def test_ablations_leave_out_what_they_do_not_train(
    base: Weights, crops: TrainingCrops, tmp_path: Path, photo: Photo, train: Any
) -> None:
    """Each is a model that scores; what is not trained of the prompts is not in it."""
    settings = dataclasses.replace(FAST, train=train, n_visual=2, block_lr=1e-3)
    scorer = pretrain(crops, tmp_path / train, settings, base=base, device="cpu")
    assert scorer.config.prompts == settings.prompts
    adapter = adapter_in(tmp_path / train)
    assert adapter["text_prompt.ctx"].numel() == (4 * 32 if train == "text" else 0)
    assert ("visual_prompts.tokens" in adapter) == (train == "visual")
    assert any(name.startswith("clip.transformer.") for name in adapter) == (train == "towers")
    assert 0 < scorer.score(photo()).value < 1


def test_untrained_prompts_need_no_images(base: Weights, tmp_path: Path) -> None:
    """The start of a run with the same seed, as weights."""
    settings = PretrainConfig(method="none", n_visual=2, seed=3)
    pretrain(None, tmp_path / "start", settings, base=base, device="cpu")
    start = new_model(dataclasses.replace(base.config, prompts=settings.prompts), base, seed=3)
    assert torch.equal(adapter_in(tmp_path / "start")["text_prompt.ctx"], start.text_prompt.ctx)
    assert weights.load(tmp_path / "start").config.training["stage_1"]["outer_steps"] == 0
    with pytest.raises(DataError, match="no images are given"):
        pretrain(None, tmp_path / "other", FAST, base=base, device="cpu")


@pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmarks are not in this tree")
@pytest.mark.parametrize(("name", "epochs"), [("reptile", 20), pytest.param("authors", 50, marks=pytest.mark.slow)])
def test_presets_learn(name: str, epochs: int) -> None:
    """What the benchmark prints: held-out SRCC rises by at least .3."""
    spec = importlib.util.spec_from_file_location("stage_1_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, benchmark)
        spec.loader.exec_module(benchmark)
        result = benchmark.contest(name, 0, epochs)
    assert result.after > result.before + 0.3


def test_an_earlier_run_is_not_overwritten(base: Weights, crops: TrainingCrops, tmp_path: Path) -> None:
    """Weights or a checkpoint in the folder are refused unless the run is to be resumed, with the same settings."""
    pretrain(crops, tmp_path, FAST, base=base, device="cpu")
    kept = (tmp_path / "adapter.safetensors").read_bytes()
    for name in ("config.json", "checkpoint.pt"):
        with pytest.raises(GrmpScoreError, match="holds an earlier run"):
            pretrain(crops, tmp_path, FAST, base=base, device="cpu")
        if name == "config.json":
            (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="other settings: outer_lr"):
        pretrain(crops, tmp_path, dataclasses.replace(FAST, outer_lr=0.4), base=base, resume=True, device="cpu")
    assert kept == (tmp_path / "adapter.safetensors").read_bytes()


def test_a_spoilt_run_keeps_its_last_good_state(
    base: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the loss is no longer finite, the checkpoint on disk is that of the step before."""
    monkeypatch.setattr(stage_1, "CHECKPOINT_EVERY", -1.0)  # after every step
    crops = toy_crops()

    def spoil(row: LogRow) -> None:
        if row.step == 2:
            crops.labels[:] = np.nan

    with pytest.raises(GrmpScoreError, match="step 3"):
        pretrain(crops, tmp_path, FAST, base=base, device="cpu", on_step=spoil)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["log"]) == 2 and all(bool(t.isfinite().all()) for t in state["theta"].values())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 2


# --------------------------------------------------------------------- parts


def test_by_default_the_bundled_model_is_the_base(
    base: Weights, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called like the bundled model, where the command happens to run, is not taken for it."""
    base.save(tmp_path / "bundled" / "mini")
    monkeypatch.setattr(weights.folder, "BUNDLED", tmp_path / "bundled")
    monkeypatch.chdir(tmp_path)
    clean.rename("mini")
    assert weights.load_base().origin == "mini"
    fast = ("--epochs", "1", "--jobs", "1", "--inner-lr", "0.02")
    result = run("pretrain", "--references", "mini", "-o", "out", *fast)
    assert result.exit_code == 0, result.stderr
    assert weights.load("out").config.backbone.model_cfg == base.config.backbone.model_cfg
    assert "[default: mini]" in " ".join(run("pretrain", "--help").stdout.split())


def test_importing_the_package_of_the_function_is_light() -> None:
    """torch is loaded when `pretrain` is asked for, not before."""
    code = "import sys, grmp_score.trainer.pretrain; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_new_models_differ_by_seed_alone(base: Weights, tiny_config: ModelConfig) -> None:
    """The backbone is the base's, the prompts come from the seed, and the global generator is left alone."""
    before = torch.get_rng_state()
    first, second, other = (new_model(tiny_config, base, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(state_of(first), state_of(second))
    assert_equal({k: v.float() for k, v in base.backbone_state().items()}, state_of(first.clip))
    assert not torch.equal(first.text_prompt.ctx, other.text_prompt.ctx)
    assert first.visual_prompts is not None and first.visual_prompts.proj is not None


def test_a_base_that_does_not_fit_is_refused(base: Weights) -> None:
    """Missing tensors are an error of the weights."""
    state = base.backbone_state()
    state.pop("ln_final.weight")
    with pytest.raises(WeightsError, match=r"do not fit.*ln_final\.weight"):
        new_model(base.config, dataclasses.replace(base, backbone=state), seed=0)


# ----------------------------------------------------------------- evaluation


@pytest.fixture
def model(tiny_config: ModelConfig) -> QualityCLIP:
    """A tiny model with random tensors."""
    return randomise(QualityCLIP(tiny_config))


def test_predictions_are_means_over_views(model: QualityCLIP, crops: TrainingCrops) -> None:
    """p(high) of an item is the mean over the crops asked for, whatever the batch size."""
    indices, p = np.array([7, 0, 33]), model.config.preprocess
    by_view = []
    for view in (0, 1):
        pixels = (crops.pixels[indices, view] / 255 - np.array(p.mean)) / np.array(p.std)  # [3, 32, 32, 3]
        with torch.inference_mode():
            logits = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
        by_view.append(torch.sigmoid(logits[:, 0] - logits[:, 1]).numpy())
    for batch_size in (1, 4, 100):
        got = predict(model, encode_crops(model, crops, indices, batch_size=batch_size))
        np.testing.assert_allclose(got, np.mean(by_view, axis=0), atol=1e-5)
    second = predict(model, encode_crops(model, crops, indices, views=(1,)))
    np.testing.assert_allclose(second, by_view[1], atol=1e-5)


def test_progress_of_encoding_ends_at_all(model: QualityCLIP, crops: TrainingCrops) -> None:
    """Progress counts crops."""
    seen: list[tuple[int, int]] = []
    encode_crops(model, crops, np.arange(5), batch_size=4, progress=lambda *n: seen.append(n))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_evaluation_numbers_are_what_they_say(model: QualityCLIP, crops: TrainingCrops) -> None:
    """SRCC overall and per task equal a computation by hand, from features at hand or not."""
    held_out = ["references/1.png", "references/4.png"]
    result = evaluate_held_out(model, crops, held_out)
    rows = np.array([i for i, item in enumerate(crops.items) if item.reference in ("1.png", "4.png")])
    features = encode_crops(model, crops, rows)
    p = dict(zip(rows.tolist(), predict(model, features), strict=True))
    assert result.images == len(rows) == 2 * (1 + 5 * 3)
    assert result.overall == pytest.approx(spearmanr([p[i] for i in rows], crops.labels[rows]).statistic)
    assert list(result.per_task) == crops.tasks()
    for task, value in result.per_task.items():
        of_task = [i for i in rows if crops.items[i].task in (task, "references/clean")]
        assert len(of_task) == 2 * 4
        assert value == pytest.approx(spearmanr([p[i] for i in of_task], crops.labels[of_task]).statistic)
    assert result.mean_per_task == pytest.approx(np.mean(list(result.per_task.values())))
    assert evaluate_held_out(model, crops, held_out, features=features) == result


@pytest.mark.parametrize("sign", [1, -1])
def test_a_model_that_knows_the_labels_gets_1(
    model: QualityCLIP, crops: TrainingCrops, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    """Agreement is 1 for the labels themselves and -1 for their opposite."""
    monkeypatch.setattr(f"{evaluate_held_out.__module__}.predict", lambda *_: sign * crops.labels)
    result = evaluate_held_out(model, crops, crops.references(), features=torch.zeros(len(crops.items), 1, 16))
    assert result.overall == pytest.approx(sign) and result.mean_per_task == pytest.approx(sign)
