"""What a set of weights is, as plain data: frozen dataclasses with an exact JSON round trip.

Everything that decides a score and is not a tensor lives here, with the weights, and never in a global
constant: two models with different resize rules or normalisations can be used side by side.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from grmp_score.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 1

#: Normalisation of OpenAI's CLIP and of most open_clip models.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: Normalisation of ImageNet models (DINOv2) and of the authors' GRMP-IQA checkpoints.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: The nine scenes of the paper's semantic branch (section 3.3); prompt "a photo of a {scene}".
SCENES = ("animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still-life", "others")

T = TypeVar("T")
Value = TypeVar("Value", float, "NDArray[np.float64]")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes patches.

    Attributes:
        resize: ``"none"`` keeps the pixels; ``"shorter"`` shrinks the image, keeping its aspect ratio, until
            its shorter side is ``size`` (it never enlarges); ``"exact"`` resizes to ``size`` x ``size``
            without keeping the aspect ratio (the authors' few-shot code).
        size: side in pixels for ``"shorter"`` and ``"exact"``; None for ``"none"``.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``.
        antialias: True filters before shrinking, as Pillow does; False samples only the nearest pixels, as
            OpenCV does (``"bilinear"`` and ``"bicubic"`` only).
        scales: sizes, as shares of the resized image, at which patches are cut; the patches are dealt out
            evenly, those of the first scale come first.  One that is named twice gets twice as many: (1, 1, 1, 0.3)
            with eight patches are six at full size and two of the image as a whole.
        patch_size: side of the square patches in pixels.
        patches: patches per image.
        layout: ``"random"`` draws positions from a generator seeded by ``seed`` and the image's size, so that
            the same image always gives the same patches; ``"grid"`` spreads them evenly; ``"center"`` takes
            the one in the middle.
        spread: how far from the middle ``"random"`` and ``"grid"`` patches go, 0 < spread <= 1: 1 to the borders,
            1/2 half as far in each direction.  What a photo is about, and what is in focus, lies mostly in the
            middle.
        seed: seed of the ``"random"`` layout.
        mean: per-channel mean subtracted from values in 0..1.
        std: per-channel standard deviation divided by.
    """

    resize: Literal["none", "shorter", "exact"] = "none"
    size: int | None = None
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    antialias: bool = True
    scales: tuple[float, ...] = (1.0,)
    patch_size: int = 224
    patches: int = 10
    layout: Literal["random", "grid", "center"] = "random"
    spread: float = 1.0
    seed: int = 0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if (self.size is None) != (self.resize == "none"):
            raise ConfigError(f"resize {self.resize!r} does not go with size {self.size!r}")
        if self.size is not None and self.size < self.patch_size:
            raise ConfigError(f"size {self.size} is smaller than the patch size {self.patch_size}")
        if self.patch_size < 1 or self.patches < 1:
            raise ConfigError(f"need at least one patch of one pixel, got {self.patches} of {self.patch_size}")
        if self.layout == "center" and self.patches != 1:
            raise ConfigError(f"layout 'center' has one patch, got patches={self.patches}")
        if not 0 < self.spread <= 1:
            raise ConfigError(f"spread must be a number in (0, 1], got {self.spread}")
        if not 1 <= len(self.scales) <= self.patches or not all(0 < s <= 1 for s in self.scales):
            raise ConfigError(f"scales must be 1 to {self.patches} numbers in (0, 1], got {self.scales}")
        if not self.antialias and self.interpolation == "lanczos":
            raise ConfigError("interpolation 'lanczos' exists with antialias only")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def with_patches(self, patches: int) -> Preprocess:
        """The same preprocessing with another number of patches; a ``"center"`` layout becomes ``"random"``
        when more than one is asked for, and fewer patches than scales leave out the last scales."""
        layout = "random" if self.layout == "center" and patches > 1 else self.layout
        return dataclasses.replace(self, patches=patches, layout=layout, scales=self.scales[:patches])


@dataclass(frozen=True)
class PromptConfig:
    """Shape of the learned prompts.

    Attributes:
        n_ctx: learnable text context vectors shared by both classes (paper: 4).
        n_visual: learnable visual tokens per image-tower block (paper: not stated; authors' code: 100);
            0 switches them off.
        prompt_norm: whether an extra LayerNorm (eps 1e-6) follows the last block, as in the authors' code.
        classes: the two class phrases, best first; with ``n_ctx`` 0 the two whole texts.
        scenes: words of the scene prompts "a photo of a {scene}", which eqs. (7) and (8) keep the meaning of.
        quality_scale: factor on the quality logits besides 1/tau, to spread p(high) over 0..1; 1 in paper and code.
            It leaves the scene logits, and the order of two patches, as they are.
    """

    n_ctx: int = 4
    n_visual: int = 0
    prompt_norm: bool = False
    classes: tuple[str, str] = ("high quality", "low quality")
    quality_scale: float = 1.0
    scenes: tuple[str, ...] = SCENES


@dataclass(frozen=True)
class Backbone:
    """The dual encoder below the prompts.

    Attributes:
        model_cfg: open_clip's inline configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``, optionally
            ``quick_gelu``).
        name: what people call it.
        repo: Hub repository that holds the base weights; None when ``backbone.safetensors`` lies in the
            weights folder itself.
        filename: file in that repository.
        revision: revision of that repository.
        sha256: checksum of the file, verified whenever it is read.
    """

    model_cfg: dict[str, Any]
    name: str = "inline"
    repo: str | None = None
    filename: str | None = None
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class LabelScale:
    """The scale of the labels that p(high) was trained on.

    Both directions are straight lines through the two ends and go on beyond them: a label outside of the training
    labels' range has a unit value outside of 0..1.

    Attributes:
        minimum: smallest label; p(high) = 0 stands for it, or p(high) = 1 where lower is better.
        maximum: largest label.
        higher_is_better: False for DMOS-like scales.
    """

    minimum: float
    maximum: float
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.minimum < self.maximum:
            raise ConfigError(f"label scale needs minimum < maximum, got {self.minimum} and {self.maximum}")

    def to_label(self, p_high: Value) -> Value:
        """Maps p(high) in 0..1, a number or an array, to the label scale."""
        good = p_high if self.higher_is_better else 1.0 - p_high
        return self.minimum + good * (self.maximum - self.minimum)

    def to_unit(self, label: Value) -> Value:
        """Maps labels to the targets y of eq. (3), 0 worst .. 1 best (min-max)."""
        share = (label - self.minimum) / (self.maximum - self.minimum)
        return share if self.higher_is_better else 1.0 - share


@dataclass(frozen=True)
class Opinion:
    """What p(high) says about people's opinion, for weights that were trained on it.

    Attributes:
        source: whose opinion.
        grades: words, best first, each with the lowest p(high) that it stands for; the last begins at 0.
        expected_error: root mean square difference between score and mean opinion, both 0..1, on photos that were
            not trained on.
        within_90: what nine tenths of those differences are not larger than.
    """

    source: str
    grades: tuple[tuple[str, float], ...]
    expected_error: float
    within_90: float

    def __post_init__(self) -> None:
        limits = [limit for _, limit in self.grades]
        if not limits or limits[-1] != 0 or sorted(set(limits), reverse=True) != limits or limits[0] > 1:
            raise ConfigError(f"grades must be words with limits that fall from at most 1 to 0, got {self.grades}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything in ``config.json``.

    Attributes:
        name: short name of these weights.
        backbone: the dual encoder they stand on.
        prompts: shape of the learned prompts.
        preprocess: how images become patches.
        adapted_blocks: how many last blocks of each tower are (or may be) adapted; the frozen trunk ends
            before them.
        label_scale: scale of the training labels, if they had one.
        opinion: what p(high) says about people's opinion; None for weights that were not trained on it.
        reference_percentiles: name of a reference distribution -> 101 percentiles (0..100) of p(high) on it.
        training: provenance: commands, data, seeds.
        results: measured numbers.
        format_version: version of this file's layout.
    """

    name: str
    backbone: Backbone
    prompts: PromptConfig = field(default_factory=PromptConfig)
    preprocess: Preprocess = field(default_factory=Preprocess)
    adapted_blocks: int = 4
    label_scale: LabelScale | None = None
    opinion: Opinion | None = None
    reference_percentiles: dict[str, list[float]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"configuration format {self.format_version!r} is not known, expected {FORMAT_VERSION}",
                hint="These weights were written by another version of grmp_score",
            )

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, path: str | None = None) -> ModelConfig:
        """Reads ``config.json``; unknown, missing or mistyped entries raise `ConfigError` naming them."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not valid JSON: {error}", path=path) from error
        try:
            return from_json_object(cls, data, "config")
        except ConfigError as error:
            raise ConfigError(error.reason, path=path, hint=error.hint) from error


def from_json_object(kind: type[T], data: object, where: str) -> T:
    """Builds dataclass ``kind`` from parsed JSON, checking every name and type on the way."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown entries {unknown}; known are {sorted(known)}")
    hints = typing.get_type_hints(kind)
    values = {name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    required = [
        name
        for name, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = sorted(set(required) - set(values))
    if missing:
        raise ConfigError(f"{where}: missing entries {missing}")
    return kind(**values)


def _value(hint: Any, value: object, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: expected one of {list(args)}, got {value!r}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_json_object(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if isinstance(value, (list, tuple)) and args[-1] is Ellipsis:
            args = args[:1] * len(value)
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, got {value!r}")
        return tuple(_value(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return [_value(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected an object, got {value!r}")
        return {str(k): v if args[1] is Any else _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value
