"""Stage 1 from a base model to weights on disk, its plot, and the evaluation of what was learned."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from grmp_score import weights
from grmp_score.config import ModelConfig, PromptConfig
from grmp_score.errors import ConfigError, GrmpScoreError, MissingExtraError, WeightsError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.scorer import Scorer
from grmp_score.trainer.pretrain import run as stage_1
from grmp_score.trainer.pretrain.crops import Prepared
from grmp_score.trainer.pretrain.held_out import Evaluation, encode, evaluate, predict
from grmp_score.trainer.pretrain.meta import LogRow, MetaConfig, MetaTrainer
from grmp_score.trainer.pretrain.run import base_config, new_model, plot_log, pretrain
from grmp_score.weights.folder import Weights

from .conftest import Photo, randomise
from .test_meta import ALL_TRAINED, assert_equal, state_of, toy_data

FAST = MetaConfig(epochs=2, tasks_per_step=2, inner_lr=1e-2, outer_lr=0.5, support_batch=6, query_batch=4)


@pytest.fixture(scope="module")
def data() -> Prepared:
    """Five tasks, five references."""
    return toy_data()


@pytest.fixture
def base(tiny_config: ModelConfig) -> Weights:
    """Weights with a complete backbone, whose adapter plays no part."""
    model = randomise(QualityCLIP(tiny_config))
    backbone = {k: v.clone() for k, v in model.clip.state_dict().items()}
    return Weights(tiny_config, weights.adapter_of(model, []), backbone, origin="base")


@pytest.fixture
def config(base: Weights) -> ModelConfig:
    """Configuration of the model to train."""
    return base_config(base, name="mine", prompts=PromptConfig(n_visual=2), adapted_blocks=1)


# ------------------------------------------------------------------ end to end


@pytest.mark.parametrize("train", ALL_TRAINED)
def test_the_weights_are_the_trained_model(
    base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path, train: Any
) -> None:
    """Folded, rounded, built from memory or from disk: all give what the trained model gives."""
    meta, trainers = dataclasses.replace(FAST, train=train, block_lr=1e-3), []
    backbone = {k: v.clone() for k, v in base.backbone_state().items()}
    trained = pretrain(config, base, data, meta, tmp_path, on_step=lambda t, _: trainers.append(t))
    trainer = trainers[-1]
    # Independently: a fresh model with theta, unfolded.
    unfolded = new_model(config, backbone, seed=0)
    with torch.no_grad():
        for name, parameter in unfolded.named_parameters():
            if name in trainer.theta:
                value = trainer.theta[name]
                parameter.copy_(value.half() if name.startswith("clip.") else value)
    unfolded.refresh_text()
    built, loaded = trained.build(), weights.load(trained.save(tmp_path / "out")).build()
    assert_equal(state_of(built), state_of(loaded))
    patches = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = unfolded.eval()(patches)
        # Folding multiplies in another order, nothing else differs.
        torch.testing.assert_close(built(patches), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(trainer.model(patches), built(patches), atol=0, rtol=0)
        torch.testing.assert_close(built.text_features, built.encode_quality(), atol=1e-6, rtol=0)
        torch.testing.assert_close(built.scene_features, built.encode_scenes(), atol=1e-6, rtol=0)
    assert_equal(backbone, base.backbone_state())  # the base is not touched
    clip_names = {n.removeprefix("clip.") for n in trained.adapter if n.startswith("clip.")}
    assert bool(clip_names) == (train == "blocks")
    assert all(n.startswith(("visual.transformer.resblocks.2.", "visual.ln_post.")) for n in clip_names)


def test_checkpoint_and_log_are_written(base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path) -> None:
    """The folder holds the checkpoint and one row per step; the caller sees every step."""
    rows: list[LogRow] = []
    pretrain(config, base, data, FAST, tmp_path / "new", on_step=lambda _, row: rows.append(row))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["checkpoint.pt", "log.csv"]
    with open(tmp_path / "new" / "log.csv", newline="") as file:
        written = [float(r["support_loss"]) for r in csv.DictReader(file)]
    assert [r.step for r in rows] == [1, 2, 3, 4, 5, 6]
    assert written == [r.support_loss for r in rows]


def test_provenance_is_recorded(base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path) -> None:
    """The configuration says what the weights were trained on and how, and survives JSON."""
    trained = pretrain(config, base, data, FAST, tmp_path)
    training = trained.config.training
    assert training["stage_1"] == {**dataclasses.asdict(FAST), "groups": [], "outer_steps": 6}
    assert training["tasks"] == data.tasks()
    assert (training["support_references"], training["query_references"]) == (4, 1)
    assert ModelConfig.from_json(trained.config.to_json()) == trained.config
    assert trained.config.name == "mine" and trained.config.prompts == PromptConfig(n_visual=2)
    assert trained.config.preprocess == base.config.preprocess and trained.config.backbone == base.config.backbone


def test_the_trained_weights_score_pictures(
    base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path, photo: Photo
) -> None:
    """From disk or from memory, a scorer gives the same."""
    trained = pretrain(config, base, data, FAST, tmp_path)
    first = Scorer(trained, device="cpu").score(photo())
    second = Scorer.from_pretrained(trained.save(tmp_path / "out"), device="cpu").score(photo())
    assert first == second and first.value is not None and 0 < first.value < 1


def test_an_interrupted_run_continues_to_the_same_weights(
    base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path
) -> None:
    """Ctrl-C keeps what is done; resuming ends in the same tensors as never having stopped."""

    def stop(trainer: MetaTrainer, row: LogRow) -> None:
        if row.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, base, data, FAST, tmp_path / "a", on_step=stop)
    assert len((tmp_path / "a" / "log.csv").read_text().splitlines()) == 1 + 3
    steps: list[int] = []
    continued = pretrain(
        config, base, data, FAST, tmp_path / "a", resume=True, on_step=lambda _, r: steps.append(r.step)
    )
    whole = pretrain(config, base, data, FAST, tmp_path / "b")
    assert steps == [4, 5, 6]
    assert_equal(dict(continued.adapter), dict(whole.adapter))
    assert continued.config == whole.config
    assert len((tmp_path / "a" / "log.csv").read_text().splitlines()) == 1 + 6


def test_without_resume_a_checkpoint_is_not_read(
    base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path
) -> None:
    """A run starts anew unless it is told to continue; continuing without a checkpoint starts anew too."""
    first = pretrain(config, base, data, FAST, tmp_path, resume=True)
    assert_equal(dict(first.adapter), dict(pretrain(config, base, data, FAST, tmp_path).adapter))
    with pytest.raises(ConfigError, match="other settings: outer_lr"):
        pretrain(config, base, data, dataclasses.replace(FAST, outer_lr=0.1), tmp_path, resume=True)


def test_a_spoilt_run_keeps_its_last_good_checkpoint(
    base: Weights, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the loss is no longer finite, the checkpoint on disk is still the one before."""
    monkeypatch.setattr(stage_1, "CHECKPOINT_EVERY", -1.0)  # after every step
    data = toy_data()

    def spoil(_: MetaTrainer, row: LogRow) -> None:
        if row.step == 2:
            data.labels[:] = np.nan

    with pytest.raises(GrmpScoreError, match="step 3"):
        pretrain(config, base, data, FAST, tmp_path, on_step=spoil)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2 and all(bool(t.isfinite().all()) for t in state["theta"].values())
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 2


def test_only_some_references_are_trained_on(
    base: Weights, config: ModelConfig, data: Prepared, tmp_path: Path
) -> None:
    """References kept for evaluation are not counted in."""
    used = data.references()[:3]
    training = pretrain(config, base, data, FAST, tmp_path, references=used).config.training
    assert (training["support_references"], training["query_references"]) == (2, 1)


# --------------------------------------------------------------------- parts


def test_new_models_differ_by_seed_alone(base: Weights, config: ModelConfig) -> None:
    """The backbone is the base's, the prompts come from the seed, and the global generator is left alone."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = new_model(config, base.backbone_state(), seed=0)
    assert torch.equal(torch.rand(3), expected)
    second, other = (new_model(config, base.backbone_state(), seed=s) for s in (0, 1))
    assert_equal(state_of(first), state_of(second))
    assert_equal({k: v.float() for k, v in base.backbone_state().items()}, state_of(first.clip))  # type: ignore[arg-type]
    assert not torch.equal(first.text_prompt.ctx, other.text_prompt.ctx)
    assert first.visual_prompts is not None and first.visual_prompts.proj is not None


def test_a_base_that_does_not_fit_is_refused(base: Weights, config: ModelConfig) -> None:
    """Missing tensors are an error of the weights."""
    state = base.backbone_state()
    state.pop("ln_final.weight")
    with pytest.raises(WeightsError, match=r"do not fit.*ln_final\.weight"):
        new_model(config, state, seed=0)


def log_rows(n: int) -> list[LogRow]:
    """A log of falling losses."""
    return [LogRow(i, 1, 1 / i, 1.1 / i, float(i)) for i in range(1, n + 1)]


@pytest.mark.parametrize("n", [1, 30])
def test_the_plot_is_a_picture(tmp_path: Path, n: int) -> None:
    """`plot_log` writes a PNG without touching pyplot's state."""
    pytest.importorskip("matplotlib")
    plot_log(log_rows(n), tmp_path / "log.png")
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'grmp_score\[train\]'") as caught:
        plot_log(log_rows(2), tmp_path / "log.png")
    assert caught.value.package == "matplotlib"


# ----------------------------------------------------------------- evaluation


@pytest.fixture
def model(tiny_config: ModelConfig) -> QualityCLIP:
    """A tiny model with random tensors."""
    return randomise(QualityCLIP(tiny_config))


def test_predictions_are_means_over_views(model: QualityCLIP, data: Prepared) -> None:
    """p(high) of an item is the mean over the crops asked for, whatever the batch size."""
    indices = np.array([7, 0, 33])
    p = model.config.preprocess
    expected = []
    for i in indices:
        pixels = (data.crops[i] / 255 - np.array(p.mean)) / np.array(p.std)
        with torch.inference_mode():
            logits = model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
        expected.append(float(torch.sigmoid(logits[:, 0] - logits[:, 1]).mean()))
    for batch_size in (1, 4, 100):
        got = predict(model, encode(model, data, indices, views=(0, 1), batch_size=batch_size))
        np.testing.assert_allclose(got, expected, atol=1e-5)
    one = predict(model, encode(model, data, indices, views=(1,)))
    two = predict(model, encode(model, data, indices, views=(0,)))
    np.testing.assert_allclose((one + two) / 2, expected, atol=1e-5)


def test_progress_of_predictions_ends_at_all(model: QualityCLIP, data: Prepared) -> None:
    """Progress counts crops."""
    seen: list[tuple[int, int]] = []
    encode(model, data, np.arange(5), views=(0, 1), batch_size=4, progress=lambda *n: seen.append(n))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_evaluation_numbers_are_what_they_say(model: QualityCLIP, data: Prepared) -> None:
    """SRCC overall and per task equal a computation by hand."""
    held_out = ["references/1.png", "references/4.png"]
    result = evaluate(model, data, held_out, views=(0, 1))
    rows = [i for i, item in enumerate(data.items) if item.reference in ("1.png", "4.png")]
    p = dict(zip(rows, predict(model, encode(model, data, np.array(rows), views=(0, 1))), strict=True))
    assert result.images == len(rows) == 2 * (1 + 5 * 3)
    assert result.overall == pytest.approx(spearmanr([p[i] for i in rows], data.labels[rows]).statistic)
    assert list(result.per_task) == data.tasks()
    for task, value in result.per_task.items():
        of_task = [i for i in rows if data.items[i].task in (task, "references/clean")]
        assert len(of_task) == 2 * 4
        expected = spearmanr([p[i] for i in of_task], data.labels[of_task]).statistic
        assert value == pytest.approx(expected)
    assert result.mean_per_task == pytest.approx(np.mean(list(result.per_task.values())))


def test_a_model_that_knows_the_labels_gets_1(
    model: QualityCLIP, data: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement is 1 for the labels themselves and -1 for their opposite."""
    module = sys.modules[evaluate.__module__]
    for sign in (1, -1):
        monkeypatch.setattr(module, "predict", lambda m, f, sign=sign: sign * data.labels)
        result: Evaluation = evaluate(model, data, data.references(), features=torch.zeros(len(data.items), 1, 16))
        assert result.overall == pytest.approx(sign) and result.mean_per_task == pytest.approx(sign)
