"""Scoring on a Ray cluster: the same rows as without, whatever happens to the workers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grmp_score.errors import MissingExtraError
from grmp_score.weights import Weights

from .conftest import make_photo

TESTS = Path(__file__).parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason="needs the extra [ray]",
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `ray_job` found out on a local cluster of two workers; nothing of it went to stdout."""
    from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig

    from .conftest import TINY_CLIP, random_weights

    folder = tmp_path_factory.mktemp("ray")
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        prompts=PromptConfig(n_visual=3),
        preprocess=Preprocess(patch_size=32, patches=4),
        adapted_blocks=2,
    )
    random_weights(config).save(folder / "model")
    (folder / "photos").mkdir()
    for i in range(30):
        make_photo(70 + i, 60, seed=i).save(folder / "photos" / f"photo{i:02}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    arguments = [str(folder / name) for name in ("model", "photos", "out.json")]
    done = subprocess.run(
        [sys.executable, str(TESTS / "ray_job.py"), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return {**result, "stdout": done.stdout, "was killed": (folder / "out.killed").exists()}


@needs_ray
def test_paths_score_as_without_ray(job: dict[str, Any]) -> None:
    """Every field of every score is the local one, in the order of the input; odd names and files too."""
    assert job["remote"] == job["local"] and len(job["remote"]) == 32
    assert [s["path"] for s in job["remote"]] == job["names"]
    assert [s["error"] is None for s in job["remote"]] == [True] * 30 + [False] * 2
    assert len({s["value"] for s in job["remote"]}) > 25
    assert job["none"] == []


@needs_ray
def test_a_killed_worker_costs_nothing_but_time(job: dict[str, Any]) -> None:
    """A worker process that is killed in the middle of its work loses no row and scores none twice."""
    assert job["was killed"]
    assert job["killed"] == job["local"]


@needs_ray
def test_an_image_that_kills_every_worker_ends_the_job(job: dict[str, Any]) -> None:
    """The job does not go on for ever, and the error says what happened."""
    assert "worker died 4 times" in job["killing"]


@needs_ray
@pytest.mark.parametrize("column", ["path", "bytes", "image"])
def test_datasets_get_columns(job: dict[str, Any], column: str) -> None:
    """Paths, encoded bytes and arrays give the same numbers; other columns stay; what is no image is a value."""
    for i, row in enumerate(job[column]):
        assert tuple(row) == ("n", "score", "standard_error", "label", "percentile", "error")
        assert row["n"] == i
        if i < 6:
            local = job["local"][i]
            assert (row["score"], row["standard_error"]) == (local["value"], local["standard_error"])
            assert row["error"] is None
        else:
            assert row["score"] is None and row["standard_error"] is None and row["error"]
    assert len(job[column]) == (6 if column == "image" else 8)
    types = job[f"{column} schema"]
    assert [types[name] for name in ("score", "label", "error")] == ["double", "double", "string"]


@needs_ray
def test_mistakes_are_told_before_anything_runs(job: dict[str, Any]) -> None:
    """A wrong column, one that would be replaced, no worker, no batch."""
    assert "no column 'file'" in job["no column"] and "'path', 'n'" in job["no column"]
    assert "a column 'score' already" in job["taken"]
    assert "at least one worker" in job["no worker"]
    assert "batch_size must be positive" in job["batch"]


@needs_ray
def test_stdout_is_for_results(job: dict[str, Any]) -> None:
    """Neither Ray nor the scorer prints there."""
    assert job["stdout"] == ""


def test_without_ray_there_is_a_hint(tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    from grmp_score.ray import score_paths

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"grmp_score\[ray\]"):
        next(score_paths(["a.png"], model=tiny_weights))
