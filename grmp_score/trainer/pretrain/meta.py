"""Stage 1: bi-level meta-learning of the prompts over distortion types (METHOD section 2, eqs. 4 to 6).

Each outer step takes k tasks.  Every task starts from the same theta (the authors' code lets its working copy
run on from task to task), adapts to a batch of support images (eq. 4), then, at the adapted parameters, to a batch
of query images of other references (eq. 5; the paper prints the gradient at theta, the authors' code and we take
it at theta'), and theta moves towards the mean of the results (eq. 6).  Each epoch visits every task once.

To be read from `MetaTrainer._meta_step` on: it holds the three equations.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.config import Preprocess
from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.files import replacing
from grmp_score.model.clip import adapted_names
from grmp_score.model.patches import normalise
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.pretrain.crops import TrainingCrops

#: What is trained: all prompts, one kind of prompt (the paper's table 4), or the prompts and the image tower's
#: last blocks with ``ln_post``.
Trained = Literal["prompts", "text", "visual", "blocks"]


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of stage 1; the defaults are the paper's where it states them.

    Attributes:
        method: ``"meta"`` (eqs. 4 to 6), or ``"ordinary"``: plain Adam on the pooled tasks, for as many images
            (the paper's table 5).
        train: what is trained.
        epochs: passes over all tasks.
        tasks_per_step: k, tasks per outer step.
        inner_steps: pairs of a support and a query step within one task.
        adam: ``"fresh"`` starts every task with new Adam moments; ``"kept"`` carries them on from task to task,
            as the authors' code does in its TID2013 half, which needs far fewer steps.
        inner_lr: alpha, learning rate of the prompts (Adam).
        block_lr: learning rate of the adapted blocks, with ``train="blocks"``.
        warm_up: outer steps over which both inner learning rates rise to their value; Adam's first steps have the
            full size in every parameter, which millions of pre-trained ones do not bear.
        outer_lr: beta, share of the way from theta to the mean of the adapted parameters.
        outer_lr_end: beta falls linearly to this share of its start.
        support_batch: images per support step.
        query_batch: images per query step.
        query_share: share of the references kept for query batches.
        groups: families of distortions to train on, by their names in `sources.Item.group`; all when empty.
        precision: ``"bfloat16"`` computes the image tower under autocast: about twice as fast where the processor
            knows the type.
        seed: of everything random.
    """

    method: Literal["meta", "ordinary"] = "meta"
    train: Trained = "prompts"
    epochs: int = 50
    tasks_per_step: int = 5
    inner_steps: int = 1
    adam: Literal["fresh", "kept"] = "fresh"
    inner_lr: float = 1e-4
    block_lr: float = 1e-5
    warm_up: int = 0
    outer_lr: float = 1e-2
    outer_lr_end: float = 1.0
    support_batch: int = 75
    query_batch: int = 50
    query_share: float = 0.2
    groups: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "tasks_per_step", "inner_steps", "support_batch", "query_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("inner_lr", "block_lr", "outer_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if not 0 < self.query_share < 1:
            raise ConfigError(f"query_share must lie between 0 and 1, got {self.query_share}")


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
    """

    theta: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    log: tuple[LogRow, ...] = ()

    @property
    def step(self) -> int:
        """Outer steps done."""
        return len(self.log)

    @property
    def seconds(self) -> float:
        """Time they took."""
        return self.log[-1].seconds if self.log else 0.0


def trained_parameters(model: QualityCLIP, train: Trained) -> dict[str, torch.nn.Parameter]:
    """The parameters that stage 1 trains, by name in `QualityCLIP`."""
    text, visual = "text_prompt.", "visual_prompts."
    prefixes = {"text": (text,), "visual": (visual,)}.get(train, (text, visual))
    blocks: set[str] = set()
    if train == "blocks":
        # The text tower stays as it is, and with it the scenes' text features.
        adapted = adapted_names(model.clip, model.config.adapted_blocks)
        blocks = {f"clip.{n}" for n in adapted if n.startswith("visual.")}
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
        query: references of the query images, eq. (5).
        pools: for each task, indices into the crops of its support images and of its query images.
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
            DataError: too few references, or a task without images on one side of the split.
        """
        self.model, self.crops, self.config = model.to(device), crops, config
        self.device = torch.device(device)
        model.requires_grad_(False)
        self.parameters = trained_parameters(model, config.train)
        if not self.parameters:
            raise ConfigError(f"nothing to train: the model has no parameters for train={config.train!r}")
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        used = crops.references() if references is None else references
        if len(used) < 2:
            raise DataError(f"need at least 2 references to split into support and query, got {len(used)}")
        self.support, self.query = split_references(used, config.query_share, config.seed)
        self.tasks = crops.tasks(config.groups)
        self.pools = {
            task: (crops.indices(self.support, task), crops.indices(self.query, task)) for task in self.tasks
        }
        for task, (support, query) in self.pools.items():
            if not len(support) or not len(query):
                raise DataError(f"task {task} has no images on one side of the support/query split")
        self.state = TrainingState(self._current())

    @property
    def steps_per_epoch(self) -> int:
        """Outer steps that visit every task once."""
        return -(-len(self.tasks) // self.config.tasks_per_step)

    @property
    def total_steps(self) -> int:
        """Outer steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

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
        rng = np.random.default_rng([config.seed, step])  # batches, crops and flips
        tasks = self._tasks_of_step(step)
        kept = self._adam(step, state.optimizer) if config.method == "ordinary" or config.adam == "kept" else None
        self._set_parameters(state.theta)
        self.model.train()
        if config.method == "meta":
            theta, losses = self._meta_step(state.theta, step, tasks, rng, kept)
        else:
            assert kept is not None
            theta, losses = self._ordinary_step(len(tasks), rng, kept)
        support_loss, query_loss = (float(mean) for mean in np.mean(losses, axis=0))
        self._set_parameters(theta)
        self.model.eval()
        if not (np.isfinite(support_loss + query_loss) and all(t.isfinite().all() for t in theta.values())):
            raise GrmpScoreError(
                f"the loss or a parameter is not finite at step {step + 1}",
                hint="Start again with lower learning rates",
            )
        seconds = state.seconds + time.monotonic() - started
        row = LogRow(step + 1, step // self.steps_per_epoch + 1, support_loss, query_loss, seconds)
        return TrainingState(theta, None if kept is None else kept.state_dict(), (*state.log, row))

    def _meta_step(
        self,
        theta: dict[str, Tensor],
        step: int,
        tasks: list[str],
        rng: np.random.Generator,
        kept: torch.optim.Optimizer | None,
    ) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
        """Eqs. (4) to (6) for k tasks; returns the next theta and each task's losses."""
        moved = {name: torch.zeros_like(value) for name, value in theta.items()}  # sum_i (theta - theta_i)
        losses = []
        for task in tasks:
            self._set_parameters(theta)  # every task starts from theta
            losses.append(self._adapt(*self.pools[task], rng, kept or self._adam(step)))
            for name, theta_i in self.parameters.items():
                moved[name] += theta[name] - theta_i.detach()
        beta, k = self._outer_lr(step), len(tasks)
        # eq. (6): theta <- theta - beta * (1/k) * sum_i (theta - theta_i)
        return {name: value - beta * moved[name] / k for name, value in theta.items()}, losses

    def _ordinary_step(
        self, k: int, rng: np.random.Generator, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
        """Plain Adam on the pooled images of all tasks, on as many as meta-learning sees in a step of k tasks."""
        support = np.concatenate([self.pools[t][0] for t in self.tasks])
        query = np.concatenate([self.pools[t][1] for t in self.tasks])
        losses = [self._adapt(support, query, rng, optimizer) for _ in range(k)]
        return self._current(), losses

    def _adapt(
        self,
        support: NDArray[np.int64],
        query: NDArray[np.int64],
        rng: np.random.Generator,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[float, float]:
        """Inner steps on the model's parameters, from wherever they stand; returns the mean losses.

        The equations are written for plain gradient descent; Adam stands in its place, as in the authors' code.
        """
        support_losses, query_losses = [], []
        for _ in range(self.config.inner_steps):
            # eq. (4): theta'_i = theta - alpha * grad L(theta, support_i)
            support_losses.append(self._descend(support, self.config.support_batch, rng, optimizer))
            # eq. (5): theta_i = theta'_i - alpha * grad L(theta'_i, query_i)
            query_losses.append(self._descend(query, self.config.query_batch, rng, optimizer))
        return float(np.mean(support_losses)), float(np.mean(query_losses))

    def _descend(
        self, pool: NDArray[np.int64], size: int, rng: np.random.Generator, optimizer: torch.optim.Optimizer
    ) -> float:
        """One step on a random batch of a pool; returns the loss before it."""
        batch = rng.choice(pool, size=min(size, len(pool)), replace=False)  # [B]
        loss = self._loss(batch, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    def _loss(self, batch: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Eq. (3) on one random crop of each item [B], half of them mirrored."""
        views = rng.integers(0, self.crops.pixels.shape[1], size=len(batch))  # [B]
        pixels = np.array(self.crops.pixels[batch, views])  # [B, S, S, 3] uint8
        mirrored = rng.random(len(batch)) < 0.5  # [B]
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        patches = to_patches(pixels, self.model.config.preprocess).to(self.device)  # [B, 3, S, S]
        labels = torch.from_numpy(self.crops.labels[batch]).to(self.device, torch.float32)  # [B]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            features = self.model.image(patches)  # [B, D]
        logits = self.model.quality_logits(features.float(), self.model.encode_quality())  # [B, 2]
        return quality_loss(logits, labels)

    def _tasks_of_step(self, step: int) -> list[str]:
        """k tasks (fewer at the end of an epoch), of an order that each epoch draws anew."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, 7, epoch]).permutation(len(self.tasks))
        k = self.config.tasks_per_step
        return [self.tasks[i] for i in order[position * k : (position + 1) * k]]

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
        log = tuple(LogRow(**row) for row in content["log"])
        self.state = TrainingState(theta, content["optimizer"], log)
        self._set_parameters(theta)


def to_patches(pixels: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """Crops [B, S, S, 3] uint8 -> normalised patches [B, 3, S, S] float32."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)  # [B, 3, S, S] uint8
    return normalise(values.to(torch.float32).div_(255.0), preprocess)
