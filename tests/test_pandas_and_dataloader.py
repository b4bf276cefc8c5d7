"""pandas frames, `DataLoader` workers and Spark's partitions: the same scores as without them."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from grmp_score.config import LabelScale, ModelConfig
from grmp_score.errors import ConfigError, MissingExtraError
from grmp_score.integrations.dataloader import PatchDataset, score_prepared
from grmp_score.integrations.pandas import score_frame
from grmp_score.integrations.tables import COLUMNS
from grmp_score.score import Score
from grmp_score.scorer import Scorer
from grmp_score.weights.folder import Weights

from .conftest import make_photo, random_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scorer(tiny_config: ModelConfig) -> Scorer:
    """A tiny scorer with a label scale and reference percentiles."""
    points = [i / 100 for i in range(101)]
    scale = LabelScale(1, 5, higher_is_better=False)
    config = dataclasses.replace(tiny_config, label_scale=scale, reference_percentiles={"clean": points})
    return Scorer(random_weights(config), device="cpu")


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Seven photos, the fourth cut short, and one that is gone."""
    for i in range(7):
        make_photo(70 + 5 * i, 60, seed=i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:90])
    return [str(tmp_path / f"{i}.png") for i in range(8)]


def test_a_frame_gets_the_scores_of_its_rows(scorer: Scorer, names: list[str]) -> None:
    """Index, columns and their types stay; every new column is what `score_many` says."""
    pandas = pytest.importorskip("pandas")
    df = pandas.DataFrame({"n": range(8), "path": names}, index=list("abcdabcd"))
    before = df.copy()
    scored = score_frame(df, scorer=scorer)
    assert df.equals(before)
    assert scored[["n", "path"]].equals(before)
    assert list(scored.columns) == ["n", "path", *COLUMNS]
    expected = list(scorer.score_many(names))
    for name in ("standard_error", "label", "percentile"):
        values = np.array([getattr(s, name) if isinstance(s, Score) else None for s in expected], dtype=float)
        np.testing.assert_array_equal(scored[name].to_numpy(), values)
    np.testing.assert_array_equal(
        scored["score"].to_numpy(),
        np.array([s.value if isinstance(s, Score) else None for s in expected], dtype=float),
    )
    assert list(scored["error"]) == [s.error for s in expected]
    assert [e is None for e in scored["error"]] == [True] * 3 + [False] + [True] * 3 + [False]
    assert 1 <= scored["label"].min() <= scored["label"].max() <= 5


def test_frames_hold_bytes_arrays_and_nothing(scorer: Scorer, names: list[str]) -> None:
    """Encoded bytes and arrays score as their file; a null of any kind is an error value."""
    pandas = pytest.importorskip("pandas")
    data = Path(names[0]).read_bytes()
    array = np.asarray(make_photo(70, 60, seed=0))
    df = pandas.DataFrame({"image": [data, array, names[0], Path(names[0]), None, float("nan")]}, dtype=object)
    scored = score_frame(df, "image", scorer=scorer, prefix="q_")
    value = scorer.score(names[0]).value
    assert list(scored["q_score"])[:4] == [value] * 4
    assert scored["q_score"].isna().tolist() == [False] * 4 + [True] * 2
    assert all(scored["q_error"][4:])
    empty = score_frame(df[:0], "image", scorer=scorer)
    assert list(empty.columns) == ["image", *COLUMNS] and empty["score"].dtype == np.float64


def test_cells_of_lists_and_dictionaries(scorer: Scorer, names: list[str]) -> None:
    """The rules of arrays hold for nested lists, with an error for every row; Hugging Face's cells are images."""
    pandas = pytest.importorskip("pandas")
    photo = np.asarray(make_photo(60, 50))
    whole = scorer.score(photo).value
    good = [
        photo.tolist(),
        (photo / 255).tolist(),
        {"bytes": Path(names[0]).read_bytes(), "path": None},
        {"bytes": None, "path": names[0]},
        {"path": names[0]},
    ]
    bad = [
        (photo.astype(int) + 100).tolist(),
        [[1, 2], [3]],
        [["a", "b"]],
        [],
        {"bytes": None, "path": None},
        {"x": 1},
    ]
    scored = score_frame(pandas.DataFrame({"image": [*good, *bad]}), "image", scorer=scorer)
    assert scored["score"][:2].tolist() == pytest.approx([whole, whole], abs=1e-3)
    assert set(scored["score"][2:5]) == {scorer.score(names[0]).value}
    assert scored["score"][5:].isna().all() and scored["error"][5:].notna().all()
    assert "The values are 100..3" in scored["error"][5]


def test_mistakes_about_columns(scorer: Scorer) -> None:
    """A missing column is named with those that are there; nothing is replaced."""
    pandas = pytest.importorskip("pandas")
    df = pandas.DataFrame({"file": ["a.png"], "score": [1.0]})
    with pytest.raises(ConfigError, match="no column 'path'; there are 'file', 'score'"):
        score_frame(df, scorer=scorer)
    with pytest.raises(ConfigError, match=r"a column 'score' already. Drop it, or choose a prefix"):
        score_frame(df, "file", scorer=scorer)


def test_two_columns_of_one_name(scorer: Scorer) -> None:
    """Which of them is meant nobody knows."""
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ConfigError, match="several columns 'path'"):
        score_frame(pandas.DataFrame([["a", "b"]], columns=["path", "path"]), scorer=scorer)


def test_without_pandas_there_is_a_hint(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"grmp_score\[pandas\]"):
        score_frame(None, scorer=scorer)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_loader_workers_read_and_the_main_process_scores(scorer: Scorer, names: list[str], workers: int) -> None:
    """Any number of workers gives the scores of `score_many` in the order of the input, errors included."""
    loader = DataLoader(PatchDataset(names, scorer), batch_size=None, num_workers=workers)
    assert list(score_prepared(loader, scorer)) == list(scorer.score_many(names))


def test_several_images_to_a_pass(scorer: Scorer, names: list[str]) -> None:
    """Where a scorer takes several images together, errors among them do not shift the others."""
    together = copy.copy(scorer)
    together.batch_size = 3
    expected = list(scorer.score_many(names))
    assert list(score_prepared(PatchDataset(names, together), together)) == expected


# ----------------------------------------------------------------- the Spark example


@pytest.fixture
def spark_example(monkeypatch: pytest.MonkeyPatch, tiny_weights: Weights) -> types.ModuleType:
    """The example as a module, with a tiny model in the place of the bundled one."""
    pytest.importorskip("pandas")
    spec = importlib.util.spec_from_file_location("spark_example", ROOT / "examples/spark_map_in_pandas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("grmp_score.Scorer", lambda **k: Scorer(tiny_weights, **k), raising=False)
    return module


def test_a_partition_is_scored_by_one_model(
    spark_example: Any, names: list[str], tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames in, frames out, one model for all of them, in the columns that the schema promises."""
    import pandas

    made: list[Scorer] = []

    def make(**options: Any) -> Scorer:
        made.append(Scorer(tiny_weights, **options))
        return made[-1]

    monkeypatch.setattr("grmp_score.Scorer", make, raising=False)

    def frames() -> Iterator[Any]:
        yield pandas.DataFrame({"path": names[:5], "other": range(5)})
        yield pandas.DataFrame({"path": names[5:], "other": range(3)})

    parts = list(spark_example.score_partition(frames()))
    assert [len(p) for p in parts] == [5, 3] and len(made) == 1
    promised = [column.split()[0] for column in spark_example.SCHEMA.split(", ")]
    assert all(list(p.columns) == promised for p in parts)
    scores = Scorer(tiny_weights, device="cpu").score_many(names)
    expected = [s.value if isinstance(s, Score) else None for s in scores]
    scores = [None if np.isnan(v) else float(v) for p in parts for v in p["score"]]
    assert scores == expected


def test_the_example_runs_without_spark(spark_example: Any, names: list[str], tmp_path: Path) -> None:
    """CSV in, CSV out."""
    import pandas

    pandas.DataFrame({"path": names}).to_csv(tmp_path / "in.csv", index=False)
    spark_example.without_spark(str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    out = pandas.read_csv(tmp_path / "out.csv")
    assert list(out["path"]) == names and list(out["score"].notna()) == list(out["error"].isna())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="needs pyspark")
def test_the_example_runs_with_spark(names: list[str], tmp_path: Path) -> None:
    """The whole example under a local Spark, with the bundled model."""
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"path": names}).to_parquet(tmp_path / "in.parquet", index=False)
    arguments = [str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    script = [sys.executable, str(ROOT / "examples/spark_map_in_pandas.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    out = pandas.read_parquet(tmp_path / "out.parquet")
    assert sorted(out["path"]) == sorted(names) and out["error"].notna().sum() == 2
