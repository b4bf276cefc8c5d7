"""A model's scoring as an ONNX graph: normalised patches in, quality logits out, as `QualityCLIP` computes them.

Prompts are folded in and the text features are constants, so no text tower is left.  The graph is made from the
weights whenever it is needed, without torch: no file has to be kept next to them, and none can be out of date.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from grmp_score.config import ModelConfig
from grmp_score.errors import WeightsError
from grmp_score.model.architecture import check_architecture, feature_blocks, side

Float32 = NDArray[np.float32]

#: Names of the graph's input and outputs.
PATCHES, LOGITS, P_HIGH = "patches", "logits", "p_high"
#: ONNX's own operators, at the first version with all that are needed (Gelu).
OPSET = 20
#: Below the least value of GELU and of x * sigmoid(1.702 x).
GELU_MIN = -0.17


@dataclass
class Graph:
    """An ONNX model whose tensors are kept beside it.

    Attributes:
        model: without the values of ``tensors``.
        tensors: float32, or int8 matrices [in, out] of int8 models, by their names in the graph.
    """

    model: ModelProto
    tensors: dict[str, NDArray[Any]]

    def self_contained(self) -> ModelProto:
        """The model with its tensors inside."""
        model = ModelProto()
        model.CopyFrom(self.model)
        del model.graph.initializer[:]
        for kept in self.model.graph.initializer:
            known = self.tensors.get(kept.name)
            model.graph.initializer.append(kept if known is None else numpy_helper.from_array(known, kept.name))
        return model


def scoring_graph(
    config: ModelConfig,
    tensors: Mapping[str, Callable[[], Float32]],
    *,
    precision: Literal["float32", "int8"] = "float32",
    portable: bool = False,
    origin: str | None = None,
) -> Graph:
    """Makes the graph.

    Args:
        config: of any model that `QualityCLIP` knows.
        tensors: what reads each tensor, by its name in `QualityCLIP`; those of the text tower are not read.
        precision: of the linear layers' products.  ``"int8"``: weights have a scale per output channel, activations
            one per patch and layer, or per token, found while computing.
        portable: use ONNX's own operators alone, and also give p(high); else attention is ONNX Runtime's, which is
            faster there.
        origin: where the tensors come from, for messages.

    Returns:
        Input ``patches`` float32 [B, 3, S, S], normalised; output ``logits`` float32 [B, 2], columns high, low;
        of a portable graph first ``p_high`` [B].

    Raises:
        ConfigError: the configuration is not that of two native transformers.
        WeightsError: a tensor is missing, unknown or of the wrong shape.
    """
    source = _Tensors(tensors, origin)
    graph = _Tower(config, source, int8=precision == "int8", portable=portable).graph()
    source.check_all_used()
    return graph


@dataclass
class _Nodes:
    """Nodes and constants of a graph that is being made.  Every method returns the name of its result."""

    nodes: list[NodeProto] = field(default_factory=list)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    integers: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def __call__(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.several(kind, 1, *inputs, domain=domain, **attributes)[0]

    def several(self, kind: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def tensor(self, name: str, values: NDArray[Any]) -> str:
        self.tensors[name] = np.ascontiguousarray(values)
        return name

    def ints(self, *values: int) -> str:
        name = f"ints_{'_'.join(map(str, values))}"
        self.integers[name] = np.array(values, dtype=np.int64)
        return name


class _Tower:
    """The image tower of `QualityCLIP`, step by step as in `towers.ImageTower`.

    B: batch, N: image tokens, T: tokens in all, W: width, n: visual prompts per block, k: blocks that the feature
    is read out of, D: width of the common space.
    """

    def __init__(self, config: ModelConfig, source: _Tensors, *, int8: bool, portable: bool) -> None:
        check_architecture(config.backbone.model_cfg)
        vision = config.backbone.model_cfg["vision_cfg"]
        self.config, self._source, self.int8, self.portable = config, source, int8, portable
        self.depth, self.width = vision.get("layers", 12), vision.get("width", 768)
        self.heads = self.width // vision.get("head_width", 64)
        self.size, self.patch = side(vision, "image_size"), side(vision, "patch_size")
        self.hidden = int(self.width * vision.get("mlp_ratio", 4.0))
        self.eps = (vision.get("norm_kwargs") or {}).get("eps", 1e-5)
        self.vision = vision
        self.blocks = feature_blocks(config.backbone.model_cfg, self.depth)
        self.op = _Nodes()

    def graph(self) -> Graph:
        """All of it."""
        self.logits(self.project(self.pool(self.embed())))
        self.op.nodes[-1].output[0] = LOGITS
        outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", 2])]
        if self.portable:
            self.op("Softmax", LOGITS, axis=-1)
            self.first(self.op.nodes[-1].output[0])
            self.op.nodes[-1].output[0] = P_HIGH
            outputs.insert(0, helper.make_tensor_value_info(P_HIGH, TensorProto.FLOAT, ["batch"]))
        initializers = [_outside(name, values) for name, values in self.op.tensors.items()]
        initializers += [numpy_helper.from_array(values, name) for name, values in self.op.integers.items()]
        batch: list[str | int | None] = ["batch", 3, self.size, self.size]
        graph = helper.make_graph(
            self.op.nodes,
            "grmp_score",
            [helper.make_tensor_value_info(PATCHES, TensorProto.FLOAT, batch)],
            outputs,
            initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if not self.portable:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        return Graph(helper.make_model(graph, opset_imports=opsets, ir_version=9), self.op.tensors)

    def embed(self) -> str:
        """Patches [B, 3, S, S] -> tokens [B, 1 + N, W] that enter the first block, CLS first."""
        op, width, per_side = self.op, self.width, self.size // self.patch
        kernel = self.tensor("conv1.weight", width, 3, self.patch, self.patch)
        x = op("Conv", PATCHES, kernel, kernel_shape=[self.patch] * 2, strides=[self.patch] * 2)
        x = op("Transpose", op("Reshape", x, op.ints(0, width, -1)), perm=[0, 2, 1])  # [B, N, W]
        cls = self.values("class_embedding", width)
        position = self.values("positional_embedding", 1 + per_side**2, width)
        x = op("Add", x, op.tensor("position", position[1:]))
        x = op(
            "Concat", self.for_each(op.tensor("class_embedding", (cls + position[0])[None, None])), x, axis=1
        )  # [B, 1 + N, W]
        return x if self.vision.get("no_ln_pre") else self.layer_norm(x, "ln_pre", width)

    def for_each(self, values: str) -> str:
        """[1, m, W] -> [B, m, W]."""
        op = self.op
        batch = op("Shape", PATCHES, start=0, end=1)
        return op("Expand", values, op("Concat", batch, op.ints(1, 1), axis=0))

    def pool(self, x: str) -> str:
        """Tokens that enter the first block -> pooled features as ``ln_post`` gives them: [B, W], or [B, 2kW]."""
        op, width = self.op, self.width
        if self.blocks is not None:
            parts = []
            for i in range(self.depth):
                x = self.block(i, x)  # [B, 1 + N, W]
                if i in self.blocks:
                    parts += [self.first(x), self.mean_of_others(x)]
            return self.layer_norm(op("Concat", *parts, axis=1), "ln_post", 2 * len(self.blocks) * width)
        by_token = self.vision.get("pool_type", "tok") == "tok"
        for i in range(self.depth):
            # Of the last block the CLS token is read and nothing else, so nothing else is computed.
            x = self.block(i, x, only_cls=by_token and i == self.depth - 1)
        if self.config.prompts.n_visual and self.config.prompts.prompt_norm:
            x = self.layer_norm(x, "visual_prompts.norm", width, eps=1e-6, prefix="")
        after = self.vision.get("final_ln_after_pool")
        if not after:
            x = self.layer_norm(x, "ln_post", width)
        x = self.first(x) if by_token else self.mean_of_others(x)  # [B, W]
        return self.layer_norm(x, "ln_post", width) if after else x

    def first(self, x: str) -> str:
        """The first along the second axis: [B, T, W] -> [B, W], the CLS token."""
        self.op.integers["cls"] = np.array(0, dtype=np.int64)
        return self.op("Gather", x, "cls", axis=1)

    def mean_of_others(self, x: str) -> str:
        """[B, 1 + N, W] -> [B, W]: mean of the image tokens."""
        return self.op("ReduceMean", self.rows(x, 1, None), self.op.ints(1), keepdims=0)

    def rows(self, x: str, start: int, end: int | None) -> str:
        """[B, T, W] -> some of its tokens."""
        ints = self.op.ints
        return self.op("Slice", x, ints(start), ints(np.iinfo(np.int64).max if end is None else end), ints(1))

    def block(self, i: int, x: str, *, only_cls: bool = False) -> str:
        """Block i on tokens [B, 1 + N, W], with its visual prompts (eq. 1); what it makes of these is dropped."""
        op, width, name = self.op, self.width, f"transformer.resblocks.{i}"
        prompts = self.config.prompts.n_visual
        tokens = 1 if only_cls else 1 + (self.size // self.patch) ** 2
        joined = x
        if prompts:
            own = self._source.take("visual_prompts.tokens", (self.depth, prompts, width))[i]
            joined = op("Concat", x, self.for_each(op.tensor(f"prompts.{i}", own[None])), axis=1)
        weight = self.values(f"{name}.attn.in_proj_weight", 3 * width, width)
        normed, weight = self.normed(joined, f"{name}.ln_1", weight)
        bias = self.values(f"{name}.attn.in_proj_bias", 3 * width)
        if only_cls:
            query = self.product(self.rows(normed, 0, 1), f"{name}.query", weight[:width], bias[:width])
            rest = self.product(normed, f"{name}.key_value", weight[width:], bias[width:])
            key, value = op.several("Split", 2, rest, axis=-1, num_outputs=2)
        else:
            rest = self.product(normed, f"{name}.query_key_value", weight, bias)
            query, key, value = op.several("Split", 3, rest, axis=-1, num_outputs=3)
            if prompts:
                query = self.rows(query, 0, tokens)
        attended = self.linear(self.attention(query, key, value), f"{name}.attn.out_proj", width, width)
        if only_cls or prompts:
            x = self.rows(x, 0, tokens)
        x = op("Add", x, self.layer_scale(attended, f"{name}.ls_1"))
        weight = self.values(f"{name}.mlp.c_fc.weight", self.hidden, width)
        normed, weight = self.normed(x, f"{name}.ln_2", weight)
        hidden = self.product(normed, f"{name}.mlp.c_fc", weight, self.values(f"{name}.mlp.c_fc.bias", self.hidden))
        changed = self.linear(self.activation(hidden), f"{name}.mlp.c_proj", self.hidden, width, least=GELU_MIN)
        return op("Add", x, self.layer_scale(changed, f"{name}.ls_2"))

    def attention(self, query: str, key: str, value: str) -> str:
        """Scaled dot products of all heads: [B, T, W] each -> [B, T of the query, W]."""
        op, heads = self.op, self.heads
        if not self.portable:
            return op("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=heads)
        dim = self.width // heads
        q, k, v = (op("Reshape", t, op.ints(0, -1, heads, dim)) for t in (query, key, value))
        q = op("Transpose", op("Mul", q, op.tensor("scale", np.float32(dim**-0.5))), perm=[0, 2, 1, 3])
        k, v = op("Transpose", k, perm=[0, 2, 3, 1]), op("Transpose", v, perm=[0, 2, 1, 3])
        mixed = op("MatMul", op("Softmax", op("MatMul", q, k), axis=-1), v)  # [B, heads, T, dim]
        return op("Reshape", op("Transpose", mixed, perm=[0, 2, 1, 3]), op.ints(0, -1, self.width))

    def activation(self, x: str) -> str:
        """GELU, or OpenAI's x * sigmoid(1.702 x)."""
        op = self.op
        if not self.config.backbone.model_cfg.get("quick_gelu"):
            return op("Gelu", x)
        return op("Mul", x, op("Sigmoid", op("Mul", x, op.tensor("slope", np.float32(1.702)))))

    def layer_scale(self, x: str, name: str) -> str:
        """The block's own factors, where it has some."""
        if self.vision.get("ls_init_value") is None:
            return x
        return self.op("Mul", x, self.tensor(f"{name}.gamma", self.width))

    def layer_norm(
        self,
        x: str,
        name: str,
        width: int,
        *,
        eps: float | None = None,
        prefix: str = "clip.visual.",
        factor: Float32 | np.float32 = np.float32(1),  # noqa: B008 (a number)
    ) -> str:
        """Layer normalisation over the last axis, times ``factor`` [width]."""
        scale, shift = (self._source.take(f"{prefix}{name}.{part}", (width,)) for part in ("weight", "bias"))
        tensors = self.op.tensor(f"{name}.weight", factor * scale), self.op.tensor(f"{name}.bias", factor * shift)
        return self.op("LayerNormalization", x, *tensors, axis=-1, epsilon=self.eps if eps is None else eps)

    def normed(self, x: str, name: str, weight: Float32) -> tuple[str, Float32]:
        """Layer normalisation of the tower, and ``weight`` [O, W] of the product that reads it.

        In int8 models the channels are scaled to like sizes and the weight's columns inversely, as in SmoothQuant,
        since all channels of a token have one step.  Without data: a channel is about as large as three of its
        gains and its shift.
        """
        if not self.int8:
            return self.layer_norm(x, name, self.width), weight
        gain, shift = (self.values(f"{name}.{part}", self.width) for part in ("weight", "bias"))
        size, used = np.hypot(3 * gain, shift), np.sqrt(np.square(weight).mean(axis=0))
        factor = np.sqrt(np.maximum(used, 1e-6) / np.maximum(size, 1e-6))
        return self.layer_norm(x, name, self.width, factor=factor), weight / factor

    def linear(self, x: str, name: str, inputs: int, outputs: int, *, least: float | None = None) -> str:
        """A linear layer by its name in the tower; ``least`` as for `product`."""
        weight, bias = self.values(f"{name}.weight", outputs, inputs), self.values(f"{name}.bias", outputs)
        return self.product(x, name, weight, bias, least=least)

    def product(self, x: str, name: str, weight: Float32, bias: Float32, *, least: float | None = None) -> str:
        """x [..., I] times weight [O, I], plus bias [O].

        In int8 models x has one step for all of it, or one for each token, from ``least`` to the token's largest
        value, where there is such a bound.
        """
        op = self.op
        if not self.int8:
            return op(
                "Add", op("MatMul", x, op.tensor(f"{name}.weight", weight.T)), op.tensor(f"{name}.bias", bias)
            )
        scale = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)  # [O]
        rounded = np.round(weight / scale[:, None]).astype(np.int8)
        matrix, scales = op.tensor(f"{name}.weight", rounded.T), op.tensor(f"{name}.scale", scale)
        if least is None:
            small, step, zero = op.several("DynamicQuantizeLinear", 3, x)
            y = op("Cast", op("MatMulInteger", small, matrix, zero), to=TensorProto.FLOAT)
            y = op("Mul", y, op("Mul", step, scales))
        else:
            above = op("Sub", x, op.tensor("least", np.float32(least)))
            largest = op("ReduceMax", above, op.ints(-1), keepdims=1)
            step = op("Mul", largest, op.tensor("steps", np.float32(1 / 255)))
            one, zero = op.tensor("one", np.float32(1)), op.tensor("zero", np.uint8(0))
            small = op("QuantizeLinear", op("Div", above, step), one, zero)
            y = op("Cast", op("MatMulInteger", small, matrix), to=TensorProto.FLOAT)
            y = op("Mul", op("Mul", y, scales), step)
            bias = bias + np.float32(least) * (rounded.sum(axis=1, dtype=np.float32) * scale)
        return op("Add", y, op.tensor(f"{name}.bias", bias))

    def project(self, pooled: str) -> str:
        """Pooled features -> L2-normalised features [B, D]."""
        wide = self.width if self.blocks is None else 2 * len(self.blocks) * self.width
        features = self.op("MatMul", pooled, self.tensor("proj", wide, self.config.backbone.model_cfg["embed_dim"]))
        return self.op("LpNormalization", features, axis=-1, p=2)

    def logits(self, features: str) -> str:
        """Features [B, D] -> logits [B, 2]: similarity to the text features, over the temperature."""
        embed_dim = self.config.backbone.model_cfg["embed_dim"]
        text = self._source.take("text_features", (2, embed_dim))
        scale = self.config.prompts.quality_scale * math.exp(float(self._source.take("clip.logit_scale", ())))
        return self.op("MatMul", features, self.op.tensor("text", (np.float32(scale) * text).T))

    def tensor(self, name: str, *shape: int) -> str:
        """A constant that is a tensor of the tower as it is."""
        return self.op.tensor(name, self.values(name, *shape))

    def values(self, name: str, *shape: int) -> Float32:
        """A tensor of the tower."""
        return self._source.take(f"clip.visual.{name}", shape)


class _Tensors:
    """The tensors of weights, checked as they are taken."""

    def __init__(self, tensors: Mapping[str, Callable[[], Float32]], origin: str | None) -> None:
        self._tensors, self._origin = tensors, origin
        self._taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> Float32:
        """One tensor."""
        if name not in self._tensors:
            raise WeightsError(f"missing tensors: {name}", path=self._origin)
        self._taken.add(name)
        values = self._tensors[name]()
        if values.shape != shape:
            expected = f"(expected {list(shape)}, got {list(values.shape)})"
            raise WeightsError(f"mis-shaped tensors: {name} {expected}", path=self._origin)
        return values

    def check_all_used(self) -> None:
        """Refuses tensors of the image side that no step has asked for."""
        image_side = ("clip.visual.", "visual_prompts.")
        unknown = sorted(n for n in self._tensors if n.startswith(image_side) and n not in self._taken)
        if unknown:
            raise WeightsError(f"unknown tensors: {', '.join(unknown[:3])}", path=self._origin)


def _outside(name: str, values: NDArray[Any]) -> TensorProto:
    """A constant whose values are given to the session."""
    tensor = TensorProto(name=name, dims=values.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
    location = tensor.external_data.add()
    location.key, location.value = "location", "weights"
    return tensor
