"""`Score`: what is known about the quality of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grmp_score.config import ModelConfig
from grmp_score.meaning import percentile


@dataclass(frozen=True)
class Score:
    """The quality of one image.

    Attributes:
        value: mean p(high quality) over the patches, 0..1, higher is better; None when ``error`` is set.
        std: standard deviation of p(high) over the patches (n - 1); 0 for a single patch.
        standard_error: ``std`` / sqrt(number of patches): how far the value may be from that of all patches.
        patch_values: p(high) of each patch, in the order of the layout.
        path: where the image came from, if it has a name.
        width: pixels, upright.
        height: pixels, upright.
        error: why the image could not be scored, or None.
        label: the value on the scale of the labels that the weights were adapted to, in their direction (for DMOS
            lower is better); None when the weights have no such scale.
        percentile: share, 0..100, of the weights' clean reference photos that score below this image; None when the
            weights keep no such distribution.
        content_hash: ``"sha256:..."`` of the encoded file, also of one that cannot be decoded; None for arrays and
            PIL images.
    """

    value: float | None
    std: float | None = None
    standard_error: float | None = None
    patch_values: tuple[float, ...] = ()
    path: str | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    label: float | None = None
    percentile: float | None = None
    content_hash: str | None = None

    @classmethod
    def from_patches(
        cls,
        values: tuple[float, ...],
        *,
        path: str | None,
        width: int,
        height: int,
        content_hash: str | None = None,
        config: ModelConfig | None = None,
    ) -> Score:
        """The score of an image whose patches have these p(high) values.

        Args:
            values: p(high) of each patch.
            path, width, height, content_hash: as in `Score`.
            config: of the weights, for label and percentile.
        """
        n = len(values)
        mean = math.fsum(values) / n
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0
        scale = config.label_scale if config is not None else None
        return cls(
            mean,
            std,
            std / math.sqrt(n),
            values,
            path,
            width,
            height,
            label=None if scale is None else scale.to_label(mean),
            percentile=None if config is None else percentile(config.reference_percentiles, mean),
            content_hash=content_hash,
        )
