"""Stage 1 against its equations (METHOD section 2), and that a run can be repeated and continued bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grmp_score.config import Backbone, ModelConfig, Preprocess
from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.data.sources import CLEAN, KADID10K_TASKS, TID2013_TASKS
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops
from grmp_score.trainer.pretrain.meta import (
    LogRow,
    MetaTrainer,
    split_references,
    to_patches,
    trained_parameters,
)

from .conftest import randomise
from .pretrain_data import CARRIED, FAST, TWO_SETS, assert_equal, farthest, state_of, toy_crops

MakeTrainer = Callable[..., MetaTrainer]


@pytest.fixture
def make_trainer(tiny_config: ModelConfig) -> MakeTrainer:
    """`make_trainer(crops, adam="kept", ...)`: always the same tiny model; other settings are those of `FAST`."""

    def make(
        crops: TrainingCrops | None = None,
        *,
        dropout: float = 0.1,
        references: list[str] | None = None,
        **settings: Any,
    ) -> MetaTrainer:
        model = randomise(QualityCLIP(tiny_config, unfolded_prompts=True))
        assert model.visual_prompts is not None
        model.visual_prompts.dropout.p = dropout
        config = dataclasses.replace(FAST, **settings)
        return MetaTrainer(model, crops or toy_crops(), config, references=references)

    return make


def run(trainer: MetaTrainer, steps: int | None = None) -> MetaTrainer:
    """Runs some or all steps."""
    for _ in itertools.islice(trainer.run(), steps):
        pass
    return trainer


def parameters_of(trainer: MetaTrainer) -> dict[str, Tensor]:
    """What the model holds at the moment."""
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def losses_of(trainer: MetaTrainer) -> list[LogRow]:
    """The log without its times."""
    return [dataclasses.replace(row, seconds=0.0) for row in trainer.state.log]


# ------------------------------------------------------- equations (4) to (6)


def naive_loss(model: QualityCLIP, crops: TrainingCrops, task: str, references: set[str]) -> Tensor:
    """Eq. (3) on all images of a task and of some references, view 0, written out."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.config.preprocess.mean, model.config.preprocess.std))
    losses = []
    for item, label, views in zip(crops.items, crops.labels, crops.pixels, strict=True):
        data_set = task.split("/")[0]
        if item.task in (task, f"{data_set}/{CLEAN}") and f"{data_set}/{item.reference}" in references:
            pixels = torch.from_numpy(views[0].astype(np.float32) / 255).permute(2, 0, 1)
            feature = model.image(((pixels - mean) / std)[None])[0]
            high, low = model.clip.logit_scale.exp() * model.encode_quality() @ feature
            p = torch.sigmoid(high - low)
            losses.append(-(label * torch.log(p) + (1 - label) * torch.log(1 - p)))
    return torch.stack(losses).mean()


def naive_outer_step(
    trainer: MetaTrainer, *, query_at_theta: bool = False, carry_on: bool = False
) -> tuple[dict[str, Tensor], list[float]]:
    """One outer step over all tasks, on copies of the trainer's model; returns theta and the losses.

    ``query_at_theta`` takes the gradient of eq. (5) as the paper prints it; ``carry_on`` does not return to
    theta between tasks, as in the authors' code.
    """
    crops, config, names = trainer.crops, trainer.config, list(trainer.parameters)
    theta = parameters_of(trainer)
    adapted, losses = [], []
    working = copy.deepcopy(trainer.model)
    for task in trainer.tasks:
        if not carry_on:
            working = copy.deepcopy(trainer.model)
        start = copy.deepcopy(working)
        parameters = [dict(working.named_parameters())[n] for n in names]
        optimizer = torch.optim.Adam(parameters, lr=config.inner_lr)
        for references in (set(trainer.support), set(trainer.query)):  # eqs. (4) and (5)
            at = start if query_at_theta else working
            loss = naive_loss(at, crops, task, references)
            gradients = torch.autograd.grad(loss, [dict(at.named_parameters())[n] for n in names])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses.append(loss.item())
        adapted.append({n: p.detach().clone() for n, p in zip(names, parameters, strict=True)})
    moved = {n: sum((theta[n] - a[n] for a in adapted), torch.zeros(())) / len(adapted) for n in names}
    return {n: theta[n] - config.outer_lr * moved[n] for n in names}, losses  # eq. (6)


@pytest.fixture
def whole_pools(make_trainer: MakeTrainer) -> MetaTrainer:
    """A trainer without anything random: batches are whole pools, crops have one view and equal their mirror image,
    nothing is dropped out; one step visits all three tasks."""
    crops = toy_crops({"references": ["blur", "noise", "jpeg"]}, views=1, symmetric=True, levels=(1, 5))
    batches = {"support_batch": 999, "query_batch": 999}
    return make_trainer(crops, dropout=0.0, tasks_per_step=3, outer_lr=0.3, **batches)


def test_one_outer_step_equals_its_equations(whole_pools: MetaTrainer) -> None:
    """Theta and the losses after eqs. (4), (5) and (6) equal an implementation on copies of the model."""
    expected, losses = naive_outer_step(whole_pools)
    before = whole_pools.state.theta
    row = next(iter(whole_pools.run()))
    after = whole_pools.state.theta
    assert farthest(expected, after) < 1e-6 < 1e-4 < farthest(before, after)
    assert_equal(after, parameters_of(whole_pools))
    assert row.support_loss == pytest.approx(np.mean(losses[0::2]), abs=1e-6)
    assert row.query_loss == pytest.approx(np.mean(losses[1::2]), abs=1e-6)


@pytest.mark.parametrize("variant", ["query_at_theta", "carry_on"])
def test_what_is_not_done_gives_something_else(whole_pools: MetaTrainer, variant: str) -> None:
    """Neither the query gradient as the paper prints it, at theta, nor parameters that run on from task to task."""
    other, _ = naive_outer_step(whole_pools, **{variant: True})
    assert farthest(other, run(whole_pools, 1).state.theta) > 1e-4


def test_the_order_of_tasks_does_not_matter(whole_pools: MetaTrainer) -> None:
    """With fixed batches any order of the tasks of a step gives the same theta."""
    rng = np.random.default_rng(0)
    first, *others = [
        whole_pools._meta_step(whole_pools.state, rng, list(order))[0]
        for order in itertools.permutations(whole_pools.tasks)
    ]
    assert len(others) == 5 and max(farthest(first, other) for other in others) < 1e-6


def test_every_task_starts_from_theta(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a task begins, the model holds theta, with random batches and dropout too."""
    trainer, starts = make_trainer(), []
    adapt = trainer._adapt

    def looking(*args: Any) -> tuple[float, float]:
        starts.append(farthest(trainer.state.theta, parameters_of(trainer)))
        return adapt(*args)

    monkeypatch.setattr(trainer, "_adapt", looking)
    run(trainer)
    assert starts == [0.0] * (2 * 5)


def test_beta_falls_linearly_to_its_end(make_trainer: MakeTrainer) -> None:
    """The first step is taken with beta, the last one with its end share."""
    trainer = make_trainer(epochs=5, tasks_per_step=5, outer_lr=0.3, outer_lr_end=0.2)
    rates = [trainer._outer_lr(step) for step in range(5)]
    np.testing.assert_allclose(rates, 0.3 * np.array([1.0, 0.8, 0.6, 0.4, 0.2]))


# ------------------------------------------------------------ the authors' loop


class Logistic(torch.nn.Module):
    """A model that stage 1 can train, with a gradient that NumPy can write down: p(high) = sigmoid(w . colour)."""

    def __init__(self) -> None:
        super().__init__()
        self.text_prompt = torch.nn.Module()
        self.text_prompt.ctx = torch.nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))
        self.config = ModelConfig("logistic", Backbone({}), preprocess=Preprocess(patch_size=32))

    def image(self, patches: Tensor) -> Tensor:
        """Mean colours [B, 3]."""
        return patches.mean(dim=(2, 3))

    def encode_quality(self) -> Tensor:
        """Weights [2, 3] of the logits."""
        return torch.stack([self.text_prompt.ctx, torch.zeros(3)])

    def quality_logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits [B, 2]."""
        return features @ text.T


class NumpyAdam:
    """Kingma and Ba's algorithm 1, with PyTorch's constants."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t = lr, 0
        self.m, self.v = np.zeros(3), np.zeros(3)

    def step(self, w: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The next parameters."""
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return w - self.lr * m / (np.sqrt(v) + 1e-8)


#: What a trainer did: outer steps, the tasks of each, the batches (indices) of each, support and query in turns.
Visits = list[list[tuple[str, list[np.ndarray]]]]


def watched(trainer: MetaTrainer, monkeypatch: pytest.MonkeyPatch) -> Visits:
    """Runs to the end and tells which task was visited with which batches."""
    visits: Visits = []
    draw, loss = trainer._draw, trainer._loss

    def drawing(task: str, rng: np.random.Generator) -> Any:
        while len(visits) <= trainer.state.step:
            visits.append([])
        visits[trainer.state.step].append((task, []))
        return draw(task, rng)

    def losing(batch: Any, rng: np.random.Generator) -> Tensor:
        visits[trainer.state.step][-1][1].append(batch.indices)
        return loss(batch, rng)

    monkeypatch.setattr(trainer, "_draw", drawing)
    monkeypatch.setattr(trainer, "_loss", losing)
    run(trainer)
    return visits


def numpy_loop(crops: TrainingCrops, config: PretrainConfig, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
    """theta and working copy after the authors' loop over these batches, one image after the other.

    Written from METHOD section 2: Adam kept through TID2013, new for every task of KADID-10k, and what the last of
    these leaves goes on into the next TID2013.
    """
    p = Preprocess(patch_size=32)
    theta = working = np.array([0.3, -0.2, 0.1])
    adam = NumpyAdam(config.inner_lr)
    for step in visits:
        differences = []
        for task, batches in step:
            if task.startswith("kadid10k/"):
                adam = NumpyAdam(config.inner_lr)
            for turn, batch in enumerate(batches):
                labels = crops.labels[np.concatenate(batches[turn % 2 :: 2])]  # of the whole support or query set
                gradient = np.zeros(3)
                for i in batch:
                    colour = (crops.pixels[i, 0, 0, 0] / 255 - np.array(p.mean)) / np.array(p.std)
                    y = (crops.labels[i] - labels.min()) / (labels.max() - labels.min())
                    gradient += (1 / (1 + np.exp(-working @ colour)) - y) * colour / len(batch)
                working = adam.step(working, gradient)
            differences.append(theta - working)
        theta = theta - config.outer_lr * np.mean(differences, axis=0)
    return theta, working


def test_the_authors_loop_equals_one_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carried copy, Adam kept and new, labels by task and split, theta the average: three epochs, two data sets."""
    crops = toy_crops(TWO_SETS, flat=True, squeezed=True)
    model: Any = Logistic()
    trainer = MetaTrainer(model, crops, CARRIED)
    theta, working = numpy_loop(crops, CARRIED, watched(trainer, monkeypatch))
    assert trainer.state.working is not None
    np.testing.assert_allclose(trainer.state.theta["text_prompt.ctx"], theta, atol=2e-6)
    np.testing.assert_allclose(trainer.state.working["text_prompt.ctx"], working, atol=2e-6)
    np.testing.assert_array_equal(model.text_prompt.ctx.detach(), trainer.state.theta["text_prompt.ctx"])
    # Each part of the loop matters: without it the result is another one.
    for other in ({"adam": "kept"}, {"adam": "fresh"}, {"working_copy": "reset"}, {"label_range": "data_set"}):
        changed: Any = Logistic()
        differing = run(MetaTrainer(changed, crops, dataclasses.replace(CARRIED, **other)))
        assert np.abs(differing.state.theta["text_prompt.ctx"].numpy() - theta).max() > 1e-4


def test_the_authors_loop_visits_data_set_after_data_set(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tasks of TID2013 as one outer step, then KADID-10k's; each time the distorted images are split anew by 80
    to 20, and the support set is gone through once."""
    crops = toy_crops(TWO_SETS, squeezed=True)
    trainer = make_trainer(crops, **dataclasses.asdict(CARRIED))
    visits = watched(trainer, monkeypatch)
    assert [{task for task, _ in step} for step in visits] == [
        {f"{data_set}/{task}" for task in tasks} for _ in range(3) for data_set, tasks in TWO_SETS.items()
    ]
    queries: dict[str, set[frozenset[int]]] = {}
    for task, batches in itertools.chain.from_iterable(visits):
        # 15 images: 12 in batches of 6, 3 in one batch that is used twice.
        assert [len(b) for b in batches] == [6, 3, 6, 3]
        support, query = (set(np.concatenate(batches[side::2]).tolist()) for side in (0, 1))
        assert (len(support), len(query)) == (12, 3)
        assert support | query == {i for i, item in enumerate(crops.items) if item.task == task}
        queries.setdefault(task, set()).add(frozenset(query))
    assert all(len(drawn) == 3 for drawn in queries.values())
    assert trainer.images_per_epoch == 5 * 18


def test_full_size_data_sets_give_two_and_five_pairs(make_trainer: MakeTrainer) -> None:
    """125 images of a task of TID2013 and 405 of KADID-10k, as METHOD section 2 counts them."""
    trainer = make_trainer(toy_crops(squeezed=True), **dataclasses.asdict(PretrainConfig.preset("authors")))
    assert trainer._pairs(100, 25) == [(75, 25), (25, 25)]
    assert trainer._pairs(324, 81) == [(75, 50), (75, 31), (75, 50), (75, 31), (24, 50)]


def test_squeezed_views(make_trainer: MakeTrainer) -> None:
    """Support images are parts of the larger picture, some mirrored; query images are the whole one as it is."""
    crops = toy_crops(TWO_SETS, squeezed=True)
    assert crops.larger is not None
    views = crops.random_views(np.arange(40), np.random.default_rng(0))
    places = set()
    for view, larger in zip(views, crops.larger, strict=False):
        found = [(y, x) for y in range(6) for x in range(6) if np.array_equal(view, larger[y : y + 32, x : x + 32])]
        assert found
        places.update(found)
    assert {y for y, _ in places} == {x for _, x in places} == set(range(6))
    support, query = make_trainer(crops, **dataclasses.asdict(CARRIED))._draw(
        "tid2013/blur", np.random.default_rng(0)
    )
    assert support.cut and not query.cut


def test_crops_cut_otherwise_are_refused(make_trainer: MakeTrainer) -> None:
    """The preset's views and those of the crops must agree."""
    with pytest.raises(DataError, match="views='scales', not 'squeezed'"):
        make_trainer(toy_crops(TWO_SETS), **dataclasses.asdict(CARRIED))
    with pytest.raises(DataError, match="views='squeezed', not 'scales'"):
        make_trainer(toy_crops(TWO_SETS, squeezed=True))


def test_labels_of_one_value_stay_as_they_are(make_trainer: MakeTrainer) -> None:
    """A query set of one image has no range to stretch."""
    trainer = make_trainer(label_range="task")
    indices = trainer.pools["references/blur"][0]
    assert trainer._set_of(indices[:1], cut=True).labels == trainer.crops.labels[indices[:1]]
    stretched = trainer._set_of(indices, cut=True).labels
    assert (stretched.min(), stretched.max()) == (0.0, 1.0)


# ------------------------------------------------------------------- presets, reach


def test_presets_are_values_that_can_be_changed() -> None:
    """The defaults are reptile's; a change wins over either."""
    assert PretrainConfig.preset() == PretrainConfig() == PretrainConfig.preset("reptile")
    changed = PretrainConfig.preset("authors", n_visual=5, outer_lr=0.5)
    assert (changed.n_visual, changed.outer_lr, changed.working_copy) == (5, 0.5, "carried")
    with pytest.raises(ConfigError, match="no preset 'paper'; there are reptile, authors"):
        PretrainConfig.preset("paper")


@pytest.mark.parametrize(
    ("train", "shape"),
    [("prompts", (4, 8)), ("text", (4, 0)), ("visual", (0, 8)), ("blocks", (4, 8)), ("towers", (0, 0))],
)
def test_prompts_that_are_not_trained_are_not_there(train: Any, shape: tuple[int, int]) -> None:
    """Numbers of text and visual prompts for each ablation."""
    prompts = PretrainConfig(train=train, prompt_norm=True).prompts
    assert (prompts.n_ctx, prompts.n_visual) == shape and prompts.prompt_norm == (shape[1] > 0)


@pytest.mark.parametrize(
    ("preset", "changes", "steps"),
    [
        # 30 tasks by five, and beta = 1e-2 on a copy that is reset.
        ("reptile", {"outer_lr": 1e-2, "outer_lr_end": 1.0, "inner_lr": 1e-4}, [2] * 300),
        ("reptile", {"method": "ordinary", "inner_lr": 1e-5}, [10] * 100),
        ("reptile", {"train": "towers", "block_lr": 1e-7}, [2] * 150),
        ("authors", {}, [96] * 3),
    ],
)
def test_settings_that_cannot_learn_are_refused(preset: str, changes: dict[str, Any], steps: list[int]) -> None:
    """The message says how far a parameter can get, and what to raise; the presets at full length are fine."""
    with pytest.raises(ConfigError, match="no parameter can move by more than") as caught:
        PretrainConfig.preset(preset, **changes).check_reach(steps)
    assert caught.value.hint is not None and "Raise" in caught.value.hint
    PretrainConfig.preset("reptile").check_reach([2] * 150)
    PretrainConfig.preset("authors").check_reach([96, 250] * 50)


@pytest.mark.parametrize("train", ["text", "prompts"])
@pytest.mark.parametrize("kind", [{}, {"working_copy": "carried"}, {"method": "ordinary"}, {"warm_up": 3}])
def test_no_parameter_moves_farther_than_the_estimate(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any], train: str
) -> None:
    """With a gradient that always points the same way the estimate is reached, and not passed."""
    trainer = make_trainer(**{"outer_lr_end": 0.2, **kind}, train=train)
    towards = [p.sum() for p in trainer.parameters.values()]
    monkeypatch.setattr(
        trainer, "_loss", lambda *_: sum((p.sum() for p in trainer.parameters.values()), 0 * towards[0])
    )
    moved = farthest(trainer.state.theta, run(trainer).state.theta)
    asked: list[Any] = []
    monkeypatch.setattr(PretrainConfig, "check_reach", lambda _, steps: asked.append(steps))
    trainer.check_reach()
    assert 0.75 < moved / trainer.config.reach(asked[0]) < 1.01


def test_dropout_is_drawn_for_every_image(make_trainer: MakeTrainer) -> None:
    """In training two copies of an image see other prompts; in evaluation the same."""
    model = make_trainer(dropout=0.5).model
    patch = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = model.train().image(patch.expand(2, -1, -1, -1))
        assert not torch.allclose(first, second, atol=1e-3)
        first, second = model.eval().image(patch.expand(2, -1, -1, -1))
        torch.testing.assert_close(first, second)


# -------------------------------------------------------------- tasks and pools


@pytest.mark.parametrize("tasks_per_step", [0, 1, 5, 49, 60])
def test_every_task_is_visited_once_per_epoch(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tasks_per_step: int
) -> None:
    """All 24 types of TID2013 and all 25 of KADID-10k, the last one included, in an order of each epoch's own."""
    crops = toy_crops({"tid2013": list(TID2013_TASKS), "kadid10k": list(KADID10K_TASKS)}, references=2, levels=(5,))
    trainer = make_trainer(crops, epochs=3, tasks_per_step=tasks_per_step)
    draw, visited = trainer._draw, []

    def looking(task: str, rng: np.random.Generator) -> Any:
        visited.append(task)
        return draw(task, rng)

    monkeypatch.setattr(trainer, "_draw", looking)
    monkeypatch.setattr(trainer, "_adapt", lambda *_: (0.0, 0.0))
    rows = list(trainer.run())
    expected = sorted([f"tid2013/{t}" for t in TID2013_TASKS] + [f"kadid10k/{t}" for t in KADID10K_TASKS])
    epochs = [visited[i : i + 49] for i in range(0, len(visited), 49)]
    assert len(expected) == 49 and "kadid10k/contrast_change" in expected
    assert [sorted(e) for e in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(rows) == trainer.total_steps == 3 * trainer.steps_per_epoch
    assert [r.epoch for r in rows] == sorted([1, 2, 3] * trainer.steps_per_epoch)


def test_support_and_query_references_are_disjoint(make_trainer: MakeTrainer) -> None:
    """No picture of a query reference is ever in a support batch; both sides hold clean references."""
    crops = toy_crops({"tid2013": ["jpeg"], "kadid10k": ["jpeg", "blur"]}, references=10)
    trainer = make_trainer(crops)
    assert (len(trainer.support), len(trainer.query)) == (16, 4)
    assert not set(trainer.support) & set(trainer.query)
    assert sorted(trainer.support + trainer.query) == sorted(crops.references())
    for task, pools in trainer.pools.items():
        sides = []
        for pool in pools:
            items = [crops.items[i] for i in pool]
            assert {i.task for i in items} == {task, f"{task.split('/')[0]}/{CLEAN}"}
            sides.append({i.reference for i in items})
        assert not sides[0] & sides[1] and len(sides[0]) == 8 and len(sides[1]) == 2


def test_batches_come_from_their_side(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are taken alternately on distinct images of the support and of the query pool of one task."""
    trainer, batches = make_trainer(inner_steps=2, epochs=1), []
    loss = trainer._loss

    def looking(batch: Any, rng: np.random.Generator) -> Tensor:
        batches.append(batch.indices)
        return loss(batch, rng)

    monkeypatch.setattr(trainer, "_loss", looking)
    run(trainer)
    assert [len(b) for b in batches] == [6, 4] * 2 * 5
    assert all(len(set(b)) == len(b) for b in batches)
    for i in range(0, len(batches), 4):
        of_one_task = [set(b) for b in batches[i : i + 4]]
        fitting = [
            task
            for task, pools in trainer.pools.items()
            if all(batch <= set(pools[j % 2]) for j, batch in enumerate(of_one_task))
        ]
        assert len(fitting) == 1


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


def test_too_few_references_are_refused(make_trainer: MakeTrainer) -> None:
    """Both sides need images of every task."""
    crops = toy_crops({"tid2013": ["jpeg"], "kadid10k": ["blur"]}, references=3)
    with pytest.raises(DataError, match="at least 2 references"):
        make_trainer(crops, references=["tid2013/0.png"])
    with pytest.raises(DataError, match="kadid10k/blur has no images on one side"):
        make_trainer(crops, references=["tid2013/0.png", "tid2013/1.png", "kadid10k/0.png"])


def test_only_the_given_references_are_used(make_trainer: MakeTrainer) -> None:
    """References kept for evaluation appear on neither side."""
    trainer = make_trainer(references=[f"references/{i}.png" for i in (0, 2, 4)])
    indices = np.concatenate([pool for pools in trainer.pools.values() for pool in pools])
    assert {trainer.crops.items[i].reference for i in indices} == {"0.png", "2.png", "4.png"}


# ------------------------------------------------------------ what is trained

EXPECTED_PREFIXES = {
    "text": ("text_prompt.ctx",),
    "visual": ("visual_prompts.tokens", "visual_prompts.proj."),
    "prompts": ("text_prompt.ctx", "visual_prompts."),
    # The tiny model has three image blocks and adapts the last two.
    "towers": (
        "clip.visual.transformer.resblocks.1.",
        "clip.visual.transformer.resblocks.2.",
        "clip.visual.ln_post.",
        "clip.transformer.resblocks.",
        "clip.ln_final.",
    ),
    "blocks": (
        "text_prompt.ctx",
        "visual_prompts.",
        "clip.visual.transformer.resblocks.1.",
        "clip.visual.transformer.resblocks.2.",
        "clip.visual.ln_post.",
    ),
}


@pytest.mark.parametrize("method", ["meta", "ordinary"])
@pytest.mark.parametrize("train", EXPECTED_PREFIXES)
def test_only_the_wanted_parameters_change(make_trainer: MakeTrainer, train: Any, method: str) -> None:
    """Everything named by `train` moves, everything else stays bit for bit as it was."""
    trainer = make_trainer(train=train, method=method, block_lr=1e-3)
    before = state_of(trainer.model)
    after = run(trainer, 2).model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    expected = {n for n in before if n.startswith(EXPECTED_PREFIXES[train])}
    assert changed == expected == set(trained_parameters(trainer.model, train))


def test_blocks_have_a_learning_rate_of_their_own(make_trainer: MakeTrainer) -> None:
    """Adam's first steps move a value by at most their learning rate, of which there are two."""
    trainer = make_trainer(train="blocks", inner_lr=1e-2, block_lr=1e-5, outer_lr=1.0)
    before = trainer.state.theta
    moved = {n: float((before[n] - t).abs().max()) for n, t in run(trainer, 1).state.theta.items()}
    assert 5e-6 < max(m for n, m in moved.items() if n.startswith("clip.")) < 2.1e-5
    assert 5e-3 < max(m for n, m in moved.items() if not n.startswith("clip.")) < 2.1e-2


def test_nothing_to_train_is_refused(tiny_config: ModelConfig) -> None:
    """A model without visual prompts has none to train."""
    prompts = dataclasses.replace(tiny_config.prompts, n_visual=0)
    model = QualityCLIP(dataclasses.replace(tiny_config, prompts=prompts))
    with pytest.raises(ConfigError, match="nothing to train"):
        MetaTrainer(model, toy_crops(), dataclasses.replace(FAST, train="visual"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"tasks_per_step": -1},
        {"inner_steps": -1},
        {"n_visual": -1},
        {"support_batch": 0},
        {"query_batch": -1},
        {"inner_lr": 0.0},
        {"block_lr": -1e-5},
        {"outer_lr": float("nan")},
        {"query_share": 1.0},
        {"query_share": 0.0},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PretrainConfig(**wrong)


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_warm_up_shortens_the_first_steps(make_trainer: MakeTrainer, method: str) -> None:
    """In the first of four warm-up steps Adam moves a value by a quarter of what it would without."""
    moved = []
    for warm_up in (0, 4):
        trainer = make_trainer(method=method, tasks_per_step=1, outer_lr=1.0, warm_up=warm_up)
        before = trainer.state.theta
        moved.append(farthest(before, run(trainer, 1).state.theta))
    assert moved[1] == pytest.approx(moved[0] / 4, rel=0.2)


def test_kept_moments_matter_from_the_second_task_on(make_trainer: MakeTrainer) -> None:
    """With one task in the first step, fresh and kept moments agree there and part afterwards."""
    fresh, kept = (make_trainer(tasks_per_step=1, adam=adam) for adam in ("fresh", "kept"))
    assert_equal(run(fresh, 1).state.theta, run(kept, 1).state.theta)
    assert farthest(run(fresh, 1).state.theta, run(kept, 1).state.theta) > 0


# ----------------------------------------------------- repeatable, continuable

#: Each with its own kind of state to carry on.
KINDS = [
    {"method": "meta", "adam": "fresh"},
    {"method": "meta", "adam": "kept"},
    {"method": "ordinary"},
    {"method": "meta", "adam": "kept", "train": "blocks"},
    {"method": "meta", "adam": "authors", "working_copy": "carried", "split_by": "image", "label_range": "task"},
]


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_a_seed_fixes_everything(make_trainer: MakeTrainer, method: str) -> None:
    """The same seed gives the same parameters and losses bit for bit, another seed others."""
    first, second, other = (run(make_trainer(method=method, seed=seed)) for seed in (0, 0, 1))
    assert_equal(first.state.theta, second.state.theta)
    assert losses_of(first) == losses_of(second) != losses_of(other)
    assert farthest(first.state.theta, other.state.theta) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_after_a_step_continues_to_the_same_bits(
    make_trainer: MakeTrainer, tmp_path: Path, kind: dict[str, Any]
) -> None:
    """Stopped after any step, with dropout and random batches, a run ends as if it had not been stopped."""
    kind = {**kind, "warm_up": 3, "outer_lr_end": 0.5}
    whole = make_trainer(**kind)
    for row in whole.run():
        whole.save_checkpoint(tmp_path / f"{row.step}.pt")
    for stopped in range(1, 7):
        continued = make_trainer(**kind)
        continued.load_checkpoint(tmp_path / f"{stopped}.pt")
        assert continued.state.step == stopped
        assert_equal(state_of(run(continued).model), state_of(whole.model))
        assert_equal(continued.state.theta, whole.state.theta)
        assert losses_of(continued) == losses_of(whole) and len(losses_of(whole)) == 6
        assert all(np.diff([r.seconds for r in continued.state.log]) >= 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_interrupted_inside_a_step_continues_to_the_same_bits(
    make_trainer: MakeTrainer, tmp_path: Path, kind: dict[str, Any]
) -> None:
    """Ctrl-C after any of the four Adam steps of the second outer step: that one is done again from its start."""
    whole = run(make_trainer(**kind, epochs=1))
    adam_step = torch.optim.Adam.step
    for where in range(5, 9):
        interrupted, resumed = make_trainer(**kind, epochs=1), make_trainer(**kind, epochs=1)
        calls = itertools.count(1)

        def interrupting(self: torch.optim.Adam, where: int = where, calls: Iterator[int] = calls) -> None:
            adam_step(self)
            if next(calls) == where:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(torch.optim.Adam, "step", interrupting)
            run(interrupted)
        interrupted.save_checkpoint(tmp_path / "checkpoint.pt")
        resumed.load_checkpoint(tmp_path / "checkpoint.pt")
        assert resumed.state.step == 1
        for continued in (resumed, interrupted):  # in another process, and in this one
            assert_equal(state_of(run(continued).model), state_of(whole.model))
            assert losses_of(continued) == losses_of(whole)


def test_a_run_may_be_prolonged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """A checkpoint of a shorter run continues to what the longer run would have been."""
    run(make_trainer(epochs=1)).save_checkpoint(tmp_path / "checkpoint.pt")
    long = make_trainer(epochs=2)
    long.load_checkpoint(tmp_path / "checkpoint.pt")
    assert_equal(run(long).state.theta, run(make_trainer(epochs=2)).state.theta)


def test_a_checkpoint_of_other_settings_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """The settings that differ are named, and the run at hand is not touched."""
    path = tmp_path / "checkpoint.pt"
    run(make_trainer(), 1).save_checkpoint(path)
    other = make_trainer(inner_lr=2e-2, seed=3, epochs=9)
    before = other.state
    with pytest.raises(ConfigError, match=r"other settings: inner_lr, seed\.") as caught:
        other.load_checkpoint(path)
    assert caught.value.path == str(path) and other.state is before
    assert_equal(parameters_of(other), before.theta)


def test_a_checkpoint_of_another_model_is_refused(
    make_trainer: MakeTrainer, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """Another number of visual prompts is noticed before a tensor is copied."""
    path = tmp_path / "checkpoint.pt"
    run(make_trainer(), 1).save_checkpoint(path)
    for n in (0, 1):
        config = dataclasses.replace(tiny_config, prompts=dataclasses.replace(tiny_config.prompts, n_visual=n))
        other = MetaTrainer(QualityCLIP(config, unfolded_prompts=True), toy_crops(), FAST)
        with pytest.raises(ConfigError, match="another shape"):
            other.load_checkpoint(path)


def test_checkpoints_appear_whole(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Writing leaves one file, readable without running any code in it."""
    run(make_trainer(adam="kept"), 1).save_checkpoint(tmp_path / "checkpoint.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["log"]) == 1


# ------------------------------------------------------------------------ losses


@pytest.mark.parametrize("method", ["meta", "ordinary"])
def test_a_loss_that_is_not_finite_stops_the_run(make_trainer: MakeTrainer, method: str) -> None:
    """The error names the step; the state is that of the step before."""
    trainer = run(make_trainer(method=method), 2)
    trainer.crops.labels[:] = np.nan
    with pytest.raises(GrmpScoreError, match="not finite at step 3"):
        run(trainer)
    assert trainer.state.step == 2 and all(bool(t.isfinite().all()) for t in trainer.state.theta.values())


def test_parameters_that_are_not_finite_stop_the_run(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spoilt gradient is noticed at its own step, while the loss is still a number."""
    trainer = make_trainer()
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
def test_the_loss_falls_where_there_is_something_to_learn(make_trainer: MakeTrainer, method: str) -> None:
    """Labels that show in the brightness are learned, on support and on query references."""
    crops = toy_crops(levels=(6,))  # labels near 0 and 1, so that the loss can come near 0
    log = run(make_trainer(crops, method=method, epochs=10, tasks_per_step=5, outer_lr=0.8)).state.log
    for loss in ("support_loss", "query_loss"):
        before, after = (np.mean([getattr(row, loss) for row in rows]) for rows in (log[:2], log[-2:]))
        assert after < 0.8 * before


def test_patches_are_normalised_as_the_model_expects(tiny_config: ModelConfig) -> None:
    """Crops become float32 [B, 3, S, S], minus mean, by standard deviation; mirrored views too."""
    pixels = toy_crops().pixels[:3, 0, :, ::-1]
    patches = to_patches(pixels, tiny_config.preprocess)
    expected = (pixels / 255 - np.array(tiny_config.preprocess.mean)) / np.array(tiny_config.preprocess.std)
    assert patches.dtype == torch.float32
    np.testing.assert_allclose(patches.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_the_model_is_left_in_eval_mode(make_trainer: MakeTrainer) -> None:
    """Between steps dropout is off, so that a run can be looked at on the way."""
    trainer = make_trainer()
    assert all(not trainer.model.training for _ in trainer.run())
