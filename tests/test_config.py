"""Configurations: exact JSON round trip, and errors that name the entry."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmp_score.config import Backbone, LabelScale, ModelConfig, Preprocess, PromptConfig
from grmp_score.errors import ConfigError, GrmpScoreError

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
json_object = st.dictionaries(text, json_value, max_size=4)
triple = st.tuples(finite, finite, finite)
positive = st.floats(min_value=1e-6, max_value=1e6)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    """Any valid preprocessing."""
    patch_size = draw(st.integers(1, 512))
    rule = draw(st.sampled_from(["none", "shorter", "exact"]))
    layout = draw(st.sampled_from(["random", "grid", "center"]))
    antialias = draw(st.booleans())
    return Preprocess(
        resize=rule,
        size=None if rule == "none" else patch_size + draw(st.integers(0, 99)),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic", *(["lanczos"] if antialias else [])])),
        antialias=antialias,
        patch_size=patch_size,
        patches=1 if layout == "center" else draw(st.integers(1, 99)),
        layout=layout,
        seed=draw(st.integers(0, 2**31)),
        mean=draw(triple),
        std=draw(st.tuples(positive, positive, positive)),
    )


@st.composite
def scales(draw: st.DrawFn) -> LabelScale:
    """Any valid label scale."""
    low = draw(st.floats(-1e6, 1e6))
    return LabelScale(low, low + draw(st.floats(1e-3, 1e6)), draw(st.booleans()))


configs = st.builds(
    ModelConfig,
    name=text,
    backbone=st.builds(
        Backbone,
        model_cfg=json_object,
        name=text,
        repo=st.none() | text,
        filename=st.none() | text,
        revision=st.none() | text,
        sha256=st.none() | text,
    ),
    prompts=st.builds(
        PromptConfig,
        n_ctx=st.integers(0, 16),
        n_visual=st.integers(0, 200),
        prompt_norm=st.booleans(),
        classes=st.tuples(text, text),
    ),
    preprocess=preprocesses(),
    adapted_blocks=st.integers(0, 24),
    label_scale=st.none() | scales(),
    reference_percentiles=st.dictionaries(text, st.lists(finite, max_size=5), max_size=3),
    training=json_object,
    results=json_object,
)


def valid() -> dict[str, Any]:
    """A complete configuration as parsed JSON."""
    config = ModelConfig(
        name="m",
        backbone=Backbone({"embed_dim": 16}),
        label_scale=LabelScale(1, 5),
        reference_percentiles={"web": [0.1, 0.2]},
    )
    result: dict[str, Any] = json.loads(config.to_json())
    return result


@settings(max_examples=200, deadline=None)
@given(configs)
def test_json_round_trip_is_exact(config: ModelConfig) -> None:
    """Writing and reading gives the same configuration, and writing that the same text."""
    again = ModelConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()


def test_floats_may_be_written_as_integers() -> None:
    """JSON has one kind of number: `1` is read as 1.0 where a float is meant."""
    scale = ModelConfig.from_json(json.dumps(valid())).label_scale
    assert scale == LabelScale(1.0, 5.0) and isinstance(scale.minimum, float)


def test_defaults_fill_what_is_left_out() -> None:
    """Only the name and the backbone's configuration are required."""
    config = ModelConfig.from_json('{"name": "m", "backbone": {"model_cfg": {}}}')
    assert config == ModelConfig(name="m", backbone=Backbone({}))


CHANGES: list[tuple[tuple[str | int, ...], object, str]] = [
    (("unheard",), 1, r"config: unknown entries \['unheard'\]"),
    (("preprocess", "sise"), 1, r"config.preprocess: unknown entries \['sise'\]"),
    (("name",), 3, "config.name: expected str, got 3"),
    (("adapted_blocks",), True, "config.adapted_blocks: expected int, got True"),
    (("adapted_blocks",), 4.5, "config.adapted_blocks"),
    (("backbone",), "ViT", "config.backbone: expected an object"),
    (("backbone", "model_cfg"), [], "config.backbone.model_cfg: expected an object"),
    (("backbone", "repo"), 3, "config.backbone.repo: expected str"),
    (("prompts", "prompt_norm"), 1, "config.prompts.prompt_norm: expected bool"),
    (("prompts", "classes"), ["one"], "config.prompts.classes: expected 2 values"),
    (("prompts", "classes", 1), 2, r"config.prompts.classes\[1\]: expected str"),
    (("preprocess", "resize"), "stretch", "config.preprocess.resize: expected one of"),
    (("preprocess", "mean"), [0, 0], "config.preprocess.mean: expected 3 values"),
    (("preprocess", "mean", 2), "0", r"config.preprocess.mean\[2\]: expected float"),
    (("preprocess", "std", 0), True, r"config.preprocess.std\[0\]: expected float"),
    (("preprocess", "patches"), None, "config.preprocess.patches: expected int"),
    (("label_scale", "maximum"), "5", "config.label_scale.maximum: expected float"),
    (("reference_percentiles", "web"), 3, "config.reference_percentiles.web: expected a list"),
    (("reference_percentiles", "web", 1), "x", r"config.reference_percentiles.web\[1\]: expected float"),
    (("format_version",), 2, "configuration format 2 is not known, expected 1"),
]


@pytest.mark.parametrize(("where", "value", "message"), CHANGES, ids=lambda v: str(v)[:40])
def test_unknown_and_mistyped_entries_are_named(where: tuple[Any, ...], value: object, message: str) -> None:
    """One wrong entry anywhere is an error that names its place; the file is named too."""
    data = valid()
    inner: Any = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    with pytest.raises(ConfigError, match=message) as caught:
        ModelConfig.from_json(json.dumps(data), path="folder/config.json")
    assert caught.value.path == "folder/config.json"
    assert str(caught.value).startswith("folder/config.json: ")


@pytest.mark.parametrize(
    ("where", "key"), [((), "name"), ((), "backbone"), (("backbone",), "model_cfg"), (("label_scale",), "minimum")]
)
def test_missing_entries_are_named(where: tuple[str, ...], key: str) -> None:
    """A missing required entry is named with its place."""
    data = copy.deepcopy(valid())
    inner = data
    for part in where:
        inner = inner[part]
    del inner[key]
    place = ".".join(("config", *where))
    with pytest.raises(ConfigError, match=rf"{place}: missing entries \['{key}'\]"):
        ModelConfig.from_json(json.dumps(data))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', "{'name': 1}", '{"name": "m"'])
def test_anything_else_than_a_json_object(content: str) -> None:
    """Broken JSON, and JSON that is no object, is a `ConfigError`."""
    with pytest.raises(ConfigError):
        ModelConfig.from_json(content)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_json_is_a_configuration_or_a_config_error(data: st.DataObject) -> None:
    """Whatever value stands at any place, reading gives a configuration or a `ConfigError`."""
    content = valid()
    inner: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        if not inner[key] or not isinstance(inner[key], (dict, list)) or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = data.draw(json_value)
    try:
        config = ModelConfig.from_json(json.dumps(content))
    except ConfigError:
        return
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": "exact"}, "resize 'exact' does not go with size None"),
        ({"size": 300}, "resize 'none' does not go with size 300"),
        ({"resize": "shorter", "size": 200}, "size 200 is smaller than the patch size 224"),
        ({"patches": 0}, "at least one patch"),
        ({"patch_size": 0}, "at least one patch"),
        ({"layout": "center"}, "layout 'center' has one patch, got patches=10"),
        ({"interpolation": "lanczos", "antialias": False}, "'lanczos' exists with antialias only"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be positive"),
    ],
)
def test_preprocess_that_makes_no_sense(settings: dict[str, Any], message: str) -> None:
    """Settings that contradict each other are refused when they are made, as a `ValueError` too."""
    with pytest.raises(ConfigError, match=message) as caught:
        Preprocess(**settings)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, GrmpScoreError)


def test_with_patches() -> None:
    """Another number of patches keeps the rest; more than one of a centre layout become random ones."""
    p = Preprocess(layout="grid", patch_size=32)
    assert p.with_patches(3) == dataclasses.replace(p, patches=3)
    center = Preprocess(layout="center", patches=1)
    assert center.with_patches(1) == center
    assert center.with_patches(5) == dataclasses.replace(center, layout="random", patches=5)
    with pytest.raises(ConfigError, match="at least one patch"):
        p.with_patches(0)


@pytest.mark.parametrize(("low", "high"), [(5, 1), (1, 1), (float("nan"), 1)])
def test_label_scale_needs_two_ends(low: float, high: float) -> None:
    """An empty or reversed scale is refused."""
    with pytest.raises(ConfigError, match="minimum < maximum"):
        LabelScale(low, high)


@given(scales(), st.floats(0, 1), st.floats(0, 1))
def test_label_scale_in_both_directions(scale: LabelScale, p: float, q: float) -> None:
    """p(high) 0 and 1 are the ends of the scale, swapped for DMOS-like scales; better never reads as worse."""
    worst, best = scale.to_label(0.0), scale.to_label(1.0)
    ends = [scale.minimum, scale.maximum]
    assert [worst, best] == pytest.approx(ends if scale.higher_is_better else ends[::-1])
    sign = 1 if scale.higher_is_better else -1
    if p <= q:
        assert sign * scale.to_label(p) <= sign * scale.to_label(q)


@given(scales(), st.lists(st.floats(0, 1), max_size=5))
def test_label_scale_and_back(scale: LabelScale, shares: list[float]) -> None:
    """`to_unit` undoes `to_label`, for numbers and arrays; labels beyond the ends go beyond 0 and 1."""
    labels = scale.to_label(np.array(shares))
    slack = 1e-9 + 1e-12 * abs(scale.minimum) / (scale.maximum - scale.minimum)
    np.testing.assert_allclose(scale.to_unit(labels), shares, atol=slack)
    assert [scale.to_unit(float(label)) for label in labels] == scale.to_unit(labels).tolist()
    ends = [scale.to_unit(scale.minimum), scale.to_unit(scale.maximum)]
    assert ends == ([0, 1] if scale.higher_is_better else [1, 0])
    beyond = scale.to_unit(scale.maximum + 2 * (scale.maximum - scale.minimum))
    assert beyond > 2 if scale.higher_is_better else beyond < -1


def test_configurations_are_frozen() -> None:
    """A configuration does not change under a model that uses it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocess().patches = 3  # type: ignore[misc]
