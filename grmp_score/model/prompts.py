"""The learned prompts: text context vectors and deep visual prompt tokens."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grmp_score.config import PromptConfig
from grmp_score.errors import ConfigError
from grmp_score.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from grmp_score.model.clip import CLIP

#: Word whose embedding the context vectors replace (authors' code).
PLACEHOLDER = "X"


class TextPrompt(nn.Module):
    """``v_1 .. v_M high quality.`` and ``v_1 .. v_M low quality.`` with learned v (METHOD section 1).

    Attributes:
        ctx: [M, W] context vectors, one set shared by both classes; N(0, 0.02^2) at the start.
        tokens: [2, T] token ids of "X X X X high quality." and "X X X X low quality." (the full stop follows
            the authors' code).  Without context vectors the classes are the whole texts, as they are.
        scene_tokens: [9, T] token ids of the scene prompts; they hold no learned context.
    """

    def __init__(self, clip: CLIP, prompts: PromptConfig) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.empty(prompts.n_ctx, clip.positional_embedding.shape[1]))
        nn.init.normal_(self.ctx, std=0.02)
        self._prompts, self._vocab_size, self._context_length = prompts, clip.vocab_size, clip.context_length

    @property
    def tokens(self) -> Tensor:
        """See the attribute.

        Raises:
            ConfigError: a text is too long for the tower.
        """
        return self._ids[0].to(self.ctx.device)

    @property
    def scene_tokens(self) -> Tensor:
        """See the attribute.

        Raises:
            ConfigError: a text is too long for the tower.
        """
        return self._ids[1].to(self.ctx.device)

    @cached_property
    def _ids(self) -> tuple[Tensor, Tensor]:
        """Made when they are used: the stored text features serve scoring, and the tokenizer takes seconds."""
        prompts, limit = self._prompts, self._context_length
        tokenizer = Tokenizer(self._vocab_size, limit)
        stem = " ".join([PLACEHOLDER] * prompts.n_ctx)
        quality = [f"{stem} {phrase}." if stem else phrase for phrase in prompts.classes]
        scene = [f"a photo of a {s}" for s in prompts.scenes]
        for text in (*quality, *scene):
            length = len(tokenizer.encode(text)) + 2
            if length > limit:
                # The tokenizer would cut the class words off, and all classes would be alike.
                raise ConfigError(f"the prompt {text!r} has {length} tokens, more than {limit}")
        return tokenizer(quality), tokenizer(scene)

    def forward(self, embedded: Tensor) -> Tensor:
        """Embeddings [2, T, W] of `tokens` -> the same with the context in the place of the placeholders."""
        context = self.ctx.expand(len(embedded), -1, -1)  # [2, M, W]
        return torch.cat([embedded[:, :1], context, embedded[:, 1 + len(self.ctx) :]], dim=1)  # [2, T, W]


class DeepVisualPrompts(nn.Module):
    """n learned tokens for every block of the image tower (eq. 1, VPT-deep).

    While they are trained from scratch, one shared linear map ``proj`` [W, W] is applied to every prompt, as in
    the authors' code.  Prompts do not depend on the image, so `fold` multiplies it in once and drops it; saved
    weights are always folded.

    Attributes:
        tokens: [L, n, W].
        proj: the shared linear map, or None when folded.
        norm: the authors' extra LayerNorm (eps 1e-6) after the last block, or None.
        dropout: applied to the projected prompts in training, for every image by itself (authors: 0.1).
    """

    def __init__(
        self,
        layers: int,
        n: int,
        width: int,
        *,
        patch_size: int,
        norm: bool,
        proj: bool,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(layers, n, width))
        bound = (6.0 / (3 * patch_size**2 + width)) ** 0.5
        nn.init.uniform_(self.tokens, -bound, bound)
        self.proj: nn.Linear | None = None
        if proj:
            self.proj = nn.Linear(width, width)
            nn.init.kaiming_normal_(self.proj.weight, a=0, mode="fan_out")
            nn.init.zeros_(self.proj.bias)
        self.norm: nn.LayerNorm | None = nn.LayerNorm(width, eps=1e-6) if norm else None
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> Tensor:
        """Prompt tokens [L, n, W] of all blocks, the same for every image."""
        tokens: Tensor = self.tokens if self.proj is None else self.proj(self.tokens)
        return tokens

    def expand(self, tokens: Tensor, images: int) -> Tensor:
        """Prompt tokens [n, W] of a block -> [B, n, W] as they enter it with so many images."""
        dropped: Tensor = self.dropout(tokens.expand(images, -1, -1))
        return dropped

    @torch.no_grad()
    def fold(self) -> None:
        """Multiplies ``proj`` into ``tokens`` and removes it; `forward` gives the same values afterwards."""
        if self.proj is not None:
            self.tokens = nn.Parameter(self.proj(self.tokens))
            self.proj = None
