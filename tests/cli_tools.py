"""What the tests of the command line share: the command in this process and as a real one, a model, photos."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from grmp_score import weights
from grmp_score.cli import main as main_module
from grmp_score.cli.main import cli
from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.weights.folder import Weights

from .conftest import TINY_CLIP, make_photo, randomise

ROOT = str(Path(main_module.__file__).parents[2])
MAIN = "from grmp_score.cli.main import main; main()"
COMMAND = [sys.executable, "-c", MAIN]


@pytest.fixture(scope="session", name="model")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of tiny weights with a complete backbone."""
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        prompts=PromptConfig(n_visual=2),
        preprocess=Preprocess(patch_size=32, patches=3),
        adapted_blocks=1,
        training={"stage_1": {"epochs": 1}, "note": "random tensors"},
        results={"srcc": 0.5},
    )
    net = randomise(QualityCLIP(config))
    backbone = dict(net.clip.state_dict())
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return str(Weights(config, weights.adapter_of(net, []), backbone).save(folder))


@pytest.fixture(name="bundled")
def bundled_fixture(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of bundled models, with the tiny one in place of "mini"."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    (folder / "mini").symlink_to(model, target_is_directory=True)
    monkeypatch.setattr("grmp_score.weights.folder.BUNDLED", folder)
    return folder


@pytest.fixture(name="photos")
def photos_fixture(tmp_path: Path) -> Path:
    """Three photos, one of them below, next to hidden and other files."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / ".trash").mkdir()
    for i, name in enumerate(("b.png", "a.JPG", "below/c.webp", ".hidden.png", ".trash/d.png")):
        make_photo(70 + i, 50, seed=i).save(folder / name)
    return folder


def with_bundled(folder: Path, code: str) -> str:
    """The code of a process of its own in which the bundled models are those of `folder`."""
    return f"import pathlib, grmp_score.weights.folder as f\nf.BUNDLED = pathlib.Path({str(folder)!r})\n{code}"


def run(
    *args: str | Path,
    columns: int = 200,
    env: dict[str, str] | None = None,
    charset: str = "utf-8",
    stdin: bytes | None = None,
) -> Result:
    """The command in this process; whatever is not an exit code is raised."""
    environment = {"COLUMNS": str(columns), **(env or {})}
    result = CliRunner(charset=charset).invoke(cli, [str(a) for a in args], env=environment, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_jsonl(*args: str | Path) -> tuple[list[dict[str, Any]], Result]:
    """The command with JSON lines, parsed."""
    result = run("--format", "jsonl", *args)
    return [json.loads(line) for line in result.stdout.splitlines()], result


def process(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a real process that never asks the network."""
    env = {**os.environ, "PYTHONPATH": ROOT, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([*COMMAND, *map(str, args)], env=env, capture_output=True, timeout=300)


def assert_usage_error(result: Result, pattern: str, code: int = 2) -> None:
    """The exit code, nothing on stdout, one line that says what is wrong, no traceback."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0]
    assert re.search(pattern, errors[0]), errors[0]
