"""The figures of stage 2: un-adapted, ridge regression and adapted, on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.config import Preprocess
from grmp_score.errors import ImageReadError
from grmp_score.model.quality_clip import QualityCLIP, p_high
from grmp_score.pipeline.inference import on_all_cores, parts_of
from grmp_score.trainer.adapt.activations import Activations, Precision, computing, read_ahead
from grmp_score.trainer.adapt.ridge import Ridge
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.evaluation import agreement

#: Images that are also scored in float32 where the rest is not, and the largest difference of p(high) that is let
#: pass: a tenth of the step between five grades.
CHECKED, TOLERANCE = 8, 0.02

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the rows that the figures were measured on, as p(high): 0..1, higher is better.

    ``scorer.config.label_scale.to_label`` maps them to the user's scale.

    Attributes:
        labels: the rows: paths, row numbers and scores [n].
        before: un-adapted scorer [n].
        ridge: baseline [n]; may leave 0..1.
        after: adapted scorer [n].
    """

    labels: Labels
    before: Array
    ridge: Array
    after: Array

    def figures(self, seed: int) -> dict[str, Any]:
        """``before``, ``ridge`` and ``after`` as in results.json."""
        return {
            name: agreement(
                values, self.labels.scores, higher_is_better=self.labels.higher_is_better, seed=seed
            ).as_dict()
            for name, values in (("before", self.before), ("ridge", self.ridge), ("after", self.after))
        }


@dataclass(frozen=True, eq=False)
class TestPart:
    """What reading the test part gave.

    Attributes:
        predictions: for the images that could be read.
        unscored: file name (results are published, folders are not), row and error of the others.
        precision: that was computed in.
        checked: largest difference from float32 of p(high) on the images scored both ways; None in float32.
    """

    __test__ = False  # not a test case of pytest's

    predictions: Predictions
    unscored: list[dict[str, Any]]
    precision: Precision
    checked: float | None


@torch.no_grad()
def measure_test_part(
    old: QualityCLIP,
    new: QualityCLIP,
    ridge: Ridge,
    labels: Labels,
    preprocess: Preprocess,
    *,
    precision: Precision,
    workers: int,
    progress: Callable[[int], None],
) -> TestPart:
    """Reads every image once; the frozen trunk, which both models share, is run once for both.

    With ``precision="bfloat16"`` the first images are scored in float32 too, as `Scorer` does, and all of them are
    if a score differs by more than `TOLERANCE`.

    Args:
        old: un-adapted model.
        new: adapted model.
        ridge: regression on the un-adapted image features.
        labels: the test part.
        preprocess: of the scorer.
        precision: of the computing.
        workers: threads that read images.
        progress: called with 1 after every image.
    """
    device = old.text_features.device
    rows: list[tuple[float, float, float]] = []
    readable, unscored, differences = [], [], []

    shift = _shift(old, new)

    def features_of(patches: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
        """Un-adapted and adapted image features."""
        with computing(device, precision):
            tokens = old.image.trunk(patches)
            pooled = old.image.pool(tokens)
            before = old.image.project(pooled).float()
            pooled = new.image.pool(tokens) if shift is None else pooled + shift
            return before, new.image.project(pooled).float()

    def score(patches: Tensor, precision: Precision) -> tuple[float, float, float]:
        made = on_all_cores(lambda part: features_of(part, precision), parts_of(patches, device))
        before, after = (torch.cat(column) for column in zip(*made, strict=True))
        regressed = float(ridge(before.cpu().double().mean(dim=0).numpy()))
        return mean_p_high(old, before), regressed, mean_p_high(new, after)

    for i, patches in enumerate(read_ahead(labels.paths, preprocess, workers)):
        if isinstance(patches, ImageReadError):
            unscored.append({"path": labels.paths[i].name, "row": labels.rows[i], "error": patches.reason})
        else:
            patches = patches.to(device)
            rows.append(score(patches, precision))
            readable.append(i)
            if precision != "float32" and len(rows) <= CHECKED:
                exact = score(patches, "float32")
                differences += [abs(rows[-1][k] - exact[k]) for k in (0, 2)]
                if max(differences) > TOLERANCE:
                    precision, rows[-1] = "float32", exact
                    rows[:-1] = [
                        score(again.to(device), precision)
                        for again in read_ahead([labels.paths[k] for k in readable[:-1]], preprocess, workers)
                        if isinstance(again, Tensor)
                    ]
        progress(1)
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    predictions = Predictions(labels.take(readable), columns[0], columns[1], columns[2])
    checked = max(differences) if differences and precision != "float32" else None
    return TestPart(predictions, unscored, precision, checked)


@torch.no_grad()
def measure_kept(
    old: QualityCLIP, new: QualityCLIP, ridge: Ridge, labels: Labels, activations: Activations
) -> TestPart:
    """As `measure_test_part`, from activations of the un-adapted model; in float32.

    Args:
        old, new, ridge, labels: as there.
        activations: of these labels, with tokens, or with pooled features where no block was tuned.
    """
    device, shift, plain = old.text_features.device, _shift(old, new), activations.plain
    rows = []
    for i, features in enumerate(activations.features[:, :plain]):
        before = features.to(device)
        after = before
        if shift is None:
            assert activations.tokens is not None
            after = new.image.head(activations.tokens[i, :plain].to(device, torch.float32))
        elif activations.pooled is not None:
            after = new.image.project(activations.pooled[i, :plain].to(device, torch.float32) + shift)
        rows.append(
            (
                mean_p_high(old, before),
                float(ridge(features.double().mean(dim=0).numpy())),
                mean_p_high(new, after),
            )
        )
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return TestPart(Predictions(labels, columns[0], columns[1], columns[2]), [], "float32", None)


def _shift(old: QualityCLIP, new: QualityCLIP) -> Tensor | None:
    """What the new bias of ``ln_post`` adds to the pooled features, where all below it is the same in both."""
    theirs, bias = dict(new.named_parameters()), "clip.visual.ln_post.bias"
    for name, value in old.named_parameters():
        below = name.startswith(("clip.visual.", "visual_prompts.")) and name not in ("clip.visual.proj", bias)
        if below and not torch.equal(value, theirs[name]):
            return None
    shift: Tensor = new.clip.visual.ln_post.bias - old.clip.visual.ln_post.bias
    return shift


def mean_p_high(model: QualityCLIP, features: Tensor) -> float:
    """p(high) of one image with the stored text features: mean over the features [P, D] of its crops."""
    return p_high(model.quality_logits(features)).cpu().double().mean().item()
