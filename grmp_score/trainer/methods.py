"""The methods that the protocol compares, as settings of `adapt`.

Nothing here needs torch: the command line reads the names for its help.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grmp_score.trainer.adapt.config import FewShotConfig

METHODS = ("un-adapted", "ridge", "closed-form", "paper", "coop")


@dataclass(frozen=True)
class Method:
    """One way to learn from shots.

    Attributes:
        name: in the table.
        config: settings of `adapt`, but for shots and seed.
        measured: entry of the results of `adapt` with this method's figures.
    """

    name: str
    config: FewShotConfig
    measured: Literal["before", "ridge", "after"] = "after"

    @property
    def reads_images(self) -> bool:
        """Whether blocks of the image tower are trained: what the others need of the images is computed once."""
        return self.config.train == "blocks" or self.config.train_visual_prompts


def make_methods(
    names: Iterable[str] = METHODS, qgr_lambdas: Sequence[float] = (0.0, 5.0), **paper: Any
) -> list[Method]:
    """The methods of these names, in the order of `METHODS`.

    ``"paper"`` is the few-shot recipe of `FewShotConfig.preset`, once for every lambda of eq. (8), 0 being without
    QGR; the settings ``paper`` win over the preset.

    ``"un-adapted"`` and ``"ridge"`` (a ridge regression on image features) come out of the run of
    ``"closed-form"``.  ``"coop"`` trains the text context alone as CoOp does: SGD with momentum, 2e-3, 200 epochs
    of batches of 32, one of them warm-up, the last epoch taken.
    """
    closed_form = FewShotConfig(train="head", folds=0, precision="float32")
    coop = FewShotConfig(
        train="prompts",
        optimizer="sgd",
        weight_decay=5e-4,
        epochs=200,
        batch_size=32,
        crops_per_step=1,
        folds=0,
        precision="float32",
    )
    known = {
        "un-adapted": [Method("un-adapted", closed_form, "before")],
        "ridge": [Method("ridge", closed_form, "ridge")],
        "closed-form": [Method("closed-form", closed_form)],
        "paper": [
            Method(
                f"paper, lambda {value:g}" if value else "paper, no QGR",
                FewShotConfig.preset("paper", **{"precision": "float32", **paper, "qgr_lambda": value}),
            )
            for value in qgr_lambdas
        ],
        "coop": [Method("coop", coop)],
    }
    wanted = set(names)
    return [method for name in METHODS if name in wanted for method in known[name]]
