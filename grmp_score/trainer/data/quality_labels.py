"""Quality labels for distorted references, from full-reference metrics instead of people.

Stage 1 learns from labelled distorted images. Where nobody has rated them, three well-kept full-reference
metrics stand in: each compares a distorted image with its clean reference, sees colour and is fast; they
differ in what they look at and how they pool it, so that their mean rank is steadier than any one of
them.

What these labels are, and what they are not:

* **Fidelity, not beauty.** They say how far an image is from its reference. Changes that people mind
  little or even like count as loss: mild sharpening and less saturation are put far too low, beside
  strong blur, and so are a few small colour blocks. Darker, brighter or shifted images, on the other
  hand, come out high until values clip, since gradients survive. Within such a type the order of the
  levels is usually right; its place among the other types is not to be trusted.
* **Inverted hues are hardly told from grey ones.** The worst level of `color_saturation_1` may get a
  higher label than the level without any colour.
* **Ranks within one reference.** A label is the share of this reference's own versions that are worse. It
  depends on which distortions are in the set, and 0.5 of a busy scene need not look like 0.5 of a smooth
  one. Give the same distortions to every reference.
* **Seen from some way off.** All metrics look at the image reduced to about 256 pixels on its shorter
  side, as MDSI does by design. Of artefacts at the scale of one pixel only a part survives.

The metrics come from `piq`, which is needed for labelling only: `pip install 'grmp_score[train]'`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grmp_score.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

__all__ = ["METRICS", "MIN_SIDE", "WORKING_SIDE", "Metric", "full_reference_scores", "rank_labels"]

WORKING_SIDE = 256
"""Images are averaged down by the whole number that brings their shorter side nearest to this, in pixels."""

MIN_SIDE = 32
"""Smallest height and width that every metric accepts, in pixels."""

# Bounds the memory; larger chunks are no faster.
_CHUNK = 9


@dataclass(frozen=True)
class Metric:
    """One full-reference metric of `piq`.

    Attributes:
        function: Name of the function in `piq`.
        higher_is_better: Direction of what that function returns; if not, `full_reference_scores` negates it.
        options: Further keyword arguments.
    """

    function: str
    higher_is_better: bool
    options: Mapping[str, Any] = field(default_factory=dict)


METRICS: dict[str, Metric] = {
    # Gradients and chromaticity at one scale, pooled by their deviation. 0 is identical.
    "mdsi": Metric("mdsi", higher_is_better=False),
    # Haar wavelets of luma, mean chroma of YIQ. 1 is identical. By itself it would halve the image again.
    "haarpsi": Metric("haarpsi", higher_is_better=True, options={"subsample": False}),
    # MS-GMSDc: deviation of gradients at four scales, and the error of the chroma of YIQ. 0 is identical.
    "ms_gmsd_c": Metric("multi_scale_gmsd", higher_is_better=False, options={"chromatic": True}),
}
"""The metrics by name, all of which see colour.

VSI costs twice as much as MDSI and orders one reference's versions as MDSI and HaarPSI do (rank correlation
.94 to .98 on three photos); FSIMc costs eight times as much; GMSD, SSIM and DSS are blind to colour.
"""


def _piq() -> ModuleType:
    try:
        import piq
    except ImportError as error:
        raise MissingExtraError("labelling distorted photos", "piq", "train") from error
    module: ModuleType = piq
    return module


def _check(image: NDArray[np.uint8], what: str, shape: tuple[int, ...] | None) -> None:
    """Raise ValueError unless the image is RGB uint8, of the given shape if there is one."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"{what}: expected an RGB uint8 array [H, W, 3] of at least {MIN_SIDE}x{MIN_SIDE}; "
            f"got {image.dtype} {list(image.shape)}"
        )
    if shape is not None and image.shape != shape:
        raise ValueError(f"{what}: expected the reference's shape {list(shape)}; got {list(image.shape)}")


def _reduced(images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """RGB uint8 images [H, W, 3] of one shape -> float32 [N, 3, h, w] in 0..1, averaged over squares."""
    import torch

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    factor = max(1, round(min(batch.shape[-2:]) / WORKING_SIDE))
    # Averages of values in 0..1 may pass 1 by a rounding error, which piq refuses.
    return torch.nn.functional.avg_pool2d(batch, factor).clamp(0, 1)


def full_reference_scores(
    reference: NDArray[np.uint8], distorted: Sequence[NDArray[np.uint8]]
) -> dict[str, NDArray[np.float64]]:
    """Compare distorted versions of one image with the clean one.

    Runs on the CPU; less than 0.1 s per image of 512x512 on one core.

    Args:
        reference: The clean image, RGB uint8 [H, W, 3], both sides at least `MIN_SIDE`.
        distorted: Its versions, each of the same shape and dtype.

    Returns:
        For each name of `METRICS` float64 [len(distorted)], turned so that higher is better. The
        scales differ between metrics: `rank_labels` brings them together.

    Raises:
        ValueError: an image of the wrong type or shape, or a metric without a finite value (named).
        MissingExtraError: `piq` is not installed.
    """
    _check(reference, "reference", None)
    for i, image in enumerate(distorted):
        _check(image, f"distorted image {i}", reference.shape)
    piq = _piq()
    import torch

    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METRICS}
    with torch.inference_mode():
        clean = _reduced([reference])
        for start in range(0, len(distorted), _CHUNK):
            batch = _reduced(distorted[start : start + _CHUNK])
            for name, metric in METRICS.items():
                function = getattr(piq, metric.function)
                values = function(clean.expand_as(batch), batch, reduction="none", **metric.options)
                values = values.reshape(len(batch)).double().numpy()
                scores[name].append(values if metric.higher_is_better else -values)
    joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in scores.items()}
    for name, result in joined.items():
        bad = np.flatnonzero(~np.isfinite(result))
        if bad.size:
            raise ValueError(f"metric {name}: no finite value for distorted images {bad.tolist()}")
    return joined


def rank_labels(scores: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Merge the scores of ONE reference's distorted versions into one quality label each.

    Per metric the n versions and the clean reference are ranked together, ties averaged, the reference
    being the best by definition; ranks are scaled so that the worst of the n + 1 has 0 and the reference 1;
    the label is the mean over metrics. So labels lie in [0, 1 - 1/n]: no distorted version reaches the
    reference's 1.0 (not even one that happens to equal it), and 0 means the worst by every metric. Only the
    order within each metric matters, not its scale.

    Args:
        scores: For each metric [n], higher is better, as `full_reference_scores` returns them.

    Returns:
        Labels, float64 [n], in 0..1, higher is better. The clean reference's label is 1.0 and not among them.

    Raises:
        ValueError: no metric, differing lengths, or values that are not finite.
    """
    if not scores:
        raise ValueError("scores to rank: expected at least one metric; got none")
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    shapes = {name: values.shape for name, values in columns.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"scores to rank: expected one-dimensional arrays of one length; got {shapes}")
    for name, values in columns.items():
        if not np.isfinite(values).all():
            raise ValueError(f"scores to rank: expected finite values; got {name} with NaN or infinity")
    n = next(iter(columns.values())).size
    if n == 0:
        return np.zeros(0)
    from scipy.stats import rankdata  # takes a second to import

    ranks = rankdata(np.stack(list(columns.values())), axis=1)  # [metrics, n], 1 is the worst, ties averaged
    return np.asarray((ranks - 1).mean(axis=0) / n)
