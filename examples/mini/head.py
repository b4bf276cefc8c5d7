"""The head of an image tower that is read out of several blocks: normalisation and projection in closed form.

The axes of the common space are the leading principal directions of the normalised features, nearly equalised:
meaning, for the text tower to read.  No label of quality enters: what "high quality" means is left to the prompts.
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
        proj: float32 [F, D]; a mean feature has length 1.
    """

    weight: Tensor
    bias: Tensor
    proj: Tensor

    def normalise(self, features: Tensor) -> Tensor:
        """What ``ln_post`` makes of features [..., F] that it normalised without scaling."""
        return features * self.weight + self.bias


def fit_head(features: Tensor, embed_dim: int, *, shrinkage: float = 0.1) -> Head:
    """Fits the head.

    Args:
        features: float32 [N, F], of photos of all kinds, from `photos.image_tower`.
        embed_dim: D, at most F.
        shrinkage: ridge in the equalising, as a share of the mean variance.

    Raises:
        ConfigError: a setting is out of range.
    """
    if not 1 <= embed_dim <= features.shape[1]:
        raise ConfigError(f"embed_dim: expected 1..{features.shape[1]}, got {embed_dim}")
    if not shrinkage > 0:
        raise ConfigError("shrinkage must lie above 0")
    x = features.double()  # [N, F]
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)  # [F]
    z = (x - mean) / deviation
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    values, vectors = values.flip(0)[:embed_dim], vectors.flip(1)[:, :embed_dim]  # [D], [F, D]
    proj = vectors / (values.clamp_min(0) + shrinkage * values.mean()).sqrt()
    proj = proj / (z @ proj).square().sum(1).mean().sqrt()
    return Head((1 / deviation).float(), (-mean / deviation).float(), proj.float())
