"""The recipe from one end to the other, on a tiny configuration."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import make_mini
import numpy as np
import pytest
import tables
import torch
from captions import class_scenes
from click.testing import CliRunner
from make_mini import Paths, Recipe, calibrate, share_in_order
from PIL import Image
from random_tower import random_dinov2
from safetensors.torch import save_file
from text_tower import ContrastiveConfig

from grmp_score import Scorer, read_labels, weights
from grmp_score.config import Opinion
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.pretrain.config import PretrainConfig

TINY = Recipe(
    depth=3,
    readout_blocks=(1, 3),
    embed_dim=24,
    text_cfg={"context_length": 32, "vocab_size": 1024, "width": 64, "heads": 2, "layers": 1},
    contrastive=ContrastiveConfig(steps=3, n_class=4, n_kind=2),
    preprocess=dataclasses.replace(make_mini.PREPROCESS, patch_size=28, patches=4, size=64),
    stage_1=PretrainConfig(epochs=1, inner_lr=0.05, tasks_per_step=15, support_batch=2, query_batch=2, n_visual=2),
    stage_2=dataclasses.replace(make_mini.STAGE_2, epochs=1, batch_size=8, checkpoint_seconds=1e9),
    validation=8,
    held_out=0.5,
    ordered=1,
)


def photo(seed: int, size: int = 48) -> Image.Image:
    """Coarse noise of many colours."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """All inputs, made up: a random tower, photos with class names, five clean photos, labelled photos."""
    folder = tmp_path_factory.mktemp("inputs")
    save_file(random_dinov2(), folder / "dinov2.safetensors")
    for name in ("references", "pairs", "biq/Images"):
        (folder / name).mkdir(parents=True)
    for i in range(5):
        photo(i, 64).save(folder / "references" / f"{i}.png")
    scenes = list(dict.fromkeys(known.scene for known in class_scenes().values()))
    classes = [[w for w, known in class_scenes().items() if known.scene == s][:3] for s in scenes[:4]]
    with open(folder / "pairs" / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "wordnet_id"])
        for i, wordnet_id in enumerate(w for of_scene in classes for w in of_scene):
            photo(100 + i).save(folder / "pairs" / f"{i}.png")
            writer.writerow([f"{i}.png", f"thing {i}", wordnet_id])
    with open(folder / "biq" / "Train (Images and MOS).csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Name", "MOS", "", ""])
        for i in range(24):
            name = f"ss0{1 + i % 3} ({i})"
            Image.eval(photo(200 + i), lambda v, i=i: v * (i + 4) // 28).save(
                folder / "biq" / "Images" / f"{name}.JPG"
            )
            writer.writerow([f"{name}.jpg", f"{i / 23:.4f}", "", ""])
    # The test split: the same files under other names, so that a row of the wrong table would be missed.
    with open(folder / "biq" / "Test (Images and MOS).csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Name", "MOS"])
        for i in range(12):
            name = f"ss0{1 + i % 3} ({100 + i}).jpg"
            photo(300 + i).save(folder / "biq" / "Images" / name)
            writer.writerow([name, f"{i / 11:.4f}"])
    return Paths(
        *(folder / name for name in ("dinov2.safetensors", "pairs/pairs.csv", "references", "biq", "work")),
        target=folder / "bundle",
        jobs=1,
    )


def test_from_inputs_to_a_model_that_scores(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages; what is done is not done again; the result has grades, figures and its card."""
    make_mini.run(paths, TINY)
    made = weights.load(str(paths.target))
    assert made.config.opinion is not None and [g for g, _ in made.config.opinion.grades] == list(make_mini.GRADES)
    assert made.config.label_scale is None and len(made.config.reference_percentiles["clean"]) == 101
    assert set(made.config.results) == {"validation", "test", "order", "stage_1", "scenes"}
    assert set(made.config.results["stage_1"]) == set(make_mini.KINDS)
    assert made.config.results["validation"]["n"] == 8 and made.config.results["test"]["n"] == 12
    assert made.config.results["order"]["references"] == 1
    assert made.card and made.config.training["stage_2"]["labels"] == "labels-1.csv"
    assert made.config.training["mean_of_runs"]["source_shares"] == [[0.0, 0.25], [0.5, 0.75]]
    assert 0 <= Scorer(made).score(photo(7)).value <= 1
    with open(paths.work / "train.csv") as train, open(paths.work / "validation.csv") as validation:
        names = [{row["image"] for row in csv.DictReader(file)} for file in (train, validation)]
    assert [len(part) for part in names] == [16, 8] and not names[0] & names[1]

    def unwanted(*_: Any, **__: Any) -> None:
        pytest.fail("trained once more")

    for name in ("train_dual_encoder", "pretrain", "compute_activations", "adapt", "measure"):
        monkeypatch.setattr(make_mini, name, unwanted)
    make_mini.run(paths, TINY, make_mini.STAGES[1:-1])


def test_grades_begin_where_the_expected_opinion_is_halfway() -> None:
    """A p(high) that is too timid by half gets grades that are closer together."""
    rng = np.random.default_rng(0)
    opinions = rng.uniform(0.02, 0.98, 4000)
    timid = make_mini.sigmoid(0.5 * make_mini.logit(opinions) + 0.1)
    opinion = calibrate(timid, opinions)
    wanted = make_mini.sigmoid(0.5 * make_mini.logit(np.array([0.875, 0.625, 0.375, 0.125])) + 0.1)
    np.testing.assert_allclose([limit for _, limit in opinion.grades[:-1]], wanted, atol=2e-3)
    assert opinion.expected_error < 1e-3


def test_figures_count_grades(tmp_path: Path) -> None:
    """A score above a limit has the grade; the opinion's own is the nearest of the five."""
    (tmp_path / "t.csv").write_text("image,mos,subset\na,0,x\nb,0.3,y\nc,0.8,x\nd,1,y\ne,0.5,x\nf,0.7,y\n")
    for name in "abcdef":
        (tmp_path / name).touch()
    grades = tuple(zip(make_mini.GRADES, (0.9, 0.8, 0.2, 0.1, 0.0), strict=True))
    opinion = Opinion("people", grades, 0.1, 0.2)
    predicted = np.array([0.05, 0.15, 0.85, 0.95, 0.5, 0.01])  # the last one is off by three
    found = make_mini.figures(predicted, read_labels(tmp_path / "t.csv"), opinion)
    assert found["n"] == 6 and set(found["srcc_within"]) == {"x", "y"}
    assert found["grade_right"] == found["grade_off_by_one_at_most"] == round(5 / 6, 4)


def test_pairs_in_order() -> None:
    """Of one photo and one type every two levels are a pair, the clean photo is level 0."""
    values = {
        ("r", "references/clean", 0): 0.9,
        ("r", "references/blur", 1): 0.8,
        ("r", "references/blur", 3): 0.85,
    }
    values |= {("r", "references/noise", 2): 0.95}
    found = share_in_order(values)
    assert found["by_type"] == {"blur": round(2 / 3, 4), "noise": 0.0}
    assert found["in_order"] == 0.5 and found["below_the_original"] == round(2 / 3, 4)
    json.dumps(found)


def test_the_command_starts() -> None:
    """Its help names the inputs."""
    result = CliRunner().invoke(make_mini.main, ["--help"])
    assert result.exit_code == 0
    assert all(option in result.output for option in ("--dinov2", "--pairs", "--references", "--biq2021", "--work"))


def test_readme_tells_all_stages_in_their_order() -> None:
    """The table of stages is that of the script."""
    text = Path(make_mini.__file__).with_name("README.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `") and "--" not in line]
    assert tuple(rows) == make_mini.STAGES


def test_the_recipe_is_what_it_says() -> None:
    """Stage 2 trains blocks, on more crops than one, and looks at no fold."""
    recipe = Recipe()
    assert isinstance(recipe.stage_2, FewShotConfig) and recipe.stage_2.train == "blocks"
    assert recipe.chosen in make_mini.KINDS and recipe.preprocess.patches == 8


def test_tables(paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each prints a row per run, and does not repeat those that are there."""
    make_mini.run(paths, TINY, ("split", "prepare", "base", "stage-1", "read"))
    small = {"Recipe": lambda: TINY, "SEEDS": 1, "SHOTS": (6,), "LAMBDAS": (0.0, 1.0), "PASSES": 6}
    for name, value in {**small, "DRAWN_FROM": 16, "TESTED": 8}.items():
        monkeypatch.setattr(tables, name, value)
    make_mini.write_csv(
        tmp_path / "labels.csv",
        ("image", "mos"),
        ((paths.biq2021 / "Images" / f"ss0{1 + i % 3} ({i}).JPG", i * 7 % 24) for i in range(24)),
    )
    model = str(paths.work / "stage-1" / TINY.chosen)
    for command, rows in (
        (["stage-1", "--seeds", "1", "--kind", "none", "--kind", "ordinary", "--kind", "meta-both"], 3),
        (["few-shot"], 2),
        (
            ["blocks", "--labels", str(tmp_path / "labels.csv"), "--model", model, "--splits", "1", "--shots", "6"],
            1,
        ),
    ):
        arguments = ["--work", str(paths.work), "--references", str(paths.references), *command]
        printed = [CliRunner().invoke(tables.main, arguments, catch_exceptions=False).stdout for _ in range(2)]
        found = [json.loads(line) for line in printed[0].splitlines()]
        assert len(found) == rows and not printed[1], command
        assert all(-1 <= v <= 1 for row in found for k, v in row.items() if k in ("validation", "blocks", "ridge"))

    arguments = ["--work", str(paths.work), "baselines", "--labels", str(tmp_path / "labels.csv")]
    row = json.loads(CliRunner().invoke(tables.main, arguments, catch_exceptions=False).stdout)
    assert row["images"] == 24 and -1 <= row["laplacian"] <= 1 and -1 <= row["ridge"] <= 1


def test_mean_of_models() -> None:
    """Each parameter with its part; the parts are as they were given."""
    models = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    for model, value in zip(models, (1.0, 10.0, 100.0), strict=True):
        torch.nn.init.constant_(model.weight, value)
    mean = make_mini.mean_of(list(zip(models, (0.25, 0.25, 0.5), strict=True)))  # type: ignore[arg-type]
    assert mean.weight.item() == pytest.approx(52.75)
