"""Scoring without any training: a dual encoder and two texts written by hand."""

from __future__ import annotations

import dataclasses

from grmp_score.weights.folder import Weights

#: The antonyms of CLIP-IQA (Wang et al., AAAI 2023), best first.
CLIP_IQA_PROMPTS = ("Good photo.", "Bad photo.")


def with_prompts(base: Weights, prompts: tuple[str, str] = CLIP_IQA_PROMPTS) -> Weights:
    """Weights whose classes are two whole texts instead of a learned context and two phrases.

    The text features are computed here, from the text tower; the image side stays as it is.  CLIP-IQA takes a
    ResNet without positional embeddings and the whole image; here it is the base's own image tower and patches.

    Args:
        base: any weights, or a backbone alone (`grmp_score.weights.load_base`).
        prompts: for high and low quality, as they are: no word and no full stop is added.

    Raises:
        WeightsError, ConfigError: the tensors do not make a model, or a text is too long.
    """
    import torch

    known = base.config
    prompt_config = dataclasses.replace(known.prompts, n_ctx=0, classes=prompts, quality_scale=1.0)
    config = dataclasses.replace(
        known,
        prompts=prompt_config,
        label_scale=None,
        opinion=None,
        reference_percentiles={},
        training={},
        results={},
    )
    width, dimensions = (
        known.backbone.model_cfg["text_cfg"].get("width", 512),
        known.backbone.model_cfg["embed_dim"],
    )
    unknown = {
        "text_prompt.ctx": torch.zeros(0, width),
        "text_features": torch.zeros(2, dimensions),
        "scene_features": torch.zeros(len(known.prompts.scenes), dimensions),
    }
    weights = dataclasses.replace(base, config=config, adapter={**base.adapter, **unknown}, card="")
    model = weights.build()
    model.refresh_text()
    texts = {name: model.state_dict()[name] for name in unknown}
    return dataclasses.replace(weights, adapter={**base.adapter, **texts})
