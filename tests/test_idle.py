"""The model is made when the first image needs it: a run that finds everything in its cache never waits for it."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from grmp_score import weights
from grmp_score.errors import ConfigError, WeightsError
from grmp_score.pipeline.cache import ScoreCache
from grmp_score.scorer import Scorer
from grmp_score.weights.folder import ADAPTER, BACKBONE, CONFIG, Weights

from .cli_tools import assert_usage_error, process, run, run_jsonl
from .conftest import Photo, make_photo
from .hub_server import HubServer

HEAVY = {"torch", "open_clip", "torchvision"}


def imported(result: subprocess.CompletedProcess[bytes]) -> set[str]:
    """The heavy packages that a process imported, of the lines that Python writes about every import."""
    lines = [line for line in result.stderr.decode().splitlines() if line.startswith("import time:")]
    assert any(line.split("|")[-1].strip() == "grmp_score.cli.main" for line in lines)
    return {line.split("|")[-1].strip().split(".")[0] for line in lines} & HEAVY


def traced(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process that tells on stderr what it imports."""
    return process(*args, PYTHONPROFILEIMPORTTIME="1", **environment)


@pytest.mark.parametrize("options", [(), ("--trust-mtime",), ("--sort", "score", "--explain", "")])
def test_a_cached_run_imports_no_torch(model: str, photos: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """By content or by time, with a damaged file among the images; only what must be computed needs the model."""
    (photos / "broken.jpg").write_bytes(b"no image")
    common: list[str | Path] = ["-m", model, "-f", "jsonl", "--cache", tmp_path / "c.sqlite"]
    first = traced(*common, photos)
    assert imported(first) == {"torch", "open_clip"} | ({"torchvision"} & imported(first))
    explain = bool(options) and "--explain" in options
    options = tuple(str(tmp_path / "why") if option == "" else option for option in options)
    again = traced(*common, *options, photos)
    assert (first.returncode, again.returncode) == (1, 1)
    assert sorted(again.stdout.splitlines()) == sorted(first.stdout.splitlines())
    assert (imported(again) == set()) is not explain
    make_photo(50, 40, seed=9).save(photos / "new.png")
    more = traced(*common, photos)
    assert len(more.stdout.splitlines()) == 5 and set(first.stdout.splitlines()) < set(more.stdout.splitlines())
    assert "torch" in imported(more)


def test_the_bundled_model_and_resuming(photos: Path, tmp_path: Path) -> None:
    """The default model is known without being made, and results are continued from the cache alone."""
    cache, out = tmp_path / "c.sqlite", tmp_path / "out.jsonl"
    assert run("--cache", cache, "-o", out, "-f", "jsonl", photos).exit_code == 0
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[1][:20])
    result = traced("--cache", cache, "--resume", out, photos)
    assert (result.returncode, imported(result)) == (0, set())
    assert out.read_bytes().splitlines(keepends=True) == lines


def test_weights_of_the_hub(hub: HubServer, tiny_weights: Weights, photos: Path, tmp_path: Path) -> None:
    """A repository that has been fetched once, and whose base weights lie in another one."""
    folder = tiny_weights.save(tmp_path / "w")
    config = json.loads((folder / CONFIG).read_text())
    config["backbone"] |= {"repo": "org/base", "filename": "base.safetensors"}
    hub.add_repo("org/base", {"base.safetensors": (folder / BACKBONE).read_bytes()})
    hub.add_repo("org/camera", {CONFIG: json.dumps(config).encode(), ADAPTER: (folder / ADAPTER).read_bytes()})
    common: list[str | Path] = ["-m", "org/camera", "-f", "jsonl", "--cache", tmp_path / "c.sqlite", photos]
    rows, _ = run_jsonl(*common)
    result = traced(*common, HF_HOME=str(tmp_path / "hf"), HF_HUB_CACHE=str(tmp_path / "hf" / "hub"))
    assert (result.returncode, imported(result)) == (0, set())
    assert [json.loads(line) for line in result.stdout.splitlines()] == rows


def test_the_scorer_makes_its_model_once(tiny_weights: Weights, photo: Photo) -> None:
    """On first use, by however many threads at the same time; neither settings nor checksum need it."""
    scorer = Scorer(tiny_weights, device="cpu")
    assert scorer.checksum == tiny_weights.checksum() and scorer.settings_key and not scorer.is_built
    start, models = threading.Barrier(8), []

    def use() -> None:
        start.wait()
        models.append(scorer.model)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scorer.is_built and len(models) == 8 and all(model is scorer.model for model in models)
    assert Scorer(tiny_weights, device="cpu").score(photo()) == scorer.score(photo())


@pytest.mark.parametrize("built", [False, True])
def test_a_scorer_can_be_copied_and_sent(tiny_weights: Weights, tmp_path: Path, photo: Photo, built: bool) -> None:
    """Before and after its model is made, with tensors in memory and in files."""
    for source in (tiny_weights, weights.load(tiny_weights.save(tmp_path / "w"))):
        scorer = Scorer(source, device="cpu")
        if built:
            _ = scorer.model
        for other in (copy.deepcopy(scorer), pickle.loads(pickle.dumps(scorer))):
            assert other.score(photo()) == scorer.score(photo()) and other.checksum == scorer.checksum


def test_a_checksum_once_given_is_that_of_the_model(tiny_weights: Weights, photo: Photo) -> None:
    """Tensors that change between the checksum and the model are refused; before any checksum they may."""
    adapter = {name: tensor.clone() for name, tensor in tiny_weights.adapter.items()}
    source = dataclasses.replace(tiny_weights, adapter=adapter)
    told, untold = Scorer(source, device="cpu"), Scorer(source, device="cpu")
    before = told.checksum
    adapter["text_features"] += 1
    with pytest.raises(WeightsError, match=f"no longer those of the checksum {before}"):
        told.score(photo())
    assert not told.is_built
    assert untold.score(photo()).value is not None and untold.checksum != before


@pytest.mark.parametrize("damage", ["missing", "mis-shaped"])
def test_tensors_that_make_no_model(
    tiny_weights: Weights, photos: Path, tmp_path: Path, photo: Photo, damage: str
) -> None:
    """They are refused before anything is written, and by the first image where a cache might have had it."""
    adapter = dict(tiny_weights.adapter)
    adapter["text_features"] = torch.zeros(3, 16)
    if damage == "missing":
        del adapter["text_features"]
    folder = dataclasses.replace(tiny_weights, adapter=adapter).save(tmp_path / "w")
    scorer = Scorer.from_pretrained(folder)
    for _ in range(2):
        with pytest.raises(WeightsError, match=rf"{damage} tensors: text_features") as caught:
            scorer.score(photo())
        assert caught.value.path == str(folder)
    with ScoreCache(tmp_path / "c.sqlite") as cache, pytest.raises(WeightsError, match=damage):
        list(scorer.score_many([str(photos / "b.png")], cache=cache))
    out = tmp_path / "out.csv"
    for options in ([], ["--cache", tmp_path / "c.sqlite"]):
        assert_usage_error(run("-m", folder, "-f", "csv", "-o", out, *options, photos), f"{damage} tensors")
        assert not out.exists() and not out.with_name("out.csv.partial").exists()


@pytest.mark.parametrize("name", [ADAPTER, BACKBONE])
def test_damaged_files_are_refused_at_once(tiny_weights: Weights, tmp_path: Path, name: str) -> None:
    """What can be seen without a model is not left for later."""
    folder = tiny_weights.save(tmp_path / "w")
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a readable safetensors file") as caught:
        Scorer.from_pretrained(folder)
    assert caught.value.path == str(folder / name)


def test_settings_are_refused_at_once(tiny_weights: Weights) -> None:
    """Wrong arguments too."""
    for options in ({"device": "gpu0"}, {"batch_size": 0}, {"patches": 0}, {"workers": 0}, {"max_pixels": 0}):
        with pytest.raises(ConfigError):
            Scorer(tiny_weights, **options)  # type: ignore[arg-type]


def test_making_a_scorer_imports_no_torch(model: str) -> None:
    """Nor do its checksum and its settings; its model does."""
    code = """
import sys
from grmp_score import Scorer
for scorer in (Scorer(device="cpu"), Scorer.from_pretrained(sys.argv[1])):
    print(len(scorer.checksum), len(scorer.settings_key), scorer.is_built, "torch" in sys.modules)
scorer.model
print("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["16 32 False False"] * 2 + ["True"]
