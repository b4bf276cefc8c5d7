"""`grmp-score protocol`: cells that are run once, what is on which side, table, plot and exit codes."""

from __future__ import annotations

import dataclasses
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grmp_score.errors import ConfigError
from grmp_score.report.protocol import rows_of
from grmp_score.scorer import Scorer
from grmp_score.trainer import comparison, methods
from grmp_score.trainer.adapt import FewShotConfig, adapt
from grmp_score.trainer.comparison import CellFile
from grmp_score.trainer.data.labels import Labels, read_labels
from grmp_score.trainer.methods import METHODS, make_methods
from grmp_score.trainer.metrics import bootstrap_interval
from grmp_score.weights import load, with_prompts

from . import cli_tools
from .cli_tools import assert_usage_error
from .conftest import make_photo

PHOTOS, VERSIONS = 12, 3
N = PHOTOS * VERSIONS
CHEAP = ("un-adapted", "ridge", "closed-form")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """A folder with set.csv, twelve photos in three versions of different brightness, which is their score."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "photos").mkdir()
    rng, rows = np.random.default_rng(0), ["image,mos,ref"]
    for i in range(N):
        brightness = rng.uniform(0.3, 1)
        pixels = np.asarray(make_photo(40, 36, seed=i // VERSIONS)) * brightness
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{i}.png")
        rows.append(f"photos/{i}.png,{1 + 4 * brightness:.3f},photo{i // VERSIONS}")
    (folder / "set.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(autouse=True)
def here(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; no time goes into intervals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(bootstrap_interval.__kwdefaults__, "resamples", 5)
    return tmp_path


run = partial(cli_tools.run, "protocol", columns=100)


def cells(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a file, parsed strictly."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the JSON")) for line in lines]


def test_every_cell_is_what_adapt_gives(task: Path, model: str) -> None:
    """One line per method, shots and split; the figures are those of `adapt` on the same rows, images read anew."""
    result = run("--labels", task / "set.csv", "-m", model, "--methods", *CHEAP, "--shots", 8, 12, "--splits", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    found = cells("set-protocol.jsonl")
    assert [(c["split"], c["shots"], c["method"]) for c in found] == [
        (split, shots, method) for split in (0, 1) for shots in (8, 12) for method in CHEAP
    ]
    labels, scorer = read_labels(task / "set.csv"), Scorer.from_pretrained(model)
    train, test = comparison._split(labels, comparison.ProtocolConfig((12,), 2), 1)
    drawn = comparison._draw(labels, train, 12, 1)
    config = dataclasses.replace(make_methods()[0].config, seed=1, cache_dtype="float32")
    results = adapt(scorer, labels.take(drawn), config, test=labels.take(test)).results
    for cell, entry in zip(found[-3:], ("before", "ridge", "after"), strict=True):
        assert cell["n_test"] == results[entry]["n"] == len(test) == 6
        for name in ("srcc", "plcc", "rmse"):
            assert cell[name] == pytest.approx(results[entry][name], abs=1e-4)
        assert cell["model_checksum"] == scorer.checksum and len(cell["labels_sha256"]) == 64
        assert cell["seed"] == 1 and cell["split_by"] == "references" and cell["seconds"] > 0
        assert cell["settings"]["train"] == "head" and {"torch", "grmp_score"} <= set(cell["versions"])


def test_the_table_and_the_plot(task: Path, model: str) -> None:
    """Median, least and largest of every method by shots; a picture beside the file."""
    args = ("--labels", task / "set.csv", "-m", model, "--shots", 8, 12, "--splits", 3, "-o", "out.jsonl")
    result = run(*args, "--methods", *CHEAP)
    lines = result.stdout.splitlines()
    assert lines[0] == f"{task.name}/set.csv, tiny, split by references" and lines[1].split() == [
        *("shots", "method", "SRCC", "PLCC", "splits")
    ]
    values = [c["srcc"] for c in cells("out.jsonl") if c["shots"] == 12 and c["method"] == "ridge"]
    low, middle, high = min(values), statistics.median(values), max(values)
    assert f"ridge        {middle:.3f} ({low:.3f} .. {high:.3f})" in lines[6]
    assert [line.split()[0] for line in lines[2:8]] == ["8", *CHEAP[1:], "12", *CHEAP[1:]]
    assert "6 images to test on" in lines[8]
    with Image.open("out.protocol.png") as picture:
        assert picture.size[0] > 500
    rows = rows_of([{"shots": 8, "method": "a", "srcc": None, "plcc": 0.5}])
    assert str(rows[0].srcc) == "- (- .. -)" and rows[0].plcc.median == 0.5


@pytest.mark.parametrize("column", [True, False])
def test_no_photo_is_on_both_sides(
    task: Path, model: str, column: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the column of references, or without one by what looks alike."""
    seen: list[tuple[set[str], set[str]]] = []

    def spy(scorer: Scorer, labels: Labels, config: FewShotConfig, *, test: Labels, **more: Any) -> Any:
        seen.append((set(labels.references), set(test.references)))
        return adapt(scorer, labels, config, test=test, **more)

    monkeypatch.setattr(comparison, "adapt", spy)
    file = task / "set.csv"
    if not column:
        text = "\n".join(line.rsplit(",", 1)[0] for line in file.read_text().splitlines())
        file = tmp_path / "bare.csv"
        file.write_text(text + "\n")
    result = run("--labels", file, "--images", task, "-m", model, "--methods", "ridge", "--shots", 8, "--splits", 4)
    assert result.exit_code == 0 and len(seen) == 4
    assert f"split by {'references' if column else 'near duplicates'}" in result.stdout
    for train, test in seen:
        assert train and test and not train & test
    assert len({frozenset(test) for _, test in seen}) > 1


def test_a_cell_is_never_run_twice(task: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run adds what is new; half a line of a killed run is run again; another model is another cell."""
    args = ("--labels", task / "set.csv", "-m", model, "--methods", "ridge", "--splits", 2, "-o", "out.jsonl")
    first = run(*args, "--shots", 8)
    before = Path("out.jsonl").read_bytes()
    with monkeypatch.context() as context:
        context.setattr(comparison, "adapt", lambda *_, **__: pytest.fail("run again"))
        context.setattr(comparison, "compute_activations", lambda *_, **__: pytest.fail("read again"))
        assert run(*args, "--shots", 8).stdout == first.stdout
    assert Path("out.jsonl").read_bytes() == before
    assert len(cells("out.jsonl")) == 2
    with monkeypatch.context() as context:
        context.setattr(comparison, "compute_activations", lambda *_, **__: pytest.fail("read again"))
        run(*args, "--shots", 8, 12)
    assert [c["shots"] for c in cells("out.jsonl")] == [8, 8, 12, 12]
    Path("out.features.safetensors").write_bytes(b"damaged")
    Path("out.jsonl").write_bytes(before[:-20])
    assert run(*args, "--shots", 8).stdout == first.stdout
    again = cells("out.jsonl")
    assert [c["split"] for c in again] == [0, 1]
    assert {k: v for k, v in again[1].items() if k != "seconds"} == {
        k: v for k, v in json.loads(before.splitlines()[1]).items() if k != "seconds"
    }
    run(*args, "--shots", 8, "--patches", 1)
    assert [c["preprocess"]["patches"] for c in cells("out.jsonl")] == [3, 3, 1, 1]


def test_an_interrupted_run_goes_on(task: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the third cell leaves two, and the same command does the rest."""
    args = ("--labels", task / "set.csv", "-m", model, "--methods", "ridge", "--shots", 8, "--splits", 4)
    calls = 0

    def stop(*positional: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return adapt(*positional, **named)

    with monkeypatch.context() as context:
        context.setattr(comparison, "adapt", stop)
        result = run(*args)
        assert result.exit_code != 0 and result.stdout == ""
    assert [c["split"] for c in cells("set-protocol.jsonl")] == [0, 1]
    assert run(*args).exit_code == 0
    assert [c["split"] for c in cells("set-protocol.jsonl")] == [0, 1, 2, 3]


def test_methods_that_train(task: Path, model: str) -> None:
    """The paper's recipe by lambda, and CoOp; each in its row."""
    result = run(
        *("--labels", task / "set.csv", "-m", model, "--shots", 8, "--splits", 1),
        *("--methods", "paper", "coop", "--qgr-lambda", 0, 1, 5, "--epochs", 3, "--folds", 0),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    found = cells("set-protocol.jsonl")
    names = ["paper, no QGR", "paper, lambda 1", "paper, lambda 5", "coop"]
    assert [c["method"] for c in found] == names
    assert [c["settings"]["qgr_lambda"] for c in found[:3]] == [0, 1, 5]
    assert all(c["settings"]["optimizer"] == "sgd" and c["srcc"] is not None for c in found)
    assert all((c["settings"]["epochs"], c["settings"]["folds"]) == (3, 0) for c in found[:3])
    assert [c["settings"]["train"] for c in found] == ["blocks"] * 3 + ["prompts"]
    assert all(name in result.stdout for name in names)


def test_a_training_that_diverges_ends_with_1(task: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, the others are done, and it is not taken for done."""
    wild = FewShotConfig(train="prompts", optimizer="sgd", lr=1e38, epochs=5, warm_up_epochs=0, folds=0)
    both = [*make_methods(["ridge"]), methods.Method("wild", wild)]
    monkeypatch.setattr("grmp_score.cli.protocol.make_methods", lambda *_, **__: both)
    result = run("--labels", task / "set.csv", "-m", model, "--shots", 8, "--splits", 2)
    assert result.exit_code == 1 and "ridge" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("8 shots, split 0, wild: ") and lines[-1] == "2 trainings diverged"
    assert [c["method"] for c in cells("set-protocol.jsonl")] == ["ridge", "ridge"]


def test_without_matplotlib_the_table_is_there(task: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    args = ("--labels", task / "set.csv", "-m", model, "--methods", "ridge", "--shots", 8, "--splits", 1)
    result = run(*args)
    assert result.exit_code == 0 and "ridge" in result.stdout
    assert result.stderr.startswith("Note: ") and "pip install 'grmp_score[train]'" in result.stderr


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        ([], "--labels"),
        (
            ["--labels", "SET", "--shots", "31"],
            "36 labels divide into 30 to train and 6 to test on, expected at least 31",
        ),
        (["--labels", "SET", "--shots", "8", "--test-share", "0.1"], "into 33 to train and 3 to test on"),
        (["--labels", "SET", "--shots", "8", "x"], "'x' is not a valid integer"),
        (["--labels", "SET", "--test-share", "1"], "--test-share"),
        (["--labels", "SET", "--methods", "magic"], "magic"),
        (["--labels", "SET", "--split-by", "lens"], "no column 'lens'"),
        (["--labels", "SET", "--shots", "8", "-o", "gone/out.jsonl"], "gone/out.jsonl"),
        (["--labels", "SET", "--shots", "8", "-o", "SET"], "it is an input of this run"),
    ],
)
def test_mistakes_are_one_line(task: Path, model: str, args: list[str], pattern: str) -> None:
    """Exit code 2, before anything is computed."""
    before = (task / "set.csv").read_bytes()
    words = [str(task / "set.csv") if word == "SET" else word for word in args]
    assert_usage_error(run(*words, "-m", model), pattern)
    assert (task / "set.csv").read_bytes() == before


def test_a_model_without_context_has_no_coop(task: Path, model: str, tmp_path: Path) -> None:
    """Two texts written by hand leave nothing for CoOp to train; the other methods go on from them."""
    with_prompts(load(model)).save(tmp_path / "by-hand")
    args = ("--labels", task / "set.csv", "-m", tmp_path / "by-hand", "--shots", 8, "--splits", 1)
    assert_usage_error(run(*args, "--methods", "coop"), "coop: tiny has no text context to train")
    assert run(*args, "--methods", "un-adapted", "closed-form").exit_code == 0


def test_all_methods_have_settings() -> None:
    """Every name gives at least one method, in the same order."""
    assert [method.name for method in make_methods(qgr_lambdas=[1])] == [
        *CHEAP,
        "paper, lambda 1",
        "coop",
    ]
    assert all(make_methods([name]) for name in METHODS)


@pytest.mark.parametrize("content", ["image,mos\na.jpg,3", "a letter", '{"path": "a.jpg", "score": 0.5}\n{"pa'])
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: str) -> None:
    """Neither its last line nor anything else is cut off before it is known to be a file of cells."""
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError, match="row 1 is no cell of a protocol"):
        CellFile(path)
    assert path.read_text() == content
