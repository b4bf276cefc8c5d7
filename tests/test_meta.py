"""Stage 1 against its equations (METHOD section 2), and that a run can be repeated and continued bit for bit."""

from __future__ import annotations

import copy
import csv
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.data.sources import CLEAN, KADID10K_TASKS, TID2013_TASKS, Item
from grmp_score.trainer.pretrain import meta
from grmp_score.trainer.pretrain.crops import Prepared
from grmp_score.trainer.pretrain.meta import (
    MetaConfig,
    MetaTrainer,
    split_references,
    trained_parameters,
    write_log,
)

from .conftest import randomise

ALL_TRAINED: tuple[meta.Trained, ...] = ("prompts", "text", "visual", "blocks")
FAST = MetaConfig(epochs=2, tasks_per_step=2, inner_lr=1e-2, outer_lr=0.5, support_batch=6, query_batch=4)


def toy_data(
    tasks: dict[str, list[str]] | None = None,
    *,
    references: int = 5,
    levels: tuple[int, ...] = (1, 3, 5),
    views: int = 2,
    symmetric: bool = False,
) -> Prepared:
    """Prepared data of noise crops [N, views, 32, 32, 3] that get darker as their label falls.

    ``symmetric`` crops equal their mirror image.
    """
    rng = np.random.default_rng(0)
    items = []
    for data_set, names in (tasks or {"references": ["blur", "noise", "jpeg", "darken", "block"]}).items():
        for r in range(references):
            items.append(Item(f"{data_set}/{CLEAN}", CLEAN, 0, f"{r}.png", 1.0, Path(f"{r}.png")))
            for name, level in itertools.product(names, levels):
                label = float(np.clip(1 - level / 6 + rng.uniform(-0.05, 0.05), 0, 1))
                items.append(Item(f"{data_set}/{name}", "group", level, f"{r}.png", label, Path(f"{r}.png")))
    labels = np.array([i.label for i in items])
    crops = rng.uniform(0, 90, (len(items), views, 32, 32, 3)) + 160 * labels[:, None, None, None, None]
    if symmetric:
        crops = (crops + crops[:, :, :, ::-1]) / 2
    return Prepared(items, labels, crops.astype(np.uint8))


@pytest.fixture
def make_model(tiny_config: ModelConfig) -> Callable[..., QualityCLIP]:
    """`make_model(dropout=0.1)`: the tiny model with unfolded prompts, always the same."""

    def make(*, dropout: float = 0.1) -> QualityCLIP:
        model = randomise(QualityCLIP(tiny_config, unfolded_prompts=True))
        assert model.visual_prompts is not None
        model.visual_prompts.dropout.p = dropout
        return model

    return make


def state_of(model: QualityCLIP) -> dict[str, Tensor]:
    """A copy of all tensors."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def run(trainer: MetaTrainer, steps: int | None = None) -> MetaTrainer:
    """Runs some or all steps."""
    for _ in itertools.islice(trainer.run(), steps):
        pass
    return trainer


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    differing = [k for k in one if not torch.equal(one[k], other[k])]
    assert not differing


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest absolute difference of any value."""
    return max(float((one[k] - other[k]).abs().max()) for k in one)


# ------------------------------------------------------- equations (4) to (6)


def naive_loss(model: QualityCLIP, data: Prepared, task: str, references: set[str]) -> Tensor:
    """Eq. (3) on all images of a task and of some references, view 0, written out."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.preprocess.mean, model.config.preprocess.std))
    losses = []
    for item, label, crop in zip(data.items, data.labels, data.crops, strict=True):
        data_set = task.split("/")[0]
        if item.task in (task, f"{data_set}/{CLEAN}") and f"{data_set}/{item.reference}" in references:
            pixels = torch.from_numpy(crop[0].astype(np.float32) / 255).permute(2, 0, 1)
            feature = model.image(((pixels - mean) / std)[None])[0]
            high, low = model.clip.logit_scale.exp() * model.encode_quality() @ feature
            p = torch.sigmoid(high - low)
            losses.append(-(label * torch.log(p) + (1 - label) * torch.log(1 - p)))
    return torch.stack(losses).mean()


def naive_outer_step(
    model: QualityCLIP,
    data: Prepared,
    config: MetaConfig,
    tasks: list[str],
    split: tuple[list[str], list[str]],
    *,
    query_at_theta: bool = False,
    carry_on: bool = False,
) -> tuple[dict[str, Tensor], list[float]]:
    """One outer step on copies of the model; returns theta and the losses.

    ``query_at_theta`` takes the gradient of eq. (5) as the paper prints it; ``carry_on`` does not return to
    theta between tasks, as in the authors' code.
    """
    names = [n for n, _ in model.named_parameters() if n.startswith(("text_prompt", "visual_prompts"))]
    theta = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
    support, query = (set(part) for part in split)
    adapted, losses = [], []
    working = copy.deepcopy(model)
    for task in tasks:
        if not carry_on:
            working = copy.deepcopy(model)
        start = copy.deepcopy(working)
        parameters = [dict(working.named_parameters())[n] for n in names]
        optimizer = torch.optim.Adam(parameters, lr=config.inner_lr)
        for references in (support, query):  # eqs. (4) and (5)
            at = start if query_at_theta else working
            loss = naive_loss(at, data, task, references)
            gradients = torch.autograd.grad(loss, [dict(at.named_parameters())[n] for n in names])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses.append(loss.item())
        adapted.append({n: p.detach().clone() for n, p in zip(names, parameters, strict=True)})
    moved = {n: sum((theta[n] - a[n] for a in adapted), torch.zeros(())) / len(adapted) for n in names}
    return {n: theta[n] - config.outer_lr * moved[n] for n in names}, losses  # eq. (6)


@pytest.fixture
def whole_pools(make_model: Callable[..., QualityCLIP]) -> tuple[MetaTrainer, QualityCLIP]:
    """A trainer whose steps hold nothing random: batches are whole pools, crops have one view and equal their
    mirror image, nothing is dropped out.  With it a copy of the untouched model."""
    config = dataclasses.replace(FAST, tasks_per_step=3, outer_lr=0.3, support_batch=999, query_batch=999)
    data = toy_data({"references": ["blur", "noise", "jpeg"]}, views=1, symmetric=True, levels=(1, 5))
    model = make_model(dropout=0.0)
    return MetaTrainer(model, data, config), copy.deepcopy(model)


def test_one_outer_step_equals_its_equations(whole_pools: tuple[MetaTrainer, QualityCLIP]) -> None:
    """Theta and the losses after eqs. (4), (5) and (6) equal an implementation on copies of the model."""
    trainer, model = whole_pools
    split = trainer.support, trainer.query
    expected, losses = naive_outer_step(model, trainer.data, trainer.config, trainer.tasks, split)
    before = dict(trainer.theta)
    row = next(iter(trainer.run()))
    assert farthest(expected, trainer.theta) < 1e-6 < 1e-4 < farthest(before, trainer.theta)
    assert farthest(expected, {n: p.detach() for n, p in trainer.parameters.items()}) < 1e-6
    assert row.support_loss == pytest.approx(np.mean(losses[0::2]), abs=1e-6)
    assert row.query_loss == pytest.approx(np.mean(losses[1::2]), abs=1e-6)


def test_the_query_gradient_is_taken_at_the_adapted_parameters(
    whole_pools: tuple[MetaTrainer, QualityCLIP],
) -> None:
    """Eq. (5) as printed in the paper, at theta, gives something else."""
    trainer, model = whole_pools
    split = trainer.support, trainer.query
    printed, _ = naive_outer_step(model, trainer.data, trainer.config, trainer.tasks, split, query_at_theta=True)
    run(trainer, 1)
    assert farthest(printed, trainer.theta) > 1e-4


def test_every_task_starts_from_theta(whole_pools: tuple[MetaTrainer, QualityCLIP]) -> None:
    """Parameters running on from task to task, as in the authors' code, give something else."""
    trainer, model = whole_pools
    split = trainer.support, trainer.query
    running_on, _ = naive_outer_step(model, trainer.data, trainer.config, trainer.tasks, split, carry_on=True)
    run(trainer, 1)
    assert farthest(running_on, trainer.theta) > 1e-4


def test_the_order_of_tasks_does_not_matter(whole_pools: tuple[MetaTrainer, QualityCLIP]) -> None:
    """With fixed batches any order of the tasks of a step gives the same theta."""
    trainer, model = whole_pools
    results = []
    for order in itertools.permutations(trainer.tasks):
        again = MetaTrainer(copy.deepcopy(model), trainer.data, trainer.config)
        again.model.train()
        again._meta_step(list(order), np.random.default_rng(0))
        results.append(again.theta)
    assert max(farthest(results[0], other) for other in results[1:]) < 1e-6


def test_every_task_starts_from_theta_with_random_batches_too(
    make_model: Callable[..., QualityCLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a task begins, the model holds theta."""
    trainer = MetaTrainer(make_model(), toy_data(), FAST)
    adapt, starts = trainer._adapt, []

    def watched(*args: Any) -> tuple[float, float]:
        starts.append(farthest(trainer.theta, {n: p.detach() for n, p in trainer.parameters.items()}))
        return adapt(*args)

    monkeypatch.setattr(trainer, "_adapt", watched)
    run(trainer)
    assert len(starts) == 2 * 5 and max(starts) == 0.0


def test_beta_falls_linearly_to_its_end(
    whole_pools: tuple[MetaTrainer, QualityCLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step is taken with beta, the last one with its end share."""
    trainer, _ = whole_pools
    config = dataclasses.replace(trainer.config, epochs=5, outer_lr_end=0.2)
    monkeypatch.setattr(trainer, "config", config)
    rates = []
    for step in range(5):
        monkeypatch.setattr(trainer, "step", step)
        rates.append(trainer._outer_lr())
    np.testing.assert_allclose(rates, 0.3 * np.array([1.0, 0.8, 0.6, 0.4, 0.2]))


# -------------------------------------------------------------- tasks and pools


@pytest.mark.parametrize("tasks_per_step", [1, 5, 49, 60])
def test_every_task_is_visited_once_per_epoch(
    make_model: Callable[..., QualityCLIP], monkeypatch: pytest.MonkeyPatch, tasks_per_step: int
) -> None:
    """All 24 types of TID2013 and all 25 of KADID-10k, the last one included, in an order of each epoch's own."""
    data = toy_data({"tid2013": list(TID2013_TASKS), "kadid10k": list(KADID10K_TASKS)}, references=2, levels=(5,))
    trainer = MetaTrainer(make_model(), data, dataclasses.replace(FAST, epochs=3, tasks_per_step=tasks_per_step))
    names = {id(support): task for task, (support, _) in trainer.pools.items()}
    visited = []

    def adapt(support: Any, *_: Any) -> tuple[float, float]:
        visited.append(names[id(support)])
        return 0.0, 0.0

    monkeypatch.setattr(trainer, "_adapt", adapt)
    rows = list(trainer.run())
    expected = sorted([f"tid2013/{t}" for t in TID2013_TASKS] + [f"kadid10k/{t}" for t in KADID10K_TASKS])
    epochs = [visited[i : i + 49] for i in range(0, len(visited), 49)]
    assert len(expected) == 49 and "kadid10k/contrast_change" in expected
    assert [sorted(e) for e in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(rows) == trainer.total_steps == 3 * trainer.steps_per_epoch
    assert [r.epoch for r in rows] == sorted([1, 2, 3] * trainer.steps_per_epoch)


def test_support_and_query_references_are_disjoint(make_model: Callable[..., QualityCLIP]) -> None:
    """No picture of a query reference is ever in a support batch; both sides hold clean references."""
    data = toy_data({"tid2013": ["jpeg"], "kadid10k": ["jpeg", "blur"]}, references=10)
    trainer = MetaTrainer(make_model(), data, FAST)
    assert (len(trainer.support), len(trainer.query)) == (16, 4)
    assert not set(trainer.support) & set(trainer.query)
    assert sorted(trainer.support + trainer.query) == sorted(data.references())
    for task, pools in trainer.pools.items():
        sides = []
        for pool in pools:
            items = [data.items[i] for i in pool]
            assert {i.task for i in items} == {task, f"{task.split('/')[0]}/{CLEAN}"}
            sides.append({i.reference for i in items})
        assert not sides[0] & sides[1] and len(sides[0]) == 8 and len(sides[1]) == 2


def test_batches_come_from_their_side(
    make_model: Callable[..., QualityCLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are taken alternately on distinct images of the support and of the query pool of one task."""
    config = dataclasses.replace(FAST, inner_steps=2, epochs=1)
    trainer = MetaTrainer(make_model(), toy_data(), config)
    loss, batches = trainer._loss, []

    def watched(chosen: Any, rng: np.random.Generator) -> Tensor:
        batches.append(chosen)
        return loss(chosen, rng)

    monkeypatch.setattr(trainer, "_loss", watched)
    run(trainer)
    assert [len(b) for b in batches] == [6, 4] * 2 * 5
    for i in range(0, len(batches), 4):
        task = [batches[i + j] for j in range(4)]
        fitting = [
            name
            for name, pools in trainer.pools.items()
            if all(set(batch) <= set(pools[j % 2]) for j, batch in enumerate(task))
        ]
        assert len(fitting) == 1
        assert all(len(set(batch)) == len(batch) for batch in task)


@pytest.mark.parametrize(("n", "share", "query"), [(2, 0.2, 1), (5, 0.2, 1), (10, 0.3, 3), (3, 0.9, 2)])
def test_references_are_split_by_share(n: int, share: float, query: int) -> None:
    """At least one reference is on either side; the split depends on the seed alone."""
    references = [f"a/{i}" for i in range(n)]
    first, second = split_references(references, share, 0)
    assert len(second) == query and sorted(first + second) == sorted(references)
    assert (first, second) == split_references(references[::-1], share, 0)


def test_another_seed_splits_differently() -> None:
    """Of ten references some seed keeps others for queries."""
    references = [f"a/{i}" for i in range(10)]
    assert len({tuple(split_references(references, 0.2, seed)[1]) for seed in range(5)}) > 1


def test_too_few_references_are_refused(make_model: Callable[..., QualityCLIP]) -> None:
    """Both sides need images of every task."""
    data = toy_data({"tid2013": ["jpeg"], "kadid10k": ["blur"]}, references=3)
    with pytest.raises(DataError, match="at least 2 references"):
        MetaTrainer(make_model(), data, FAST, references=["tid2013/0.png"])
    used = ["tid2013/0.png", "tid2013/1.png", "kadid10k/0.png"]
    with pytest.raises(DataError, match="kadid10k/blur has no images on one side"):
        MetaTrainer(make_model(), data, FAST, references=used)


def test_only_the_given_references_are_used(make_model: Callable[..., QualityCLIP]) -> None:
    """References kept for evaluation appear on neither side."""
    data = toy_data()
    used = [f"references/{i}.png" for i in (0, 2, 4)]
    trainer = MetaTrainer(make_model(), data, FAST, references=used)
    indices = np.concatenate([pool for pools in trainer.pools.values() for pool in pools])
    assert {data.items[i].reference for i in indices} == {"0.png", "2.png", "4.png"}


# ------------------------------------------------------------ what is trained

EXPECTED_PREFIXES = {
    "text": ("text_prompt.ctx",),
    "visual": ("visual_prompts.tokens", "visual_prompts.proj."),
    "prompts": ("text_prompt.ctx", "visual_prompts."),
    # The tiny model has three image blocks and adapts the last two.
    "blocks": (
        "text_prompt.ctx",
        "visual_prompts.",
        "clip.visual.transformer.resblocks.1.",
        "clip.visual.transformer.resblocks.2.",
        "clip.visual.ln_post.",
    ),
}


@pytest.mark.parametrize("method", ["meta", "ordinary"])
@pytest.mark.parametrize("train", ALL_TRAINED)
def test_only_the_wanted_parameters_change(
    make_model: Callable[..., QualityCLIP], train: meta.Trained, method: Any
) -> None:
    """Everything named by `train` moves, everything else stays bit for bit as it was."""
    model = make_model()
    before = state_of(model)
    run(MetaTrainer(model, toy_data(), dataclasses.replace(FAST, train=train, method=method, block_lr=1e-3)), 2)
    after = model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    expected = {n for n in before if n.startswith(EXPECTED_PREFIXES[train])}
    assert changed == expected == set(trained_parameters(model, train))


def test_blocks_have_a_learning_rate_of_their_own(make_model: Callable[..., QualityCLIP]) -> None:
    """Adam's first step moves a value by at most its learning rate."""
    config = dataclasses.replace(FAST, train="blocks", inner_lr=1e-2, block_lr=1e-5, outer_lr=1.0)
    trainer = MetaTrainer(make_model(), toy_data(), config)
    before = dict(trainer.theta)
    run(trainer, 1)
    moved = {n: float((before[n] - t).abs().max()) for n, t in trainer.theta.items()}
    blocks = [m for n, m in moved.items() if n.startswith("clip.")]
    prompts = [m for n, m in moved.items() if not n.startswith("clip.")]
    assert 5e-6 < max(blocks) < 2.1e-5
    assert 5e-3 < max(prompts) < 2.1e-2


def test_nothing_to_train_is_refused(tiny_config: ModelConfig) -> None:
    """A model without visual prompts has none to train."""
    prompts = dataclasses.replace(tiny_config.prompts, n_visual=0)
    model = QualityCLIP(dataclasses.replace(tiny_config, prompts=prompts))
    with pytest.raises(ConfigError, match="nothing to train"):
        MetaTrainer(model, toy_data(), dataclasses.replace(FAST, train="visual"))


@pytest.mark.parametrize(
    "wrong",
    [
        "epochs=0",
        "tasks_per_step=0",
        "inner_steps=0",
        "support_batch=0",
        "query_batch=-1",
        "inner_lr=0",
        "block_lr=-1e-5",
        "outer_lr=nan",
        "query_share=1",
        "query_share=0",
        "seed=-1",
        "seed=4294967296",
    ],
)
def test_senseless_settings_are_refused(wrong: str) -> None:
    """The error names the setting."""
    name, value = wrong.split("=")
    number = float(value)
    settings: dict[str, Any] = {name: int(number) if number.is_integer() else number}
    with pytest.raises(ConfigError, match=name):
        MetaConfig(**settings)


# ----------------------------------------------------- repeatable, continuable


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_warm_up_shortens_the_first_steps(make_model: Callable[..., QualityCLIP], method: Any) -> None:
    """In the first of four warm-up steps Adam moves a value by a quarter of what it would without."""
    moved = []
    for warm_up in (0, 4):
        config = dataclasses.replace(FAST, method=method, tasks_per_step=1, outer_lr=1.0, warm_up=warm_up)
        trainer = MetaTrainer(make_model(), toy_data(), config)
        before = trainer.theta["text_prompt.ctx"]
        run(trainer, 1)
        moved.append(float((before - trainer.theta["text_prompt.ctx"]).abs().max()))
    assert moved[1] == pytest.approx(moved[0] / 4, rel=0.2)


def test_kept_moments_matter_from_the_second_task_on(make_model: Callable[..., QualityCLIP]) -> None:
    """With one task in the first step, fresh and kept moments agree there and part afterwards."""
    fresh, kept = (
        MetaTrainer(make_model(), toy_data(), dataclasses.replace(FAST, tasks_per_step=1, adam=adam))
        for adam in ("fresh", "kept")
    )
    run(fresh, 1), run(kept, 1)
    assert_equal(fresh.theta, kept.theta)
    run(fresh, 1), run(kept, 1)
    assert farthest(fresh.theta, kept.theta) > 0


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_a_seed_fixes_everything(make_model: Callable[..., QualityCLIP], method: Any) -> None:
    """The same seed gives the same parameters and losses bit for bit, another seed others."""
    data, config = toy_data(), dataclasses.replace(FAST, method=method)
    first, second = (run(MetaTrainer(make_model(), data, config)) for _ in range(2))
    assert_equal(first.theta, second.theta)
    assert [(r.support_loss, r.query_loss) for r in first.log] == [
        (r.support_loss, r.query_loss) for r in second.log
    ]
    other = run(MetaTrainer(make_model(), data, dataclasses.replace(config, seed=1)))
    assert farthest(first.theta, other.theta) > 0
    assert [r.support_loss for r in first.log] != [r.support_loss for r in other.log]


@pytest.mark.parametrize(
    ("method", "train", "adam"),
    [
        ("meta", "prompts", "fresh"),
        ("meta", "prompts", "kept"),
        ("ordinary", "prompts", "fresh"),
        ("meta", "blocks", "kept"),
    ],
)
def test_a_continued_run_equals_an_uninterrupted_one(
    make_model: Callable[..., QualityCLIP], tmp_path: Path, method: Any, train: meta.Trained, adam: Any
) -> None:
    """Stopped after any step, with dropout and random batches, a run ends in the same bits."""
    data = toy_data()
    config = dataclasses.replace(FAST, method=method, train=train, adam=adam, warm_up=3, outer_lr_end=0.5)
    whole = MetaTrainer(make_model(), data, config)
    for _ in whole.run():
        whole.save_checkpoint(tmp_path / f"{whole.step}.pt")
    assert whole.step == 6
    for stopped in range(1, 7):
        continued = MetaTrainer(make_model(), data, config)
        continued.load_checkpoint(tmp_path / f"{stopped}.pt")
        assert continued.step == stopped == len(continued.log)
        run(continued)
        assert continued.step == 6
        assert_equal(whole.theta, continued.theta)
        assert_equal(state_of(whole.model), state_of(continued.model))
        assert [dataclasses.replace(r, seconds=0.0) for r in continued.log] == [
            dataclasses.replace(r, seconds=0.0) for r in whole.log
        ]
        assert all(np.diff([r.seconds for r in continued.log]) >= 0)


def test_a_run_may_be_prolonged(make_model: Callable[..., QualityCLIP], tmp_path: Path) -> None:
    """A checkpoint of a shorter run continues to what the longer run would have been."""
    data = toy_data()
    short = run(MetaTrainer(make_model(), data, dataclasses.replace(FAST, epochs=1)))
    short.save_checkpoint(tmp_path / "checkpoint.pt")
    long = MetaTrainer(make_model(), data, FAST)
    long.load_checkpoint(tmp_path / "checkpoint.pt")
    assert_equal(run(long).theta, run(MetaTrainer(make_model(), data, FAST)).theta)


def test_a_checkpoint_of_other_settings_is_refused(make_model: Callable[..., QualityCLIP], tmp_path: Path) -> None:
    """The settings that differ are named, and the run at hand is not touched."""
    path = tmp_path / "checkpoint.pt"
    run(MetaTrainer(make_model(), toy_data(), FAST), 1).save_checkpoint(path)
    other = MetaTrainer(make_model(), toy_data(), dataclasses.replace(FAST, inner_lr=2e-2, seed=3, epochs=9))
    before = dict(other.theta)
    with pytest.raises(ConfigError, match=r"other settings: inner_lr, seed\.") as caught:
        other.load_checkpoint(path)
    assert caught.value.path == str(path) and other.step == 0
    assert_equal(before, other.theta)


def test_a_checkpoint_of_another_model_is_refused(
    make_model: Callable[..., QualityCLIP], tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """Another number of visual prompts is noticed before a tensor is copied."""
    path = tmp_path / "checkpoint.pt"
    run(MetaTrainer(make_model(), toy_data(), FAST), 1).save_checkpoint(path)
    for n in (0, 1):
        config = dataclasses.replace(tiny_config, prompts=dataclasses.replace(tiny_config.prompts, n_visual=n))
        other = MetaTrainer(QualityCLIP(config, unfolded_prompts=True), toy_data(), FAST)
        with pytest.raises(ConfigError, match="another shape"):
            other.load_checkpoint(path)


def test_checkpoints_appear_whole(make_model: Callable[..., QualityCLIP], tmp_path: Path) -> None:
    """Writing leaves one file, readable without running any code in it."""
    run(MetaTrainer(make_model(), toy_data(), FAST), 1).save_checkpoint(tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 1


# ------------------------------------------------------------------ losses, log


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_a_loss_that_is_not_finite_stops_the_run(make_model: Callable[..., QualityCLIP], method: Any) -> None:
    """The error names the step; the log ends before it."""
    data = toy_data()
    trainer = MetaTrainer(make_model(), data, dataclasses.replace(FAST, method=method))
    rows = trainer.run()
    next(rows)
    next(rows)
    data.labels[:] = np.nan
    with pytest.raises(GrmpScoreError, match="not finite at step 3"):
        next(rows)
    assert trainer.step == 2 and len(trainer.log) == 2


def test_parameters_that_are_not_finite_stop_the_run(
    make_model: Callable[..., QualityCLIP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spoilt gradient is noticed at its own step, while the loss is still a number."""
    trainer = MetaTrainer(make_model(), toy_data(), FAST)
    adapt = trainer._adapt

    def spoil(*args: Any) -> tuple[float, float]:
        losses = adapt(*args)
        with torch.no_grad():
            trainer.model.text_prompt.ctx[0, 0] = float("nan")
        return losses

    monkeypatch.setattr(trainer, "_adapt", spoil)
    with pytest.raises(GrmpScoreError, match="not finite at step 1"):
        run(trainer)


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_the_loss_falls_where_there_is_something_to_learn(
    make_model: Callable[..., QualityCLIP], method: Any
) -> None:
    """Labels that show in the brightness are learned, on support and on query references."""
    config = dataclasses.replace(FAST, method=method, epochs=10, tasks_per_step=5, outer_lr=0.8)
    data = toy_data(levels=(6,))  # labels near 0 and 1, so that the loss can come near 0
    trainer = run(MetaTrainer(make_model(), data, config))
    first, last = trainer.log[:2], trainer.log[-2:]
    for loss in ("support_loss", "query_loss"):
        before, after = (np.mean([getattr(r, loss) for r in rows]) for rows in (first, last))
        assert after < 0.8 * before


def test_patches_are_normalised_as_the_model_expects(make_model: Callable[..., QualityCLIP]) -> None:
    """Crops become float32 [B, 3, S, S], minus mean, by standard deviation."""
    model, pixels = make_model(), toy_data().crops[:3, 0]
    patches = meta.to_patches(pixels[:, :, ::-1], model)
    p = model.config.preprocess
    expected = (pixels[:, :, ::-1] / 255 - np.array(p.mean)) / np.array(p.std)
    assert patches.dtype == torch.float32
    np.testing.assert_allclose(patches.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_the_log_is_a_csv_with_one_row_per_step(make_model: Callable[..., QualityCLIP], tmp_path: Path) -> None:
    """Columns are those of `LogRow`, numbers in full."""
    trainer = run(MetaTrainer(make_model(), toy_data(), FAST), 4)
    write_log(trainer.log, tmp_path / "log.csv")
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "support_loss", "query_loss", "seconds"]
    assert [(r["step"], r["epoch"]) for r in rows] == [("1", "1"), ("2", "1"), ("3", "1"), ("4", "2")]
    assert [float(r["query_loss"]) for r in rows] == [r.query_loss for r in trainer.log]


def test_the_model_is_left_in_eval_mode(make_model: Callable[..., QualityCLIP]) -> None:
    """Between steps dropout is off, so that a run can be looked at on the way."""
    trainer = MetaTrainer(make_model(), toy_data(), FAST)
    assert all(not trainer.model.training for _ in trainer.run())
