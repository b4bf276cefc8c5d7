"""Settings and records of an adaptation: what `adapt` is asked for, and what it tells while it works.

Nothing here needs torch: the command line reads the defaults for its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from grmp_score.errors import ConfigError

#: Of matrix products in training; parameters are float32.
Precision = Literal["float32", "bfloat16"]

#: Peak learning rates.  SGD: the authors' code, and CoOp's for a context alone.
DEFAULT_LR = {
    ("sgd", "blocks"): 1e-3,
    ("sgd", "prompts"): 2e-3,
    ("adamw", "blocks"): 5e-6,
    ("adamw", "prompts"): 2e-3,
}


@dataclass(frozen=True)
class FewShotConfig:
    """Settings of stage 2 (METHOD section 3).

    Attributes:
        shots: training rows, drawn by `labels.draw_shots`; the others are the test part.  None trains on all rows.
        seed: of everything random: the draw, the folds, the order of images and crops.
        train: ``"head"`` turns the quality direction of the image features, in closed form
            (`closed_form.fit_closed_form`), and nothing else; ``"blocks"`` goes on from there by gradient descent
            with the text context, the last blocks of both towers, ``ln_final`` and ``ln_post`` (the paper's);
            ``"prompts"`` trains the text context only, which makes an adapter of kilobytes.
        head_first: False leaves the closed form out before ``"blocks"``, which is the paper's recipe.
        train_visual_prompts: also train the visual prompts of the adapted blocks (those below belong to the
            frozen trunk).  Paper and code leave them frozen.
        optimizer: ``"sgd"`` (the paper's few-shot recipe) or ``"adamw"`` (its fully supervised one).
        lr: peak learning rate; None takes `DEFAULT_LR` of the optimizer and of what is trained.
        weight_decay: of everything but visual prompts.
        momentum: of SGD.
        epochs: most passes over the images; with folds the best number of them is taken, and 0 is allowed.
        batch_size: images per step.
        crops_per_image: crops that are cut from an image, once; None takes as many as the scorer does.
        crops_per_step: how many of them, drawn anew, stand for an image in a step; each gets the image's label.
        flips: also use the mirrored crops.
        warm_up_epochs: epochs at ``warm_up_lr`` (or ``lr``, if that is less) before the cosine decay.
        warm_up_lr: learning rate of the warm-up (CoOp: 1e-5).
        text_first_epochs: passes before these that train only the text side (context, last text blocks,
            ``ln_final``; AdamW) on constant image features; they cost next to nothing and spare the image tower
            the first, coarse corrections.  0 is the paper's recipe.
        text_first_lr: its peak learning rate.
        qgr_lambda: lambda of eq. (8); 0 is plain tuning, and L_kl is then not computed.
        qgr_form: ``"per_parameter"`` (the authors' code) or ``"global"``.
        folds: of the cross-validation that chooses the number of epochs; 0 trains all epochs without a look.
        precision: of the forward and backward passes in training; ``"auto"`` is bfloat16 where the processor
            computes natively in it.  Published scores are always float32.
        cache_dtype: of the kept activations; ``"float32"`` is exact.
        cache_bytes: activations beyond this many bytes are kept in a memory-mapped file.
        checkpoint_seconds: time between checkpoints.
    """

    shots: int | None = None
    seed: int = 0
    train: Literal["head", "prompts", "blocks"] = "head"
    head_first: bool = True
    train_visual_prompts: bool = False
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    momentum: float = 0.9
    epochs: int = 2
    batch_size: int = 16
    crops_per_image: int | None = None
    crops_per_step: int = 2
    flips: bool = False
    warm_up_epochs: int = 1
    warm_up_lr: float = 1e-5
    text_first_epochs: int = 0
    text_first_lr: float = 1e-4
    qgr_lambda: float = 5.0
    qgr_form: Literal["per_parameter", "global"] = "per_parameter"
    folds: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cache_dtype: Literal["float16", "float32"] = "float16"
    cache_bytes: int = 3 * 2**29
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(FewShotConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ConfigError(f"{name} must be one of {list(get_args(hint))}, got {getattr(self, name)!r}")
        for name, least in (
            ("shots", 2),
            ("epochs", 0),
            ("batch_size", 1),
            ("crops_per_image", 1),
            ("crops_per_step", 1),
            ("warm_up_epochs", 0),
            ("text_first_epochs", 0),
            ("cache_bytes", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        for name in ("lr", "warm_up_lr", "text_first_lr", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, got {value}")
        for name, end in (("weight_decay", math.inf), ("qgr_lambda", math.inf), ("momentum", 1.0)):
            if not 0 <= getattr(self, name) < end:
                raise ConfigError(f"{name} must be at least 0 and less than {end}, got {getattr(self, name)}")
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"folds must be 0 (none) or at least 2, got {self.folds}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if self.train == "prompts" and self.text_first_epochs and not self.train_visual_prompts:
            raise ConfigError("the text context alone is trained: there is no other side to train first")
        if self.train == "head" and (self.text_first_epochs or self.train_visual_prompts):
            raise ConfigError('train="head" trains no text and no visual prompts')
        if self.epochs == 0 and self.text_first_epochs == 0 and not self.fits_head:
            raise ConfigError("epochs and text_first_epochs are both 0: nothing would be trained")

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return DEFAULT_LR.get((self.optimizer, self.train), 0.0) if self.lr is None else self.lr

    @property
    def fits_head(self) -> bool:
        """Whether the closed form is fitted."""
        return self.train == "head" or (self.train == "blocks" and self.head_first)

    @property
    def uses_qgr(self) -> bool:
        """Whether eq. (8) changes anything: L_kl does not reach the text context, which scene prompts lack."""
        by_gradient = self.epochs + self.text_first_epochs > 0
        return self.qgr_lambda > 0 and by_gradient and (self.train == "blocks" or self.train_visual_prompts)


@dataclass(frozen=True)
class HistoryRow:
    """One training step, or one look at the held-out fold (``validation_srcc`` and nothing else).

    Attributes:
        fold: number of the fold that is held out, from 0; None for the final run on all shots.
        phase: ``"head"`` (in closed form, one step), ``"text"`` (text side first) or ``"all"`` (everything that is
            trained).
        epoch: from 1 within the phase; 0 before its first step.
        step: from 1 within the phase; 0 before its first step.
        loss: L_ce, eq. (3), before the step; of the one in closed form, after it.
        semantic_loss: L_kl, eq. (7), before the step; None without QGR.
        angle: between G_qua and G_sem in degrees (the paper's figure 4); None without QGR.
        validation_srcc: on the held-out fold after the epoch; NaN where all predictions are equal.
        learning_rate: of the step.
        seconds: since the run began, not counting the time that it was stopped.
    """

    fold: int | None
    phase: Literal["head", "text", "all"]
    epoch: int
    step: int
    loss: float | None = None
    semantic_loss: float | None = None
    angle: float | None = None
    validation_srcc: float | None = None
    learning_rate: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        stage: ``"reading"`` (cutting crops and running the frozen parts, in images), ``"cross-validation"`` and
            ``"training"`` (in steps of each), ``"testing"`` (in images).
        done: units of this stage done.
        total: units of this stage.
        row: the step just taken, in the two stages that take steps.
    """

    stage: Literal["reading", "cross-validation", "training", "testing"]
    done: int
    total: int
    row: HistoryRow | None = None
