"""Locked-image contrastive tuning: a small text tower learns to read a frozen image tower.

Source: LiT (Zhai et al., CVPR 2022): symmetric InfoNCE of CLIP with the image tower frozen. Only the text
tower, the projection `visual.proj` and the temperature learn, so the image tower runs once and training takes
minutes on one CPU core. Where captions are shared (all dogs share "a photo of a dog"), every photo that a
caption is true of is a positive, with equal shares of the target (SupCon, Khosla et al., NeurIPS 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_score.config import SCENES
from grmp_score.errors import ConfigError
from grmp_score.model.tokenizer import Tokenizer
from grmp_score.model.towers import READOUT, build_clip, readout_blocks

from .captions import CaptionSet, draw
from .pairs import Pair, PairFeatures, encode_pairs, image_tower, read_pairs
from .quality_words import QualityViews, quality_words_loss
from .readout import fit_readout
from .scenes import class_scene, scene_prompts
from .zero_shot import encode_texts, measure, prompt_cosine

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from torch import Tensor

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's cap

TEXT_CFG: dict[str, Any] = {"context_length": 32, "vocab_size": 8192, "width": 192, "heads": 4, "layers": 4}
"""Text tower of the bundled model: 32 tokens hold every caption, 8,192 ids spell all class names."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Settings of the contrastive tuning; the defaults made the bundled model.

    Attributes:
        steps: optimiser steps. Each sees every photo once, in one random view.
        n_class: class captions per step.
        n_kind: kind captions per step.
        lr: peak learning rate of AdamW (cosine decay after a tenth of warm-up).
        weight_decay: of matrices other than embeddings.
        scene_weight: weight of the scene captions' loss against the class and kind captions'.
        quality_weight: weight of the quality captions' loss, where quality views are given.
        dropout: share of the projected image features left out; the frozen ones have too large a mean for it.
        label_smoothing: share of the target spread over all captions or photos.
        shrinkage: ridge, as a share of the mean variance, in the whitening that starts `visual.proj`.
        ridge: of the quality direction, see `readout.fit_readout`.
        quality_share: of the quality axis, see `readout.fit_readout`.
        one_axis_weight: with such a head, penalty on the squared distance of "high quality" from "low quality"
            off the quality axis.
        holdout: share of the classes held out for the report.
    """

    steps: int = 250
    n_class: int = 16
    n_kind: int = 8
    lr: float = 2e-3
    weight_decay: float = 0.2
    scene_weight: float = 2.0
    quality_weight: float = 4.0
    dropout: float = 0.2
    label_smoothing: float = 0.1
    shrinkage: float = 0.1
    ridge: float = 5.0
    quality_share: float = 0.25
    one_axis_weight: float = 10.0
    holdout: float = 0.2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.n_class < 1 or self.n_kind < 1:
            raise ConfigError("steps, n_class, n_kind: expected at least 1")
        if not 0 < self.holdout < 1:
            raise ConfigError(f"holdout: expected a share between 0 and 1, got {self.holdout}")


@dataclass(frozen=True)
class DualEncoder:
    """A trained dual encoder, ready for `open_clip.model.CLIP(**model_cfg).load_state_dict(state_dict)`.

    Attributes:
        model_cfg: embed_dim, vision_cfg and text_cfg, JSON-serialisable.
        state_dict: float32, names as in open_clip.
        report: measured on held-out classes, by a model that never saw them, see `zero_shot.measure`;
            only `prompt_cosine` describes the returned model.
    """

    model_cfg: dict[str, Any]
    state_dict: dict[str, Tensor]
    report: dict[str, Any]


def train_dual_encoder(
    vision_cfg: Mapping[str, Any],
    vision_state: Mapping[str, Tensor],
    pairs_csv: str | Path,
    *,
    text_cfg: Mapping[str, Any] | None = None,
    embed_dim: int = 256,
    seed: int = 0,
    config: ContrastiveConfig | None = None,
    features: PairFeatures | None = None,
    quality: QualityViews | None = None,
    readout_blocks: int = 1,
    views: int = 5,
    progress: Callable[[str, int, int], None] | None = None,
) -> DualEncoder:
    """Train text tower, projection and temperature for a frozen image tower.

    Fits twice: without the held-out classes, to measure, and then on all pairs, to keep. The kept model takes
    the temperature that suited the held-out photos: a model's own training photos ask for too sharp a one.

    Args:
        vision_cfg: open_clip's image tower configuration, as `dinov2.convert_dinov2` returns it.
        vision_state: its weights without `proj`; they come back unchanged under `visual.`.
        pairs_csv: see `pairs.read_pairs`.
        text_cfg: open_clip's text tower configuration; None takes `TEXT_CFG`.
        embed_dim: width of the common space, at most the width of the image tower.
        seed: decides held-out classes, views, start and order; equal seeds give equal weights on one machine.
        config: training settings; None takes the defaults.
        features: of `encode_pairs` over the same pairs, to save the image tower's run; None computes them.
        quality: crops to learn the quality captions from; None leaves these words without meaning.
        readout_blocks: last image blocks that the features are made of (`build_clip`). With more than
            one, `visual.ln_post` and `visual.proj` come from `readout.fit_readout`, for which `quality` is
            needed, and stay as they are; otherwise `visual.proj` is trained.
        views: views per photo when `features` is None.
        progress: called with (stage, done, in all); the stages are "encode", "measure" and "fit".

    Returns:
        The dual encoder with its report.

    Raises:
        ConfigError: a setting is out of range.
        DataError: the list of pairs is not what it should be.
    """
    text_cfg = dict(TEXT_CFG if text_cfg is None else text_cfg)
    config = config or ContrastiveConfig()
    width = vision_cfg["width"]
    if not 1 <= embed_dim <= width:
        raise ConfigError(f"embed_dim: expected 1..{width}, the image tower's width; got {embed_dim}")
    pairs = read_pairs(pairs_csv)
    notify = progress or (lambda stage, done, total: None)
    if features is None:
        tower = image_tower(vision_cfg, vision_state, readout_blocks)
        size = vision_cfg["image_size"]
        features = encode_pairs(
            tower, pairs, size=size, views=views, seed=seed, progress=lambda d, n: notify("encode", d, n)
        )
    n = features.features.shape[0]
    if n != len(pairs):
        raise ConfigError(f"features: expected {len(pairs)} photos as in {pairs_csv}, got {n}")
    if readout_blocks > 1 and quality is None:
        raise ConfigError("readout_blocks above 1 needs quality views to fit the head")
    model_cfg: dict[str, Any] = {"embed_dim": embed_dim, "vision_cfg": dict(vision_cfg), "text_cfg": text_cfg}
    if readout_blocks > 1:
        model_cfg[READOUT] = readout_blocks
    tokenizer = Tokenizer(text_cfg["vocab_size"], text_cfg["context_length"])

    held_out = hold_out(pairs, config.holdout, seed)
    kept = sorted(set(range(len(pairs))) - set(held_out))
    fit = partial(_fit, model_cfg, pairs, features, tokenizer=tokenizer, quality=quality, config=config, seed=seed)
    trial, normalised = fit(kept, progress=lambda d, n: notify("measure", d, n))
    report = measure(trial, pairs, normalised, held_out, tokenizer)
    model, _ = fit(range(len(pairs)), progress=lambda d, n: notify("fit", d, n))

    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    report["prompt_cosine"] = prompt_cosine(model, tokenizer)
    state["logit_scale"].fill_(math.log(report["best_logit_scale"]))
    frozen = {f"visual.{name}": tensor.detach().clone() for name, tensor in vision_state.items()}
    state.update({k: v for k, v in frozen.items() if readout_blocks == 1 or not k.startswith("visual.ln_post.")})
    report.update(pairs=len(pairs), seed=seed, views=features.features.shape[1], settings=asdict(config))
    return DualEncoder(model_cfg, state, report)


def hold_out(pairs: Sequence[Pair], share: float, seed: int) -> list[int]:
    """Indices of the held-out photos: about `share` of the classes of every scene that has two or more."""
    import numpy as np

    rng = np.random.default_rng((seed, 1))
    chosen: list[int] = []
    for scene in SCENES:
        classes = sorted({p.wordnet_id for p in pairs if class_scene(p.wordnet_id).scene == scene})
        n = max(1, round(share * len(classes))) if len(classes) > 1 else 0
        picked = {classes[i] for i in rng.permutation(len(classes))[:n]}
        chosen += [i for i, p in enumerate(pairs) if p.wordnet_id in picked]
    return sorted(chosen)


def multi_positive_nce(
    logits: Tensor, truth: Tensor, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Symmetric InfoNCE in which a photo may have several true captions and a caption several true photos.

    Args:
        logits: float [N photos, T captions], already divided by the temperature.
        truth: bool [N, T], whether caption t is true of photo n.
        weight: float [N], importance of each photo in the direction photo -> caption; None weighs equally.
        smoothing: share of the target spread evenly, 0..1.

    Returns:
        Scalar, at least 0. The target of a row (column) is uniform over its true entries; rows and columns
        without any count for nothing. With a diagonal `truth` this is CLIP's loss.
    """
    import torch

    total = logits.new_zeros(())
    for scores, targets, w in ((logits, truth, weight), (logits.T, truth.T, None)):
        target = targets.to(scores.dtype)
        count = target.sum(1)
        target = (1 - smoothing) * target / count.clamp_min(1)[:, None] + smoothing / scores.shape[1]
        rows = -(target * torch.log_softmax(scores, dim=1)).sum(1)
        w = (count > 0).to(scores.dtype) * (1 if w is None else w)
        total = total + (rows * w).sum() / w.sum().clamp_min(1e-12)
    return total / 2


def _fit(
    model_cfg: Mapping[str, Any],
    pairs: Sequence[Pair],
    features: PairFeatures,
    indices: Sequence[int],
    *,
    tokenizer: Tokenizer,
    quality: QualityViews | None,
    config: ContrastiveConfig,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[CLIP, PairFeatures]:
    """Train a dual encoder on the photos `indices`; its image tower is left as initialised, but for the head.

    Returns:
        The dual encoder, and the features of all photos as its `ln_post` makes them.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(model_cfg).train()
    generator = torch.Generator().manual_seed(seed)
    index = torch.as_tensor(list(indices))
    model.visual.requires_grad_(False)
    if readout_blocks(model_cfg) == 1:
        model.visual.proj.requires_grad_(True)
        model.visual.proj.data.copy_(_whitening(features.features[index], model_cfg["embed_dim"], config.shrinkage))
    else:
        assert quality is not None
        flat = features.features[index].flatten(0, 1)
        head = fit_readout(
            flat,
            quality.features,
            quality.labels,
            model_cfg["embed_dim"],
            ridge=config.ridge,
            shrinkage=config.shrinkage,
            quality_share=config.quality_share,
        )
        model.visual.ln_post.weight.data.copy_(head.weight)
        model.visual.ln_post.bias.data.copy_(head.bias)
        model.visual.proj.data.copy_(head.proj)
        features = PairFeatures(head.normalise(features.features), features.scenes)
        quality = QualityViews(head.normalise(quality.features), quality.labels)
    x, scenes = features.features[index], features.scenes[index]
    captions = CaptionSet([pairs[i] for i in indices], tokenizer)
    prompt_tokens = tokenizer(scene_prompts())  # in every step, besides other wordings: these will be used
    # Square-root balancing: animals are 40 % of ImageNet, but rare scenes have few photos to learn from.
    frequency = scenes.float().mean((0, 1)).clamp_min(1e-3)

    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(model.token_embedding.weight), id(model.positional_embedding)}
    decay = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    warm_up = max(1, config.steps // 10)
    for step in range(config.steps):
        through = max(0.0, (step - warm_up) / max(1, config.steps - warm_up))
        lr = config.lr * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * through)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        view = torch.randint(x.shape[1], (len(x),), generator=generator)
        rows = torch.arange(len(x))
        projected = x[rows, view] @ model.visual.proj
        keep = torch.rand(projected.shape, generator=generator) >= config.dropout
        images = torch.nn.functional.normalize(projected * keep, dim=-1)
        truth = scenes[rows, view]
        class_index, class_tokens = draw(captions.class_tokens, config.n_class, generator)
        kind_index, kind_tokens = draw(captions.kind_tokens, config.n_kind, generator)
        scene_index, scene_tokens = draw(captions.scene_tokens, len(SCENES), generator)
        # Two calls, because kind and scene captions are short and need not be padded to the class captions.
        short = encode_texts(model, torch.cat([kind_tokens, scene_tokens, prompt_tokens]))
        texts = torch.cat([encode_texts(model, class_tokens), short])
        logits = model.logit_scale.exp() * images @ texts.T
        sizes = [len(class_index), len(kind_index), len(SCENES), len(SCENES)]
        by_class, by_kind, by_scene, by_prompt = logits.split(sizes, dim=1)
        weight = ((truth / truth.sum(1, keepdim=True)) / frequency.sqrt()).sum(1)
        s = config.label_smoothing
        loss = multi_positive_nce(by_class, captions.class_of[:, None] == class_index, smoothing=s)
        loss = loss + multi_positive_nce(by_kind, captions.kind_of[:, None] == kind_index, smoothing=s)
        scene_loss = multi_positive_nce(by_scene, truth[:, scene_index], weight, s)
        scene_loss = scene_loss + multi_positive_nce(by_prompt, truth, weight, s)
        loss = loss + config.scene_weight * scene_loss
        if quality is not None:
            one_axis = readout_blocks(model_cfg) > 1
            term = quality_words_loss(
                model,
                quality,
                tokenizer,
                generator,
                dropout=config.dropout,
                one_axis_weight=config.one_axis_weight if one_axis else None,
            )
            loss = loss + config.quality_weight * term
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0.0, MAX_LOGIT_SCALE)
        progress(step + 1, config.steps)
    return model.eval(), features


def _whitening(features: Tensor, embed_dim: int, shrinkage: float) -> Tensor:
    """Start of `visual.proj` [width, embed_dim]: the leading principal directions, nearly equalised.

    The projection has no bias, so the second moment is left uncentred: this tames the mean, which all
    features share and which would otherwise make all photos look alike.
    """
    import torch

    flat = features.reshape(-1, features.shape[-1])
    values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    values, vectors = values.flip(0)[:embed_dim], vectors.flip(1)[:, :embed_dim]
    centred = flat.var(0).mean()
    start: Tensor = vectors / (values.clamp_min(0) + shrinkage * centred).sqrt() / math.sqrt(embed_dim)
    return start
