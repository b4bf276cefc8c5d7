"""The default adaptation, in closed form: a few labels turn the quality direction of the image features.

Not part of the paper, whose stage 2 is gradient descent from the pre-trained prompts.  With a hundred labels the
most that can be learned lies in a linear function of the image features near the one that the prompts give, and
that has an exact solution: Bayesian linear regression whose mean is the un-adapted model.  It is written into
`visual.proj` (two directions of the features change), the bias of `ln_post` and, where the two quality prompts are
close together, `text_projection`, so the result is a model like any other, and gradient descent can go on from it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata
from torch import Tensor

from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.parameters import (
    PROJECTION,
    SHIFT,
    TEXT_PROJECTION,
    closed_form_names,
    set_values,
    values_of,
)
from grmp_score.trainer.adapt.ridge import fit_ridge

Array = NDArray[np.floating]

#: Least number of images: two coefficients are free.
MIN_IMAGES = 4
#: Prior variance of what the last block's features say, relative to what the projected ones say.
TOP_SHARE = 0.3
#: Noise variance relative to the prior variance of the prediction.
NOISES = np.logspace(-2, 2, 21)
#: Margin per unit of label.  With 4, the slope of the logit at 1/2, p(high) would be about the label; a little less
#: keeps crops that differ where p(high) is nearly linear, so that their mean ranks images better.
SLOPE = 3.5
#: Share of the normal scores in the targets, the rest are the labels themselves.
NORMAL_SHARE = 1 / 3
#: Margin of the quality logits per unit of cosine that is wanted: with less, features that must show a clear margin
#: are so long in the quality direction that their other parts shrink.
LENGTH = 8.0


@torch.no_grad()
def fit_closed_form(model: QualityCLIP, pooled: Tensor, targets: Array) -> dict[str, Tensor]:
    """Fits a model to labelled images; the model itself is left as it is.

    Args:
        model: before the fit.
        pooled: [n, C, F], float16 or float32: what ``model.image.pool`` gives for C crops of each image.
        targets: y of eq. (3), 0..1, higher is better [n].

    Returns:
        New values of `parameters.closed_form_names`; the old ones where nothing can be fitted: for fewer than
        `MIN_IMAGES` images, or where the features do not differ.
    """
    visual = model.clip.visual
    old = values_of(model, closed_form_names(model))
    quality = quality_direction(model)
    new = dict(old)
    if TEXT_PROJECTION in old:
        new[TEXT_PROJECTION] = stretch(old[TEXT_PROJECTION], quality)
    set_values(model, new)
    try:  # what the texts are with the stretched projection
        axis, scenes = quality_direction(model), model.encode_scenes()
    finally:
        set_values(model, old)
    last = len(visual.ln_post.weight) // len(model.image.feature_blocks or [0])
    gain = visual.ln_post.weight[-last:]
    fitted = fit_projection(pooled, targets, visual.proj, quality, gain, axis=axis, scenes=scenes)
    if fitted is None:
        return old
    return {**new, PROJECTION: fitted.proj, SHIFT: old[SHIFT] + fitted.shift}


def quality_direction(model: QualityCLIP) -> Tensor:
    """[D] float64: scalar product with an image's feature is the margin of its quality logits."""
    text = model.encode_quality().double()  # [2, D], rows high, low
    scale = model.config.prompts.quality_scale * model.clip.logit_scale.exp().double()
    direction: Tensor = scale * (text[0] - text[1])
    return direction


def stretch(text_projection: Tensor, quality: Tensor) -> Tensor:
    """Moves the two quality texts apart: ``text_projection`` [W, D], stretched along ``quality`` [D] to `LENGTH`.

    `fit_projection` writes what images have in this direction anew, so only texts notice: all of them by the same
    factor.
    """
    length = quality.double().norm()
    if length == 0 or length >= LENGTH:
        return text_projection.clone()
    u = quality.double() / length
    wide = text_projection.double()
    stretched: Tensor = wide + (LENGTH / length - 1) * (wide @ u)[:, None] * u
    return stretched.to(text_projection.dtype)


class Projection(NamedTuple):
    """New value of ``clip.visual.proj`` [F, D], and what to add to ``clip.visual.ln_post.bias`` [F]; float32."""

    proj: Tensor
    shift: Tensor


def fit_projection(
    pooled: Tensor,
    targets: Array,
    proj: Tensor,
    quality: Tensor,
    gain: Tensor,
    *,
    axis: Tensor,
    scenes: Tensor,
) -> Projection | None:
    """Fits the quality direction to labelled images.

    With f = proj^T z a crop's feature and u the unit vector of ``quality``, the margin of the two quality logits is
    ``|quality| f.u / |f|``.  Its mean over an image's crops is regressed on the labels: intercept and weight of the
    un-adapted value are free; deviations, linear in f and in the last ``last`` numbers of z (both over ``|f|``,
    less their parts along the mean), have Gaussian priors around 0.  Noise and prior variance are averaged over
    a grid, weighted by the restricted likelihood (REML).

    The new margin, m, becomes the part of f along ``axis``, m |f| / |axis|.  What f had there moves to a direction
    in which images hardly differ and which no scene text looks at, so ``|f|`` stays what it was but for m itself.

    Args:
        pooled: z, [n, C, F]: what ``ln_post`` gives for C crops of n images.
        targets: y of eq. (3) [n].
        proj: [F, D].
        quality: [D], text feature of "high quality" minus that of "low quality", times the logit scale.
        gain: [last], weight of ``ln_post`` for the numbers at the end of z that belong to the last block.  The
            prior is even over what ``ln_post`` is given, where strong directions are strong, not over z.
        axis: [D], ``quality`` of the texts that the result is meant for.
        scenes: [S, D] text features of scenes.

    Returns:
        None for fewer than `MIN_IMAGES` images, or where the features do not differ.
    """
    n, length = len(targets), float(quality.double().norm())
    if n < MIN_IMAGES or length == 0:
        return None
    projection = proj.double()
    u = (quality.double() / length).to(projection.device)
    last, gain = len(gain), gain.double().to(projection.device)
    features, designs, tops = [], [], []
    for crops in pooled:  # image by image: in float64 all of them at once can be large
        z = crops.to(projection.device, torch.float64)  # [C, F]
        f = z @ projection  # [C, D]
        weights = 1 / f.norm(dim=1).clamp_min(1e-12) / len(z)  # [C]: mean over crops, each over its |f|
        features.append(f.cpu().numpy())
        designs.append(torch.cat([(weights * (f @ u)).sum()[None], weights @ f]).cpu().numpy())
        tops.append((weights @ (z[:, -last:] / gain)).cpu().numpy())
    design = np.stack(designs)  # [n, 1 + D]: un-adapted margin, features
    fixed = np.column_stack([np.ones(n), design[:, 0]])  # [n, 2]
    groups = [_without_mean(design[:, 1:]), _without_mean(np.stack(tops))]  # [n, D], [n, last]
    variances = [float(np.square(a - a.mean(axis=0)).sum() / n) for a in groups]
    if min(variances) <= 1e-12 or np.ptp(fixed[:, 1]) <= 1e-12:
        return None
    scale = np.sqrt(np.array(variances) / (1, TOP_SHARE))
    rows = np.column_stack([group / s for group, s in zip(groups, scale, strict=True)])  # [n, D + last]
    coefficients, deviation = average_posterior(fixed, rows, SLOPE * (towards_normal(targets) - 0.5))
    on_projected, on_top = deviation[: len(u)] / scale[0], deviation[len(u) :] / scale[1]
    # The intercept is the same for all images if it is a share of |f|: the function of f nearest to that is taken.
    every = np.concatenate(features)  # [n C, D]
    nearest = fit_ridge(every, np.linalg.norm(every, axis=1))
    on_f = torch.from_numpy(on_projected + coefficients[0] * nearest.weights).to(u) + coefficients[1] * u
    margin = projection @ on_f  # times |f|, as a function of z, with a constant
    margin[-last:] += torch.from_numpy(on_top).to(u) / gain
    constant = coefficients[0] * nearest.intercept
    return _write(projection, margin, constant, every, axis, scenes)


def _write(
    projection: Tensor, margin: Tensor, constant: float, features: Array, axis: Tensor, scenes: Tensor
) -> Projection:
    """The model whose margin times ``|f|`` is ``margin . z + constant``; ``features`` [m, D] are all crops'."""
    length = float(axis.double().norm())
    a = (axis.double() / length).to(projection)
    new = projection + (margin / length - projection @ a)[:, None] * a
    spare = _least_used(features, torch.cat([a[None], scenes.to(a)]).cpu().numpy())
    if spare is not None:
        v = torch.from_numpy(spare).to(a)
        new += (projection @ a - projection @ v)[:, None] * v
    # The constant: a shift of z that moves f along the axis alone (exactly, where F >= D and proj has full rank).
    wanted = constant / length * a
    shift = torch.linalg.lstsq(new.T.cpu(), wanted[:, None].cpu(), rcond=1e-5, driver="gelsd").solution[:, 0]
    return Projection(new.float(), shift.float().to(new.device))


def _least_used(features: Array, occupied: Array) -> Array | None:
    """Unit vector [D] of least energy in the features, orthogonal to the rows of ``occupied``; None: no room."""
    _, values, rows = np.linalg.svd(occupied)
    free = rows[int((values > 1e-9 * values[0]).sum()) :]  # [D - rank, D]
    if not len(free):
        return None
    inside = features @ free.T
    return np.asarray(free.T @ np.linalg.eigh(inside.T @ inside)[1][:, 0])


def towards_normal(targets: Array) -> Array:
    """Targets, in part replaced by their normal scores of the same mean and spread.

    That takes leverage from the ends of a skewed scale, and rank correlation on images not seen gains by it.
    """
    targets = targets.astype(np.float64)
    scores = ndtri((rankdata(targets) - 0.5) / len(targets))
    scores = targets.mean() + (scores - scores.mean()) * (targets.std() / max(float(scores.std()), 1e-12))
    return np.asarray((1 - NORMAL_SHARE) * targets + NORMAL_SHARE * scores)


def _without_mean(rows: Array) -> Array:
    """Rows [n, D] less their parts along their mean, so that no weights on them move all images alike."""
    mean = rows.mean(axis=0)
    squared = float(mean @ mean)
    return rows if squared == 0 else rows - np.outer(rows @ mean / squared, mean)


def average_posterior(fixed: Array, rows: Array, targets: Array) -> tuple[Array, Array]:
    """Posterior means of the free coefficients [2] and of the weights [D] of ``rows`` [n, D], over all `NOISES`."""
    n, p = fixed.shape
    vectors, singular, _ = np.linalg.svd(rows, full_matrices=False)  # [n, r], [r]
    # Of what the rows do not span, only the directions of the targets and of the fixed part matter.
    outside = np.column_stack([fixed, targets])
    lengths = np.linalg.norm(outside, axis=0)
    outside -= vectors @ (vectors.T @ outside)
    directions, left, _ = np.linalg.svd(outside / np.maximum(lengths, 1e-300), full_matrices=False)
    vectors = np.hstack([vectors, directions[:, left > 1e-9]])  # [n, k]
    values = np.concatenate([np.square(singular), np.zeros(int((left > 1e-9).sum()))])
    # In this basis the covariance, rows rows^T + noise I, is diagonal for every noise.
    turned_fixed, turned_targets = vectors.T @ fixed, vectors.T @ targets
    free, duals, evidence = [], [], []
    for noise in NOISES:
        inverse = 1 / (values + noise)
        normal = turned_fixed.T @ (inverse[:, None] * turned_fixed)
        coefficients = np.linalg.solve(normal, turned_fixed.T @ (inverse * turned_targets))
        residual = turned_targets - turned_fixed @ coefficients
        variance = max(float(residual @ (inverse * residual)) / (n - p), 1e-24)
        log_det = (n - len(values)) * np.log(noise) - np.log(inverse).sum()  # of the covariance
        evidence.append(-0.5 * ((n - p) * np.log(variance) + log_det + np.linalg.slogdet(normal)[1]))
        free.append(coefficients)
        duals.append(inverse * residual)
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    return weights @ np.stack(free), rows.T @ (vectors @ (weights @ np.stack(duals)))
