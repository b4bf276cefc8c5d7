"""The first phase of stage 2, in closed form: a few labels turn the quality direction of the image features.

Not part of the paper, whose stage 2 is gradient descent from the pre-trained prompts.  With a hundred labels the
most that can be learned lies in a linear function of the image features near the one that the prompts give, and
that has an exact solution: Bayesian linear regression whose mean is the un-adapted model.  It is written into
`visual.proj` (a change of rank one, along "high quality" minus "low quality") and the bias of `ln_post`, so the
result is a model like any other, and gradient descent goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grmp_score.trainer.ridge import fit_ridge

Array = NDArray[np.float64]

#: Least number of images: two coefficients are free.
MIN_IMAGES = 4
#: Prior variance of the weights on the last block's features, relative to that of the projected ones.
MIXTURES = (0.0, 0.1, 0.3, 1.0)
#: Noise variance relative to the prior variance of the prediction.
NOISES = np.logspace(-2, 2, 21)
#: Slope of the logit at p = 1/2, so that p(high) is about the label.
SLOPE = 4.0


@dataclass(frozen=True, eq=False)
class Head:
    """New values of ``clip.visual.proj`` and what to add to ``clip.visual.ln_post.bias``.

    Attributes:
        proj: float32 [F, D].
        shift: float32 [F].
    """

    proj: Tensor
    shift: Tensor


def fit_head(pooled: Tensor, targets: Array, proj: Tensor, quality: Tensor, gain: Tensor) -> Head | None:
    """Fits the quality direction to labelled images.

    With f = proj^T z a crop's feature and u the unit vector of ``quality``, the margin of the two quality logits is
    ``|quality| f.u / |f|``.  Its mean over an image's crops is regressed on the labels: intercept and weight of the
    un-adapted value are free; deviations, linear in f and in the last ``last`` numbers of z (both over ``|f|``,
    less their parts along the mean), have Gaussian priors around 0.  Both prior variances and the noise are
    averaged over a grid, weighted by the restricted likelihood (REML).  All of it changes f along u alone; that
    ``|f|`` changes with it is of second order and neglected.

    Args:
        pooled: z, [n, C, F]: what ``ln_post`` gives for C crops of n images.
        targets: y of eq. (3) [n].
        proj: [F, D].
        quality: [D], text feature of "high quality" minus that of "low quality", times the logit scale.
        gain: [last], weight of ``ln_post`` for the numbers at the end of z that belong to the last block.  The
            prior is even over what ``ln_post`` is given, where strong directions are strong, not over z.

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
    scale = np.sqrt(variances)
    coefficients, on_projected, on_top = _average(
        fixed, groups[0] / scale[0], groups[1] / scale[1], SLOPE * (targets - 0.5) / length
    )
    # The intercept is the same for all images if it is a share of |f|: the function of f nearest to that is taken.
    every = np.concatenate(features)
    nearest = fit_ridge(every, np.linalg.norm(every, axis=1))
    weight = torch.from_numpy(on_projected / scale[0] + coefficients[0] * nearest.weights).to(u)
    change = (coefficients[1] - 1) * projection @ u + projection @ weight
    change[-last:] += torch.from_numpy(on_top / scale[1]).to(u) / gain
    turned = projection + change[:, None] * u
    # Its constant part: a shift of z that moves f along u alone (exactly, where F >= D and proj has full rank).
    wanted = coefficients[0] * nearest.intercept * u
    shift = torch.linalg.lstsq(turned.T.cpu(), wanted[:, None].cpu(), driver="gelsd").solution[:, 0]
    return Head(turned.float(), shift.float().to(turned.device))


def _without_mean(rows: Array) -> Array:
    """Rows [n, D] less their parts along their mean, so that no weights on them move all images alike."""
    mean = rows.mean(axis=0)
    squared = float(mean @ mean)
    return rows if squared == 0 else rows - np.outer(rows @ mean / squared, mean)


def _average(fixed: Array, projected: Array, top: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Posterior means of the free coefficients [2] and of both groups of weights, averaged over the grid."""
    n, p = fixed.shape
    kernels = projected @ projected.T, top @ top.T
    found, evidence = [], []
    for mixture in MIXTURES:
        values, vectors = np.linalg.eigh(kernels[0] + mixture * kernels[1])
        turned_fixed, turned_targets = vectors.T @ fixed, vectors.T @ targets
        for noise in NOISES:
            inverse = 1 / (np.maximum(values, 0) + noise)
            normal = turned_fixed.T @ (inverse[:, None] * turned_fixed)
            coefficients = np.linalg.solve(normal, turned_fixed.T @ (inverse * turned_targets))
            residual = turned_targets - turned_fixed @ coefficients
            variance = max(float(residual @ (inverse * residual)) / (n - p), 1e-24)
            evidence.append(
                -0.5 * ((n - p) * np.log(variance) - np.log(inverse).sum() + np.linalg.slogdet(normal)[1])
            )
            dual = vectors @ (inverse * residual)
            found.append((coefficients, projected.T @ dual, mixture * (top.T @ dual)))
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    averaged = [np.tensordot(weights, np.stack(part), axes=1) for part in zip(*found, strict=True)]
    return averaged[0], averaged[1], averaged[2]
