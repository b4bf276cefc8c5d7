"""The words "high quality" and "low quality": what a text tower that has read class names alone must be taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grmp_score.model.tokenizer import Tokenizer

from .zero_shot import encode_texts

if TYPE_CHECKING:
    import torch
    from open_clip.model import CLIP
    from torch import Tensor


@dataclass(frozen=True)
class QualityViews:
    """Crops of known quality, for the words "high quality" and "low quality".

    CLIP has met these words in the captions of the web and orders photos by them before any tuning; a text tower
    that has read class names alone gives both the same meaning, and no context learned in front of them can
    part them.

    Attributes:
        features: float32 [M, F], pooled by the image tower as in `PairFeatures`.
        labels: float32 [M], quality in 0..1, higher is better.
    """

    features: Tensor
    labels: Tensor


#: Wordings for quality; the last one stands where the learned context will be.
QUALITY_TEMPLATES = (
    "{}",
    "{}.",
    "a {} photo",
    "a {} picture",
    "a photo of {}",
    "a photo with {}.",
    "x x x x {}.",
)


def quality_words_loss(
    model: CLIP,
    quality: QualityViews,
    tokenizer: Tokenizer,
    generator: torch.Generator,
    *,
    dropout: float,
    one_axis_weight: float | None,
) -> Tensor:
    """Binary cross-entropy of "high quality" against "low quality" (eq. 3) for some crops, in one wording.

    Args:
        model: being trained.
        quality: the crops.
        tokenizer: of its text tower.
        generator: of everything random.
        dropout: share of the projected image features left out.
        one_axis_weight: None where every axis may tell quality.  Where the projection keeps quality on its first
            axis (`readout.fit_readout`), the penalty on the words' squared distance off that axis; nothing is left
            out then.
    """
    import torch

    rows = torch.randint(len(quality.labels), (256,), generator=generator)
    projected = quality.features[rows] @ model.visual.proj
    if one_axis_weight is not None:
        # Every crop keeps its place on the quality axis and takes all the rest from another one, so that these
        # words learn nothing but that axis.
        others = torch.randperm(len(rows), generator=generator)
        projected = torch.cat([projected[:, :1], projected[others, 1:]], dim=1)
        images = torch.nn.functional.normalize(projected, dim=-1)
    else:
        keep = torch.rand(projected.shape, generator=generator) >= dropout
        images = torch.nn.functional.normalize(projected * keep, dim=-1)
    template = QUALITY_TEMPLATES[int(torch.randint(len(QUALITY_TEMPLATES), (), generator=generator))]
    texts = encode_texts(model, tokenizer([template.format("high quality"), template.format("low quality")]))
    logits = model.logit_scale.exp() * images @ texts.T
    margin = logits[:, 0] - logits[:, 1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, quality.labels[rows])
    if one_axis_weight is not None:
        loss = loss + one_axis_weight * (texts[0, 1:] - texts[1, 1:]).square().sum()
    return loss
