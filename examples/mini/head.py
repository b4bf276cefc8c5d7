"""The head of an image tower that is read out of several blocks: normalisation and projection in closed form.

A projection trained by gradient on a few thousand synthetic distortions fits them ever better and photos worse.
Strong ridge regression does not, so quality gets one axis of the common space from it, and the other axes hold
the leading principal directions, whitened and uncorrelated with quality: meaning, for the text tower to read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grmp_score.errors import ConfigError


@dataclass(frozen=True)
class Head:
    """`visual.ln_post` and `visual.proj` of an image tower.

    Attributes:
        weight: float32 [F], of ``ln_post``.
        bias: float32 [F], of ``ln_post``; with ``weight`` it brings every feature to mean 0 and deviation 1.
        proj: float32 [F, D]; the first axis is quality.
    """

    weight: Tensor
    bias: Tensor
    proj: Tensor

    def normalise(self, features: Tensor) -> Tensor:
        """What ``ln_post`` makes of features [..., F] that it normalised without scaling."""
        return features * self.weight + self.bias


def fit_head(
    features: Tensor,
    quality_features: Tensor,
    quality_labels: Tensor,
    embed_dim: int,
    *,
    ridge: float = 5.0,
    shrinkage: float = 0.1,
    quality_share: float = 0.25,
) -> Head:
    """Fits the head.

    Args:
        features: float32 [N, F], of photos of all kinds, from `photos.image_tower`.
        quality_features: float32 [M, F], of crops of known quality.
        quality_labels: float32 [M] in 0..1, higher is better.
        embed_dim: D, at most F.
        ridge: penalty on the quality direction, in units of the mean variance of a normalised feature.
        shrinkage: ridge in the whitening, as a share of the mean variance.
        quality_share: share of the squared length of a mean image feature that lies on the quality axis.

    Raises:
        ConfigError: a setting is out of range.
    """
    if not 2 <= embed_dim <= features.shape[1]:
        raise ConfigError(f"embed_dim: expected 2..{features.shape[1]}, got {embed_dim}")
    if not 0 < quality_share < 1 or not ridge > 0 or not shrinkage > 0:
        raise ConfigError("quality_share must lie between 0 and 1, ridge and shrinkage above 0")
    both = torch.cat([features, quality_features]).double()  # [N + M, F]
    mean, deviation = both.mean(0), both.std(0).clamp_min(1e-6)  # [F]
    z, z_quality = (both - mean) / deviation, (quality_features.double() - mean) / deviation
    # The direction [F] of quality, by ridge regression of the labels.
    centred = z_quality - z_quality.mean(0)
    target = quality_labels.double() - quality_labels.double().mean()
    identity = torch.eye(z.shape[1], dtype=torch.float64)
    gram = centred.T @ centred / len(centred)
    direction = torch.linalg.solve(gram + ridge * identity, centred.T @ target / len(centred))
    quality = z @ direction  # [N + M]
    direction = direction / quality.std()
    quality = (quality - quality.mean()) / quality.std()

    # The other axes [F, D - 1]: principal directions, nearly equalised.
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    values, vectors = values.flip(0)[: embed_dim - 1], vectors.flip(1)[:, : embed_dim - 1]
    axes = vectors / (values.clamp_min(0) + shrinkage * values.mean()).sqrt()
    axes = axes - direction[:, None] * (quality @ (z @ axes) / len(z))  # uncorrelated with quality
    axes = axes / (z @ axes).square().sum(1).mean().sqrt()
    proj = torch.cat([quality_share**0.5 * direction[:, None], (1 - quality_share) ** 0.5 * axes], dim=1)
    return Head((1 / deviation).float(), (-mean / deviation).float(), proj.float())
