"""The first phase of stage 2, in closed form: a few labels turn the quality direction of the image features.

Not part of the paper, whose stage 2 is gradient descent from the pre-trained prompts.  With a hundred labels the
most that can be learned lies in a linear function of the image features near the one that the prompts give, and
that has an exact solution: Bayesian linear regression whose mean is the un-adapted model.  It is written into
`visual.proj` (two directions of the features change), the bias of `ln_post` and, where the two quality prompts are
close together, `text_projection`, so the result is a model like any other, and gradient descent goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.trainer.adapt.ridge import fit_ridge
from grmp_score.trainer.metrics import average_ranks

Array = NDArray[np.float64]

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


@dataclass(frozen=True, eq=False)
class Head:
    """New values of ``clip.visual.proj`` and what to add to ``clip.visual.ln_post.bias``.

    Attributes:
        proj: float32 [F, D].
        shift: float32 [F].
    """

    proj: Tensor
    shift: Tensor


def stretch(text_projection: Tensor, quality: Tensor) -> Tensor:
    """Moves the two quality texts apart: ``text_projection`` [W, D], stretched along ``quality`` [D] to `LENGTH`.

    `fit_head` writes what images have in this direction anew, so only texts notice: all of them by the same factor.
    """
    length = quality.double().norm()
    if length == 0 or length >= LENGTH:
        return text_projection.clone()
    u = quality.double() / length
    wide = text_projection.double()
    stretched: Tensor = wide + (LENGTH / length - 1) * (wide @ u)[:, None] * u
    return stretched.to(text_projection.dtype)


def fit_head(
    pooled: Tensor,
    targets: Array,
    proj: Tensor,
    quality: Tensor,
    gain: Tensor,
    *,
    axis: Tensor,
    scenes: Tensor,
) -> Head | None:
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
        z = crops.to(projection.device, torch.float64)
        f = z @ projection
        weights = 1 / f.norm(dim=1).clamp_min(1e-12) / len(z)
        features.append(f.cpu().numpy())
        designs.append(torch.cat([(weights * (f @ u)).sum()[None], weights @ f]).cpu().numpy())
        tops.append((weights @ (z[:, -last:] / gain)).cpu().numpy())
    design = np.stack(designs)
    fixed = np.column_stack([np.ones(n), design[:, 0]])
    groups = [_without_mean(design[:, 1:]), _without_mean(np.stack(tops))]
    variances = [float(np.square(a - a.mean(axis=0)).sum() / n) for a in groups]
    if min(variances) <= 1e-12 or np.ptp(fixed[:, 1]) <= 1e-12:
        return None
    scale = np.sqrt(np.array(variances) / (1, TOP_SHARE))
    rows = np.column_stack([group / s for group, s in zip(groups, scale, strict=True)])
    coefficients, deviation = _average(fixed, rows, SLOPE * (_towards_normal(targets) - 0.5))
    on_projected, on_top = deviation[: len(u)] / scale[0], deviation[len(u) :] / scale[1]
    # The intercept is the same for all images if it is a share of |f|: the function of f nearest to that is taken.
    every = np.concatenate(features)
    nearest = fit_ridge(every, np.linalg.norm(every, axis=1))
    on_f = torch.from_numpy(on_projected + coefficients[0] * nearest.weights).to(u) + coefficients[1] * u
    margin = projection @ on_f  # times |f|, as a function of z, with a constant
    margin[-last:] += torch.from_numpy(on_top).to(u) / gain
    constant = coefficients[0] * nearest.intercept
    return _write(projection, margin, constant, every, axis, scenes)


def _write(
    projection: Tensor, margin: Tensor, constant: float, features: Array, axis: Tensor, scenes: Tensor
) -> Head:
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
    return Head(new.float(), shift.float().to(new.device))


def _least_used(features: Array, occupied: Array) -> Array | None:
    """Unit vector [D] of least energy in the features, orthogonal to the rows of ``occupied``; None: no room."""
    _, values, rows = np.linalg.svd(occupied)
    free = rows[int((values > 1e-9 * values[0]).sum()) :]  # [D - rank, D]
    if not len(free):
        return None
    inside = features @ free.T
    return np.asarray(free.T @ np.linalg.eigh(inside.T @ inside)[1][:, 0])


def _towards_normal(targets: Array) -> Array:
    """Targets, in part replaced by their normal scores of the same mean and spread.

    That takes leverage from the ends of a skewed scale, and rank correlation on images not seen gains by it.
    """
    n = len(targets)
    quantiles = (average_ranks(targets) - 0.5) / n
    scores = np.array([NormalDist().inv_cdf(q) for q in quantiles])
    scores = targets.mean() + (scores - scores.mean()) * (targets.std() / max(float(scores.std()), 1e-12))
    return np.asarray((1 - NORMAL_SHARE) * targets + NORMAL_SHARE * scores)


def _without_mean(rows: Array) -> Array:
    """Rows [n, D] less their parts along their mean, so that no weights on them move all images alike."""
    mean = rows.mean(axis=0)
    squared = float(mean @ mean)
    return rows if squared == 0 else rows - np.outer(rows @ mean / squared, mean)


def _average(fixed: Array, rows: Array, targets: Array) -> tuple[Array, Array]:
    """Posterior means of the free coefficients [2] and of the weights [D] of ``rows`` [n, D], over all `NOISES`."""
    n, p = fixed.shape
    values, vectors = np.linalg.eigh(rows @ rows.T)
    turned_fixed, turned_targets = vectors.T @ fixed, vectors.T @ targets
    free, duals, evidence = [], [], []
    for noise in NOISES:
        inverse = 1 / (np.maximum(values, 0) + noise)
        normal = turned_fixed.T @ (inverse[:, None] * turned_fixed)
        coefficients = np.linalg.solve(normal, turned_fixed.T @ (inverse * turned_targets))
        residual = turned_targets - turned_fixed @ coefficients
        variance = max(float(residual @ (inverse * residual)) / (n - p), 1e-24)
        evidence.append(-0.5 * ((n - p) * np.log(variance) - np.log(inverse).sum() + np.linalg.slogdet(normal)[1]))
        free.append(coefficients)
        duals.append(inverse * residual)
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    return weights @ np.stack(free), rows.T @ (vectors @ (weights @ np.stack(duals)))
