"""Stage 2 by gradient descent: from start values to trained ones, step by step (METHOD section 3).

Everything random is drawn from (seed, fold, stage, epoch or step), so a training that was stopped after any step
continues to the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_score.errors import TrainingDivergedError
from grmp_score.model.quality_clip import QualityCLIP, p_high, quality_loss
from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow, Precision
from grmp_score.trainer.adapt.features import Activations, computing
from grmp_score.trainer.adapt.folds import Fold
from grmp_score.trainer.adapt.optimizer import Stage, make_optimizer
from grmp_score.trainer.adapt.parameters import set_values, values_of
from grmp_score.trainer.adapt.qgr import NOISE, Projection, project, semantic_loss
from grmp_score.trainer.metrics import srcc

#: Crops that go through the image blocks together; a batch is worked off in such parts and its gradients summed.
CHUNK = 16

Gradients = dict[str, Tensor]


class GradientDescent:
    """Trains a model in place on the training rows of a fold, through one stage after another.

    Attributes:
        intact: False only while the state changes; it must not be saved then.
        history: one row per step and per look at the held-out rows.
        looks: by stage, p(high) [V] of the held-out rows after each of the epochs `Stage.looks`.
    """

    def __init__(
        self,
        model: QualityCLIP,
        start: Mapping[str, Tensor],
        activations: Activations,
        fold: Fold,
        stages: Sequence[Stage],
        config: FewShotConfig,
        *,
        precision: Precision,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Puts the model into its start state.

        Args:
            model: frozen; its trained parameters are overwritten.
            start: values of all parameters that any stage trains, and of others that the result is to have.
            activations: of all rows; the features are those of the model with the start values.
            fold: rows to train on and to look at, and their targets.
            stages: each is run up to its ``stop``.
            config: settings.
            precision: of the computing.
            clock: seconds for the history.
        """
        self.model, self.activations, self.fold, self.stages = model, activations, fold, stages
        self.config, self.precision, self.clock = config, precision, clock
        self.targets = torch.from_numpy(fold.targets)  # [n]
        self.device = model.text_features.device
        self.history: list[HistoryRow] = []
        self.looks: dict[str, list[list[float]]] = {stage.name: [] for stage in stages}
        self.intact = True
        self._names = list(start)
        self._parameters = {name: p for name, p in model.named_parameters() if name in start}
        self._stage, self._step = 0, 0  # steps are counted anew in every stage
        set_values(model, start)
        self._enter_stage()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the training rows."""
        return self.fold.steps_per_epoch(self.config)

    @property
    def steps_done(self) -> int:
        """Number of steps taken, in all stages."""
        return sum(stage.stop for stage in self.stages[: self._stage]) * self.steps_per_epoch + self._step

    # ----------------------------------------------------------------- running

    def run(self) -> Iterator[HistoryRow]:
        """Trains to the end; yields a row per step, and one per look at the held-out rows.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite; the parameters are still those before the step.
        """
        while self._stage < len(self.stages):
            stage = self.stages[self._stage]
            epoch, position = divmod(self._step, self.steps_per_epoch)
            looked = len(self.looks[stage.name])
            if len(self.fold.held_out) and position == 0 and stage.looks[looked : looked + 1] == [epoch]:
                self._look(stage, epoch)
            elif epoch < stage.stop:
                self._take_step(stage)
            else:
                self.intact = False
                self._stage, self._step = self._stage + 1, 0
                self._enter_stage()
                self.intact = True
                continue
            yield self.history[-1]

    def _look(self, stage: Stage, epoch: int) -> None:
        predictions = self._predict_held_out(changed=epoch > 0 and bool(stage.image_side))
        agreement = srcc(predictions, self.fold.held_out_targets)
        self.intact = False
        self.looks[stage.name].append(predictions)
        self._record(stage, validation_srcc=agreement)
        self.intact = True

    def _take_step(self, stage: Stage) -> None:
        loss, semantic, g_qua, g_sem = self.gradients(stage, *self.batch(stage, self._step))
        qgr: dict[str, float | None] = {}
        if semantic is not None:
            strength = self._strength(semantic)
            made = Projection(g_qua, None, (), len(g_sem))
            if not semantic <= NOISE[self.precision]:
                made = project(g_qua, g_sem, strength, self.config.qgr_form)
            g_qua = made.gradient
            qgr = {
                "semantic_loss": semantic,
                "angle": made.angle,
                "projected": made.share,
                "qgr_lambda": strength,
            }
        if not (math.isfinite(loss + (semantic or 0.0)) and all(bool(g.isfinite().all()) for g in g_qua.values())):
            where = "the final run" if self.fold.number is None else f"fold {self.fold.number + 1}"
            raise TrainingDivergedError(
                f"the loss or its gradient is not finite in {where}, phase {stage.name!r}, step {self._step + 1}",
                hint="Use lower learning rates, or a smaller qgr_lambda",
            )
        rate = stage.learning_rate(self._step, self.steps_per_epoch, self._losses_of(stage))
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for name in stage.names:
            self._parameters[name].grad = g_qua.get(name)
        self.intact = False
        self._optimizer.step()
        self._step += 1
        self._record(stage, loss=loss, learning_rate=rate, **qgr)
        self.intact = True

    def _strength(self, semantic: float) -> float:
        """lambda of eq. (8) at this L_kl."""
        bound, strength = self.config.qgr_max_kl, self.config.qgr_lambda
        return min(1.0, strength) if bound is not None and semantic > bound else strength

    def _losses_of(self, stage: Stage) -> list[float]:
        """L_ce of the steps that the stage has taken so far, where its schedule asks for them."""
        if stage.schedule != "plateau":
            return []
        return [row.loss for row in self.history if row.phase == stage.name and row.loss is not None]

    def _enter_stage(self) -> None:
        """Makes the optimizer of the stage at hand, and nothing else differentiable."""
        self.model.requires_grad_(False)
        for parameter in self._parameters.values():
            parameter.grad = None
        self._optimizer: torch.optim.Optimizer | None = None
        if self._stage < len(self.stages):
            stage = self.stages[self._stage]
            for name in stage.names:
                self._parameters[name].requires_grad_()
            self._optimizer = make_optimizer(stage, self._parameters, self.config)

    def _record(self, stage: Stage, **values: float | None) -> None:
        epoch = math.ceil(self._step / self.steps_per_epoch)
        row = HistoryRow(self.fold.number, stage.name, epoch, self._step, seconds=self.clock(), **values)
        self.history.append(row)

    # ------------------------------------------------------- losses and gradients

    def gradients(
        self, stage: Stage, images: Tensor, crops: Tensor
    ) -> tuple[float, float | None, Gradients, Gradients]:
        """L_ce (eq. 3), L_kl (eq. 7; None without QGR) and their gradients at the current parameters.

        One forward pass serves both.  The text towers run once per batch; the gradients with respect to the text
        features are summed over the parts of the batch and taken down the towers at the end.

        Args:
            stage: which parameters; those that a loss does not reach are missing from its gradient.
            images: rows [B].
            crops: of each [B, K]; all count as samples with their image's label.
        """
        images, crops = images.repeat_interleave(crops.shape[1]), crops.flatten()  # [B K]
        towers = [self.model.encode_quality()]  # [2, D]
        if self.config.uses_qgr:
            towers.append(self.model.encode_scenes())  # [9, D]
        texts = [features.detach().requires_grad_() for features in towers]
        image_side = [self._parameters[name] for name in stage.image_side]
        text_side = [self._parameters[name] for name in stage.text_side]
        losses = [0.0 for _ in texts]
        sums: list[list[Tensor | None]] = [[None] * (1 + len(image_side)) for _ in texts]
        parts = torch.split(torch.arange(len(images)), CHUNK if image_side else len(images))
        for number, part in enumerate(parts):
            share = len(part) / len(images)
            with self._dropout(stage, number):
                kept = self._kept_tokens(stage, number)
                features = self._features(images[part], crops[part], changed=bool(image_side), kept=kept)
            for k, loss in enumerate(self._losses(features, texts, images[part], crops[part])):
                losses[k] += share * loss.item()
                found = torch.autograd.grad(
                    share * loss, [texts[k], *image_side], retain_graph=k + 1 < len(texts), allow_unused=True
                )
                sums[k] = [_add(old, new) for old, new in zip(sums[k], found, strict=True)]
        gradients = []
        for output, (at_text, *at_image) in zip(towers, sums, strict=True):
            at_towers: Sequence[Tensor | None] = [None] * len(text_side)
            if output.requires_grad:
                at_towers = torch.autograd.grad(output, text_side, at_text, allow_unused=True)
            names = (*stage.text_side, *stage.image_side)
            reached: list[Tensor | None] = [*at_towers, *at_image]
            gradients.append({n: g for n, g in zip(names, reached, strict=True) if g is not None})
        if not self.config.uses_qgr:
            return losses[0], None, gradients[0], {}
        return losses[0], losses[1], gradients[0], gradients[1]

    def _losses(self, features: Tensor, texts: list[Tensor], images: Tensor, crops: Tensor) -> Iterator[Tensor]:
        """L_ce, and with QGR L_kl, of some crops."""
        labels = self.targets[images].to(self.device)
        yield quality_loss(self.model.quality_logits(features, texts[0]), labels)
        if self.config.uses_qgr:
            assert self.activations.scenes is not None
            teacher = self.activations.scenes[images, crops].to(self.device)
            yield semantic_loss(self.model.scene_logits(features, texts[1]), teacher)

    def _features(self, images: Tensor, crops: Tensor, *, changed: bool, kept: Tensor | None = None) -> Tensor:
        """Image features [B, D] by the current parameters, float32.

        Args:
            images: rows [B].
            crops: of each [B].
            changed: the image side is no longer that of the start, so the blocks above the kept tokens are run.
            kept: which tokens they see; None for all.
        """
        if not changed:
            return self.activations.features[images, crops].to(self.device)
        assert self.activations.tokens is not None
        tokens = self.activations.tokens[images, crops]  # [B, 1 + N, W]
        tokens = (tokens if kept is None else tokens[:, kept]).to(self.device, torch.float32)
        with computing(self.device, self.precision):
            return self.model.image.head(tokens).float()

    @contextlib.contextmanager
    def _dropout(self, stage: Stage, number: int) -> Iterator[None]:
        """Inside, visual prompts drop out, as drawn for this part of the step at hand."""
        prompts, rate = self.model.visual_prompts, self.config.prompt_dropout
        if prompts is None or not rate or not stage.image_side:
            yield
            return
        usual, prompts.dropout.p = prompts.dropout.p, rate
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(self._rng(stage, 2, self._step).integers(2**62)) + number)
            prompts.train()
            try:
                yield
            finally:
                prompts.eval()
                prompts.dropout.p = usual

    @torch.no_grad()
    def _predict_held_out(self, *, changed: bool) -> list[float]:
        """p(high) of the held-out rows [V], mean over the crops as cut for scoring, by the current parameters."""
        text = self.model.encode_quality()
        crops = torch.arange(self.activations.plain)
        values = []
        for row in self.fold.held_out:
            features = self._features(torch.full_like(crops, int(row)), crops, changed=changed)
            values.append(p_high(self.model.quality_logits(features, text)).cpu().double().mean().item())
        return values

    # ------------------------------------------------------------------ random

    def batch(self, stage: Stage, step: int) -> tuple[Tensor, Tensor]:
        """Rows [B] and crops of each [B, K] that a step of a stage learns from."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = np.repeat(self.fold.rows, self.config.crops_per_epoch)
        order = self._rng(stage, 0, epoch).permutation(rows)
        images = order[position * self.config.batch_size : (position + 1) * self.config.batch_size]
        count = self.activations.features.shape[1]
        # Constant features cost nothing, so every crop is used; otherwise some are drawn.
        used = min(self.config.crops_per_step, count) if stage.image_side else count
        crops = np.tile(np.arange(count), (len(images), 1))
        if used < count:
            crops = self._rng(stage, 1, step).permuted(crops, axis=1)[:, :used]
        return torch.from_numpy(images), torch.from_numpy(crops)

    def _kept_tokens(self, stage: Stage, number: int) -> Tensor | None:
        """Which tokens of its crops a part of the step at hand sees, CLS always among them; None for all."""
        if self.config.token_share == 1 or not stage.image_side:
            return None
        assert self.activations.tokens is not None
        n = self.activations.tokens.shape[2] - 1
        rng = np.random.default_rng([int(self._rng(stage, 3, self._step).integers(2**62)), number])
        drawn = rng.permutation(n)[: max(1, round(self.config.token_share * n))]
        return torch.from_numpy(np.concatenate([[0], 1 + np.sort(drawn)]))

    def _rng(self, stage: Stage, purpose: int, count: int) -> np.random.Generator:
        fold = 0 if self.fold.number is None else self.fold.number + 1
        return np.random.default_rng([self.config.seed, fold, ("text", "all").index(stage.name), purpose, count])

    # ------------------------------------------------------------------- state

    def values(self) -> dict[str, Tensor]:
        """Copies of the trained parameters as they are now."""
        return values_of(self.model, self._names)

    def state(self) -> dict[str, Any]:
        """Everything needed to continue."""
        return {
            "stage": self._stage,
            "step": self._step,
            "history": [dataclasses.asdict(row) for row in self.history],
            "parameters": self.values(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "looks": self.looks,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave."""
        set_values(self.model, state["parameters"])
        self._stage, self._step = state["stage"], state["step"]
        self.history = [HistoryRow(**row) for row in state["history"]]
        self.looks = {name: list(looks) for name, looks in state["looks"].items()}
        self._enter_stage()
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
