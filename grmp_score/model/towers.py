"""CLIP's two towers, step by step: embed, run the blocks, pool, project.

They compute with the parameters of a `CLIP` and own none.  Being plain steps, they let visual prompts join
the tokens of any block (eq. 1), and let training keep what the frozen blocks give.

B: batch, N: image tokens, T: tokens in all, W: width of the tower, n: visual prompts per block, L: blocks,
k: blocks that the feature is read out of, D: width of the shared space of images and texts, C: texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from grmp_score.model.clip import CLIP
    from grmp_score.model.prompts import DeepVisualPrompts


class ImageTower:
    """V(x): patches -> image features, in two parts.

    The trunk is the embedding and the first blocks; the head is the rest.  Few-shot training changes the head
    alone, so what the trunk gives is computed once per image.

    Attributes:
        trunk_blocks: number of blocks in the trunk.
        feature_blocks: the k blocks that the feature is read out of, from 0; None: open_clip's own way, one token
            of the last.
    """

    def __init__(
        self,
        visual: Any,
        prompts: DeepVisualPrompts | None,
        *,
        adapted_blocks: int,
        feature_blocks: tuple[int, ...] | None = None,
    ) -> None:
        """Args:
        visual: the image tower's parameters.
        prompts: joins the tokens of every block (eq. 1).
        adapted_blocks: number of last blocks that fine-tuning changes; they are in the head, and so are those that
            the feature is read out of.
        feature_blocks: see the attribute.
        """
        self._visual, self._prompts = visual, prompts
        self._blocks = visual.transformer.resblocks
        self.feature_blocks = feature_blocks
        depth = len(self._blocks)
        self.trunk_blocks = min(max(0, depth - adapted_blocks), *(feature_blocks or [depth]))

    def __call__(self, patches: Tensor) -> Tensor:
        """Normalised patches [B, 3, S, S] -> L2-normalised features [B, D]."""
        return self.project(self.pool(self.trunk(patches)))

    def trunk(self, patches: Tensor) -> Tensor:
        """Normalised patches [B, 3, S, S] -> tokens [B, 1 + N, W] that enter the first block of the head."""
        x = self.embed(patches)
        prompts = self._prompt_tokens()
        for i in range(self.trunk_blocks):
            x = self._run_block(i, x, prompts)  # [B, 1 + N, W]
        return x

    def head(self, tokens: Tensor) -> Tensor:
        """What `trunk` gives -> L2-normalised features [B, D]."""
        return self.project(self.pool(tokens))

    def embed(self, patches: Tensor) -> Tensor:
        """Normalised patches [B, 3, S, S] -> tokens [B, 1 + N, W] that enter the first block, CLS first."""
        visual = self._visual
        x = visual.conv1(patches).flatten(2).transpose(1, 2)  # [B, N, W]
        cls = visual.class_embedding.view(1, 1, -1).expand(len(x), -1, -1)  # [B, 1, W]
        x = torch.cat([cls, x], dim=1) + visual.positional_embedding  # [B, 1 + N, W]
        embedded: Tensor = visual.ln_pre(x)
        return embedded

    def pool(self, tokens: Tensor) -> Tensor:
        """What `trunk` gives -> pooled features as ``ln_post`` gives them: [B, W], or [B, 2kW] of k blocks."""
        visual, prompts, x = self._visual, self._prompt_tokens(), tokens
        head = range(self.trunk_blocks, len(self._blocks))
        if self.feature_blocks is not None:
            outputs = []
            for i in head:
                x = self._run_block(i, x, prompts)  # [B, 1 + N, W]
                if i in self.feature_blocks:
                    outputs.append(x)
            pooled: Tensor = visual.ln_post(cls_and_mean(outputs))  # [B, 2kW]
            return pooled
        for i in head:
            # Of the last block the CLS token is read and nothing else, so nothing else is computed.
            only_cls = visual.pool_type == "tok" and i == head[-1]
            x = self._run_block(i, x, prompts, rows=1 if only_cls else None)
        if self._prompts is not None and self._prompts.norm is not None:
            x = self._prompts.norm(x)
        if not visual.final_ln_after_pool:
            x = visual.ln_post(x)
        pooled = x[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x[:, 0]  # [B, W]
        return visual.ln_post(pooled) if visual.final_ln_after_pool else pooled

    def project(self, pooled: Tensor) -> Tensor:
        """What `pool` gives -> L2-normalised features [B, D] in the space that images and texts share."""
        return nn.functional.normalize(pooled @ self._visual.proj, dim=-1)

    def _prompt_tokens(self) -> Tensor | None:
        """Visual prompts [L, n, W] of all blocks, or None."""
        return None if self._prompts is None else self._prompts()

    def _run_block(self, i: int, x: Tensor, prompts: Tensor | None, rows: int | None = None) -> Tensor:
        """Block i, eq. (1): [f_l, _, H_l] = Layer_l([f_{l-1}, P_{l-1}, H_{l-1}]).

        Block i has prompts of its own, and what it makes of them is dropped, so it is not computed.  (The authors
        put them between CLS and image tokens; a block does not know the order of its tokens.)

        Args:
            i: number of the block.
            x: tokens [B, 1 + N, W].
            prompts: [L, n, W], or None.
            rows: number of first tokens to compute; None for all.
        """
        rows = x.shape[1] if rows is None else rows
        if prompts is not None and self._prompts is not None:
            x = torch.cat([x, self._prompts.expand(prompts[i], len(x))], dim=1)  # [B, 1 + N + n, W]
        # The block itself; its `nn.MultiheadAttention` computes the same slower on a CPU.
        block = self._blocks[i]
        attn, normed = block.attn, block.ln_1(x)
        batch, length, width = normed.shape
        weight, bias = attn.in_proj_weight, attn.in_proj_bias  # [3W, W], [3W]: query, key, value
        if 2 * rows > length:
            query, key, value = nn.functional.linear(normed, weight, bias).chunk(3, dim=-1)  # [B, T, W] each
            query = query[:, :rows]
        else:
            query = nn.functional.linear(normed[:, :rows].contiguous(), weight[:width], bias[:width])
            key, value = nn.functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)

        def by_head(t: Tensor) -> Tensor:  # [B, T, W] -> [B, heads, T, W / heads]
            return t.reshape(batch, -1, attn.num_heads, attn.head_dim).transpose(1, 2)

        attended = nn.functional.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value))
        attended = attended.transpose(1, 2).reshape(batch, -1, width)  # [B, rows, W]
        x = x[:, :rows] + block.ls_1(attn.out_proj(attended))
        result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))  # [B, rows, W]
        return result


def cls_and_mean(outputs: list[Tensor]) -> Tensor:
    """Outputs [B, 1 + N, W] of k blocks -> [B, 2kW]: CLS token and mean image token of each, first block first."""
    return torch.cat([part for x in outputs for part in (x[:, 0], x[:, 1:].mean(dim=1))], dim=1)


class TextTower:
    """g(q): token embeddings -> text features."""

    def __init__(self, clip: CLIP) -> None:
        self._clip = clip

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [C, T] -> embeddings [C, T, W], positions not yet added."""
        embedded: Tensor = self._clip.token_embedding(ids)
        return embedded

    def __call__(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Embeddings [C, T, W] of texts with these token ids [C, T] -> L2-normalised features [C, D].

        The feature is read at the end-of-text token, which has the highest id.  The text is run only as far as the
        last of them: under the causal mask later positions cannot change earlier ones.
        """
        clip, end = self._clip, ids.argmax(dim=-1)  # [C]
        causal = clip.attn_mask is not None
        length = int(end.max()) + 1 if causal else embeddings.shape[1]
        x = embeddings[:, :length] + clip.positional_embedding[:length]  # [C, length, W]
        x = clip.transformer(x, None if clip.attn_mask is None else clip.attn_mask[:length, :length])
        pooled = clip.ln_final(x[torch.arange(len(x), device=x.device), end])  # [C, W]
        if clip.text_projection is not None:
            pooled = pooled @ clip.text_projection  # [C, D]
        return nn.functional.normalize(pooled, dim=-1)
