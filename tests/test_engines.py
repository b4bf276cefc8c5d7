"""ONNX Runtime and torch compute the same scores, and a choice that cannot be is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from grmp_score import Scorer, ScorerOptions
from grmp_score.config import Backbone, ModelConfig, PromptConfig
from grmp_score.errors import ConfigError, WeightsError
from grmp_score.pipeline import engines
from grmp_score.pipeline.engines import OnnxEngine, TorchEngine, cores, may_have_gpu
from grmp_score.weights.folder import Weights

from .cli_tools import assert_usage_error, run
from .conftest import TINY_CLIP, make_photo, random_weights

ROOT = Path(__file__).parents[1]

#: Changes of the image tower, of the rest of the model configuration, and of the prompts.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], PromptConfig]] = {
    "CLIP": ({}, {"quick_gelu": True}, PromptConfig()),
    "official": ({}, {"quick_gelu": True}, PromptConfig(n_visual=5, prompt_norm=True)),
    "prompts, mean token": ({"pool_type": "avg"}, {}, PromptConfig(n_visual=3)),
    "mean token, norm after": ({"pool_type": "avg", "final_ln_after_pool": True}, {}, PromptConfig()),
    "DINOv2": (
        {"ls_init_value": 1e-5, "no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}},
        {"readout_blocks": [1, 3]},
        PromptConfig(n_visual=2, quality_scale=0.5),
    ),
    "narrow": ({"mlp_ratio": 2.0, "head_width": 8}, {"readout_blocks": 2}, PromptConfig()),
}


@pytest.fixture(params=MODELS)
def weights(request: pytest.FixtureRequest, tiny_config: ModelConfig) -> Weights:
    """Random weights of every kind of tower."""
    vision, model, prompts = MODELS[request.param]
    model_cfg = {**TINY_CLIP, "vision_cfg": {**TINY_CLIP["vision_cfg"], **vision}, **model}  # type: ignore[dict-item]
    return random_weights(dataclasses.replace(tiny_config, backbone=Backbone(model_cfg=model_cfg), prompts=prompts))


def patches(n: int = 6) -> np.ndarray:
    """Noise [n, 3, 32, 32]."""
    return np.random.default_rng(0).normal(size=(n, 3, 32, 32)).astype(np.float32)


def test_every_tower_gives_torchs_values(weights: Weights) -> None:
    """To 1e-5, by ONNX Runtime's attention and, self-contained, by ONNX's own operators."""
    wanted = TorchEngine(weights.build(), torch.device("cpu"), "float32", 1).p_high(patches())
    assert np.std(wanted) > 0.01
    assert OnnxEngine(weights.graph(), "float32", 2).p_high(patches()) == pytest.approx(wanted, abs=1e-5)
    portable = weights.graph(portable=True).self_contained()
    assert {opset.domain for opset in portable.opset_import} == {""}
    session = onnxruntime.InferenceSession(portable.SerializeToString(), providers=["CPUExecutionProvider"])
    p_high, logits = session.run(["p_high", "logits"], {"patches": patches()})
    assert p_high.tolist() == pytest.approx(wanted, abs=1e-5) == engines.p_high(logits)


@pytest.mark.parametrize("precision", ["float32", "int8", "bfloat16"])
def test_a_patch_has_its_value_in_any_company(tiny_weights: Weights, precision: Any) -> None:
    """Alone, with others, by any number of threads: the same bits."""
    alone = Scorer(tiny_weights, device="cpu", precision=precision, threads=1).engine
    together = Scorer(tiny_weights, device="cpu", precision=precision, threads=3).engine
    values = together.p_high(patches())
    assert [alone.p_high(patch[None])[0] for patch in patches()] == values
    assert values == together.p_high(patches()[::-1])[::-1]


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_lower_precision_is_near(tiny_weights: Weights, precision: Any) -> None:
    """And is not the same."""
    exact = np.array(Scorer(tiny_weights, device="cpu").engine.p_high(patches(40)))
    engine = Scorer(tiny_weights, device="cpu", precision=precision).engine
    difference = np.abs(np.array(engine.p_high(patches(40))) - exact)
    assert engine.precision == precision and 0 < difference.max() < 0.05 and difference.mean() < 0.01


def test_which_engine(tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime on CPUs; torch where it is asked for, for bfloat16 and where there is a GPU."""

    def name(**options: Any) -> tuple[str, str, str]:
        engine = Scorer(tiny_weights, **options).engine
        return engine.name, engine.device, engine.precision

    monkeypatch.setattr("grmp_score.scorer.may_have_gpu", lambda: False)
    assert name() == name(device="cpu") == ("onnxruntime", "cpu", "float32")
    assert name(precision="int8") == ("onnxruntime", "cpu", "int8")
    assert name(engine="torch", device="cpu") == ("torch", "cpu", "float32")
    assert name(precision="bfloat16", device="cpu") == ("torch", "cpu", "bfloat16")
    monkeypatch.setattr("grmp_score.scorer.may_have_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert name() == ("onnxruntime", "cpu", "float32")  # torch was asked, and knows of none
    monkeypatch.setattr("grmp_score.pipeline.inference.pick_device", lambda _: torch.device("meta"))
    assert name() == ("torch", "meta", "float32")
    assert name(engine="onnxruntime") == ("onnxruntime", "cpu", "float32")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "tensorrt"}, "engine must be one of auto, onnxruntime, torch"),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, int8"),
        ({"engine": "torch", "precision": "int8"}, "torch does not compute in int8"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "onnxruntime does not compute in bfloat16"),
        ({"engine": "onnxruntime", "device": "cuda"}, "onnxruntime computes on the CPU, not on 'cuda'"),
        ({"precision": "int8", "device": "mps"}, "onnxruntime computes on the CPU, not on 'mps'"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_impossible_choices(options: dict[str, Any], reason: str) -> None:
    """One line says why."""
    with pytest.raises(ConfigError, match=reason):
        ScorerOptions(**options)


def test_tensors_are_checked(tiny_weights: Weights) -> None:
    """As torch does: missing, unknown and mis-shaped ones are named."""
    base, key = dict(tiny_weights.backbone), "visual.conv1.weight"
    changes: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in base.items() if k != key}, "missing tensors: clip.visual.conv1.weight"),
        (
            {**base, key: torch.zeros(1)},
            r"mis-shaped tensors: clip.visual.conv1.weight \(expected \[32, 3, 16, 16\]",
        ),
        ({**base, "visual.ln_pre.extra": torch.zeros(1)}, "unknown tensors: clip.visual.ln_pre.extra"),
    ]
    for backbone, reason in changes:
        with pytest.raises(WeightsError, match=reason):
            _ = Scorer(dataclasses.replace(tiny_weights, backbone=backbone), device="cpu").engine


def test_the_precision_is_part_of_checksum_and_cache_key(tiny_weights: Weights) -> None:
    """Rows tell it; float32 keeps its own, whatever computes it."""
    assert Scorer(tiny_weights, precision="int8").checksum == tiny_weights.checksum() + "-int8"
    assert Scorer(tiny_weights, engine="torch", device="cpu").checksum == tiny_weights.checksum()
    keys = {p: Scorer(tiny_weights, precision=p).settings_key for p in ("auto", "float32", "bfloat16", "int8")}  # type: ignore[arg-type]
    assert keys["auto"] == keys["float32"] == Scorer(tiny_weights, engine="torch").settings_key
    assert len(set(keys.values())) == 3


def test_p_high_is_a_softmax() -> None:
    """Of two logits, however far apart."""
    assert engines.p_high(np.array([[0, 0], [2, 1], [1e4, -1e4], [-1e4, 1e4]], dtype=np.float32)) == pytest.approx(
        [0.5, 1 / (1 + np.exp(-1)), 1.0, 0.0]
    )


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS, or those that the process may run on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("platform", "there", "expected"),
    [
        ("linux", "/dev/nvidiactl", True),
        ("linux", "/dev/null", False),
        ("win32", "C:/Windows/System32/nvcuda.dll", True),
        ("win32", "", False),
    ],
)
def test_who_may_have_a_gpu(monkeypatch: pytest.MonkeyPatch, platform: str, there: str, expected: bool) -> None:
    """Told by the driver's files."""
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("SYSTEMROOT", raising=False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == there)
    assert may_have_gpu() is expected


def test_a_score_needs_no_torch(tmp_path: Path) -> None:
    """The bundled model, from the command line: torch and open_clip are not imported."""
    make_photo(240, 230).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from grmp_score.cli.main import cli\n"
        "result = CliRunner().invoke(cli, ['score', sys.argv[1], '--device', 'cpu', '--patches', '1'])\n"
        "assert result.exit_code == 0, result.output\n"
        "print(sorted({'torch', 'open_clip', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_an_exported_model_needs_nothing_else(tmp_path: Path) -> None:
    """The example program scores with it; its metadata say how patches are cut."""
    assert run("export", "-o", str(tmp_path / "mini.onnx")).exit_code == 0
    photos = [ROOT / "examples" / "photos" / name for name in ("cat.jpg", "cat_noisy.jpg")]
    program = [sys.executable, ROOT / "examples" / "score_with_onnx.py", tmp_path / "mini.onnx", *photos]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    clean, noisy = (float(line.split()[0]) for line in done.stdout.splitlines())
    assert clean > noisy + 0.1
    session = onnxruntime.InferenceSession(tmp_path / "mini.onnx", providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["preprocess"]) == dataclasses.asdict(Scorer().preprocess) | {
        name: list(getattr(Scorer().preprocess, name)) for name in ("scales", "mean", "std")
    }
    assert json.loads(described["checksum"]) == Scorer().checksum
    assert list(json.loads(described["text_features"])) == ["high quality", "low quality"]
    assert_usage_error(run("export", "-o", tmp_path / "mini.pt"), "ends in .onnx")
    assert_usage_error(run("export", "-o", tmp_path / "mini.onnx"), "--overwrite")
