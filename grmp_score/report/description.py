"""What a set of weights is: facts for programs, sentences for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from grmp_score import __version__
from grmp_score.score import CLEAN, verdict_limits
from grmp_score.weights.tensors import TensorFile

if TYPE_CHECKING:
    from grmp_score.config import LabelScale, ModelConfig, Preprocess
    from grmp_score.weights.folder import Weights

#: Names under which what computes a score is installed.
LIBRARIES = ("torch", "open_clip_torch", "huggingface_hub", "safetensors", "pillow", "numpy")
#: Percentiles that are shown of a reference distribution.
SHOWN = (5, 25, 50, 75, 95)
#: A table of results longer than this is left to the JSON.
MOST = 8


def facts(weights: Weights) -> dict[str, Any]:
    """The configuration, and what follows from the tensors: checksum, size, parameters; with library versions.

    Raises:
        WeightsError: the tensors do not make a model.
    """
    state = weights.build().state_dict()
    return {
        **dataclasses.asdict(weights.config),
        "checksum": weights.checksum(),
        "origin": weights.origin,
        "parameters": sum(t.numel() for t in state.values()),
        "adapter_parameters": sum(t.numel() for t in weights.adapter.values()),
        "bytes": size(weights),
        "verdicts": dict(verdict_limits(weights.config)),
        "libraries": libraries(),
    }


def size(weights: Weights) -> int:
    """Bytes of the tensors on disk."""
    adapter = sum(t.numel() * t.element_size() for t in weights.adapter.values())
    if isinstance(weights.backbone, TensorFile):
        return adapter + weights.backbone.path.stat().st_size
    return adapter + sum(t.numel() * t.element_size() for t in weights.backbone.values())


def libraries() -> dict[str, str]:
    """Versions of this package and of what it computes with."""
    import platform
    from importlib import metadata

    found = {"grmp_score": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def lines(config: ModelConfig, known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title, text) of every line for people; ``known`` are the `facts`."""
    vision, prompts = config.backbone.model_cfg.get("vision_cfg", {}), config.prompts
    yield "name", config.name
    yield "checksum", known["checksum"]
    yield "backbone", f"{config.backbone.name}, {vision.get('layers')} image blocks"
    yield "", f"sha256 {(config.backbone.sha256 or 'not recorded')[:16]}"
    classes = " / ".join(prompts.classes)
    yield "prompts", f"{prompts.n_ctx} text and {prompts.n_visual} visual prompts, classes {classes}"
    all_, adapted = known["parameters"] / 1e6, known["adapter_parameters"] / 1e6
    yield "size", f"{known['bytes'] / 1e6:.1f} MB, {all_:.1f} M parameters, {adapted:.2f} M of them in the adapter"
    yield from _titled("images", preprocessing(config.preprocess))
    yield "label scale", label_scale(config.label_scale)
    yield from _titled("references", references(config))
    yield from _titled("verdicts", verdicts(config))
    for title, content in (("training", config.training), ("results", config.results)):
        yield from _titled(title, _flat(content))
    yield "libraries", ", ".join(f"{name} {version}" for name, version in known["libraries"].items())


def preprocessing(p: Preprocess) -> Iterator[str]:
    """How an image becomes patches, in words."""
    yield {
        "none": "not resized",
        "shorter": f"shrunk until the shorter side is {p.size} pixels",
        "exact": f"resized to {p.size}x{p.size} pixels, whatever their shape",
    }[p.resize] + (f" ({p.interpolation}{'' if p.antialias else ', not filtered'})" if p.resize != "none" else "")
    where = {"random": "at random but fixed places", "grid": "spread evenly", "center": "in the middle"}[p.layout]
    if p.layout != "center" and p.spread < 1:
        where += f" over the middle {p.spread:.0%} of the way to the borders"
    scales = "" if p.scales == (1.0,) else f", at {', '.join(f'{s:g}' for s in p.scales)} of that size in turn"
    yield f"patches: {p.patches} of {p.patch_size}x{p.patch_size} pixels, {where}{scales}"
    yield "smaller images are enlarged until a patch fits"
    yield f"normalised by mean {p.mean}, std {p.std}"


def label_scale(scale: LabelScale | None) -> str:
    """The label scale in words."""
    if scale is None:
        return "none (p(high) only)"
    return f"{scale.minimum:g} .. {scale.maximum:g}, {'higher' if scale.higher_is_better else 'lower'} is better"


def references(config: ModelConfig) -> Iterator[str]:
    """What the reference distributions say about scores."""
    if not config.reference_percentiles:
        yield "none: scores of these weights have no percentile"
    for name, points in config.reference_percentiles.items():
        shown = ", ".join(f"{p} %: {points[p]:.3f}" for p in SHOWN) if len(points) == 101 else "unreadable"
        yield f"{name}{' (percentiles of scores refer to it)' if name == CLEAN else ''}: {shown}"


def verdicts(config: ModelConfig) -> Iterator[str]:
    """The words for scores, and what is known about how far these are from people's opinion."""
    limits = verdict_limits(config)
    yield ", ".join(f"{word} from {limit:.3f}" for word, limit in limits) or "none"
    if config.opinion is not None:
        opinion = config.opinion
        yield f"as graded by {opinion.source}"
        yield (
            f"off from their mean opinion by {opinion.expected_error:.3f} (root mean square), nine times in ten by "
            f"less than {opinion.within_90:.3f}"
        )


def _titled(title: str, texts: Iterator[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        yield title, text
        title = ""


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, (dict, list)) and len(value) > MOST and prefix:
            yield f"{prefix}{key}: {len(value)} values (all of them are in the JSON)"
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {value if isinstance(value, str) else json.dumps(value)}"
