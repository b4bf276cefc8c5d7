"""Settings and records of an adaptation: what `adapt` is asked for, and what it tells while it works.

Nothing here needs torch: the command line reads the defaults for its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from grmp_score.errors import ConfigError

#: Of matrix products in training; parameters are float32.
Precision = Literal["float32", "bfloat16"]

#: Stage 2 as the authors ran it, by name; see `FewShotConfig.preset`.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "train": "blocks",
        "head_first": False,
        "optimizer": "sgd",
        "lr": 1e-3,
        "momentum": 0.0,
        "weight_decay": 1e-4,
        "schedule": "plateau",
        "warm_up_epochs": 0,
        "epochs": 210,
        "batch_size": 192,
        "crops_per_image": 10,
        "crops_per_step": 1,
        "flips": True,
        "prompt_dropout": 0.1,
        "qgr_lambda": 5.0,
        "qgr_form": "per_parameter",
        "look_every": 10,
    },
    "paper-full": {
        "train": "blocks",
        "head_first": False,
        "optimizer": "adamw",
        "lr": 5e-6,
        "weight_decay": 1e-4,
        "schedule": "constant",
        "warm_up_epochs": 0,
        "epochs": 9,
        "batch_size": 16,
        "crops_per_image": 10,
        "crops_per_step": 1,
        "crops_per_epoch": 10,
        "flips": True,
        "prompt_dropout": 0.1,
        "qgr_lambda": 5.0,
        "qgr_form": "per_parameter",
    },
}

#: Peak learning rates.  SGD: the authors' code, and CoOp's for a context alone.
DEFAULT_LR = {
    ("sgd", "blocks"): 1e-3,
    ("sgd", "prompts"): 2e-3,
    ("adamw", "blocks"): 5e-6,
    ("adamw", "prompts"): 2e-3,
}


@dataclass(frozen=True)
class FewShotConfig:
    """Settings of stage 2; the paper's own are those of `preset`.

    Attributes:
        shots: training rows, drawn by `splits.draw_shots`; the others are the test part.  None trains on all rows.
        seed: of everything random: the draw, the folds, the order of images and crops.
        train: ``"head"`` turns the quality direction of the image features, in closed form
            (`closed_form.fit_closed_form`), and nothing else; ``"blocks"`` goes on from there by gradient descent
            with the text context, the last blocks of both towers, ``ln_final`` and ``ln_post`` (the paper's);
            ``"prompts"`` trains the text context only, which makes an adapter of kilobytes.
        head_first: False leaves the closed form out before ``"blocks"``, as the paper does.
        teacher: V_sem of eq. (7), as ``NAME:TAG`` of open_clip (``"ViT-B-16-quickgelu:openai"``) or any weights,
            whose base it then is; None takes the original blocks that the start weights hold.  Converted
            checkpoints hold none.
        train_visual_prompts: also train the visual prompts of the adapted blocks (those below belong to the
            frozen trunk).  Paper and code leave them frozen.
        prompt_dropout: of the visual prompts of the adapted blocks, drawn anew in every step (the authors' code:
            0.1).  Theirs also drops out in the blocks below; here the tokens that leave those are kept.
        optimizer: ``"sgd"`` (the paper's few-shot recipe) or ``"adamw"`` (its fully supervised one).
        lr: peak learning rate; None takes `DEFAULT_LR` of the optimizer and of what is trained.
        weight_decay: of everything but visual prompts.
        momentum: of SGD.
        epochs: most passes over the images; with folds the best number of them is taken, and 0 is allowed.
        batch_size: images per step.
        crops_per_image: size of the pool of crops that are cut from an image once, where the weights' preprocessing
            puts them (at random if that knows the middle alone); None takes as many as the scorer does.  The paper
            cuts a new random crop in every step; here it is drawn from the pool, so that the frozen blocks run once
            per crop and not once per step.
        crops_per_step: how many of them, drawn anew, stand for an image in a step; each gets the image's label.
        crops_per_epoch: how often an image comes up in an epoch, each time with crops of its own.
        flips: the pool also holds the mirrored crops.
        token_share: share of a crop's image tokens, drawn anew in every step, that the trained blocks see in
            training: with a quarter a step takes about a quarter of the time (FLIP, arXiv 2212.00794).
        schedule: of the learning rate, after the warm-up: ``"cosine"`` decays to 0 over ``epochs`` (CoOp),
            ``"plateau"`` multiplies it by `optimizer.PLATEAU_FACTOR` whenever the training loss stops falling (the
            authors' few-shot code), ``"constant"``.
        warm_up_epochs: epochs at ``warm_up_lr`` (or ``lr``, if that is less) before that.
        warm_up_lr: learning rate of the warm-up (CoOp: 1e-5).
        text_first_epochs: passes before these that train only the text side (context, last text blocks,
            ``ln_final``; AdamW) on constant image features; they cost next to nothing and spare the image tower
            the first, coarse corrections.  0 is the paper's recipe.
        text_first_lr: its peak learning rate.
        qgr_lambda: lambda of eq. (8); 0 is plain tuning, and L_kl is then not computed.
        qgr_form: ``"per_parameter"`` (the authors' code) or ``"global"``.
        qgr_max_kl: lambda is lowered to 1 in every step that begins with L_kl above it (nats); None never lowers
            it.  With lambda above 1 a step goes uphill in L_kl wherever eq. (8) projects, so that L_kl can run
            away; with 1 it stays as it is to first order.
        folds: of the cross-validation that chooses the number of epochs; 0 trains all epochs without a look.
        look_every: epochs from one look at the held-out fold to the next; the last one is looked at in any case.
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
    teacher: str | None = None
    train_visual_prompts: bool = False
    prompt_dropout: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float | None = None
    weight_decay: float = 1e-4
    momentum: float = 0.9
    epochs: int = 2
    batch_size: int = 16
    crops_per_image: int | None = None
    crops_per_step: int = 2
    crops_per_epoch: int = 1
    flips: bool = False
    token_share: float = 1.0
    schedule: Literal["plateau", "cosine", "constant"] = "cosine"
    warm_up_epochs: int = 1
    warm_up_lr: float = 1e-5
    text_first_epochs: int = 0
    text_first_lr: float = 1e-4
    qgr_lambda: float = 5.0
    qgr_form: Literal["per_parameter", "global"] = "per_parameter"
    qgr_max_kl: float | None = None
    folds: int = 3
    look_every: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    cache_dtype: Literal["float16", "float32"] = "float16"
    cache_bytes: int = 3 * 2**29
    checkpoint_seconds: float = 120.0

    @classmethod
    def preset(cls, name: str, **settings: Any) -> FewShotConfig:
        """Stage 2 as the paper has it; ``settings`` win over the preset.

        * ``"paper"``: the authors' few-shot code.  Plain SGD at 1e-3 without momentum, weight decay 1e-4, all
          images (up to 192) in every step, the learning rate times 0.3 whenever the training loss stops falling,
          210 steps, random crop and flip, dropout of the visual prompts, QGR with lambda 5 per tensor, and no
          closed form.  The paper itself names a cosine decay with one epoch of warm-up at 1e-5.
        * ``"paper-full"``: its fully supervised recipe.  AdamW at 5e-6, 9 epochs in which every image comes up with
          ten crops, 16 crops per step (128 for KonIQ).

        Where the authors take the epoch that is best on the test split, the number of epochs is chosen by
        cross-validation on the training images.

        Raises:
            ConfigError: no such preset, or settings that make no sense.
        """
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; there are {list(PRESETS)}")
        return cls(**{**PRESETS[name], **settings})

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
            ("crops_per_epoch", 1),
            ("look_every", 1),
            ("warm_up_epochs", 0),
            ("text_first_epochs", 0),
            ("cache_bytes", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        for name in ("lr", "warm_up_lr", "text_first_lr", "qgr_max_kl", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, got {value}")
        ends = {"weight_decay": math.inf, "qgr_lambda": math.inf, "momentum": 1.0, "prompt_dropout": 1.0}
        for name, end in ends.items():
            if not 0 <= getattr(self, name) < end:
                raise ConfigError(f"{name} must be at least 0 and less than {end}, got {getattr(self, name)}")
        if not 0 < self.token_share <= 1:
            raise ConfigError(f"token_share must be above 0 and at most 1, got {self.token_share}")
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
        semantic_loss: L_kl, eq. (7), in nats, before the step; None without QGR.
        angle: between G_qua and G_sem in degrees (the paper's figure 4); None without QGR, and where L_kl is below
            `qgr.NOISE`.
        projected: share of the tensors that L_kl reaches in which eq. (8) changed the gradient, 0..1; None without
            QGR.
        qgr_lambda: lambda of the step, lower than that of the settings where L_kl is above their ``qgr_max_kl``;
            None without QGR.
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
    projected: float | None = None
    qgr_lambda: float | None = None
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
