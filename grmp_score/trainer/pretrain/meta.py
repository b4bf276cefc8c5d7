"""Stage 1: bi-level meta-learning of the prompts over distortion types (METHOD section 2, eqs. 4 to 6).

Each outer step takes k tasks.  Every task starts from the same theta (the authors' code lets its working copy
run on from task to task), adapts to a batch of support images (eq. 4), then, at the adapted parameters, to a batch
of query images of other references (eq. 5; the paper prints the gradient at theta, the authors' code and we take
it at theta'), and theta moves towards the mean of the results (eq. 6).  Each epoch visits every task once.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.errors import ConfigError, DataError, GrmpScoreError
from grmp_score.model.clip import adapted_names
from grmp_score.model.patches import normalise
from grmp_score.model.quality_clip import QualityCLIP, quality_loss
from grmp_score.trainer.pretrain.crops import Prepared

#: What is trained: all prompts, one kind of prompt (the paper's table 4), or the prompts and the image tower's
#: last blocks with ``ln_post``.
Trained = Literal["prompts", "text", "visual", "blocks"]


@dataclass(frozen=True)
class MetaConfig:
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


def trained_parameters(model: QualityCLIP, train: Trained) -> dict[str, torch.nn.Parameter]:
    """The parameters that stage 1 trains, by name in `QualityCLIP`."""
    adapted = {f"clip.{n}" for n in adapted_names(model.clip, model.config.adapted_blocks)}
    wanted: dict[str, Callable[[str], bool]] = {
        "prompts": lambda n: n.startswith(("text_prompt.", "visual_prompts.")),
        "text": lambda n: n.startswith("text_prompt."),
        "visual": lambda n: n.startswith("visual_prompts."),
        # The text tower stays as it is, and with it the scenes' text features.
        "blocks": lambda n: (
            n.startswith(("text_prompt.", "visual_prompts.")) or (n in adapted and n.startswith("clip.visual."))
        ),
    }
    return {n: p for n, p in model.named_parameters() if wanted[train](n)}


def split_references(references: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
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
    """Trains a model in place, step by step; a run stopped after any step continues from its checkpoint to the
    same parameters, because everything random is drawn from (seed, step).

    Attributes:
        model: being trained; `QualityCLIP.refresh_text` and folding are left to the caller.
        theta: current parameters by name.
        step: outer steps done.
        log: one row per outer step.
    """

    def __init__(
        self,
        model: QualityCLIP,
        data: Prepared,
        config: MetaConfig,
        *,
        references: list[str] | None = None,
        device: str = "cpu",
    ) -> None:
        """Prepares a run.

        Args:
            model: its visual prompts should be unfolded.
            data: prepared tasks.
            config: settings.
            references: references to train on (support and query together); all by default.
            device: where to compute.
        """
        self.model, self.data, self.config = model.to(device), data, config
        self.device = torch.device(device)
        model.requires_grad_(False)
        self.parameters = trained_parameters(model, config.train)
        if not self.parameters:
            raise ConfigError(f"nothing to train: the model has no parameters for train={config.train!r}")
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        used = data.references() if references is None else references
        if len(used) < 2:
            raise DataError(f"need at least 2 references to split into support and query, got {len(used)}")
        self.support, self.query = split_references(used, config.query_share, config.seed)
        self.tasks = data.tasks(config.groups)
        self.pools = {
            task: (data.indices(task, self.support), data.indices(task, self.query)) for task in self.tasks
        }
        for task, (support, query) in self.pools.items():
            if not len(support) or not len(query):
                raise DataError(f"task {task} has no images on one side of the support/query split")
        self.theta = self._current()
        self.step = 0
        self.log: list[LogRow] = []
        keep = config.method == "ordinary" or config.adam == "kept"
        self._kept = self._optimizer() if keep else None
        self._seconds = 0.0

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
        while self.step < self.total_steps:
            started = time.monotonic()
            self.model.train()
            torch.manual_seed(self.config.seed * 1_000_003 + self.step)
            rng = np.random.default_rng([self.config.seed, self.step])
            if self._kept is not None:
                self._set_rates(self._kept)
            tasks = self._tasks_of_step()
            run_step = self._meta_step if self.config.method == "meta" else self._ordinary_step
            support_loss, query_loss = run_step(tasks, rng)
            self.model.eval()
            if not (np.isfinite(support_loss + query_loss) and _all_finite(self.theta)):
                raise GrmpScoreError(
                    f"the loss or a parameter is not finite at step {self.step + 1}",
                    hint="Start again with lower learning rates",
                )
            self.step += 1
            self._seconds += time.monotonic() - started
            row = LogRow(
                self.step,
                (self.step - 1) // self.steps_per_epoch + 1,
                support_loss,
                query_loss,
                self._seconds,
            )
            self.log.append(row)
            yield row

    # -------------------------------------------------------------- one step

    def _meta_step(self, tasks: list[str], rng: np.random.Generator) -> tuple[float, float]:
        moved = {name: torch.zeros_like(value) for name, value in self.theta.items()}
        losses = []
        for task in tasks:
            self._restore(self.theta)  # every task starts from theta
            losses.append(self._adapt(*self.pools[task], rng, self._kept or self._optimizer()))
            for name, parameter in self.parameters.items():
                moved[name] += self.theta[name] - parameter.detach()
        beta = self._outer_lr()
        self.theta = {
            name: value - beta * moved[name] / len(tasks) for name, value in self.theta.items()
        }  # eq. (6)
        self._restore(self.theta)
        support, query = np.mean(losses, axis=0)
        return float(support), float(query)

    def _ordinary_step(self, tasks: list[str], rng: np.random.Generator) -> tuple[float, float]:
        assert self._kept is not None
        support = np.concatenate([self.pools[t][0] for t in self.tasks])
        query = np.concatenate([self.pools[t][1] for t in self.tasks])
        losses = [self._adapt(support, query, rng, self._kept) for _ in tasks]
        self.theta = self._current()
        mean = np.mean(losses, axis=0)
        return float(mean[0]), float(mean[1])

    def _adapt(
        self,
        support: NDArray[np.int64],
        query: NDArray[np.int64],
        rng: np.random.Generator,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[float, float]:
        """Alternates support steps (eq. 4) and query steps at the adapted parameters (eq. 5)."""
        losses: list[list[float]] = [[], []]
        for _ in range(self.config.inner_steps):
            for side, (pool, size) in enumerate(
                ((support, self.config.support_batch), (query, self.config.query_batch))
            ):
                loss = self._loss(rng.choice(pool, size=min(size, len(pool)), replace=False), rng)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[side].append(loss.item())
        return float(np.mean(losses[0])), float(np.mean(losses[1]))

    def _loss(self, chosen: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        crops = self.data.crops
        views = rng.integers(0, crops.shape[1], size=len(chosen))
        pixels = np.stack([crops[i, k] for i, k in zip(chosen, views, strict=True)])
        flipped = rng.random(len(chosen)) < 0.5
        pixels[flipped] = pixels[flipped, :, ::-1]
        patches = to_patches(pixels, self.model).to(self.device)
        labels = torch.from_numpy(self.data.labels[chosen]).to(self.device, torch.float32)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            features = self.model.image(patches)
        logits = self.model.quality_logits(features.float(), self.model.encode_quality())
        return quality_loss(logits, labels)

    # ----------------------------------------------------------------- state

    def _tasks_of_step(self) -> list[str]:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, 7, epoch]).permutation(len(self.tasks))
        k = self.config.tasks_per_step
        return [self.tasks[i] for i in order[position * k : (position + 1) * k]]

    def _outer_lr(self) -> float:
        progress = self.step / max(1, self.total_steps - 1)
        return self.config.outer_lr * (1 + progress * (self.config.outer_lr_end - 1))

    def _optimizer(self) -> torch.optim.Optimizer:
        blocks = [p for n, p in self.parameters.items() if n.startswith("clip.")]
        prompts = [p for n, p in self.parameters.items() if not n.startswith("clip.")]
        groups = [
            {"params": params, "lr": lr, "base_lr": lr}
            for params, lr in ((prompts, self.config.inner_lr), (blocks, self.config.block_lr))
            if params
        ]
        optimizer = torch.optim.Adam(groups)
        self._set_rates(optimizer)
        return optimizer

    def _set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Warm-up; ordinary training, which has no outer step, decays its rate as meta-learning decays beta."""
        factor = min(1.0, (self.step + 1) / max(1, self.config.warm_up))
        if self.config.method == "ordinary":
            factor *= self._outer_lr() / self.config.outer_lr
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def _current(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _restore(self, theta: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(theta[name])

    def save_checkpoint(self, path: Path) -> None:
        """Writes everything needed to continue, in one step."""
        state = {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": self._seconds,
            "theta": {n: t.cpu() for n, t in self.theta.items()},
            "optimizer": None if self._kept is None else self._kept.state_dict(),
            "log": [dataclasses.asdict(row) for row in self.log],
        }
        temporary = path.with_name(f".{path.name}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load_checkpoint(self, path: Path) -> None:
        """Continues from a checkpoint of a run with the same settings (its length may differ).

        Raises:
            ConfigError: the settings differ; names them.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        mine = dataclasses.asdict(self.config)
        changed = sorted(k for k in mine if k != "epochs" and state["config"].get(k) != mine[k])
        if changed:
            raise ConfigError(
                f"the checkpoint was made with other settings: {', '.join(changed)}",
                path=str(path),
                hint="Use the same settings, or another output folder",
            )
        shapes = {n: p.shape for n, p in self.parameters.items()}
        if {n: t.shape for n, t in state["theta"].items()} != shapes:
            raise ConfigError(
                "the checkpoint is of a model of another shape",
                path=str(path),
                hint="Use the same model and prompts, or another output folder",
            )
        self.theta = {n: t.to(self.device) for n, t in state["theta"].items()}
        self._restore(self.theta)
        if self._kept is not None:
            self._kept.load_state_dict(state["optimizer"])
        self.step, self._seconds = state["step"], state["seconds"]
        self.log = [LogRow(**row) for row in state["log"]]


def _all_finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values())


def to_patches(pixels: NDArray[np.uint8], model: QualityCLIP) -> Tensor:
    """Crops [B, S, S, 3] uint8 -> normalised patches [B, 3, S, S] float32."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).to(torch.float32).div_(255.0)
    return normalise(values, model.config.preprocess)


def write_log(rows: list[LogRow], path: Path) -> None:
    """The run's log as CSV."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(LogRow)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
