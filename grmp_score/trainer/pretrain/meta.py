"""Stage 1: bi-level meta-learning of the prompts over distortion types (METHOD section 2, eqs. 4 to 6).

Each outer step takes k tasks.  A task starts from theta, as eq. (4) says, or, as in the authors' code, from where
the task before it ended.  It adapts to a batch of support images (eq. 4), then, at the adapted parameters, to a
batch of query images (eq. 5; the paper prints the gradient at theta, the authors' code and we take it at theta'),
and theta moves towards the mean of the results (eq. 6).  Each epoch visits every task once, the 25th of KADID-10k
too, which the authors' code leaves out.

To be read from `MetaTrainer._meta_step` on: it holds the three equations.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.config import Preprocess
from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.files import replacing
from grmp_score.model.clip import adapted_names
from grmp_score.model.patches import normalised
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.data.sources import CLEAN
from grmp_score.trainer.pretrain.config import PretrainConfig, Trained, epoch_steps
from grmp_score.trainer.pretrain.crops import TrainingCrops


@dataclass(frozen=True)
class LogRow:
    """One outer step: losses are means over its tasks (eq. 3, before each update)."""

    step: int
    epoch: int
    support_loss: float
    query_loss: float
    seconds: float


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands after a whole outer step.

    `MetaTrainer` replaces it as one and never changes it in place.  So a run that is interrupted anywhere inside a
    step still holds, and saves, what it had before that step.

    Attributes:
        theta: the trained parameters by name.
        optimizer: Adam's state where it is carried from step to step, otherwise None.
        log: one row per outer step.
        working: the working copy's parameters where it is carried from step to step, otherwise None: it is theta.
    """

    theta: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    log: tuple[LogRow, ...] = ()
    working: dict[str, Tensor] | None = None

    @property
    def step(self) -> int:
        """Outer steps done."""
        return len(self.log)

    @property
    def seconds(self) -> float:
        """Time they took."""
        return self.log[-1].seconds if self.log else 0.0


@dataclass(frozen=True)
class ImageSet:
    """A support or a query set.

    Attributes:
        indices: [n] int64, of its crops.
        labels: [n] float64 in 0..1, higher is better.
        cut: whether random parts of the images are seen, or the images as they are.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.float64]
    cut: bool

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: NDArray[np.int64]) -> ImageSet:
        return ImageSet(self.indices[rows], self.labels[rows], self.cut)


def trained_parameters(model: QualityCLIP, train: Trained) -> dict[str, torch.nn.Parameter]:
    """The parameters that stage 1 trains, by name in `QualityCLIP`."""
    text, visual = "text_prompt.", "visual_prompts."
    prefixes = {"text": (text,), "visual": (visual,), "towers": ()}.get(train, (text, visual))
    blocks: set[str] = set()
    if train in ("blocks", "towers"):
        # With "blocks" the text tower stays as it is, and with it the scenes' text features.
        adapted = adapted_names(model.clip, model.config.adapted_blocks)
        blocks = {f"clip.{n}" for n in adapted if train == "towers" or n.startswith("visual.")}
    return {n: p for n, p in model.named_parameters() if n.startswith(prefixes) or n in blocks}


def split_references(references: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits references into two disjoint parts, the second one ``share`` of each data set (at least one)."""
    first, second = [], []
    for data_set in dict.fromkeys(r.split("/")[0] for r in references):
        names = sorted(r for r in references if r.startswith(f"{data_set}/"))
        order = np.random.default_rng([seed, len(names)]).permutation(len(names))
        cut = min(max(1, round(share * len(names))), len(names) - 1)
        second += [names[i] for i in order[:cut]]
        first += [names[i] for i in order[cut:]]
    return first, second


class MetaTrainer:
    """Trains a model in place, step by step.

    A run stopped anywhere continues from its checkpoint to the same parameters, bit for bit: everything random is
    drawn from (seed, step), and `state` changes by whole steps only.

    Attributes:
        model: being trained; between steps it holds theta, in eval mode.  `QualityCLIP.refresh_text` and folding
            are left to the caller.
        state: where the run stands.
        tasks: names of the distortion tasks.
        support: references of the support images, eq. (4).
        query: references of the query images, eq. (5); the same ones where images are split, not references.
        pools: for each task, indices into the crops of its support images and of its query images; with
            ``split_by="image"`` of all its images and of none.
    """

    def __init__(
        self,
        model: QualityCLIP,
        crops: TrainingCrops,
        config: PretrainConfig,
        *,
        references: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """Prepares a run.

        Args:
            model: its visual prompts should be unfolded.
            crops: training images of all tasks.
            config: settings.
            references: references to train on (support and query together); all by default.
            device: where to compute.

        Raises:
            ConfigError: the model has nothing to train.
            DataError: too few references, a task without images on one side of the split, or crops that were cut
                for other ``views``.
        """
        self.model, self.crops, self.config = model.to(device), crops, config
        self.device = torch.device(device)
        model.requires_grad_(False)
        self.parameters = trained_parameters(model, config.train)
        if not self.parameters:
            raise ConfigError(f"nothing to train: the model has no parameters for train={config.train!r}")
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        if crops.views != config.views:
            raise DataError(f"the crops were cut for views={crops.views!r}, not {config.views!r}")
        used = list(crops.references() if references is None else references)
        if len(used) < 2:
            raise DataError(f"need at least 2 references to split into support and query, got {len(used)}")
        self.tasks = crops.tasks(config.groups)
        if config.split_by == "image":
            self.support = self.query = used
            nothing = np.empty(0, dtype=np.int64)
            self.pools = {task: (self._distorted(used, task), nothing) for task in self.tasks}
        else:
            self.support, self.query = split_references(used, config.query_share, config.seed)
            self.pools = {
                task: (crops.indices(self.support, task), crops.indices(self.query, task)) for task in self.tasks
            }
        for task in self.tasks:
            if not all(self._sizes_of(task)):
                raise DataError(f"task {task} has no images on one side of the support/query split")
        self._steps = epoch_steps(self.tasks, config.tasks_per_step)
        self.state = TrainingState(self._current())

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps that visit every task once."""
        return len(self._steps)

    @property
    def total_steps(self) -> int:
        """Outer steps of the whole run."""
        return 0 if self.config.method == "none" else self.config.epochs * self.steps_per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Images in all support and query steps of an epoch, repetitions counted."""
        return sum(sum(sizes) for task in self.tasks for sizes in self._pairs(*self._sizes_of(task)))

    def check_reach(self) -> None:
        """Refuses settings with which theta stays about where it starts: see `PretrainConfig.check_reach`."""
        steps = [
            [2 * len(self._pairs(*self._sizes_of(t))) for t in self._tasks_of_step(s)]
            for s in range(self.total_steps)
        ]
        averaged = self.config.method == "meta" and self.config.working_copy == "reset"
        self.config.check_reach([round(sum(s) / len(s)) if averaged else sum(s) for s in steps])

    def run(self) -> Iterator[LogRow]:
        """Trains to the end, yielding a row after each outer step.

        Raises:
            GrmpScoreError: the loss or a parameter is no longer finite; names the step.
        """
        while self.state.step < self.total_steps:
            self.state = self._outer_step(self.state)
            yield self.state.log[-1]

    # -------------------------------------------------------------- one step

    def _outer_step(self, state: TrainingState) -> TrainingState:
        """The state after one more outer step; ``state`` is left as it is."""
        started, step, config = time.monotonic(), state.step, self.config
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        rng = np.random.default_rng([config.seed, step])  # splits, batches, crops and flips
        self._set_parameters(state.theta if state.working is None else state.working)
        self.model.train()
        if config.method == "meta":
            theta, optimizer, losses = self._meta_step(state, rng)
        else:
            theta, optimizer, losses = self._ordinary_step(state, rng)
        working = self._current() if config.method == "meta" and config.working_copy == "carried" else None
        support_loss, query_loss = (float(mean) for mean in np.mean(losses, axis=0))
        self._set_parameters(theta)
        self.model.eval()
        tensors = [*theta.values(), *(working or {}).values()]
        if not (np.isfinite(support_loss + query_loss) and all(t.isfinite().all() for t in tensors)):
            raise GrmpScoreError(
                f"the loss or a parameter is not finite at step {step + 1}",
                hint="Start again with lower learning rates",
            )
        seconds = state.seconds + time.monotonic() - started
        row = LogRow(step + 1, step // self.steps_per_epoch + 1, support_loss, query_loss, seconds)
        kept = None if config.method == "meta" and config.adam == "fresh" else optimizer.state_dict()
        return TrainingState(theta, kept, (*state.log, row), working)

    def _meta_step(
        self, state: TrainingState, rng: np.random.Generator, tasks: Sequence[str] | None = None
    ) -> tuple[dict[str, Tensor], torch.optim.Optimizer, list[tuple[float, float]]]:
        """Eqs. (4) to (6) for k tasks, by default those of the step; the model holds the working copy.

        Returns:
            The next theta, Adam, and each task's losses.
        """
        theta, step, config = state.theta, state.step, self.config
        tasks = self._tasks_of_step(step) if tasks is None else tasks
        optimizer = self._adam(step, state.optimizer)
        moved = {name: torch.zeros_like(value) for name, value in theta.items()}  # sum_i (theta - theta_i)
        losses = []
        for task in tasks:
            if config.working_copy == "reset":
                self._set_parameters(theta)
            if config.adam == "fresh" or (config.adam == "authors" and not task.startswith("tid2013/")):
                # In the authors' code the last of these goes on into the next epoch's TID2013, and so does ours.
                optimizer = self._adam(step)
            support, query = self._draw(task, rng)
            losses.append(self._adapt(support, query, self._pairs(len(support), len(query)), rng, optimizer))
            for name, theta_i in self.parameters.items():
                moved[name] += theta[name] - theta_i.detach()
        beta, k = self._outer_lr(step), len(tasks)
        # eq. (6): theta <- theta - beta * (1/k) * sum_i (theta - theta_i)
        return {name: value - beta * moved[name] / k for name, value in theta.items()}, optimizer, losses

    def _ordinary_step(
        self, state: TrainingState, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], torch.optim.Optimizer, list[tuple[float, float]]]:
        """Plain Adam on the pooled images of all tasks, on as many as meta-learning sees in the step."""
        optimizer = self._adam(state.step, state.optimizer)
        drawn = [self._draw(task, rng) for task in self.tasks]
        support, query = (
            ImageSet(
                np.concatenate([s.indices for s in sets]), np.concatenate([s.labels for s in sets]), sets[0].cut
            )
            for sets in zip(*drawn, strict=True)
        )
        losses = [
            self._adapt(support, query, self._pairs(*self._sizes_of(task)), rng, optimizer)
            for task in self._tasks_of_step(state.step)
        ]
        return self._current(), optimizer, losses

    def _draw(self, task: str, rng: np.random.Generator) -> tuple[ImageSet, ImageSet]:
        """Support and query set of a task for one visit."""
        support, query = self.pools[task]
        if self.config.split_by == "image":
            order = rng.permutation(support)
            n, _ = self._sizes_of(task)
            support, query = order[:n], order[n:]
        squeezed = self.config.views == "squeezed"
        return self._set_of(support, cut=True), self._set_of(query, cut=not squeezed)

    def _set_of(self, indices: NDArray[np.int64], *, cut: bool) -> ImageSet:
        """Images with their labels; ``label_range="task"`` stretches them over the set, unless all are equal."""
        labels = self.crops.labels[indices]  # [n]
        if self.config.label_range == "task" and labels.min() < labels.max():
            labels = (labels - labels.min()) / (labels.max() - labels.min())
        return ImageSet(indices, labels, cut)

    def _sizes_of(self, task: str) -> tuple[int, int]:
        """Images in the support set and in the query set of a task."""
        support, query = (len(pool) for pool in self.pools[task])
        if self.config.split_by == "image":
            query = max(1, round(self.config.query_share * support))
            support -= query
        return max(0, support), query

    def _pairs(self, n_support: int, n_query: int) -> list[tuple[int, int]]:
        """Batch sizes of each pair of a support and a query step in one visit of a task with so many images.

        Both sets are gone through in batches, of which the last is what is left, again and again.
        """

        def sizes(n: int, batch: int) -> list[int]:
            return [min(batch, n - start) for start in range(0, n, batch)]

        support, query = sizes(n_support, self.config.support_batch), sizes(n_query, self.config.query_batch)
        pairs = self.config.inner_steps or len(support)
        return [(support[i % len(support)], query[i % len(query)]) for i in range(pairs)]

    def _adapt(
        self,
        support: ImageSet,
        query: ImageSet,
        pairs: Sequence[tuple[int, int]],
        rng: np.random.Generator,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[float, float]:
        """Inner steps on the model's parameters, from wherever they stand, on batches of these sizes in random
        order.

        The equations are written for plain gradient descent; Adam stands in its place, as in the authors' code.

        Returns:
            The mean losses.
        """
        support_rows, query_rows = (itertools.cycle(rng.permutation(len(images))) for images in (support, query))
        support_losses, query_losses = [], []
        for n_support, n_query in pairs:
            batch = support[np.fromiter(itertools.islice(support_rows, n_support), np.int64)]
            # eq. (4): theta'_i = theta - alpha * grad L(theta, support_i)
            support_losses.append(self._descend(batch, rng, optimizer))
            batch = query[np.fromiter(itertools.islice(query_rows, n_query), np.int64)]
            # eq. (5): theta_i = theta'_i - alpha * grad L(theta'_i, query_i)
            query_losses.append(self._descend(batch, rng, optimizer))
        return float(np.mean(support_losses)), float(np.mean(query_losses))

    def _descend(self, batch: ImageSet, rng: np.random.Generator, optimizer: torch.optim.Optimizer) -> float:
        """One step on a batch; returns the loss before it."""
        loss = self._loss(batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    def _loss(self, batch: ImageSet, rng: np.random.Generator) -> Tensor:
        """Eq. (3) on one view of each image; where parts are cut, half of them are mirrored."""
        if batch.cut:
            pixels = self.crops.random_views(batch.indices, rng)  # [B, S, S, 3] uint8
            mirrored = rng.random(len(batch)) < 0.5  # [B]
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        else:
            pixels = np.array(self.crops.pixels[batch.indices, 0])  # [B, S, S, 3] uint8
        patches = to_patches(pixels, self.model.config.preprocess).to(self.device)  # [B, 3, S, S]
        labels = torch.from_numpy(batch.labels).to(self.device, torch.float32)  # [B]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            features = self.model.image(patches)  # [B, D]
        logits = self.model.quality_logits(features.float(), self.model.encode_quality())  # [B, 2]
        return quality_loss(logits, labels)

    def _distorted(self, references: Sequence[str], task: str) -> NDArray[np.int64]:
        """Indices of a task's images, without the clean ones."""
        indices = self.crops.indices(references, task)
        return indices[[self.crops.items[i].group != CLEAN for i in indices]]

    def _tasks_of_step(self, step: int) -> list[str]:
        """The tasks of an outer step, of an order that each epoch draws anew."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rng = np.random.default_rng([self.config.seed, 7, epoch])
        places = self._steps[position]
        if self.config.tasks_per_step:
            order = rng.permutation(len(self.tasks))
            return [self.tasks[order[i]] for i in places]
        return [self.tasks[i] for i in rng.permutation(places)]

    def _outer_lr(self, step: int) -> float:
        """beta, falling linearly."""
        progress = step / max(1, self.total_steps - 1)
        return self.config.outer_lr * (1 + progress * (self.config.outer_lr_end - 1))

    def _adam(self, step: int, state: dict[str, Any] | None = None) -> torch.optim.Optimizer:
        """Adam with the learning rates of a step, new or going on from a copy of ``state``."""
        factor = min(1.0, (step + 1) / max(1, self.config.warm_up))
        if self.config.method == "ordinary":
            # Without an outer step the rate decays as beta does.
            factor *= self._outer_lr(step) / self.config.outer_lr
        blocks = [p for n, p in self.parameters.items() if n.startswith("clip.")]
        prompts = [p for n, p in self.parameters.items() if not n.startswith("clip.")]
        rates = [(prompts, self.config.inner_lr * factor), (blocks, self.config.block_lr * factor)]
        rates = [(parameters, lr) for parameters, lr in rates if parameters]
        optimizer = torch.optim.Adam([{"params": parameters, "lr": lr} for parameters, lr in rates])
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))  # with the learning rates of an earlier step
            for group, (_, lr) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
        return optimizer

    def _current(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _set_parameters(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(self, path: Path) -> None:
        """Writes what is needed to continue after the last whole step; the file appears complete or not at all."""
        content = {
            "config": dataclasses.asdict(self.config),
            "theta": {n: t.cpu() for n, t in self.state.theta.items()},
            "working": None if self.state.working is None else {n: t.cpu() for n, t in self.state.working.items()},
            "optimizer": self.state.optimizer,
            "log": [dataclasses.asdict(row) for row in self.state.log],
        }
        with replacing(path) as temporary:
            torch.save(content, temporary)

    def load_checkpoint(self, path: Path) -> None:
        """Continues from a checkpoint of a run with the same settings (its length may differ).

        Raises:
            ConfigError: the settings, or the model's shapes, differ; names them.
        """
        # On the CPU, where Adam counts its steps; what goes with a parameter is moved to it.
        content = torch.load(path, map_location="cpu", weights_only=True)
        mine = dataclasses.asdict(self.config)
        changed = sorted(k for k in mine if k != "epochs" and content["config"].get(k) != mine[k])
        if changed:
            raise ConfigError(
                f"the checkpoint was made with other settings: {', '.join(changed)}",
                path=str(path),
                hint="Use the same settings, or another output folder",
            )
        shapes = {n: p.shape for n, p in self.parameters.items()}
        if {n: t.shape for n, t in content["theta"].items()} != shapes:
            raise ConfigError(
                "the checkpoint is of a model of another shape",
                path=str(path),
                hint="Use the same model and prompts, or another output folder",
            )
        theta = {n: t.to(self.device) for n, t in content["theta"].items()}
        working = content["working"] and {n: t.to(self.device) for n, t in content["working"].items()}
        log = tuple(LogRow(**row) for row in content["log"])
        self.state = TrainingState(theta, content["optimizer"], log, working)
        self._set_parameters(theta)


def to_patches(pixels: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """Crops [B, S, S, 3] uint8 -> normalised patches [B, 3, S, S] float32."""
    return torch.from_numpy(normalised(pixels, preprocess))
