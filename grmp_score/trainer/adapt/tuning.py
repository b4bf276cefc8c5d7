"""One training of stage 2: from the start weights to tuned ones, step by step (METHOD section 3).

A cross-validation makes one such training per fold and the final run one more; all share model and activations.
Everything random is drawn from (seed, fold, phase, epoch or step), so a training that was stopped after any step
continues to the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.errors import TrainingDivergedError
from grmp_score.model.quality_clip import QualityCLIP, p_high, quality_loss
from grmp_score.trainer.adapt.activations import Activations, Precision, computing
from grmp_score.trainer.adapt.fewshot import FewShotConfig, HistoryRow
from grmp_score.trainer.adapt.head import fit_head, stretch
from grmp_score.trainer.adapt.phases import SHIFT, VISUAL_PROMPTS, Phase
from grmp_score.trainer.adapt.qgr import project, semantic_loss
from grmp_score.trainer.metrics import srcc

#: Crops that go through the image head together; a batch is worked off in such parts and its gradients summed.
CHUNK = 16

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Gradients = dict[str, Tensor]
#: By phase and epoch, p(high) of the held-out rows.
Curves = dict[str, list[list[float]]]


class Training:
    """Trains the shared model in place on some rows of the activations.

    Attributes:
        whole: False only while the state changes; it must not be saved then.
        history: one row per step and per look at the held-out rows.
        curves: by phase, p(high) [V] of the held-out rows before the phase and after each of its epochs.
    """

    def __init__(
        self,
        model: QualityCLIP,
        start: Mapping[str, Tensor],
        activations: Activations,
        targets: Array,
        config: FewShotConfig,
        *,
        fold: int | None,
        rows: Indices,
        held_out: Indices,
        plan: list[tuple[Phase, int]],
        precision: Precision,
        seconds: float = 0.0,
    ) -> None:
        """Puts the model into its start state.

        Args:
            model: frozen; its trained parameters are overwritten.
            start: values of all parameters that any phase trains.
            activations: of all rows.
            targets: y of eq. (3) for all rows, 0..1 on the training rows.
            config: settings.
            fold: number of the held-out fold, None for the final run; part of every random seed.
            rows: training rows.
            held_out: validation rows; may be empty.
            plan: phases with the epochs of each to run, at most its length.
            precision: of the computing.
            seconds: that the run has taken before, for the history.
        """
        self.model, self.activations, self.config, self.precision = model, activations, config, precision
        self.targets = torch.from_numpy(targets).to(torch.float32)
        self.fold, self.rows, self.held_out, self.plan = fold, rows, held_out, plan
        self.device = model.text_features.device
        self.curves: Curves = {}
        self.history: list[HistoryRow] = []
        self.whole = True
        self._seconds, self._since = seconds, time.monotonic()
        self._at, self._step = 0, 0
        named = dict(model.named_parameters())
        self._parameters = {name: named[name] for name in start}
        self._start = dict(start)
        self._restore(start)
        self._enter_phase()

    @property
    def finished(self) -> bool:
        """Whether all phases are done."""
        return self._at == len(self.plan)

    @property
    def steps(self) -> int:
        """Number of steps of the whole plan."""
        return sum(epochs * self.steps_per_epoch(phase) for phase, epochs in self.plan)

    @property
    def steps_done(self) -> int:
        """Number of steps taken."""
        return sum(epochs * self.steps_per_epoch(phase) for phase, epochs in self.plan[: self._at]) + self._step

    def steps_per_epoch(self, phase: Phase) -> int:
        """Steps in a pass over the training rows."""
        return phase.steps_per_epoch(len(self.rows), self.config.batch_size)

    # ----------------------------------------------------------------- running

    def run(self) -> Iterator[HistoryRow]:
        """Trains to the end of the plan; yields a row per step, and one per look at the held-out rows.

        Raises:
            TrainingDivergedError: a loss or gradient is not finite; the parameters are still those before the step.
        """
        while not self.finished:
            phase, epochs = self.plan[self._at]
            epoch, begun = divmod(self._step, self.steps_per_epoch(phase))
            looked = len(self.curves.setdefault(phase.name, []))
            if len(self.held_out) and not begun and looked == epoch:
                self._look(phase, epoch)
            elif epoch < epochs and phase.name == "head":
                self._fit_head(phase)
            elif epoch < epochs:
                self._take_step(phase)
            else:
                self.whole = False
                self._at, self._step = self._at + 1, 0
                self._enter_phase()
                self.whole = True
                continue
            yield self.history[-1]

    def _look(self, phase: Phase, epoch: int) -> None:
        predictions = self.predict(self.held_out, self._image_phase(phase, begun=epoch > 0))
        agreement = srcc(predictions, self.targets[self.held_out].numpy())
        self.whole = False
        self.curves[phase.name].append(predictions)
        self._record(phase, validation_srcc=agreement)
        self.whole = True

    def _image_phase(self, phase: Phase, *, begun: bool = True) -> Phase | None:
        """The last phase that changed the image side, up to this one."""
        run = [earlier for earlier, epochs in self.plan[: self._at] if epochs] + [phase] * begun
        return next((earlier for earlier in reversed(run) if earlier.image_side), None)

    @torch.no_grad()
    def _fit_head(self, phase: Phase) -> None:
        assert self.activations.pooled is not None
        clip, visual = self.model.clip, self.model.clip.visual
        quality = self._quality_direction()
        self.whole = False
        if clip.text_projection is not None:
            clip.text_projection.copy_(stretch(clip.text_projection, quality))
        last = len(visual.ln_post.weight) // self.model.image.feature_blocks
        rows = torch.from_numpy(self.rows)
        head = fit_head(
            self.activations.pooled[rows],
            self.targets[rows].double().numpy(),
            visual.proj,
            quality,
            visual.ln_post.weight[-last:],
            axis=self._quality_direction(),
            scenes=self.model.encode_scenes(),
        )
        if head is None:
            self._restore(self._start)
        else:
            visual.proj.copy_(head.proj)
            visual.ln_post.bias.add_(head.shift)
        text = self.model.encode_quality()
        self._step += 1
        crops = torch.arange(self.activations.features.shape[1]).expand(len(rows), -1)
        losses = [
            quality_loss(
                self.model.quality_logits(self._features(row.expand(len(c)), c, phase), text),
                self.targets[row].to(self.device).expand(len(c)),
            ).item()
            for row, c in zip(rows, crops, strict=True)
        ]
        self._record(phase, loss=math.fsum(losses) / len(losses))
        self.whole = True

    def _quality_direction(self) -> Tensor:
        """[D] float64: scalar product with an image's feature is the margin of its quality logits."""
        text = self.model.encode_quality().double()
        scale = self.model.config.prompts.quality_scale * self.model.clip.logit_scale.exp().double()
        direction: Tensor = scale * (text[0] - text[1])
        return direction

    def _take_step(self, phase: Phase) -> None:
        loss, semantic, g_qua, g_sem = self.gradients(phase, *self._batch(phase))
        angle = None
        if semantic is not None:
            g_qua, angle = project(g_qua, g_sem, self.config.qgr_lambda, self.config.qgr_form)
        if not (math.isfinite(loss + (semantic or 0.0)) and all(bool(g.isfinite().all()) for g in g_qua.values())):
            where = "the final run" if self.fold is None else f"fold {self.fold + 1}"
            raise TrainingDivergedError(
                f"the loss or its gradient is not finite in {where}, phase {phase.name!r}, step {self._step + 1}",
                hint="Use lower learning rates, or a smaller qgr_lambda",
            )
        rate = phase.rate(self._step, self.steps_per_epoch(phase), self.config.warm_up_lr)
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for name in phase.names:
            self._parameters[name].grad = g_qua.get(name)
        self.whole = False
        self._optimizer.step()
        self._step += 1
        self._record(phase, loss=loss, semantic_loss=semantic, angle=angle, learning_rate=rate)
        self.whole = True

    def gradients(
        self, phase: Phase, images: Tensor, crops: Tensor
    ) -> tuple[float, float | None, Gradients, Gradients]:
        """L_ce (eq. 3), L_kl (eq. 7; None without QGR) and their gradients at the current parameters.

        One forward pass serves both.  The text towers run once per batch; the gradients with respect to the text
        features are summed over the parts of the batch and taken down the towers at the end.

        Args:
            phase: which parameters; those that a loss does not reach are missing from its gradient.
            images: rows [B].
            crops: of each [B, K]; all count as samples with their image's label.
        """
        images, crops = images.repeat_interleave(crops.shape[1]), crops.flatten()
        outputs = [self.model.encode_quality()]
        if self.config.uses_qgr:
            outputs.append(self.model.encode_scenes())
        texts = [features.detach().requires_grad_() for features in outputs]
        image_side = [self._parameters[name] for name in phase.image_side]
        text_side = [self._parameters[name] for name in phase.text_side]
        source = self._image_phase(phase)
        losses = [0.0 for _ in texts]
        sums: list[list[Tensor | None]] = [[None] * (1 + len(image_side)) for _ in texts]
        for part in torch.split(torch.arange(len(images)), CHUNK if image_side else len(images)):
            share = len(part) / len(images)
            features = self._features(images[part], crops[part], source)
            for k, loss in enumerate(self._losses(features, texts, images[part], crops[part])):
                losses[k] += share * loss.item()
                found = torch.autograd.grad(
                    share * loss, [texts[k], *image_side], retain_graph=k + 1 < len(texts), allow_unused=True
                )
                sums[k] = [_add(old, new) for old, new in zip(sums[k], found, strict=True)]
        gradients = []
        for output, (at_text, *at_image) in zip(outputs, sums, strict=True):
            at_towers: Sequence[Tensor | None] = [None] * len(text_side)
            if output.requires_grad:
                at_towers = torch.autograd.grad(output, text_side, at_text, allow_unused=True)
            names = (*phase.text_side, *phase.image_side)
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

    @torch.no_grad()
    def predict(self, rows: Indices, phase: Phase | None = None) -> list[float]:
        """p(high) of rows [V], mean over the crops as cut for scoring, by the current parameters.

        Args:
            rows: which.
            phase: the last that was run and changed the image side; None: it has not changed yet.
        """
        text = self.model.encode_quality()
        crops = torch.arange(self.activations.plain)
        values = []
        for row in rows:
            features = self._features(torch.full_like(crops, int(row)), crops, phase)
            values.append(p_high(self.model.quality_logits(features, text)).cpu().double().mean().item())
        return values

    def _features(self, images: Tensor, crops: Tensor, phase: Phase | None) -> Tensor:
        """Image features [B, D] by the current parameters, float32; ``phase`` as for `predict`."""
        if phase is None:
            return self.activations.features[images, crops].to(self.device)
        if phase.name == "head":
            assert self.activations.pooled is not None
            pooled = self.activations.pooled[images, crops].to(self.device, torch.float32)
            shift = self._parameters[SHIFT] - self._start[SHIFT]
            return self.model.image.project(pooled + shift).detach()
        assert self.activations.tokens is not None
        tokens = self.activations.tokens[images, crops].to(self.device, torch.float32)
        with computing(self.device, self.precision):
            return self.model.image.head(tokens).float()

    # ------------------------------------------------------------------ random

    def _batch(self, phase: Phase) -> tuple[Tensor, Tensor]:
        epoch, position = divmod(self._step, self.steps_per_epoch(phase))
        order = self._rng(phase, 0, epoch).permutation(self.rows)
        images = order[position * self.config.batch_size : (position + 1) * self.config.batch_size]
        count = self.activations.features.shape[1]
        # Constant features cost nothing, so every crop is used; otherwise some are drawn.
        used = min(self.config.crops_per_step, count) if phase.image_side else count
        crops = np.tile(np.arange(count), (len(images), 1))
        if used < count:
            crops = self._rng(phase, 1, self._step).permuted(crops, axis=1)[:, :used]
        return torch.from_numpy(images), torch.from_numpy(crops)

    def _rng(self, phase: Phase, purpose: int, count: int) -> np.random.Generator:
        fold = 0 if self.fold is None else self.fold + 1
        return np.random.default_rng(
            [self.config.seed, fold, ("text", "all", "head").index(phase.name), purpose, count]
        )

    # ------------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """Everything needed to continue."""
        return {
            "at": self._at,
            "step": self._step,
            "history": [dataclasses.asdict(row) for row in self.history],
            "parameters": self.tensors(),
            "optimizer": None if self.finished or self._optimizer is None else self._optimizer.state_dict(),
            "curves": self.curves,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` gave."""
        self._restore(state["parameters"])
        self._at, self._step = state["at"], state["step"]
        self.history = [HistoryRow(**row) for row in state["history"]]
        if self.history:
            self._seconds = self.history[-1].seconds
        self.curves = {name: list(curve) for name, curve in state["curves"].items()}
        self._enter_phase()
        if state["optimizer"] is not None and self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the trained parameters as they are now."""
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    def _enter_phase(self) -> None:
        """Makes the optimizer of the phase at hand, and nothing else differentiable."""
        self.model.requires_grad_(False)
        if self.finished:
            return
        phase = self.plan[self._at][0]
        groups: list[dict[str, Any]] = [{"params": [], "weight_decay": d} for d in (self.config.weight_decay, 0.0)]
        for name in phase.names:
            groups[name == VISUAL_PROMPTS]["params"].append(self._parameters[name].requires_grad_())
        groups = [group for group in groups if group["params"]]
        if phase.optimizer == "exact":
            self._optimizer: torch.optim.Optimizer | None = None
        elif phase.optimizer == "sgd":
            self._optimizer = torch.optim.SGD(groups, lr=phase.lr, momentum=self.config.momentum)
        else:
            self._optimizer = torch.optim.AdamW(groups, lr=phase.lr)

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
            parameter.grad = None

    def _record(self, phase: Phase, **values: float | None) -> None:
        epoch = math.ceil(self._step / self.steps_per_epoch(phase))
        seconds = self._seconds + time.monotonic() - self._since
        self.history.append(HistoryRow(self.fold, phase.name, epoch, self._step, seconds=seconds, **values))


def _add(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None:
        return new if old is None else old
    return old + new
