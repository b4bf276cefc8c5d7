"""The authors' published checkpoints (``*.pt`` pickles of LXDxmu/GRMP-IQA) -> `Weights`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD, Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.config import SCENES as PAPER_SCENES
from grmp_score.errors import WeightsError
from grmp_score.model.clip import adapted_names, architecture
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.weights.folder import Weights, adapter_of, load_base
from grmp_score.weights.pickled import read_pickled

#: OpenAI's ViT-B/16 with QuickGELU, which the authors fine-tuned.
ARCHITECTURE = "ViT-B-16-quickgelu"

#: The authors' few-shot preprocessing: OpenCV's cubic resize to 244x244 without keeping the aspect ratio, the
#: centre 224x224 patch, ImageNet statistics.
PREPROCESS = Preprocess(
    resize="exact",
    size=244,
    interpolation="bicubic",
    antialias=False,
    patch_size=224,
    patches=1,
    layout="center",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

_RENAMED = {
    "prompt_learner2.ctx": "text_prompt.ctx",
    "image_encoder.prompt_norm.weight": "visual_prompts.norm.weight",
    "image_encoder.prompt_norm.bias": "visual_prompts.norm.bias",
    "logit_scale": "clip.logit_scale",
}
_FOLDED = (
    "image_encoder.prompt_embeddings",
    "image_encoder.deep_prompt_embeddings",
    "image_encoder.prompt_proj.weight",
    "image_encoder.prompt_proj.bias",
)
#: Token embeddings of the tokenised prompts: not used, they are rebuilt from the token embedding.
_DERIVED = ("prompt_learner2.token_prefix", "prompt_learner2.token_suffix")
_TOKEN_EMBEDDING = "text_encoder.token_embedding.weight"

#: The authors' scene words: the paper's, but for an underscore.
SCENES = tuple("still_life" if scene == "still-life" else scene for scene in PAPER_SCENES)


def load_official(path: str | Path, *, name: str | None = None, base: str | None = None) -> Weights:
    """Reads one of the authors' checkpoints: of stage 2 (311 tensors), or of stage 1, without the token embedding.

    Nothing in the pickle is executed (see `read_pickled`, which also names the forms that are understood).  The
    shared ``prompt_proj`` is folded into the visual prompts.  Prompt learners besides ``prompt_learner2``, which
    the authors' model does not use, are left out; token embeddings of the tokenised prompts are rebuilt, whether
    they are there or not.

    Args:
        path: ``*.pt`` file.
        name: name of the resulting weights; the file's stem by default.
        base: ``NAME:TAG`` of open_clip (``"ViT-B-16-quickgelu:openai"``), or any weights, for the token embedding
            that a checkpoint of stage 1 was made with.

    Raises:
        WeightsError: the file is missing, damaged, or does not have the layout of an official checkpoint.
    """
    path = Path(path)
    state, form = read_pickled(path)
    unused = sorted({n.split(".")[0] for n in state if n.startswith("prompt_learner")} - {"prompt_learner2"})
    state = {n: tensor for n, tensor in state.items() if n.split(".")[0] not in unused and n not in _DERIVED}
    if unused:
        form += f", without {' and '.join(unused)}"
    for key in (*_FOLDED, *_RENAMED):
        if key not in state:
            raise WeightsError(
                f"not an official GRMP-IQA checkpoint: {key!r} is missing (the file is {form})", path=path
            )
    stage = 2
    if _TOKEN_EMBEDDING not in state:
        stage = 1
        state[_TOKEN_EMBEDDING] = _token_embedding(base, path)
    model_cfg = architecture(ARCHITECTURE)
    n_visual = _count_visual_prompts(state, path, model_cfg)
    config = ModelConfig(
        name=name or path.stem,
        backbone=Backbone(model_cfg=model_cfg, name=ARCHITECTURE),
        prompts=PromptConfig(
            n_ctx=state["prompt_learner2.ctx"].shape[0], n_visual=n_visual, prompt_norm=True, scenes=SCENES
        ),
        preprocess=PREPROCESS,
        training={
            "source": f"official GRMP-IQA checkpoint {path.name}",
            "form": f"stage {stage}, {form}",
            "converted_by": "grmp_score",
        },
    )
    tensors = _rename(state)
    model = QualityCLIP(config)
    expected = {k: v for k, v in model.state_dict().items() if k not in ("text_features", "scene_features")}
    wrong = sorted(set(tensors) ^ set(expected)) or sorted(
        k for k, v in tensors.items() if v.shape != expected[k].shape
    )
    if wrong:
        raise WeightsError(
            f"not an official GRMP-IQA checkpoint of ViT-B/16: {len(wrong)} tensors do not fit, first {wrong[0]!r}",
            path=path,
        )
    model.load_state_dict({**tensors, **{k: getattr(model, k) for k in ("text_features", "scene_features")}})
    model.refresh_text()
    adapted = [f"clip.{n}" for n in adapted_names(model.clip, config.adapted_blocks)]
    adapter = adapter_of(model, adapted, dtype=torch.float32)
    rest = {k.removeprefix("clip."): v for k, v in tensors.items() if k.startswith("clip.") and k not in adapter}
    return Weights(config, adapter, rest, card=_card(config), origin=str(path))


def _token_embedding(base: str | None, path: Path) -> Tensor:
    """The token embedding [vocabulary, W], which checkpoints of stage 1 do not hold."""
    if base is None:
        raise WeightsError(
            f"a checkpoint of stage 1, without {_TOKEN_EMBEDDING!r}",
            path=path,
            hint="Name the CLIP it was trained on as the base: 'ViT-B-16-quickgelu:openai'",
        )
    tensors = load_base(base).backbone
    if "token_embedding.weight" not in tensors:
        raise WeightsError("the base has no token embedding", path=base)
    return tensors["token_embedding.weight"].to(torch.float32)


def _count_visual_prompts(state: Mapping[str, Tensor], path: Path, model_cfg: Mapping[str, Any]) -> int:
    """n of the prompts [1, n, W] and [L - 1, n, W], after checking the shapes that `_rename` relies on."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    shapes = {key: tuple(state[key].shape) for key in ("prompt_learner2.ctx", *_FOLDED)}
    n = (0, 0, *shapes["image_encoder.prompt_embeddings"])[-2]
    width = vision["width"]
    expected: list[tuple[int, ...]] = [(*shapes["prompt_learner2.ctx"][:1], text["width"])]
    expected += [(1, n, width), (vision["layers"] - 1, n, width), (width, width), (width,)]
    for (key, got), want in zip(shapes.items(), expected, strict=True):
        if got != want:
            raise WeightsError(
                f"not an official GRMP-IQA checkpoint: {key!r} is {list(got)}, expected {list(want)}",
                path=path,
            )
    return int(n)


def _rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> names of `QualityCLIP`, prompts folded."""
    prompts = torch.cat(
        [state["image_encoder.prompt_embeddings"], state["image_encoder.deep_prompt_embeddings"]]
    )  # [L, n, W]
    weight, bias = state["image_encoder.prompt_proj.weight"], state["image_encoder.prompt_proj.bias"]
    renamed = {"visual_prompts.tokens": torch.nn.functional.linear(prompts, weight, bias)}
    for key, tensor in state.items():
        if key in _RENAMED:
            renamed[_RENAMED[key]] = tensor
        elif key not in _FOLDED and key not in _DERIVED:
            head, _, rest = key.partition(".")
            tower = {"image_encoder": "clip.visual", "text_encoder": "clip"}.get(head, f"unknown.{head}")
            renamed[f"{tower}.{rest}"] = tensor
    return renamed


def _card(config: ModelConfig) -> str:
    return f"""---
library_name: grmp_score
pipeline_tag: image-classification
tags:
- image-quality-assessment
---

# {config.name}

Converted from an official GRMP-IQA checkpoint ({config.training["source"]}; arXiv 2409.05381).
Backbone: {ARCHITECTURE}.  Default preprocessing: the authors' few-shot code (exact 244x244 resize, centre
224x224 patch, ImageNet statistics).  No number was measured by the conversion.
"""
