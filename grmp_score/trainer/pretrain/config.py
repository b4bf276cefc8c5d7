"""Settings of stage 1, with two named sets of them, and how far they let the parameters move.

Nothing here needs torch: the command line reads the defaults for its help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grmp_score.config import PromptConfig
from grmp_score.errors import ConfigError

#: What is trained: all prompts, one kind of prompt alone (the paper's table 4), the prompts and the image tower's
#: last blocks with ``ln_post``, or the last blocks of both towers, ``ln_post`` and ``ln_final``, without prompts.
Trained = Literal["prompts", "text", "visual", "blocks", "towers"]

#: What `PretrainConfig.check_reach` demands.  Prompts start at random, with a standard deviation of 0.02 in the
#: text context, so theta must be able to go as far in every coordinate.  The towers are pre-trained: a twentieth of
#: that.
LEAST_REACH, LEAST_REACH_TOWERS = 0.02, 0.001


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of stage 1; the defaults are those of the preset ``"reptile"`` (see `preset`).

    Attributes:
        method: ``"meta"`` (eqs. 4 to 6); ``"ordinary"``: plain Adam on the pooled tasks, for as many images (the
            paper's table 5); ``"none"``: no training, the prompts stay as they are drawn.
        train: what is trained; prompts that are not trained are not in the model.
        n_visual: visual prompt tokens per block, where they are trained.
        prompt_norm: whether the model has the authors' LayerNorm after the last block, where visual prompts are
            trained.
        epochs: visits of every task.
        working_copy: ``"reset"``: every task starts from theta, as eq. (4) says; ``"carried"``: from where the task
            before it ended, as in the authors' code, so that theta is a slow average of one long run of Adam.
        tasks_per_step: k, tasks per outer step, drawn from all data sets; 0 takes the tasks of one data set, and
            one data set after the other (the authors' code: TID2013, KADID-10k).
        inner_steps: pairs of a support and a query step within one visit of a task; 0 goes once through its support
            set (the authors' code: 2 pairs on TID2013, 5 on KADID-10k).
        adam: ``"fresh"`` starts every task with new Adam moments; ``"kept"`` carries them on from task to task,
            which needs fewer steps; ``"authors"`` carries them on through TID2013 and starts every other task with
            new ones.
        inner_lr: alpha, learning rate of the prompts (Adam).
        block_lr: learning rate of the towers' blocks, with ``train="blocks"`` and ``"towers"``.
        warm_up: outer steps over which both inner learning rates rise to their value; Adam's first steps have the
            full size in every parameter, which millions of pre-trained ones do not bear.
        outer_lr: beta, share of the way from theta to the mean of the adapted parameters.
        outer_lr_end: beta falls linearly to this share of its start.
        support_batch: images per support step.
        query_batch: images per query step.
        query_share: share of a task's references, or images, in its query set.
        split_by: ``"reference"``: support and query images show different photos, drawn once, and the clean photos
            take part in every task; ``"image"``: the distorted images of a task are split anew at every visit, as
            in the authors' code, so versions of a photo are in both sets.
        label_range: ``"data_set"``: labels are 0 to 1 over their data set; ``"task"``: over each support or query
            set by itself, as in the authors' code.
        views: ``"scales"``: random ones of the fixed crops at three scales; ``"squeezed"``, as in the authors'
            code: the image is resized without regard to its shape, for the support set to 8/7 of the patch, of
            which a random part is cut (256 -> 224), and for the query set to the patch.
        groups: families of distortions to train on, by their names in `sources.Item.group`; all when empty.
        precision: ``"bfloat16"`` computes the image tower under autocast: about twice as fast where the processor
            knows the type.
        seed: of everything random.
    """

    method: Literal["meta", "ordinary", "none"] = "meta"
    train: Trained = "prompts"
    n_visual: int = 8
    prompt_norm: bool = False
    epochs: int = 10
    working_copy: Literal["reset", "carried"] = "reset"
    tasks_per_step: int = 2
    inner_steps: int = 1
    adam: Literal["fresh", "kept", "authors"] = "kept"
    inner_lr: float = 1e-3
    block_lr: float = 1e-5
    warm_up: int = 0
    outer_lr: float = 1.0
    outer_lr_end: float = 0.1
    support_batch: int = 12
    query_batch: int = 8
    query_share: float = 0.2
    split_by: Literal["reference", "image"] = "reference"
    label_range: Literal["data_set", "task"] = "data_set"
    views: Literal["scales", "squeezed"] = "scales"
    groups: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "support_batch", "query_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tasks_per_step", "inner_steps", "n_visual"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("inner_lr", "block_lr", "outer_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")
        if not 0 < self.query_share < 1:
            raise ConfigError(f"query_share must lie between 0 and 1, got {self.query_share}")

    @staticmethod
    def preset(name: str = "reptile", **changes: Any) -> PretrainConfig:
        """A named set of values, some of them changed.

        Args:
            name: ``"reptile"``: what METHOD section 2 says in print, with a beta near 1 that falls, so that theta
                moves within a budget that a CPU has.  ``"authors"``: what the authors' code does, which their
                weights come from.  One difference stays: it visits every task of KADID-10k, of which their code
                leaves one out.  On the distorted versions of clean photos the same loop runs over the tasks of that
                one data set.
            changes: values that win over those of the preset, by the names of the attributes.

        Raises:
            ConfigError: no such preset, or values that make no sense.
        """
        if name not in PRESETS:
            raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return PretrainConfig(**{**PRESETS[name], **changes})

    @property
    def prompts(self) -> PromptConfig:
        """Shape of the prompts: of those kinds that are trained."""
        visual = self.n_visual if self.train in ("prompts", "visual", "blocks") else 0
        return PromptConfig(
            n_ctx=0 if self.train in ("visual", "towers") else PromptConfig.n_ctx,
            n_visual=visual,
            prompt_norm=self.prompt_norm and visual > 0,
        )

    def outer_rates(self, steps: int) -> list[float]:
        """beta of each of that many outer steps, falling linearly."""
        ends = max(1, steps - 1)
        return [self.outer_lr * (1 + step / ends * (self.outer_lr_end - 1)) for step in range(steps)]

    def check_reach(self, inner_steps: Sequence[int]) -> None:
        """Refuses settings with which theta stays about where it starts.

        Args:
            inner_steps: steps of Adam in each outer step, support and query, mean over its tasks when the working
                copy is reset and sum when it is carried.

        Raises:
            ConfigError: `reach` is less than `LEAST_REACH` (with ``train="towers"``: `LEAST_REACH_TOWERS`).
        """
        least = LEAST_REACH_TOWERS if self.train == "towers" else LEAST_REACH
        reach = self.reach(inner_steps)
        if self.method != "none" and reach < least:
            rates = f"{'block_lr' if self.train == 'towers' else 'inner_lr'}, outer_lr or epochs"
            raise ConfigError(
                f"with these settings no parameter can move by more than {reach:.2g} in {len(inner_steps)} outer "
                f"steps, and nothing is learned below {least:g}",
                hint=f"Raise {rates if self.method == 'meta' else rates.replace('outer_lr or ', 'or ')}",
            )

    def reach(self, inner_steps: Sequence[int]) -> float:
        """How far a coordinate of theta can get in a run in which every step of Adam goes the same way.

        One step moves a coordinate by about its learning rate.  After the outer step t, with s_t of them,
        a working copy that is reset has taken theta on by beta_t * s_t * alpha; one that is carried stands at
        alpha * (s_1 + .. + s_t), and theta goes at most beta_t of the way there.
        """
        alpha = self.block_lr if self.train == "towers" else self.inner_lr
        theta = copy = 0.0
        for step, (beta, steps) in enumerate(zip(self.outer_rates(len(inner_steps)), inner_steps, strict=True)):
            move = alpha * min(1.0, (step + 1) / max(1, self.warm_up)) * steps
            if self.method == "ordinary":
                theta += beta / self.outer_lr * move
            elif self.working_copy == "carried":
                copy += move
                theta += beta * (copy - theta)
            else:
                theta += beta * move
        return theta


#: What each preset changes in the defaults of `PretrainConfig`.
PRESETS: dict[str, dict[str, Any]] = {
    "reptile": {},
    "authors": {
        "n_visual": 100,
        "prompt_norm": True,
        "epochs": 50,
        "working_copy": "carried",
        "tasks_per_step": 0,
        "inner_steps": 0,
        "adam": "authors",
        "inner_lr": 1e-4,
        "outer_lr": 1e-2,
        "outer_lr_end": 1.0,
        "support_batch": 75,
        "query_batch": 50,
        "split_by": "image",
        "label_range": "task",
        "views": "squeezed",
    },
}


def value_of(preset: str, name: str) -> Any:
    """A value of a preset by its name, for help texts."""
    defaults = {field.name: field.default for field in dataclasses.fields(PretrainConfig)}
    return PRESETS[preset].get(name, defaults[name])


def epoch_steps(tasks: Sequence[str], tasks_per_step: int) -> list[tuple[int, ...]]:
    """Which places in the tasks' random order each outer step of an epoch takes.

    That is k of them, fewer at the end, or with k = 0, data set after data set, those of one.
    """
    n = len(tasks)
    if tasks_per_step:
        return [tuple(range(start, min(start + tasks_per_step, n))) for start in range(0, n, tasks_per_step)]
    sets = [task.split("/")[0] for task in tasks]
    return [tuple(i for i in range(n) if sets[i] == name) for name in dict.fromkeys(sets)]
