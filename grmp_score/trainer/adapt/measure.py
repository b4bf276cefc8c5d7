"""The figures of an adaptation: un-adapted, ridge regression and adapted, on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.errors import ImageReadError
from grmp_score.model.quality_clip import QualityCLIP, p_high
from grmp_score.pipeline.inference import in_passes
from grmp_score.trainer.adapt.config import Precision
from grmp_score.trainer.adapt.features import Activations, CropReader, computing, run_frozen
from grmp_score.trainer.adapt.parameters import PROJECTION, SHIFT, on_image_side
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


def mean_p_high(model: QualityCLIP, features: Tensor, text: Tensor | None = None) -> Array:
    """p(high) of images [n]: mean over the features [n, P, D] of their crops.

    ``text`` [2, D] are the features of the two classes; None takes those that the model has stored.
    """
    n, crops, width = features.shape
    logits = model.quality_logits(features.reshape(-1, width).to(model.text_features.device), text)
    mean: Array = p_high(logits).cpu().double().view(n, crops).mean(dim=1).numpy()
    return mean


#: p(high) of one image by the un-adapted model, the ridge regression and the adapted model.
_Row = tuple[float, float, float]


class Contenders:
    """The three whose predictions are compared.

    The frozen trunk, which both models share, is run once for both; where the closed form alone has changed the
    image side, so are the blocks above it.
    """

    def __init__(self, old: QualityCLIP, new: QualityCLIP, ridge: Ridge) -> None:
        """Un-adapted model, adapted model, and a regression on the image features of the former."""
        self.old, self.new, self.ridge = old, new, ridge
        self._shift = _shift_of_pooled(old, new)

    def read_and_predict(
        self, labels: Labels, reader: CropReader, precision: Precision, progress: Callable[[], None]
    ) -> tuple[Predictions, dict[str, Any]]:
        """Predictions for images that are read one by one, and how they were made, as results.json says it.

        With ``precision="bfloat16"`` the first images are predicted in float32 too, as `Scorer` does, and all of
        them are if p(high) differs by more than `TOLERANCE`.

        Args:
            labels: the test part.
            reader: how its images are read and cut.
            precision: of the computing.
            progress: called after every image.

        Returns:
            Predictions for the images that could be read; and ``unscored`` (file name, since results are published
            and folders are not, row and error of the others), ``measured_in`` (the precision) and ``checked``
            (largest difference from float32 of p(high) on the images scored both ways; None in float32).
        """
        checked = None
        first = min(CHECKED, len(labels))
        rows = self._read(labels.take(range(first)), reader, precision, progress)
        if precision != "float32":
            exact = self._read(labels.take(range(first)), reader, "float32", lambda: None)
            pairs = [
                (a, b) for a, b in zip(rows, exact, strict=True) if isinstance(a, tuple) and isinstance(b, tuple)
            ]
            checked = max((abs(a[k] - b[k]) for a, b in pairs for k in (0, 2)), default=None)
            if checked is not None and checked > TOLERANCE:
                precision, checked, rows = "float32", None, exact
        rows += self._read(labels.take(range(first, len(labels))), reader, precision, progress)
        readable = [i for i, row in enumerate(rows) if isinstance(row, tuple)]
        unscored = [
            {"path": labels.paths[i].name, "row": labels.rows[i], "error": row.reason}
            for i, row in enumerate(rows)
            if isinstance(row, ImageReadError)
        ]
        predictions = _predictions(labels.take(readable), [row for row in rows if isinstance(row, tuple)])
        return predictions, {"unscored": unscored, "measured_in": precision, "checked": checked}

    def predict(self, labels: Labels, activations: Activations) -> tuple[Predictions, dict[str, Any]]:
        """The same in float32 from activations of the un-adapted model: no image is read."""
        rows = []
        for i, features in enumerate(activations.features[:, : activations.plain]):
            tokens, pooled = (
                None if kept is None else kept[i, : activations.plain].float()
                for kept in (activations.tokens, activations.pooled)
            )
            rows.append(self._row(features, tokens, pooled, "float32"))
        return _predictions(labels, rows), {"unscored": [], "measured_in": "float32", "checked": None}

    def _read(
        self, labels: Labels, reader: CropReader, precision: Precision, progress: Callable[[], None]
    ) -> list[_Row | ImageReadError]:
        rows: list[_Row | ImageReadError] = []
        for crops in reader.read(labels.paths):
            if isinstance(crops, ImageReadError):
                rows.append(crops)
            else:
                tokens, pooled, features, _ = run_frozen(self.old, crops, precision)
                rows.append(self._row(features, tokens, pooled, precision))
            progress()
        return rows

    @torch.no_grad()
    def _row(self, features: Tensor, tokens: Tensor | None, pooled: Tensor | None, precision: Precision) -> _Row:
        """Of one image, from what the un-adapted model makes of its P crops: features [P, D], tokens, pooled."""
        device, after = self.old.text_features.device, features

        def adapted_features(tokens: Tensor) -> Tensor:
            with computing(device, precision):
                return self.new.image.head(tokens).float()

        if self._shift is None:
            assert tokens is not None
            after = torch.cat(in_passes(adapted_features, tokens.to(device), device))
        elif pooled is not None:
            with computing(device, precision):
                after = self.new.image.project(pooled.to(device) + self._shift).float()
        before, adapted = mean_p_high(self.old, features[None]), mean_p_high(self.new, after[None])
        ridge = self.ridge(features.cpu().double().mean(dim=0).numpy())
        return float(before[0]), float(ridge), float(adapted[0])


def _predictions(labels: Labels, rows: list[_Row]) -> Predictions:
    before, ridge, after = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return Predictions(labels, before, ridge, after)


def _shift_of_pooled(old: QualityCLIP, new: QualityCLIP) -> Tensor | None:
    """What the new bias of ``ln_post`` adds to the pooled features; None where anything below it differs."""
    theirs = dict(new.named_parameters())
    for name, value in old.named_parameters():
        below = on_image_side(name) and name not in (PROJECTION, SHIFT)
        if below and not torch.equal(value, theirs[name]):
            return None
    shift: Tensor = new.clip.visual.ln_post.bias - old.clip.visual.ln_post.bias
    return shift
