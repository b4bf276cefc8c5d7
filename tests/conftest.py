"""What several test files share: the local Hub, a tiny model with random weights, and pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.model.patches import make_patches
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.weights.folder import Weights, adapter_of

from .hub_server import hub  # noqa: F401 (a fixture)
from .warm import Warm

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "vocab_size": 600, "context_length": 24},
}

# Properties are tried on few examples; `pytest --hypothesis-profile=thorough` takes minutes and many.
settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("quick")

Photo = Callable[..., Image.Image]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are fastest on one thread, and two test runs side by side do not slow each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def warm() -> Warm:
    """Starts processes that need not import torch and open_clip first."""
    return Warm()


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A model of some 50,000 parameters that takes 32x32 patches."""
    return ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        prompts=PromptConfig(n_visual=3),
        preprocess=Preprocess(patch_size=32, patches=4),
        adapted_blocks=2,
    )


@pytest.fixture
def tiny_weights(tiny_config: ModelConfig) -> Weights:
    """Random tensors for `tiny_config`, always the same; the prompts and the adapted blocks are the adapter."""
    return random_weights(tiny_config)


def patch_tensor(image: Image.Image, preprocess: Preprocess) -> torch.Tensor:
    """What `make_patches` cuts, [P, 3, S, S], for torch."""
    return torch.from_numpy(make_patches(image, preprocess))


def random_weights(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
    """Weights with every tensor drawn from `seed`, wide enough that scores differ between pictures."""
    model = QualityCLIP(config)
    randomise(model, seed)
    adapted = [f"clip.{name}" for name in adapted_blocks(model)]
    adapter = adapter_of(model, adapted, dtype=dtype)
    base = {f"clip.{k}": v for k, v in model.clip.state_dict().items()}
    backbone = {k.removeprefix("clip."): v.clone() for k, v in base.items() if k not in adapter}
    return Weights(config, adapter, backbone, card="---\nlicense: mit\n---\n\n# tiny\n", origin="tiny")


def adapted_blocks(model: QualityCLIP) -> list[str]:
    """Names, inside the CLIP, of what few-shot training adapts."""
    from grmp_score.model.clip import adapted_names

    return adapted_names(model.clip, model.config.adapted_blocks)


def randomise(model: QualityCLIP, seed: int = 0) -> QualityCLIP:
    """Fill all parameters by `seed` and refresh the stored text features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("logit_scale"):
                parameter.fill_(2.5)
            elif parameter.ndim == 1:
                is_gain = name.endswith(("weight", "gamma"))
                parameter.copy_(0.2 * noise + (1.0 if is_gain else 0.0))
            else:
                parameter.copy_(noise * min(0.5, parameter.shape[1:].numel() ** -0.5))
    model.refresh_text()
    return model


@pytest.fixture
def photo() -> Photo:
    """`photo(width, height, seed)` makes a photo-like picture: a gradient, soft shapes, texture and noise."""
    return make_photo


def make_photo(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """The pictures of the fixture `photo`, for places that a fixture does not reach."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) / max(width, height)
    values = np.stack([a * x + b * y for a, b in rng.uniform(0, 0.6, (3, 2))], axis=-1)
    for _ in range(6):
        cx, cy, radius = rng.uniform(0, 1, 3)
        blob = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (0.02 + 0.1 * radius**2))
        values += blob[..., None] * rng.uniform(-0.5, 0.7, 3)
    fx, fy = rng.uniform(20, 120, 2)
    values += 0.1 * np.sin(fx * x + fy * y)[..., None] + rng.normal(0, 0.03, values.shape)
    return Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))


# The fixtures of the command line; below, because they are made of what stands above.
from .cli_tools import bundled_fixture, model_fixture, photos_fixture  # noqa: E402, F401
