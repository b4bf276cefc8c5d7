"""The authors' published checkpoints (``*.pt`` pickles of LXDxmu/GRMP-IQA) -> `Weights`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD, Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.errors import WeightsError
from grmp_score.model.clip import adapted_names, architecture
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.weights.folder import Weights, adapter_of

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


def load_official(path: str | Path, *, name: str | None = None) -> Weights:
    """Reads one of the authors' checkpoints.

    The pickle is read with ``weights_only=True``: it can hold tensors, not code.  A ``state_dict`` wrapper and
    ``module.`` prefixes are understood.  The shared ``prompt_proj`` is folded into the visual prompts.

    Args:
        path: ``*.pt`` file.
        name: name of the resulting weights; the file's stem by default.

    Raises:
        WeightsError: the file is missing, damaged, or does not have the layout of an official checkpoint.
    """
    path = Path(path)
    state = _unwrap(_read_pickle(path), path)
    for key in (*_FOLDED, *_DERIVED, *_RENAMED):
        if key not in state:
            raise WeightsError(f"not an official GRMP-IQA checkpoint: {key!r} is missing", path=path)
    model_cfg = architecture(ARCHITECTURE)
    n_visual = _count_visual_prompts(state, path, model_cfg)
    config = ModelConfig(
        name=name or path.stem,
        backbone=Backbone(model_cfg=model_cfg, name=ARCHITECTURE),
        prompts=PromptConfig(n_ctx=state["prompt_learner2.ctx"].shape[0], n_visual=n_visual, prompt_norm=True),
        preprocess=PREPROCESS,
        training={"source": f"official GRMP-IQA checkpoint {path.name}", "converted_by": "grmp_score"},
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
    base = {k.removeprefix("clip."): v for k, v in tensors.items() if k.startswith("clip.") and k not in adapter}
    return Weights(config, adapter, base, card=_card(config), origin=str(path))


def _read_pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError("no such file", path=path) from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            "the pickle holds more than tensors, or is damaged; it was not executed", path=path
        ) from error
    except Exception as error:
        # torch reports damaged archives as RuntimeError, OSError, EOFError, KeyError, ValueError ...
        raise WeightsError(f"not a readable checkpoint: {error}", path=path) from error


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError("not a state_dict: expected a mapping of names to tensors", path=path)
    return {str(k).removeprefix("module."): v.detach().to(torch.float32) for k, v in content.items()}


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
