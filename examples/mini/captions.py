"""The captions of a list of photos as tokens, and drawing some of them at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from grmp_score.config import SCENES
from grmp_score.model.tokenizer import Tokenizer

from .pairs import Pair
from .scenes import class_captions, class_scene, kind_captions, scene_captions

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class CaptionSet:
    """All captions of a list of pairs, tokenised once, and the photos they are true of.

    Attributes:
        class_tokens, kind_tokens, scene_tokens: per class, kind and scene, int64 [captions, context_length].
        class_of, kind_of: int64 [N], which class and kind each photo has; scenes belong to views instead.
    """

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        import torch

        self.classes = sorted({p.wordnet_id for p in pairs})
        self.kinds = sorted({class_scene(p.wordnet_id).kind for p in pairs})
        name = {p.wordnet_id: p.name for p in pairs}
        self.class_tokens = [tokenizer(class_captions(name[c], c)) for c in self.classes]
        self.kind_tokens = [tokenizer(kind_captions(k)) for k in self.kinds]
        self.scene_tokens = [tokenizer(scene_captions(s)) for s in SCENES]
        self.class_of = torch.tensor([self.classes.index(p.wordnet_id) for p in pairs])
        self.kind_of = torch.tensor([self.kinds.index(class_scene(p.wordnet_id).kind) for p in pairs])


def draw(tokens: Sequence[Tensor], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` of the subjects in random order (all if fewer): their indices and one random caption of each."""
    import torch

    chosen = torch.randperm(len(tokens), generator=generator)[:n]
    rows = []
    for i in chosen.tolist():
        pick = int(torch.randint(len(tokens[i]), (), generator=generator))
        rows.append(tokens[i][pick])
    return chosen, torch.stack(rows)
