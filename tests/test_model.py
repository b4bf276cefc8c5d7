"""The model against its equations, and against open_clip where there are no prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from grmp_score.config import SCENES, Backbone, ModelConfig, PromptConfig
from grmp_score.errors import ConfigError
from grmp_score.model.clip import adapted_names, architecture, build_clip
from grmp_score.model.quality_clip import QualityCLIP, p_high, quality_loss
from grmp_score.weights.folder import Weights

from .conftest import TINY_CLIP, randomise


def variant(vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """`TINY_CLIP` with other settings."""
    return {
        **TINY_CLIP,
        "vision_cfg": {**TINY_CLIP["vision_cfg"], **(vision or {})},  # type: ignore[dict-item]
        "text_cfg": {**TINY_CLIP["text_cfg"], **(text or {})},  # type: ignore[dict-item]
        **top,
    }


def make(config: ModelConfig, seed: int = 0, *, unfolded: bool = False) -> QualityCLIP:
    """A model with random tensors, wider than at the start of training so that every part matters."""
    return randomise(QualityCLIP(config, unfolded_prompts=unfolded), seed)


def with_prompts(config: ModelConfig, **settings: Any) -> ModelConfig:
    """The configuration with other prompt settings."""
    return dataclasses.replace(config, prompts=dataclasses.replace(config.prompts, **settings))


@pytest.fixture
def patches() -> Tensor:
    """Five random patches [5, 3, 32, 32]."""
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# -------------------------------------------------------------- against open_clip

CLIPS = {
    "plain": variant(),
    "QuickGELU": variant(quick_gelu=True),
    "average pooling": variant({"pool_type": "avg"}),
    "norm after pooling": variant({"pool_type": "avg", "final_ln_after_pool": True}),
    "layer scale": variant({"ls_init_value": 0.1}, {"ls_init_value": 0.1}),
    "no norm before the blocks": variant({"no_ln_pre": True}),
    "sine positions": variant({"pos_embed_type": "sin_cos_2d", "image_size": 64}),
    "text without mask": variant(text={"no_causal_mask": True}),
    "text without projection": variant(text={"width": 16, "proj_type": "none"}),
}


def open_clip_of(model: QualityCLIP) -> CLIP:
    """open_clip's own model with the same configuration and parameters."""
    native = CLIP(**model.config.backbone.model_cfg).eval()
    native.load_state_dict(model.clip.state_dict())
    return native


@pytest.mark.parametrize("name", CLIPS)
def test_without_prompts_it_is_open_clips_encoder(tiny_config: ModelConfig, name: str) -> None:
    """With prompts switched off both towers give open_clip's own normalised features."""
    config = dataclasses.replace(with_prompts(tiny_config, n_visual=0), backbone=Backbone(CLIPS[name]))
    model = make(config)
    size = CLIPS[name]["vision_cfg"]["image_size"]
    patches = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        native = open_clip_of(model)
        ours, theirs = model.image(patches), native.encode_image(patches, normalize=True)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        tokens = model.text_prompt.scene_tokens
        theirs = native.encode_text(tokens, normalize=True)
        torch.testing.assert_close(model.encode_scenes(), theirs, rtol=0, atol=1e-5)
        # A context equal to the embedding of the placeholder is no context at all.
        quality = model.text_prompt.tokens
        model.text_prompt.ctx.copy_(model.clip.token_embedding(quality[0, 1:5]))
        theirs = native.encode_text(quality, normalize=True)
        torch.testing.assert_close(model.encode_quality(), theirs, rtol=0, atol=1e-5)


def test_text_cut_at_its_end_equals_the_full_length(tiny_config: ModelConfig) -> None:
    """Running the text only to its last end-of-text token changes nothing, in one batch or alone."""
    model = make(tiny_config)
    tokens = torch.cat([model.text_prompt.tokens, model.text_prompt.scene_tokens])
    assert int(tokens.argmax(dim=-1).max()) + 1 < tokens.shape[1]
    with torch.inference_mode():
        embedded = model.text.embed(tokens)
        cut = model.text(embedded, tokens)
        full = open_clip_of(model).encode_text(tokens, normalize=True)
        torch.testing.assert_close(cut, full, rtol=0, atol=1e-5)
        for i in range(len(tokens)):
            alone = model.text(embedded[i : i + 1], tokens[i : i + 1])
            torch.testing.assert_close(alone[0], full[i], rtol=0, atol=1e-5)


# ----------------------------------------------------------------------- prompts


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_equation_1_visual_prompts(tiny_config: ModelConfig, patches: Tensor, pool: str, norm: bool) -> None:
    """Each block sees [CLS, its own prompts, image tokens]; the outputs of the prompts are dropped."""
    config = dataclasses.replace(
        with_prompts(tiny_config, n_visual=3, prompt_norm=norm), backbone=Backbone(variant({"pool_type": pool}))
    )
    model = make(config)
    visual, prompts = model.clip.visual, model.visual_prompts
    assert prompts is not None
    with torch.inference_mode():
        for i, patch in enumerate(patches):
            image = visual.conv1(patch[None]).reshape(32, -1).T  # [N, W]
            x = torch.vstack([visual.class_embedding, image]) + visual.positional_embedding
            x = visual.ln_pre(x)
            f, h = x[:1], x[1:]
            for block, p in zip(visual.transformer.resblocks, prompts.tokens, strict=True):
                out = block(torch.vstack([f, p, h])[None])[0]
                f, _, h = out[:1], out[1:4], out[4:]
            x = torch.vstack([f, h])
            if norm:
                mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
                x = (x - mean) / (variance + 1e-6).sqrt() * prompts.norm.weight + prompts.norm.bias
            x = visual.ln_post(x)
            pooled = (x[0] if pool == "tok" else x[1:].mean(dim=0)) @ visual.proj
            feature = pooled / pooled.norm()
            torch.testing.assert_close(model.image(patches)[i], feature, rtol=0, atol=1e-5)


def test_text_context_replaces_the_placeholder(tiny_config: ModelConfig) -> None:
    """The learned vectors stand between start of text and the class words, the same for both classes."""
    model = make(tiny_config)
    clip, prompt = model.clip, model.text_prompt
    with torch.inference_mode():
        for row, feature in zip(prompt.tokens, model.encode_quality(), strict=True):
            embedded = clip.token_embedding(row)
            embedded[1:5] = prompt.ctx
            x = clip.transformer((embedded + clip.positional_embedding)[None], clip.attn_mask)[0]
            wanted = clip.ln_final(x)[int(row.argmax())] @ clip.text_projection
            torch.testing.assert_close(feature, wanted / wanted.norm(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_ctx", [0, 1, 4, 6])
def test_any_number_of_context_vectors(tiny_config: ModelConfig, n_ctx: int) -> None:
    """Every number of context vectors, none included, gives two features of length 1."""
    model = make(with_prompts(tiny_config, n_ctx=n_ctx))
    assert model.text_prompt.ctx.shape == (n_ctx, 32)
    torch.testing.assert_close(model.text_features.norm(dim=1), torch.ones(2))


def test_prompts_that_do_not_fit_are_refused(tiny_config: ModelConfig) -> None:
    """Prompts longer than the text tower are an error: cut off, all classes would read the same."""
    with pytest.raises(ConfigError, match="high quality"):
        QualityCLIP(with_prompts(tiny_config, n_ctx=20)).encode_quality()
    with pytest.raises(ConfigError, match="a photo of a"):
        short = Backbone(variant(text={"context_length": 16}))
        QualityCLIP(dataclasses.replace(tiny_config, backbone=short)).encode_scenes()


def test_prompts_start_as_the_method_says(tiny_config: ModelConfig) -> None:
    """Context is N(0, 0.02^2); visual prompts are uniform within sqrt(6 / (3 patch^2 + width))."""
    torch.manual_seed(0)
    model = QualityCLIP(with_prompts(tiny_config, n_visual=100), unfolded_prompts=True)
    assert model.visual_prompts is not None and model.visual_prompts.proj is not None
    tokens, bound = model.visual_prompts.tokens, (6 / (3 * 16**2 + 32)) ** 0.5
    assert tokens.shape == (3, 100, 32) and model.visual_prompts.proj.weight.shape == (32, 32)
    assert 0.95 * bound < tokens.abs().max() <= bound
    assert tokens.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert model.text_prompt.ctx.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.visual_prompts.dropout.p == 0.1


def test_fold_leaves_the_outputs(tiny_config: ModelConfig, patches: Tensor) -> None:
    """Multiplying the shared linear map into the prompts removes it and changes no output."""
    model = make(tiny_config, unfolded=True)
    prompts = model.visual_prompts
    assert prompts is not None and prompts.proj is not None
    with torch.inference_mode():
        before = model(patches)
    prompts.fold()
    assert prompts.proj is None and "visual_prompts.proj.weight" not in model.state_dict()
    with torch.inference_mode():
        assert torch.equal(model(patches), before)
    prompts.fold()
    with torch.inference_mode():
        assert torch.equal(model(patches), before)


def test_dropout_acts_in_training_only(tiny_config: ModelConfig, patches: Tensor) -> None:
    """A new model is in eval mode and repeatable; in training mode prompts are dropped at random."""
    model = make(tiny_config)
    with torch.inference_mode():
        assert torch.equal(model(patches), model(patches))
        model.train()
        assert not torch.equal(model(patches), model(patches))


# ------------------------------------------------------------------ trunk and head


@pytest.mark.parametrize("adapted", [0, 1, 2, 3, 4])
def test_trunk_and_head_make_the_whole(tiny_config: ModelConfig, patches: Tensor, adapted: int) -> None:
    """Wherever the tower is cut, trunk and head give the features of the whole."""
    whole = make(dataclasses.replace(tiny_config, adapted_blocks=2))
    model = make(dataclasses.replace(tiny_config, adapted_blocks=adapted))
    assert model.image.trunk_blocks == max(0, 3 - adapted)
    with torch.inference_mode():
        tokens = model.image.trunk(patches)
        assert tokens.shape == (5, 5, 32)
        torch.testing.assert_close(model.image.head(tokens), whole.image(patches), rtol=0, atol=1e-6)


def test_adapted_names(tiny_config: ModelConfig) -> None:
    """Stage 2 adapts the last blocks of both towers and their final norms, and nothing else."""
    clip = make(tiny_config).clip
    names = adapted_names(clip, 1)
    groups = {name.rsplit(".resblocks.", 1)[0] + ":" + name.split("resblocks.")[-1][:1] for name in names}
    blocks = {g for g in groups if "transformer" in g}
    assert blocks == {"transformer:1", "visual.transformer:2"}
    others = {name for name in names if "resblocks" not in name}
    assert others == {f"{norm}.{part}" for norm in ("ln_final", "visual.ln_post") for part in ("weight", "bias")}
    everything = adapted_names(clip, 99)
    assert len(everything) == len([n for n, _ in clip.named_parameters() if "resblocks" in n]) + 4
    assert adapted_names(clip, 0) == sorted(others, key=everything.index)


def test_gradients_reach_the_prompts(tiny_config: ModelConfig, patches: Tensor) -> None:
    """The loss moves the context and the prompts of every block; stored text features are constants."""
    model = make(tiny_config)
    logits = model.quality_logits(model.image(patches), model.encode_quality())
    quality_loss(logits, torch.linspace(0, 1, 5)).backward()
    assert model.visual_prompts is not None
    ctx, tokens = model.text_prompt.ctx.grad, model.visual_prompts.tokens.grad
    assert ctx is not None and (ctx.abs().sum(dim=1) > 0).all()
    assert tokens is not None and (tokens.abs().sum(dim=(1, 2)) > 0).all()
    model.zero_grad()
    quality_loss(model(patches), torch.linspace(0, 1, 5)).backward()
    assert model.text_prompt.ctx.grad is None


# ---------------------------------------------------------------- logits and loss


def test_equation_2_in_numpy(tiny_config: ModelConfig, patches: Tensor) -> None:
    """p(high) is the softmax over <g(q), f> / tau of the two classes, and p(high) + p(low) = 1."""
    model = make(tiny_config)
    with torch.inference_mode():
        f = model.image(patches).double().numpy()
        logits = model(patches)
    g = model.text_features.double().numpy()
    similarity = np.exp(2.5) * np.array([[np.dot(a, b) for b in g] for a in f])
    np.testing.assert_allclose(logits.numpy(), similarity, atol=1e-4)
    e = np.exp(similarity)
    np.testing.assert_allclose(p_high(logits).numpy(), e[:, 0] / e.sum(axis=1), atol=1e-5)
    torch.testing.assert_close(p_high(logits) + p_high(logits.flip(1)), torch.ones(5))
    np.testing.assert_allclose(np.linalg.norm(f, axis=1), 1, atol=1e-6)


def test_p_high_of_extreme_logits() -> None:
    """Large logits neither overflow nor leave 0..1."""
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [100.0, 100.0], [1.0, 0.0]])
    torch.testing.assert_close(p_high(logits), torch.tensor([1.0, 0.0, 0.5, 0.731059]))


def test_equation_3_in_numpy() -> None:
    """The loss is the binary cross-entropy of p(high), and stays finite where p is 0 or 1 in floats."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(0, 3, (20, 2)), rng.uniform(0, 1, 20)
    p = 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))
    by_hand = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert quality_loss(torch.tensor(logits), torch.tensor(y)).item() == pytest.approx(by_hand, abs=1e-9)
    extreme = quality_loss(torch.tensor([[900.0, -900.0]]), torch.tensor([0.0]))
    assert extreme.item() == pytest.approx(1800)


@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_loss_pulls_towards_the_label(label: float) -> None:
    """Descending the loss raises p(high) below the label and lowers it above; at the label it is flat."""
    for margin in (-2.0, 0.0, 2.0):
        logits = torch.tensor([[margin, 0.0]], requires_grad=True)
        quality_loss(logits, torch.tensor([label])).backward()
        assert logits.grad is not None
        wanted = p_high(logits.detach()).item() - label
        torch.testing.assert_close(logits.grad, torch.tensor([[wanted, -wanted]]))


def test_quality_scale_spreads_quality_and_leaves_scenes(tiny_config: ModelConfig, tiny_weights: Weights) -> None:
    """A factor on the quality logits scales them exactly; scene logits and the order of patches stay."""
    prompts = dataclasses.replace(tiny_config.prompts, quality_scale=2.5)
    config = dataclasses.replace(tiny_config, prompts=prompts)
    plain, scaled = tiny_weights.build(), dataclasses.replace(tiny_weights, config=config).build()
    features = plain.image(torch.rand(3, 3, 32, 32)).detach()
    assert torch.allclose(scaled.quality_logits(features), 2.5 * plain.quality_logits(features))
    assert torch.equal(scaled.scene_logits(features), plain.scene_logits(features))


def test_scene_logits(tiny_config: ModelConfig, patches: Tensor) -> None:
    """There is one logit for each of the nine scenes, by the scene features given or stored."""
    model = make(tiny_config)
    with torch.inference_mode():
        features = model.image(patches)
        logits = model.scene_logits(features)
        assert logits.shape == (5, len(SCENES)) == (5, 9)
        torch.testing.assert_close(logits, model.scene_logits(features, model.encode_scenes()))
        by_hand = np.exp(2.5) * features.numpy() @ model.scene_features.numpy().T
    np.testing.assert_allclose(logits.numpy(), by_hand, atol=1e-4)
    assert len({tuple(row) for row in model.text_prompt.scene_tokens.tolist()}) == 9


def test_stored_text_features_equal_recomputed_ones(tiny_config: ModelConfig) -> None:
    """The stored features are those of the current text tower after `refresh_text`, and not before."""
    model = make(tiny_config)
    with torch.no_grad():
        assert torch.equal(model.text_features, model.encode_quality())
        assert torch.equal(model.scene_features, model.encode_scenes())
        model.text_prompt.ctx.mul_(-2.0)
        assert not torch.allclose(model.text_features, model.encode_quality())
        scenes = model.scene_features
        model.refresh_text()
        assert torch.equal(model.text_features, model.encode_quality())
        assert torch.equal(model.scene_features, scenes)
    assert not model.text_features.requires_grad


# --------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("name", "layers", "width", "dim", "quick"),
    [
        ("ViT-B-16-quickgelu", 12, 768, 512, True),
        ("ViT-B-32", 12, 768, 512, False),
        ("ViT-L-14", 24, 1024, 768, False),
    ],
)
def test_named_architectures_build(name: str, layers: int, width: int, dim: int, quick: bool) -> None:
    """The usual CLIPs build as two plain towers of the known sizes (without memory: on the meta device)."""
    with torch.device("meta"):
        clip, native = build_clip(architecture(name)), CLIP(**architecture(name))
    assert not clip.training
    assert {k: v.shape for k, v in clip.state_dict().items()} == {
        k: v.shape for k, v in native.state_dict().items()
    }
    depths = len(clip.visual.transformer.resblocks), len(clip.transformer.resblocks)
    assert depths == (layers, 12)
    assert clip.visual.class_embedding.shape == (width,) and clip.visual.proj.shape == (width, dim)
    gelu = type(clip.visual.transformer.resblocks[0].mlp.gelu).__name__
    assert gelu == ("QuickGELU" if quick else "GELU")


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_named_architectures_score(name: str) -> None:
    """One block of each named architecture, with its true widths, goes through the whole model."""
    cfg = architecture(name)
    cfg["vision_cfg"] = {**cfg["vision_cfg"], "layers": 1, "image_size": 56 if "14" in name else 64}
    cfg["text_cfg"] = {**cfg["text_cfg"], "layers": 1, "vocab_size": 600}
    config = ModelConfig("m", Backbone(cfg), PromptConfig(n_visual=2))
    model = QualityCLIP(config)
    model.refresh_text()
    size = cfg["vision_cfg"]["image_size"]
    with torch.inference_mode():
        p = p_high(model(torch.zeros(2, 3, size, size)))
    assert p.shape == (2,) and torch.isfinite(p).all()


def test_unknown_architecture() -> None:
    """A name that open_clip does not know is an error that repeats it."""
    with pytest.raises(ConfigError, match="ViT-Z-99"):
        architecture("ViT-Z-99")


@pytest.mark.parametrize(
    ("cfg", "named"),
    [
        (variant({"timm_model_name": "vit_tiny_patch16_224"}), "vision_cfg.timm_model_name"),
        (variant({"attentional_pool": True}), "vision_cfg.attentional_pool"),
        (variant({"patch_dropout": 0.5}), "vision_cfg.patch_dropout"),
        (variant({"pool_type": "none"}), "vision_cfg.pool_type"),
        (variant({"layers": [3, 4, 6, 3]}), "a ResNet"),
        (variant(text={"hf_model_name": "roberta-base"}), "text_cfg.hf_model_name"),
        (variant(text={"embed_cls": True}), "text_cfg.embed_cls"),
        (variant(text={"proj_bias": True}), "text_cfg.proj_bias"),
        (variant(text={"pool_type": "last"}), "text_cfg.pool_type"),
        (variant({"wdith": 3}), "wdith"),
        (variant(colour="blue"), "colour"),
        ({"embed_dim": 16}, "configuration"),
        ({}, "configuration"),
    ],
)
def test_unsupported_towers(cfg: dict[str, Any], named: str) -> None:
    """A tower that is no native ViT or text transformer is refused by the entry that asks for it."""
    with pytest.raises(ConfigError, match=named):
        build_clip(cfg)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32"])
def test_named_architectures_of_other_kinds_are_refused(name: str) -> None:
    """open_clip's other families are refused before anything is built."""
    with pytest.raises(ConfigError):
        build_clip(architecture(name))
