"""Locked-image contrastive tuning: a small text tower learns to read a frozen image tower.

Source: LiT (Zhai et al., CVPR 2022): symmetric InfoNCE of CLIP with the image tower frozen. The head of the image
tower is fitted in closed form (`head.fit_head`); only the text tower and the temperature learn, so the image tower
runs once and training takes minutes on one CPU core. Where captions are shared (all dogs share "a photo of a
dog"), every photo that a caption is true of is a positive, with equal shares of the target (SupCon, Khosla et al.,
NeurIPS 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import SCENE_PROMPTS, CaptionSet, class_scene, draw
from head import fit_head
from photos import Photo, PhotoFeatures, encode_photos, image_tower, read_photos
from torch import Tensor
from torch.nn.functional import normalize
from zero_shot import CLIP, encode_texts, measure, prompt_cosine

from grmp_score.config import SCENES
from grmp_score.errors import ConfigError
from grmp_score.model.clip import build_clip
from grmp_score.model.tokenizer import Tokenizer

MAX_LOGIT_SCALE = math.log(100.0)  # CLIP's cap

#: Text tower of the bundled model: 32 tokens hold every caption, 8,192 ids spell all class names.
TEXT_CFG: dict[str, Any] = {"context_length": 32, "vocab_size": 8192, "width": 192, "heads": 4, "layers": 4}


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
        dropout: share of the projected image features left out; the frozen ones have too large a mean for it.
        label_smoothing: share of the target spread over all captions or photos.
        shrinkage: see `head.fit_head`.
        holdout: share of the classes held out for the report.
    """

    steps: int = 250
    n_class: int = 16
    n_kind: int = 8
    lr: float = 2e-3
    weight_decay: float = 0.2
    scene_weight: float = 2.0
    dropout: float = 0.2
    label_smoothing: float = 0.1
    shrinkage: float = 10.0
    holdout: float = 0.2


@dataclass(frozen=True)
class DualEncoder:
    """A trained dual encoder, for `grmp_score.model.clip.build_clip(model_cfg).load_state_dict(state_dict)`.

    Attributes:
        model_cfg: embed_dim, vision_cfg, text_cfg and readout_blocks, JSON-serialisable.
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
    readout_blocks: Sequence[int],
    text_cfg: Mapping[str, Any] = TEXT_CFG,
    embed_dim: int = 256,
    seed: int = 0,
    config: ContrastiveConfig | None = None,
    features: PhotoFeatures | None = None,
    views: int = 5,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> DualEncoder:
    """Fits the head and trains text tower and temperature for a frozen image tower.

    Fits twice: without the held-out classes, to measure, and then on all photos, to keep. The kept model takes
    the temperature that suited the held-out photos: a model's own training photos ask for too sharp a one.

    Args:
        vision_cfg: open_clip's image tower configuration, as `dinov2.convert_dinov2` returns it.
        vision_state: its weights without `proj`; they come back unchanged under `visual.`, but for `ln_post`.
        pairs_csv: see `photos.read_photos`.
        readout_blocks: numbers of the image blocks that the features are made of, from 1.
        text_cfg: open_clip's text tower configuration.
        embed_dim: width of the common space.
        seed: decides held-out classes, views, start and order; equal seeds give equal weights on one machine.
        config: training settings; None takes the defaults.
        features: of `encode_photos` over the same photos, to save the image tower's run; None computes them.
        views: views per photo when `features` is None.
        progress: called with (stage, done, in all); the stages are "encode", "measure" and "fit".

    Raises:
        ConfigError: a setting is out of range.
        DataError: the list of photos is not what it should be.
    """
    config = config or ContrastiveConfig()
    photos = read_photos(pairs_csv)
    if features is None:
        tower, size = image_tower(vision_cfg, vision_state, readout_blocks), vision_cfg["image_size"]
        features = encode_photos(
            tower, photos, size=size, views=views, seed=seed, progress=lambda d, n: progress("encode", d, n)
        )
    n = features.features.shape[0]
    if n != len(photos):
        raise ConfigError(f"features: expected {len(photos)} photos as in {pairs_csv}, got {n}")
    model_cfg: dict[str, Any] = {
        "embed_dim": embed_dim,
        "vision_cfg": dict(vision_cfg),
        "text_cfg": dict(text_cfg),
        "readout_blocks": list(readout_blocks),
    }
    tokenizer = Tokenizer(text_cfg["vocab_size"], text_cfg["context_length"])

    def fit(stage: str, indices: Sequence[int]) -> tuple[CLIP, PhotoFeatures]:
        return _fit(
            model_cfg,
            photos,
            features,
            indices,
            tokenizer=tokenizer,
            config=config,
            seed=seed,
            progress=lambda d, n: progress(stage, d, n),
        )

    held_out = hold_out(photos, config.holdout, seed)
    trial, normalised = fit("measure", sorted(set(range(len(photos))) - set(held_out)))
    report = measure(trial, photos, normalised, held_out, tokenizer)
    model, _ = fit("fit", range(len(photos)))

    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    report["prompt_cosine"] = prompt_cosine(model, tokenizer)
    state["logit_scale"].fill_(math.log(report["best_logit_scale"]))
    for name, tensor in vision_state.items():
        if not name.startswith("ln_post."):
            state[f"visual.{name}"] = tensor.detach().clone()
    report.update(pairs=len(photos), seed=seed, views=features.features.shape[1], settings=asdict(config))
    return DualEncoder(model_cfg, state, report)


def hold_out(photos: Sequence[Photo], share: float, seed: int) -> list[int]:
    """Indices of the held-out photos: about `share` of the classes of every scene that has two or more."""
    rng = np.random.default_rng((seed, 1))
    chosen: list[int] = []
    for scene in SCENES:
        classes = sorted({p.wordnet_id for p in photos if class_scene(p.wordnet_id).scene == scene})
        n = max(1, round(share * len(classes))) if len(classes) > 1 else 0
        picked = {classes[i] for i in rng.permutation(len(classes))[:n]}
        chosen += [i for i, p in enumerate(photos) if p.wordnet_id in picked]
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
    photos: Sequence[Photo],
    features: PhotoFeatures,
    indices: Sequence[int],
    *,
    tokenizer: Tokenizer,
    config: ContrastiveConfig,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[CLIP, PhotoFeatures]:
    """Trains a dual encoder on the photos `indices`; its image tower is left as initialised, but for the head.

    Returns:
        The dual encoder, and the features of all photos as its `ln_post` makes them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(model_cfg).train()
    generator = torch.Generator().manual_seed(seed)
    index = torch.as_tensor(list(indices))
    model.visual.requires_grad_(False)
    head = fit_head(features.features[index].flatten(0, 1), model_cfg["embed_dim"], shrinkage=config.shrinkage)
    model.visual.ln_post.weight.data.copy_(head.weight)
    model.visual.ln_post.bias.data.copy_(head.bias)
    model.visual.proj.data.copy_(head.proj)
    features = PhotoFeatures(head.normalise(features.features), features.scenes)
    x, scenes = features.features[index], features.scenes[index]  # [n, V, F], [n, V, 9]
    captions = CaptionSet([(photos[i].name, photos[i].wordnet_id) for i in indices], tokenizer)
    prompt_tokens = tokenizer(SCENE_PROMPTS)  # in every step, besides other wordings: these will be used
    # Square-root balancing: animals are 40 % of ImageNet, but rare scenes have few photos to learn from.
    frequency = scenes.float().mean((0, 1)).clamp_min(1e-3)  # [9]

    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(model.token_embedding.weight), id(model.positional_embedding)}
    decay = [p for p in trained if p.ndim > 1 and id(p) not in embeddings]
    rest = [p for p in trained if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    warm_up = max(1, config.steps // 10)
    smoothing = config.label_smoothing
    for step in range(config.steps):
        through = max(0.0, (step - warm_up) / max(1, config.steps - warm_up))
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * through)))
        view = torch.randint(x.shape[1], (len(x),), generator=generator)  # [n], one view of each photo
        rows = torch.arange(len(x))
        projected = x[rows, view] @ model.visual.proj  # [n, D]
        keep = torch.rand(projected.shape, generator=generator) >= config.dropout
        images = normalize(projected * keep, dim=-1)
        truth = scenes[rows, view]  # [n, 9]
        class_index, class_tokens = draw(captions.class_tokens, config.n_class, generator)
        kind_index, kind_tokens = draw(captions.kind_tokens, config.n_kind, generator)
        scene_index, scene_tokens = draw(captions.scene_tokens, len(SCENES), generator)
        # Two calls, because kind and scene captions are short and need not be padded to the class captions.
        short = encode_texts(model, torch.cat([kind_tokens, scene_tokens, prompt_tokens]))
        texts = torch.cat([encode_texts(model, class_tokens), short])  # [T, D]
        logits = model.logit_scale.exp() * images @ texts.T  # [n, T]
        sizes = [len(class_index), len(kind_index), len(SCENES), len(SCENES)]
        by_class, by_kind, by_scene, by_prompt = logits.split(sizes, dim=1)
        weight = ((truth / truth.sum(1, keepdim=True)) / frequency.sqrt()).sum(1)  # [n]
        loss = multi_positive_nce(by_class, captions.class_of[:, None] == class_index, smoothing=smoothing)
        loss = loss + multi_positive_nce(by_kind, captions.kind_of[:, None] == kind_index, smoothing=smoothing)
        scene_loss = multi_positive_nce(by_scene, truth[:, scene_index], weight, smoothing)
        scene_loss = scene_loss + multi_positive_nce(by_prompt, truth, weight, smoothing)
        loss = loss + config.scene_weight * scene_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0.0, MAX_LOGIT_SCALE)
        progress(step + 1, config.steps)
    return model.eval(), features
