"""What a dual encoder knows without further training: scenes and class names of unseen photos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grmp_score.config import SCENES
from grmp_score.model.tokenizer import Tokenizer

from .pairs import Pair, PairFeatures
from .scenes import class_scene, scene_prompts

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from torch import Tensor


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """Text features [B, embed_dim] as of `model.encode_text(tokens, normalize=True)`, without the padding.

    The causal mask hides everything after end of text, so positions that are padding in every row can be left
    out; with captions of ten tokens this saves most of the work.
    """
    import torch
    from open_clip.transformer import text_global_pool

    length = int(tokens.argmax(dim=1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = text_global_pool(x, tokens, model.text_pool_type) @ model.text_projection
    normalized: Tensor = torch.nn.functional.normalize(x, dim=-1)
    return normalized


def prompt_cosine(model: CLIP, tokenizer: Tokenizer) -> float:
    """Cosine of the two quality prompts before prompt learning; at 1 the model cannot tell them apart."""
    import torch

    with torch.inference_mode():
        high, low = encode_texts(model, tokenizer(["X X X X high quality.", "X X X X low quality."]))
        return float(high @ low)


def measure(
    model: CLIP, pairs: Sequence[Pair], features: PairFeatures, indices: Sequence[int], tokenizer: Tokenizer
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
    import torch

    index = torch.as_tensor(list(indices))
    kinds = sorted({class_scene(p.wordnet_id).kind for p in pairs})
    names = [f"a photo of a {pairs[i].name}" for i in indices]
    with torch.inference_mode():
        texts = [scene_prompts(), names, [f"a photo of a {k}" for k in kinds]]
        scene_text, name_text, kind_text = (encode_texts(model, tokenizer(t)) for t in texts)
        projected = features.features[index] @ model.visual.proj  # [n, V, embed_dim]
        images = torch.nn.functional.normalize(projected, dim=-1)
        truth = features.scenes[index]  # [n, V, 9]
        cosines = images @ scene_text.T  # [n, V, 9]
        best = cosines.argmax(-1, keepdim=True)
        hit = truth.gather(-1, best)[..., 0].float()  # [n, V]
        own = torch.tensor([SCENES.index(class_scene(pairs[i].wordnet_id).scene) for i in indices])
        recall = {SCENES[s]: hit[own == s, 0].mean().item() for s in sorted(set(own.tolist()))}
        counts = torch.bincount(own, minlength=len(SCENES))
        night = truth[:, -1, SCENES.index("night")] & ~truth[:, 0, SCENES.index("night")]
        target = truth[:, 0].float() / truth[:, 0].sum(-1, keepdim=True)
        scales = torch.logspace(0, math.log10(100), 81).tolist()
        nll = [-(target * torch.log_softmax(s * cosines[:, 0], -1)).sum(-1).mean().item() for s in scales]
        name_scores = images[:, 0] @ name_text.T
        rank = (name_scores > name_scores.diagonal()[:, None]).sum(1)
        kind_of = torch.tensor([kinds.index(class_scene(pairs[i].wordnet_id).kind) for i in indices])
        kind_hit = ((images[:, 0] @ kind_text.T).argmax(1) == kind_of).float().mean().item()
    report: dict[str, Any] = {
        "held_out": len(indices),
        "scene_accuracy": hit[:, 0].mean().item(),
        "majority_rate": counts.max().item() / len(indices),
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "scene_recall": recall,
        "scene_nll": min(nll),
        "best_logit_scale": scales[nll.index(min(nll))],
        "trained_logit_scale": model.logit_scale.exp().item(),
        **{f"recall_at_{k}": (rank < k).float().mean().item() for k in (1, 5, 10)},
        "recall_at_10_chance": min(1.0, 10 / len(indices)),
        "kind_accuracy": kind_hit,
    }
    if images.shape[1] > 3:
        report["distorted_scene_accuracy"] = hit[:, 3].mean().item()
    if images.shape[1] > 2 and bool(night.any()):
        report["night_recall"] = (best[night, -1, 0] == SCENES.index("night")).float().mean().item()
    return report
