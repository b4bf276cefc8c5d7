"""`grmp-score adapt`: the folder it writes, what it says, its exit codes, and that it can be stopped anywhere."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from grmp_score.cli import adapt as adapt_module
from grmp_score.cli.progress import training_progress
from grmp_score.config import Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.errors import GrmpScoreError
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import adapt
from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow, Progress
from grmp_score.trainer.data.labels import read_labels
from grmp_score.trainer.metrics import bootstrap_interval

from . import cli_tools
from .cli_tools import MAIN, assert_usage_error
from .conftest import TINY_CLIP, Photo, make_photo, random_weights
from .hub_server import HubServer
from .warm import Warm

N = 30
FILES = ["README.md", "adapter.safetensors", "backbone.safetensors", "config.json", "results.json", "training.csv"]
PICTURES = ["scatter.png", "training.png"]
#: Quick, and exact; the text context alone needs no image tower.
FAST = ["--train", "prompts", "--epochs", "3", "--folds", "2", "--precision", "float32"]

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, thirty pictures, and labels of them by brightness."""
    folder = tmp_path_factory.mktemp("task")
    config = ModelConfig(
        name="tiny",
        backbone=Backbone(model_cfg=TINY_CLIP),
        prompts=PromptConfig(n_visual=2),
        preprocess=Preprocess(patch_size=32, patches=2),
        adapted_blocks=2,
    )
    random_weights(config).save(folder / "tiny")
    (folder / "photos").mkdir()
    rng, rows = np.random.default_rng(0), ["image,mos,ref"]  # some of these smooth pictures look alike
    for i in range(N):
        brightness = rng.uniform(0.3, 1)
        pixels = np.asarray(make_photo(40, 36, seed=i)) * brightness
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / f"{i}.png")
        rows.append(f"photos/{i}.png,{1 + 4 * brightness:.3f},{i}")
    (folder / "mine.csv").write_text("\n".join(rows) + "\n")
    (folder / "half.csv").write_text("\n".join(rows[:16]) + "\n")
    (folder / "rest.csv").write_text("\n".join(rows[:1] + rows[16:]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short run's time would go into intervals and pictures; those of `made` are complete."""
    monkeypatch.setitem(bootstrap_interval.__kwdefaults__, "resamples", 20)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: Path(path).touch())


@pytest.fixture
def here(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which begins with links to the task."""
    monkeypatch.chdir(tmp_path)
    for item in task.iterdir():
        (tmp_path / item.name).symlink_to(item, target_is_directory=item.is_dir())
    return tmp_path


#: The command on a screen of 80 columns; with the tiny model and little training.
run = partial(cli_tools.run, "adapt", columns=80)
run_fast = partial(run, "--labels", "mine.csv", "-m", "tiny", *FAST)


def left_behind() -> list[str]:
    """What lies in the working folder besides the task."""
    return sorted(item.name for item in Path().iterdir() if not item.is_symlink())


# ------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def made(task: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of one run of the paper's recipe, and what was said."""
    folder = tmp_path_factory.mktemp("made") / "my-camera"
    args = [
        "--labels",
        task / "mine.csv",
        "-m",
        task / "tiny",
        "--shots",
        "16",
        "-o",
        folder,
        "--epochs",
        "2",
        "--train",
        "blocks",
    ]
    args += ["--text-first-epochs", "2", "--folds", "2", "--lr", "1e-3", "--precision", "float32", "--seed", "3"]
    return folder, run(*args)


def test_the_folder_holds_everything(made: tuple[Path, Result]) -> None:
    """Weights, card, figures, history and two pictures; no work folder next to it."""
    folder, result = made
    assert result.exit_code == 0
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES + PICTURES)
    assert [p.name for p in folder.parent.iterdir()] == ["my-camera"]
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300


def test_the_folder_is_what_the_library_gives(
    made: tuple[Path, Result], task: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads, scores as the library's result, and keeps scale, provenance and figures."""
    monkeypatch.undo()  # `quick`
    folder, _ = made
    start = Scorer.from_pretrained(task / "tiny")
    config = FewShotConfig(
        shots=16, train="blocks", epochs=2, text_first_epochs=2, folds=2, lr=1e-3, precision="float32", seed=3
    )
    expected = adapt(start, read_labels(task / "mine.csv"), config)
    scorer = Scorer.from_pretrained(folder)
    assert scorer.score(photo()) == expected.scorer.score(photo())
    assert scorer.config.name == "my-camera" and scorer.config.label_scale == expected.scorer.config.label_scale
    results = json.loads((folder / "results.json").read_text())
    assert results == scorer.config.results
    for name in ("before", "ridge", "after"):
        assert results[name].items() >= expected.results[name].items()
    assert {k: results[k] for k in ("n_test", "shots", "seed")} == {"n_test": N - 16, "shots": 16, "seed": 3}
    assert results["cross_validation"] == expected.results["cross_validation"]
    with open(folder / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected.history) and list(rows[0]) == list(HistoryRow.__dataclass_fields__)
    assert [r["loss"] for r in rows] == ["" if h.loss is None else str(h.loss) for h in expected.history]


def test_results_have_intervals_and_gains(made: tuple[Path, Result]) -> None:
    """Every figure lies in its interval; a gain is the difference of two SRCC."""
    results = json.loads((made[0] / "results.json").read_text())
    for name in ("before", "ridge", "after"):
        for key in ("srcc", "plcc", "krcc", "rmse"):
            low, high = results[name][f"{key}_interval"]
            assert low < high and low - 0.05 <= results[name][key] <= high + 0.05
    for name in ("before", "ridge"):
        gain = results["gain"][f"over_{name}"]
        assert gain["srcc"] == pytest.approx(results["after"]["srcc"] - results[name]["srcc"])
        assert gain["srcc_interval"][0] <= gain["srcc"] <= gain["srcc_interval"][1]


def test_the_screen_shows_the_figures_and_the_command(made: tuple[Path, Result], task: Path) -> None:
    """Three rows, what they were measured on, the verdict, and a command that can be pasted; 80 columns."""
    folder, result = made
    results = json.loads((folder / "results.json").read_text())
    text = " ".join(result.stdout.split())
    for line, name in (("before: un-adapted model", "before"), ("ridge regression", "ridge"), ("after: ", "after")):
        assert re.search(
            rf"^{line}.* {results[name]['srcc']:.3f} .*{results[name]['rmse']:.3f}", result.stdout, re.M
        )
    assert f"Measured on {N - 16} images that were not trained on." in text
    assert f"Cross-validation (2 folds): SRCC {results['cross_validation']['srcc_mean']:.3f} ± " in text
    assert "did better" in text or "Training did not help" in text
    last = result.stdout.splitlines()[-1]
    assert shlex.split(last) == ["grmp-score", f"{task}/photos/", "--model", str(folder)]
    scored = cli_tools.run(*shlex.split(last)[1:], "--format", "jsonl")
    assert scored.exit_code == 0 and len(scored.stdout.splitlines()) == N
    assert max(map(len, result.stdout.splitlines()[:-2])) <= 80
    assert "\x1b" not in result.stdout + result.stderr


def test_progress_is_no_flood(made: tuple[Path, Result]) -> None:
    """Where there is no terminal, a line for every stage."""
    stages = [line.split(":")[0] for line in made[1].stderr.splitlines()]
    assert stages[:2] == ["Reading", "Validating"] and stages[-1] == "Testing" and len(stages) <= 4


def test_no_place_is_told(made: tuple[Path, Result], task: Path) -> None:
    """Nothing that may be uploaded says in which folder the labels lay."""
    for name in ("config.json", "README.md", "results.json"):
        assert str(task) not in (made[0] / name).read_text(encoding="utf-8")


def test_push_and_fetch(made: tuple[Path, Result], hub: HubServer, photo: Photo) -> None:
    """The result goes to the Hub with its card and comes back as it was."""
    hub.add_token("hf_me", user="me")
    scorer = Scorer.from_pretrained(made[0])
    scorer.push_to_hub("me/my-camera", token="hf_me")
    again = Scorer.from_pretrained("me/my-camera")
    assert again.score(photo()) == scorer.score(photo())
    assert again.weights.card == (made[0] / "README.md").read_text(encoding="utf-8")


def test_start_from_the_hub(hub: HubServer, task: Path) -> None:
    """The card names the repository as the base model."""
    hub.add_repo("org/tiny", {p.name: p.read_bytes() for p in (task / "tiny").iterdir()})
    result = run("--labels", "mine.csv", "-m", "org/tiny", "--shots", "20", *FAST)
    assert result.exit_code == 0
    assert "\nbase_model: org/tiny\n" in Path("mine-adapted/README.md").read_text(encoding="utf-8")


# ------------------------------------------------------------ options, variants


def test_defaults_name_and_all_rows() -> None:
    """Without -o the folder is called after the labels; without --shots the folds are what is measured on."""
    result = run_fast()
    assert result.exit_code == 0 and left_behind() == ["mine-adapted"]
    config = ModelConfig.from_json(Path("mine-adapted/config.json").read_text())
    assert config.name == "mine-adapted" and config.results["measured_on"] == "cross-validation"
    assert config.results["shots"] == N and config.results["n_test"] == 0
    assert f"Measured on the {N} training images themselves" in " ".join(result.stdout.split())


def test_a_test_file_of_ones_own() -> None:
    """--test is what is measured on, and named in the card; --name is the name."""
    result = run("--labels", "half.csv", "--test", "rest.csv", "-m", "tiny", *FAST, "--name", "yours", "-o", "out")
    assert result.exit_code == 0
    config = ModelConfig.from_json(Path("out/config.json").read_text())
    assert config.name == "yours" and config.results["n_test"] == N - 15 and config.results["shots"] == 15
    assert "`rest.csv`" in Path("out/README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("out")' in Path("out/README.md").read_text(encoding="utf-8")


def test_copies_are_not_tested_on(here: Path) -> None:
    """Without a column of references copies are found, in a test file and among the rows, and named."""
    rows = [line.rsplit(",", 1)[0] for line in (here / "mine.csv").read_text().splitlines()]
    for i in range(3):
        shutil.copy(here / "photos" / f"{i}.png", here / f"copy{i}.png")
    copies = [rows[1 + i].replace(f"photos/{i}.png", f"copy{i}.png") for i in range(3)]
    Path("train.csv").write_text("\n".join(rows[:16]) + "\n")
    Path("test.csv").write_text("\n".join([rows[0], *copies, *rows[17:27]]) + "\n")
    result = run("--labels", "train.csv", "--test", "test.csv", "-m", "tiny", *FAST, "-o", "a")
    assert result.exit_code == 0
    note = next(line for line in result.stderr.splitlines() if line.startswith("Note: test.csv: "))
    assert all(f"'copy{i}.png' (row {i + 2})" in note for i in range(3))
    figures = ModelConfig.from_json(Path("a/config.json").read_text()).results
    assert figures["n_test"] == 13 - len(figures["left_out"]) and figures["measured_on"] == "test"
    assert len(figures["left_out"]) == int(note.split()[2])
    assert {f"copy{i}.png" for i in range(3)} <= set(figures["left_out"])
    versions = "images that are versions of those trained on were left out"
    assert f"{len(figures['left_out'])} {versions}" in Path("a/README.md").read_text(encoding="utf-8")
    Path("both.csv").write_text("\n".join([*rows, *copies]) + "\n")
    result = run("--labels", "both.csv", "--shots", "20", "-m", "tiny", *FAST, "-o", "b")
    left = next(line for line in result.stderr.splitlines() if line.startswith("Note: both.csv: "))
    figures = ModelConfig.from_json(Path("b/config.json").read_text()).results
    assert figures["n_test"] == N + 3 - 20 - int(left.split()[2])


def test_nothing_to_measure_on() -> None:
    """No rows left and no folds: the model is made, and it is said that nothing is known of it."""
    result = run_fast("--folds", "0")
    assert result.exit_code == 0 and "Nothing was measured" in result.stdout and "SRCC" not in result.stdout
    assert not Path("mine-adapted/scatter.png").exists() and Path("mine-adapted/training.png").exists()
    assert "model-index" not in Path("mine-adapted/README.md").read_text(encoding="utf-8")


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one sets what it says."""
    seen: list[FewShotConfig] = []

    class _Stopped(Exception):
        pass

    def stop(scorer: Scorer, labels: Any, config: FewShotConfig, **_: Any) -> None:
        seen.append(config)
        raise _Stopped

    monkeypatch.setattr("grmp_score.trainer.adapt.run.adapt", stop)
    with pytest.raises(_Stopped):
        run("--labels", "mine.csv", "-m", "tiny")
    assert seen == [FewShotConfig()] and left_behind() == []
    args = (
        "--shots 9 --train prompts --train-visual-prompts --epochs 7 --text-first-epochs 2 --lr 0.5 --optimizer sgd"
    )
    args += " --qgr-lambda 1 --qgr-form global --crops 3 --flips --folds 4 --seed 5 --precision bfloat16"
    with pytest.raises(_Stopped):
        run("--labels", "mine.csv", "-m", "tiny", *args.split())
    assert seen[1] == FewShotConfig(
        shots=9,
        train="prompts",
        train_visual_prompts=True,
        epochs=7,
        text_first_epochs=2,
        lr=0.5,
        optimizer="sgd",
        qgr_lambda=1.0,
        qgr_form="global",
        crops_per_image=3,
        flips=True,
        folds=4,
        seed=5,
        precision="bfloat16",
    )


def test_without_matplotlib_all_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install; the exit code is 0."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run_fast("--shots", "20")
    assert result.exit_code == 0
    assert sorted(p.name for p in Path("mine-adapted").iterdir()) == FILES
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 1 and "pip install 'grmp_score[train]'" in notes[0]


def test_test_images_that_cannot_be_read_are_named(here: Path) -> None:
    """Exit code 1, row and reason on stderr, the rest is measured; the folder tells no path."""
    rows = (here / "rest.csv").read_text().splitlines()
    (here / "broken.png").write_bytes(b"no image")
    (here / "test.csv").write_text("\n".join([*rows, "broken.png,3,none"]) + "\n")
    result = run("--labels", "half.csv", "--test", "test.csv", "-m", "tiny", *FAST)
    assert result.exit_code == 1
    assert re.search(r"^test\.csv: row 17: 'broken\.png': not an image", result.stderr, re.MULTILINE)
    assert result.stderr.splitlines()[-1] == "1 test images could not be scored"
    results = json.loads(Path("half-adapted/results.json").read_text())
    assert results["n_test"] == N - 15 and [u["path"] for u in results["unscored"]] == ["broken.png"]


# --------------------------------------------------------------------- presets


def test_a_preset_and_options_that_win_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they stand; what the preset does not name keeps its default."""
    seen: list[FewShotConfig] = []

    def caught(scorer: Scorer, labels: Any, config: FewShotConfig, **_: Any) -> None:
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("grmp_score.trainer.adapt.run.adapt", caught)
    args = ["--labels", "mine.csv", "-m", "tiny", "--shots", "16"]
    result = run("--lr", "0.5", "--no-flips", *args, "--preset", "paper", "--qgr-max-kl", "1", "--crops", "3")
    assert result.exit_code == 130 and "--preset paper" in result.stderr
    run(*args, "--preset", "paper-full")
    run(*args)
    changed = {"lr": 0.5, "flips": False, "qgr_max_kl": 1.0, "crops_per_image": 3}
    assert seen == [
        FewShotConfig.preset("paper", shots=16, **changed),
        FewShotConfig.preset("paper-full", shots=16),
        FewShotConfig(shots=16),
    ]


def test_the_preset_of_the_paper_runs_and_tells_l_kl(here: Path) -> None:
    """L_kl, angle and share projected are in the history, the results, the card and the words; so is a warning."""
    args = ["--labels", "mine.csv", "-m", "tiny", "--shots", "16", "--preset", "paper", "--precision", "float32"]
    result = run(*args, "--epochs", "4", "--look-every", "2", "--folds", "2", "--lr", "0.3", "--crops", "2")
    assert result.exit_code == 0, result.stderr
    with open(here / "mine-adapted" / "training.csv") as file:
        steps = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(steps) >= 8 and all(row["semantic_loss"] and row["qgr_lambda"] == "5.0" for row in steps)
    assert all(0 <= float(row["projected"]) <= 1 and 0 <= float(row["angle"]) <= 180 for row in steps)
    results = json.loads((here / "mine-adapted" / "results.json").read_text())
    assert set(results["qgr"]) == {"semantic_loss", "angle", "projected", "lowered"}
    card, said = (here / "mine-adapted" / "README.md").read_text(), " ".join(result.stdout.split())
    for text in (" ".join(card.split()), said):
        assert "Gradient regularisation: L_kl from" in text
        assert ("no longer knows the scenes" in text) == (results["qgr"]["semantic_loss"]["greatest"] > 1)
    assert "| schedule of the learning rate | plateau |" in card


# -------------------------------------------------------------------- mistakes

HEADER = "image,mos\n"
GOOD = [f"photos/{i}.png,{i}" for i in range(8)]


def table(*rows: str, header: str = "image,mos") -> bytes:
    """A CSV of eight good rows and these."""
    return "\n".join([header, *GOOD, *rows]).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"image,mos\n", "0 rows of labels"),
        (table()[:40], "rows of labels, expected at least"),
        (table("photos/9.png,good"), "row 10: the score 'good' is not a number"),
        (table("photos/9.png,"), "row 10: the score is empty"),
        (table('photos/9.png,"3,5"'), "row 10: .* decimal comma"),
        (table("photos/9.png,nan"), "row 10: the score is nan"),
        (table("photos/9.png,inf"), "row 10: the score is inf"),
        (table("photos/9.png,1e200"), "row 10: .* too large"),
        (table(",3"), "row 10: the image is empty"),
        (table("photos/gone.png,3"), r"row 10: no such image file 'photos/gone\.png'.*--images"),
        (table("photos,3"), "row 10: 'photos' is a folder"),
        (table("photos/3.png,3"), "row 10: the image 'photos/3.png' is already in row 5"),
        (table("./photos/../photos/3.png,3"), "row 10: .* is already in row 5"),
        (table(header="photo,mos"), r"no image column: .* \(--image-column\)"),
        (table(header="image,stars"), r"no score column: .* \(--score-column\)"),
        (b"image,mos,score\n" + b"\n".join(f"{r},1".encode() for r in GOOD), "2 columns could be the score"),
        (b"image,mos\n" + b"\n".join(f"photos/{i}.png,3".encode() for i in range(8)), "all scores are 3"),
        (table("photos/9.png,3,4"), "row 10"),
        (table().replace(b"image", b"im\xe4ge"), "UTF-8|utf-8"),
        (table().decode().encode("utf-16"), "UTF-16|utf-8|UTF-8"),
        (table().replace(b",", b"|"), "image column|delimiter|separated"),
        (table("broken.png,3"), "1 of .* row 10|row 10: 'broken.png'|broken.png"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "."),
    ],
)
def test_every_mistake_in_labels_is_one_line(here: Path, content: bytes | None, pattern: str) -> None:
    """Exit code 2, file, row and value named, and no folder is left."""
    (here / "broken.png").write_bytes(b"no image")
    if content is not None:
        (here / "bad.csv").write_bytes(content)
    assert_usage_error(run("--labels", "bad.csv", "-m", "tiny", *FAST), rf"bad\.csv.*({pattern})")
    assert left_behind() == sorted({"broken.png"} | ({"bad.csv"} if content is not None else set()))


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        ([], "--labels"),
        (
            ["--labels", "mine.csv", "--shots", "31"],
            r"mine\.csv: labels of 30 images, expected at least 31.*--shots",
        ),
        (["--labels", "mine.csv", "--shots", "3"], "--shots"),
        (["--labels", "mine.csv", "--test", "gone.csv"], r"gone\.csv: no such file"),
        (
            ["--labels", "mine.csv", "--test", "rest.csv"],
            r"rest\.csv: row 2: .* row 17 of mine\.csv \(15 such images\)",
        ),
        (["--labels", "mine.csv", "--score-column", "stars"], "no column 'stars'"),
        (["--labels", "mine.csv", "--folds", "1"], "folds must be 0"),
        (["--labels", "mine.csv", "--lr", "-1"], "lr must be positive"),
        (["--labels", "mine.csv", "--epochs", "0", "--train", "prompts"], "nothing would be trained"),
        (["--labels", "mine.csv", "--qgr-lambda", "-1"], "--qgr-lambda"),
        (["--labels", "mine.csv", "--preset", "authors"], "--preset.*'paper', 'paper-full'"),
        (["--labels", "mine.csv", "--train", "blocks", "--teacher", "no/such/folder"], "no/such/folder"),
        (["--labels", "mine.csv", "--filename", "a.pt"], "--filename needs --model"),
        (["--labels", "mine.csv", "-m", "no/such/folder"], "no/such/folder: no such folder"),
        (["--labels", "mine.csv", "-o", "photos"], "photos: already exists.* -o"),
    ],
)
def test_wrong_usage_is_one_line(args: list[str], pattern: str, hub: HubServer) -> None:
    """Exit code 2 before anything is written."""
    assert_usage_error(run(*args), pattern)
    assert left_behind() == []


def test_visual_prompts_must_be_there() -> None:
    """A start model without any is named."""
    config = ModelConfig(
        name="bare",
        backbone=Backbone(model_cfg=TINY_CLIP),
        preprocess=Preprocess(patch_size=32, patches=2),
        adapted_blocks=2,
    )
    random_weights(config).save("bare")
    result = run("--labels", "mine.csv", "-m", "bare", "--train", "blocks", "--train-visual-prompts")
    assert_usage_error(result, "--train-visual-prompts: bare has no visual prompts")
    assert left_behind() == ["bare"]


def test_a_result_is_never_overwritten() -> None:
    """Neither with --resume nor without, and not by a name of its own."""
    Path("mine-adapted").mkdir()
    for more in ([], ["--resume"]):
        assert_usage_error(run_fast(*more), "mine-adapted: already exists")


def test_a_loss_that_is_not_finite_ends_with_1() -> None:
    """Fold and step are named, and nothing is left to trip over."""
    result = run_fast("--lr", "1e38", "--optimizer", "sgd")
    assert_usage_error(result, "not finite in fold 1, phase 'all', step", code=1)
    assert left_behind() == []


# ------------------------------------------------------------------ stop, resume


#: A run that is stopped and continued in many ways.
STOPPED = ["--shots", "16", "--epochs", "4"]


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the run gives that nobody stops."""
    folder = tmp_path_factory.mktemp("made") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(task)
        patch.setitem(bootstrap_interval.__kwdefaults__, "resamples", 20)  # as `quick` does
        assert run_fast(*STOPPED, "-o", folder).exit_code == 0
    return folder


def assert_same(folder: str, whole: Path) -> None:
    """Weights and figures are equal to the last bit."""
    for name in ("adapter.safetensors", "results.json"):
        assert Path(folder, name).read_bytes() == (whole / name).read_bytes()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """`interrupt(stage, done)` presses Ctrl-C at this step of the next run."""

    def arm(stage: str, done: int) -> None:
        @contextlib.contextmanager
        def pressing() -> Iterator[Callable[[Progress], None]]:
            def press(step: Progress) -> None:
                if (step.stage, step.done) == (stage, done):
                    raise KeyboardInterrupt

            yield press

        monkeypatch.setattr(adapt_module, "training_progress", pressing)

    return arm


@pytest.mark.parametrize(("stage", "done"), [("cross-validation", 3), ("cross-validation", 6), ("testing", 5)])
def test_ctrl_c_says_how_to_continue(
    interrupt: Callable[[str, int], None], stage: str, done: int, whole: Path
) -> None:
    """Exit code 130; the command that it names ends with the weights of a run that was never stopped."""
    interrupt(stage, done)
    result = run_fast(*STOPPED, "-o", "my work")
    assert (result.exit_code, result.stdout) == (130, "")
    assert left_behind() == [".my work.partial"]
    assert result.stderr.splitlines()[0] == "Interrupted.  Continue with:"
    words = shlex.split(result.stderr.splitlines()[1])
    assert words[:2] == ["grmp-score", "adapt"] and words[-1] == "--resume"
    interrupt("none", 0)
    assert_usage_error(run(*words[2:-1]), r"\.my work\.partial: an unfinished run for my work.*--resume")
    assert_usage_error(
        run(*words[2:], "--seed", "1"), "run with other .*seed.*Give the same options, labels and model"
    )
    assert run(*words[2:]).exit_code == 0
    assert left_behind() == ["my work"]
    assert_same("my work", whole)


@pytest.mark.parametrize(
    "error",
    [
        GrmpScoreError("no room for 3.0 GiB of activations", hint="Free some disk space"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_failure_takes_nothing_that_can_be_continued(
    error: Exception, interrupt: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """A stopped run that fails when it goes on, say on a full disk, goes on from there once there is room."""
    interrupt("cross-validation", 6)
    assert run_fast(*STOPPED).exit_code == 130

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("grmp_score.trainer.adapt.run.compute_activations", fail)
        assert_usage_error(run_fast(*STOPPED, "--resume"), str(error.args[-1] if error.args else error))
    interrupt("none", 0)
    assert left_behind() == [".mine-adapted.partial"]
    assert run_fast(*STOPPED, "--resume").exit_code == 0
    assert_same("mine-adapted", whole)


def test_ctrl_c_before_anything_was_learned(interrupt: Callable[[str, int], None]) -> None:
    """Nothing is left, and it says so."""
    interrupt("reading", 4)
    result = run_fast()
    assert result.exit_code == 130 and "before anything was learned" in result.stderr and left_behind() == []


def test_resume_without_a_stopped_run_begins_one() -> None:
    """So a script may always give it."""
    assert run_fast("--resume").exit_code == 0


def test_a_full_disk_leaves_no_half_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while the folder is written is one line; --resume then writes it."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("grmp_score.report.folder.write_history", full)
        result = run_fast()
    assert_usage_error(result, "No space left on device")
    assert left_behind() == [".mine-adapted.partial"]
    assert run_fast("--resume").exit_code == 0 and left_behind() == ["mine-adapted"]


#: The command, which is sent a signal in the second of two folds.
SIGNALLED = f"""
import contextlib, os, signal, sys
from grmp_score.cli import adapt
signal.signal(signal.SIGINT, signal.default_int_handler)  # switched off in the background of a shell
number, progress = int(sys.argv.pop(1)), adapt.training_progress

@contextlib.contextmanager
def stopping():
    with progress() as report:
        def stop(step):
            report(step)
            if step.stage == "cross-validation" and step.done > 0.6 * step.total:
                os.kill(os.getpid(), number)
        yield stop

adapt.training_progress = stopping
{MAIN}
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_as_a_real_process(here: Path, number: signal.Signals, warm: Warm, whole: Path) -> None:
    """A signal in the middle leaves the work, and no result; --resume gives the same weights."""
    args = ["--labels", "mine.csv", "-m", "tiny", *FAST, *STOPPED]
    done = warm.run(SIGNALLED, str(int(number)), "adapt", *args, "-o", "out")
    errors = done.stderr.decode()
    assert done.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert done.stdout == b"" and "Traceback" not in errors
    if number == signal.SIGINT:
        assert shlex.split(errors.splitlines()[-1])[-1] == "--resume"
    assert left_behind() == [".out.partial"]
    assert run(*args, "-o", "out", "--resume").exit_code == 0
    assert left_behind() == ["out"]
    assert_same("out", whole)


# -------------------------------------------------------------------- progress


def steps() -> list[Progress]:
    """What a short run reports."""
    row = HistoryRow(0, "text", 1, 1, loss=0.5)
    look = HistoryRow(0, "text", 1, 1, validation_srcc=0.25)
    validating = [Progress("cross-validation", i, 10, look if i == 5 else row) for i in range(1, 11)]
    return [Progress("reading", i, 3) for i in range(1, 4)] + validating


def test_lines_come_once_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With loss, validation SRCC and time left."""
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr("grmp_score.cli.progress.time.monotonic", lambda: next(clock))
    with training_progress() as report:
        for step in steps():
            report(step)
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 3 images",
        "Validating: 10 steps",
        "Validating: 4/10, text side, loss 0.500, 2 min left",
        "Validating: 7/10, text side, loss 0.500, validation SRCC 0.250, 75 s left",
        "Validating: 10/10, text side, loss 0.500, validation SRCC 0.250, 0 s left",
    ]


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar for every stage, which fits into 80 columns."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with training_progress() as report:
        for step in steps():
            report(step)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = [line for line in re.split(r"[\r\n]+", text) if line.startswith("Validating")][-1]
    assert "10/10" in last and "text side, loss 0.500, validation SRCC 0.250" in last and len(last.rstrip()) <= 80


def test_help_examples_are_understood() -> None:
    """Every example of the help is a command that parses."""
    text = adapt_module.command.help or ""
    examples = re.findall(r"^ +(grmp-score .*)$", text, re.MULTILINE)
    assert len(examples) == 6
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == ["grmp-score", "adapt"]
        adapt_module.command.make_context("adapt", words[2:])
