"""Scoring on a Ray cluster: the same rows as without, whatever happens to the workers."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grmp_score.config import Backbone, LabelScale, ModelConfig, Preprocess, PromptConfig
from grmp_score.errors import MissingExtraError
from grmp_score.weights.folder import Weights

from .conftest import TINY_CLIP, make_photo, random_weights

TESTS = Path(__file__).parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason="needs the extra [ray]",
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`job(part)`: what that part of `ray_job` found out; nothing of it went to stdout."""
    folder = tmp_path_factory.mktemp("ray")
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        prompts=PromptConfig(n_visual=3),
        preprocess=Preprocess(patch_size=32, patches=4),
        adapted_blocks=2,
        label_scale=LabelScale(1, 5),
        reference_percentiles={"clean": [i / 100 for i in range(101)]},
    )
    random_weights(config).save(folder / "model")
    (folder / "photos").mkdir()
    for i in range(30):
        make_photo(70 + i, 60, seed=i).save(folder / "photos" / f"photo{i:02}.png")
    (folder / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}

    @functools.cache
    def run(part: str) -> dict[str, Any]:
        arguments = [str(folder / name) for name in ("model", "photos", f"{part}.json")]
        command = [sys.executable, str(TESTS / "ray_job.py"), part, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        result: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
        return result

    return run


@needs_ray
def test_paths_score_as_without_ray(job: Callable[[str], dict[str, Any]]) -> None:
    """Every field of every score is the local one, in order, though a worker is killed in the middle of its work.

    Unreadable files and odd names are among them, and the cluster that was started for it is gone.
    """
    result = job("paths")
    assert result["killed"] and not result["still connected"]
    assert result["remote"] == result["local"] and len(result["remote"]) == 32
    assert [s["path"] for s in result["remote"]] == result["names"]
    assert ["error" not in s for s in result["remote"]] == [True] * 30 + [False] * 2
    assert len({s.get("value") for s in result["remote"]}) > 25
    assert all(s["label"] and s["percentile"] and s["content_hash"] for s in result["remote"][:30])


@pytest.mark.slow
@needs_ray
def test_an_image_that_kills_every_worker_ends_the_job(job: Callable[[str], dict[str, Any]]) -> None:
    """The job does not go on for ever, and the error says what happened."""
    assert "worker died 4 times" in job("killing")["error"]


@needs_ray
@pytest.mark.parametrize("column", ["path", "bytes", "image"])
def test_datasets_get_columns(job: Callable[[str], dict[str, Any]], column: str) -> None:
    """Paths, encoded bytes and arrays give the same numbers; other columns stay; what is no image is a value."""
    result = job("datasets")
    for i, row in enumerate(result[column]):
        assert tuple(row) == ("n", "score", "standard_error", "label", "percentile", "error")
        assert row["n"] == i
        numbers = [row[name] for name in ("score", "standard_error", "label", "percentile")]
        if i < 6:
            local = job("paths")["local"][i]
            assert numbers == [local[name] for name in ("value", "standard_error", "label", "percentile")]
            assert row["error"] is None
        else:
            assert numbers == [None] * 4 and row["error"]
    assert len(result[column]) == (6 if column == "image" else 8)
    types = result[f"{column} schema"]
    assert [types[name] for name in ("score", "label", "error")] == ["double", "double", "string"]


@needs_ray
def test_the_precision_of_a_scorer_is_that_of_the_workers(job: Callable[[str], dict[str, Any]]) -> None:
    """Its rows name it, so they must be computed in it."""
    result = job("datasets")
    exact = [score["value"] for score in job("paths")["local"][:6]]
    assert result["int8"] == result["int8 local"] and result["int8"] != exact


@needs_ray
def test_mistakes_are_told_before_anything_runs(job: Callable[[str], dict[str, Any]]) -> None:
    """A wrong column, one that would be replaced, no worker, no batch, int8 on a GPU; no paths are no scores."""
    result = job("datasets")
    assert "no column 'file'" in result["no column"] and "'path', 'n'" in result["no column"]
    assert "a column 'score' already" in result["taken"]
    assert "at least one worker" in result["no worker"]
    assert "batch_size must be at least 1" in result["batch"]
    assert "on the CPU, not on 'cuda'" in result["int8 on a GPU"]
    assert result["none"] == [] and result["still connected"]


@needs_ray
def test_a_cluster_that_is_not_there_is_named(tiny_weights: Weights, tmp_path: Path) -> None:
    """One error with the remedy, as everywhere."""
    code = """
import sys
from grmp_score.errors import GrmpScoreError
from grmp_score.integrations.ray import score_paths
try:
    next(score_paths(["a.png"], address="auto"))
except GrmpScoreError as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "RAY_TMPDIR": str(tmp_path)}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("auto: cannot reach the Ray cluster: ") and "ray start --head" in done.stdout


@pytest.mark.slow
@needs_ray
def test_the_example_runs(tmp_path: Path) -> None:
    """examples/score_with_ray.py as a process, with the bundled model: one row per photo, the best first."""
    example, out = TESTS.parent / "examples/score_with_ray.py", tmp_path / "scores.csv"
    env = {**os.environ, "PYTHONPATH": str(TESTS.parent), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(example), str(TESTS.parent / "examples/photos"), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["score"]) for row in rows]
    assert len(rows) == 9 and scores == sorted(scores, reverse=True) and not any(row["error"] for row in rows)


def test_without_ray_there_is_a_hint(tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    from grmp_score.integrations.ray import score_paths

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"grmp_score\[ray\]"):
        next(score_paths(["a.png"], model=tiny_weights))
