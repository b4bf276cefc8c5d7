"""What a dual encoder knows without further training: scenes and class names of unseen photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from captions import SCENE_PROMPTS, class_scene
from photos import NIGHT, Photo, PhotoFeatures
from torch import Tensor, nn
from torch.nn.functional import normalize

from grmp_score.config import SCENES
from grmp_score.model.tokenizer import Tokenizer
from grmp_score.model.towers import TextTower

CLIP = nn.Module  # as `grmp_score.model.clip.build_clip` makes it


def encode_texts(clip: CLIP, tokens: Tensor) -> Tensor:
    """Token ids [C, T] -> L2-normalised text features [C, D]."""
    text = TextTower(clip)
    return text(text.embed(tokens), tokens)


@torch.inference_mode()
def prompt_cosine(clip: CLIP, tokenizer: Tokenizer) -> float:
    """Cosine of the two quality prompts before prompt learning; at 1 the model cannot tell them apart."""
    high, low = encode_texts(clip, tokenizer(["X X X X high quality.", "X X X X low quality."]))
    return float(high @ low)


@torch.inference_mode()
def measure(
    clip: CLIP, photos: Sequence[Photo], features: PhotoFeatures, indices: Sequence[int], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Zero-shot figures of a model on the photos `indices`, which it must not have been trained on.

    Returns:
        A JSON-serialisable dict. scene_accuracy: share of whole photos whose best of the nine scene prompts
        is true; majority_rate: what always answering the commonest scene gives; balanced_accuracy: mean
        recall over the scenes present; scene_recall; distorted_scene_accuracy: on a mildly distorted crop;
        night_recall: on outdoor photos printed as night; recall_at_1/5/10: share of photos whose class name
        is among the k best of all these photos' names, and recall_at_10_chance; kind_accuracy: same among
        all kinds, at rank 1; scene_nll and best_logit_scale: mean negative log-likelihood of the scenes at
        the scale that minimises it.
    """
    index = torch.as_tensor(list(indices))
    kinds = sorted({class_scene(p.wordnet_id).kind for p in photos})
    names = [f"a photo of a {photos[i].name}" for i in indices]
    scene_text, name_text, kind_text = (
        encode_texts(clip, tokenizer(texts))
        for texts in (SCENE_PROMPTS, names, [f"a photo of a {k}" for k in kinds])
    )
    images = normalize(features.features[index] @ clip.visual.proj, dim=-1)  # [n, V, D]
    truth = features.scenes[index]  # [n, V, 9]
    cosines = images @ scene_text.T  # [n, V, 9]
    best = cosines.argmax(-1, keepdim=True)  # [n, V, 1]
    hit = truth.gather(-1, best)[..., 0].float()  # [n, V]
    own = torch.tensor([SCENES.index(class_scene(photos[i].wordnet_id).scene) for i in indices])  # [n]
    recall = {SCENES[s]: hit[own == s, 0].mean().item() for s in sorted(set(own.tolist()))}
    counts = torch.bincount(own, minlength=len(SCENES))  # [9]
    night = truth[:, -1, NIGHT] & ~truth[:, 0, NIGHT]  # [n]
    target = truth[:, 0].float() / truth[:, 0].sum(-1, keepdim=True)  # [n, 9]
    scales = torch.logspace(0, math.log10(100), 81).tolist()
    nll = [-(target * torch.log_softmax(s * cosines[:, 0], -1)).sum(-1).mean().item() for s in scales]
    name_scores = images[:, 0] @ name_text.T  # [n, n]
    rank = (name_scores > name_scores.diagonal()[:, None]).sum(1)  # [n]
    kind_of = torch.tensor([kinds.index(class_scene(photos[i].wordnet_id).kind) for i in indices])  # [n]
    kind_hit = ((images[:, 0] @ kind_text.T).argmax(1) == kind_of).float().mean().item()
    report: dict[str, Any] = {
        "held_out": len(indices),
        "scene_accuracy": hit[:, 0].mean().item(),
        "majority_rate": counts.max().item() / len(indices),
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "scene_recall": recall,
        "scene_nll": min(nll),
        "best_logit_scale": scales[nll.index(min(nll))],
        "trained_logit_scale": clip.logit_scale.exp().item(),
        **{f"recall_at_{k}": (rank < k).float().mean().item() for k in (1, 5, 10)},
        "recall_at_10_chance": min(1.0, 10 / len(indices)),
        "kind_accuracy": kind_hit,
    }
    if images.shape[1] > 3:
        report["distorted_scene_accuracy"] = hit[:, 3].mean().item()
    if images.shape[1] > 2 and bool(night.any()):
        report["night_recall"] = (best[night, -1, 0] == NIGHT).float().mean().item()
    return report
