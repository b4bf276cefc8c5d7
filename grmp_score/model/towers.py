"""CLIP's two towers as plain blocks: the only file that imports open_clip.

A tower is three steps - embed, run blocks, pool - so that prompts can be inserted before any block (eq. 1) and
the activations between two blocks can be kept.  The frozen trunk is the embedding and all blocks but the last
``k``; the adapted head is the last ``k`` blocks, the final LayerNorm, pooling and projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grmp_score.errors import ConfigError
from grmp_score.model.quick_gelu import QuickGELU

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from open_clip.transformer import ResidualAttentionBlock

READOUT = "readout_blocks"


def architecture(name: str) -> dict[str, Any]:
    """open_clip's configuration of a named architecture, e.g. ``"ViT-B-16-quickgelu"`` (OpenAI's weights)."""
    import open_clip

    model_cfg = open_clip.get_model_config(name)
    if model_cfg is None:
        raise ConfigError(f"open_clip knows no architecture {name!r}")
    return dict(model_cfg)


def pretrained_repo(name: str, tag: str) -> str:
    """Hub repository of a pre-trained open_clip model, e.g. of ``"ViT-B-16-quickgelu"`` and ``"openai"``."""
    import open_clip

    pretrained = open_clip.get_pretrained_cfg(name, tag)
    repo = str(pretrained.get("hf_hub", "")).rstrip("/")
    if not repo:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(f"open_clip has no weights {tag!r} of {name!r} on the Hub; it has {tags}")
    return repo


def build_clip(model_cfg: Mapping[str, Any]) -> CLIP:
    """Builds an open_clip CLIP with two native transformers, weights not yet loaded (float32, on the CPU).

    Args:
        model_cfg: ``embed_dim``, ``vision_cfg``, ``text_cfg`` and optionally ``quick_gelu``; and, unknown to
            open_clip, ``readout_blocks``: k > 1 makes the image features from the CLS token and the mean patch
            token of each of the last k blocks, side by side, instead of from one token of the last block.
            ``visual.ln_post`` and ``visual.proj`` are then 2k times as wide.  Quality shows in lower blocks
            than meaning does, and a linear head on several blocks sees both.

    Raises:
        ConfigError: the configuration asks for a tower that is not a native open_clip ViT / text transformer.
    """
    from open_clip import transformer
    from open_clip.model import CLIP

    vision, text = model_cfg.get("vision_cfg", {}), model_cfg.get("text_cfg", {})
    readout = readout_blocks(model_cfg)
    unsupported = [
        *(f"vision_cfg.{k}" for k in ("timm_model_name", "attentional_pool", "patch_dropout") if vision.get(k)),
        *(f"text_cfg.{k}" for k in ("hf_model_name", "embed_cls", "proj_bias") if text.get(k)),
    ]
    if text.get("pool_type", "argmax") != "argmax":
        unsupported.append("text_cfg.pool_type")
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        unsupported.append("vision_cfg.pool_type")
    if unsupported or not isinstance(vision.get("layers", 12), int):
        raise ConfigError(f"only native ViT CLIPs are supported; the configuration has {unsupported or 'a ResNet'}")
    try:
        # init_logit_scale stays open_clip's; every parameter is overwritten when weights are loaded.
        clip = CLIP(**{k: v for k, v in model_cfg.items() if k not in ("custom_text", READOUT)}).eval()
    except TypeError as error:
        raise ConfigError(f"open_clip rejects the model configuration: {error}") from error
    for block in [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]:
        if isinstance(block.mlp.gelu, transformer.QuickGELU):
            block.mlp.gelu = QuickGELU()
    if readout > image_depth(clip):
        raise ConfigError(f"{READOUT} is {readout}, but the image tower has {image_depth(clip)} blocks")
    if readout > 1:
        visual = clip.visual
        width, embed_dim = visual.proj.shape
        visual.ln_post = nn.LayerNorm(2 * readout * width, eps=visual.ln_post.eps)
        visual.proj = nn.Parameter(torch.randn(2 * readout * width, embed_dim) * (2 * readout * width) ** -0.5)
    return clip


def readout_blocks(model_cfg: Mapping[str, Any]) -> int:
    """Number of last blocks of the image tower that the image features are made of; 1 is open_clip's own way."""
    readout = model_cfg.get(READOUT, 1)
    if not isinstance(readout, int) or isinstance(readout, bool) or readout < 1:
        raise ConfigError(f"{READOUT} must be a whole number of at least 1, got {readout!r}")
    return readout


def image_depth(clip: CLIP) -> int:
    """Number of blocks of the image tower."""
    return len(clip.visual.transformer.resblocks)


def text_depth(clip: CLIP) -> int:
    """Number of blocks of the text tower."""
    return len(clip.transformer.resblocks)


def adapted_names(clip: CLIP, blocks: int) -> list[str]:
    """Names of the parameters of the last ``blocks`` blocks of both towers, ``ln_final`` and ``ln_post``
    (METHOD: what stage 2 trains besides the text context)."""
    prefixes = ["ln_final.", "visual.ln_post."]
    for tower, depth in (("transformer", text_depth(clip)), ("visual.transformer", image_depth(clip))):
        prefixes += [f"{tower}.resblocks.{i}." for i in range(max(0, depth - blocks), depth)]
    return [name for name, _ in clip.named_parameters() if name.startswith(tuple(prefixes))]


# ---------------------------------------------------------------- image tower


def embed_image(clip: CLIP, patches: Tensor) -> Tensor:
    """Normalised patches [B, 3, S, S] -> tokens [B, 1 + N, W] that enter the first block, CLS first."""
    visual = clip.visual
    x = visual.conv1(patches).flatten(2).transpose(1, 2)  # [B, N, W]
    cls = visual.class_embedding.view(1, 1, -1).expand(x.shape[0], -1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding
    embedded: Tensor = visual.ln_pre(x)
    return embedded


def run_image_blocks(
    clip: CLIP, tokens: Tensor, prompts: Tensor | None, start: int = 0, stop: int | None = None
) -> Tensor:
    """Runs blocks ``start`` to ``stop`` (exclusive) of the image tower.

    Args:
        clip: the dual encoder.
        tokens: [B, 1 + N, W], CLS first, without prompt tokens.
        prompts: [L, n, W], one set for each of all L blocks of the tower, or None.  Set l joins the tokens in
            block l alone; its outputs are dropped (eq. 1), so they are not computed.  (The authors put it between
            CLS and image tokens; a block does not know the order of its tokens.)
        start: first block.
        stop: block to stop before; None runs to the end.

    Returns:
        Tokens [B, 1 + N, W].
    """
    blocks = clip.visual.transformer.resblocks
    for i in range(start, len(blocks) if stop is None else stop):
        tokens = _run_block(blocks[i], _with_prompts(tokens, prompts, i), first=tokens.shape[1])
    return tokens


def _with_prompts(tokens: Tensor, prompts: Tensor | None, block: int) -> Tensor:
    """Tokens [B, T, W] and a block's prompts behind them: [B, T + n, W]."""
    if prompts is None or prompts.shape[1] == 0:
        return tokens
    return torch.cat([tokens, prompts[block].expand(tokens.shape[0], -1, -1)], dim=1)


def read_out(
    clip: CLIP,
    tokens: Tensor,
    prompts: Tensor | None,
    *,
    start: int = 0,
    blocks: int = 1,
    norm: nn.Module | None = None,
    project: bool = True,
) -> Tensor:
    """Runs the image tower from block ``start`` to its end and pools -> L2-normalised features [B, D].

    Args:
        clip: the dual encoder.
        tokens: [B, 1 + N, W] that enter block ``start``.
        prompts: as for `run_image_blocks`.
        start: first block to run; every block that is read out must be run.
        blocks: how many last blocks the features are made of, as in the model configuration.
        norm: the authors' extra LayerNorm on all tokens before ``ln_post``, or None.
        project: False returns the pooled features before ``visual.proj``, not normalised.
    """
    depth = image_depth(clip)
    outputs = []
    cls_alone = blocks == 1 and clip.visual.pool_type == "tok" and start < depth
    for i in range(start, depth - cls_alone):
        tokens = run_image_blocks(clip, tokens, prompts, i, i + 1)
        outputs.append(tokens)
    if cls_alone:  # of the last block the CLS token is read and nothing else
        last = _run_block(clip.visual.transformer.resblocks[-1], _with_prompts(tokens, prompts, -1), first=1)
        pooled = _pool_last(clip, last, norm)
    elif blocks == 1:
        pooled = _pool_last(clip, outputs[-1] if outputs else tokens, norm)
    else:
        pooled = clip.visual.ln_post(concatenate_tokens(outputs[-blocks:]))
    return nn.functional.normalize(pooled @ clip.visual.proj, dim=-1) if project else pooled


def _run_block(block: ResidualAttentionBlock, tokens: Tensor, first: int) -> Tensor:
    """One block on tokens [B, T, W]: its results for the ``first`` of them.

    open_clip's own block in other words: its ``nn.MultiheadAttention`` computes the same slower on a CPU.
    """
    normed, attn = block.ln_1(tokens), block.attn
    batch, length, width = normed.shape
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if 2 * first > length:
        query, key, value = nn.functional.linear(normed, weight, bias).chunk(3, dim=-1)
        query = query[:, :first]
    else:
        query = nn.functional.linear(normed[:, :first].contiguous(), weight[:width], bias[:width])
        key, value = nn.functional.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)

    def by_head(x: Tensor) -> Tensor:
        return x.reshape(batch, -1, attn.num_heads, attn.head_dim).transpose(1, 2)

    attended = nn.functional.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value))
    x = tokens[:, :first] + block.ls_1(attn.out_proj(attended.transpose(1, 2).reshape(batch, -1, width)))
    result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return result


def concatenate_tokens(outputs: Sequence[Tensor]) -> Tensor:
    """Outputs [B, 1 + N, W] of k blocks -> [B, 2kW]: CLS token and mean patch token of each, first block first."""
    return torch.cat([part for out in outputs for part in (out[:, 0], out[:, 1:].mean(dim=1))], dim=1)


def _pool_last(clip: CLIP, tokens: Tensor, norm: nn.Module | None) -> Tensor:
    """Tokens [B, 1 + N, W] after the last block -> pooled [B, W], as open_clip pools."""
    visual = clip.visual
    if norm is not None:
        tokens = norm(tokens)
    if not visual.final_ln_after_pool:
        tokens = visual.ln_post(tokens)
    pooled: Tensor = tokens[:, 1:].mean(dim=1) if visual.pool_type == "avg" else tokens[:, 0]
    if visual.final_ln_after_pool:
        pooled = visual.ln_post(pooled)
    return pooled


# ----------------------------------------------------------------- text tower


def end_of_text(tokens: Tensor) -> Tensor:
    """Position [C] of the end-of-text token, which has the highest id, in token ids [C, T]."""
    return tokens.argmax(dim=-1)


def embed_text(clip: CLIP, tokens: Tensor) -> Tensor:
    """Token ids [C, T] -> embeddings [C, T, W], positions not yet added."""
    embedded: Tensor = clip.token_embedding(tokens)
    return embedded


def encode_text(clip: CLIP, embeddings: Tensor, eot: Tensor) -> Tensor:
    """Token embeddings [C, T, W] with end-of-text positions [C] -> L2-normalised features [C, D].

    The text is run only as far as the last end-of-text token: under the causal mask later positions cannot
    change earlier ones, so the result is the same.
    """
    causal = clip.attn_mask is not None
    length = int(eot.max()) + 1 if causal else embeddings.shape[1]
    x = embeddings[:, :length] + clip.positional_embedding[:length]
    mask = clip.attn_mask[:length, :length] if causal else None
    x = clip.transformer(x, attn_mask=mask)
    pooled = clip.ln_final(x[torch.arange(x.shape[0], device=x.device), eot])
    if clip.text_projection is not None:
        pooled = pooled @ clip.text_projection
    return nn.functional.normalize(pooled, dim=-1)
