"""The paper's ablations in miniature, on what `make_mini.py` has left in its working folder.

    python examples/mini/tables.py --work runs/mini --references references/ stage-1
    python examples/mini/tables.py --work runs/mini few-shot
    python examples/mini/tables.py --work runs/mini blocks --labels labels.csv
    python examples/mini/tables.py --work runs/mini coverage
    python examples/mini/tables.py --work runs/mini baselines --labels labels.csv

Each prints a JSON line per run; the first three keep them in the working folder, and a run that is there is not
repeated.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from make_mini import (
    SEED,
    Paths,
    Recipe,
    calibration_line,
    held_out_references,
    load_base,
    logit,
    read_column,
    show,
    sigmoid,
    start_of_stage_2,
)
from scipy.ndimage import laplace
from torch import Tensor

from grmp_score import FewShotConfig, Score, Scorer, adapt, pretrain, read_labels, weights
from grmp_score.images import read_image
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.adapt.features import (
    Activations,
    CropReader,
    compute_activations,
    native_precision,
    run_frozen,
)
from grmp_score.trainer.adapt.measure import mean_p_high
from grmp_score.trainer.adapt.ridge import fit_ridge
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.splits import draw_shots, draw_test, find_references
from grmp_score.trainer.metrics import srcc
from grmp_score.trainer.pretrain.crops import load_crops
from grmp_score.trainer.pretrain.held_out import encode_crops, evaluate_held_out

#: With a text context alone the features of the images are the same in all runs, and computed once.
STAGE_1 = {
    "none": {"method": "none", "train": "text"},
    "ordinary": {"method": "ordinary", "train": "text"},
    "meta": {"train": "text"},
    "none-visual": {"method": "none", "train": "visual"},
    "ordinary-visual": {"method": "ordinary", "train": "visual"},
    "meta-visual": {"train": "visual"},
    "ordinary-both": {"method": "ordinary"},
    "meta-both": {},
}
SEEDS = 3
SHOTS = (50, 100, 200)
LAMBDAS = (0.0, 1.0, 5.0)
#: Labels times epochs: 50 steps.
PASSES = 200
#: Photos of BIQ2021's training part that few-shot labels are drawn from; photos of its validation part to test on.
DRAWN_FROM, TESTED = 2000, 200


@click.group()
@click.option("--work", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--references", type=click.Path(path_type=Path, exists=True), help="For the table of stage 1.")
@click.pass_context
def main(context: click.Context, work: Path, references: Path | None) -> None:
    """Tables of the bundled model's recipe."""
    nothing = Path()
    context.obj = Paths(nothing, nothing, references or nothing, nothing, work, nothing)


class Table:
    """The rows of a table, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is a row with these entries."""
        return any(all(row.get(k) == v for k, v in key.items()) for row in self._rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keeps and prints a row; figures have four digits."""
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            print(json.dumps(rounded), file=file)
        print(json.dumps(rounded), flush=True)


@main.command("stage-1")
@click.option("--labels", multiple=True, type=click.Path(path_type=Path), help="Further sets to measure on.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(STAGE_1)), help="Runs of these alone.")
@click.option("--seeds", default=SEEDS, show_default=True)
@click.pass_obj
def stage_1(paths: Paths, labels: tuple[Path, ...], kinds: tuple[str, ...], seeds: int) -> None:
    """Prompts drawn and left, ordinarily trained and meta-learned: SRCC without any human label."""
    recipe, table = Recipe(), Table(paths.work / "table-stage-1.jsonl")
    crops = load_crops(paths.work / "prepared")
    train, held_out = held_out_references(crops, recipe)
    base, start = load_base(paths, recipe), start_of_stage_2(paths, recipe)
    model = start.weights.build().requires_grad_(False)
    sets = {"validation": read_labels(paths.work / "validation.csv")}
    sets |= {file.parent.name: read_labels(file) for file in labels}
    assert recipe.stage_2.crops_per_image is not None
    reader = CropReader.of(start).with_patches(recipe.stage_2.crops_per_image)

    def features_of(model: QualityCLIP) -> dict[str, Tensor]:
        """Of the crops of the held-out references, and of each set's."""
        found = {"references": encode_crops(model, crops, crops.indices(held_out), views=(0,))}
        for name, known in sets.items():
            read = (run_frozen(model, c, native_precision(start.device)).features for c in reader.read(known.paths))
            found[name] = torch.stack(list(read))
        return found

    of_base: dict[str, Tensor] = {}
    for seed, (name, changes) in itertools.product(range(seeds), STAGE_1.items()):
        key = {"kind": name, "seed": seed}
        if table.has(key) or (kinds and name not in kinds):
            continue
        folder = paths.work / "stage-1-runs" / f"{name}-{seed}"
        config = dataclasses.replace(recipe.stage_1, seed=seed, **changes)
        pretrain(crops, folder, config, base=base, name="mini", references=train, resume=True, device="cpu")
        made = weights.load(str(folder)).build().requires_grad_(False)
        if config.train == "text":
            of_base = of_base or features_of(model)
        features = of_base if config.train == "text" else features_of(made)
        agreement = evaluate_held_out(made, crops, held_out, features=features["references"])
        measured = {k: srcc(mean_p_high(made, features[k]), known.scores) for k, known in sets.items()}
        references = {"references": agreement.overall, "references_per_type": agreement.mean_per_task}
        table.add({**key, **references, **measured})


@main.command("few-shot")
@click.pass_obj
def few_shot(paths: Paths) -> None:
    """Stage 2 with few labels of BIQ2021, without QGR and with it, from the closed form, in 50 steps at 5e-6."""
    recipe, table = Recipe(), Table(paths.work / "table-few-shot.jsonl")
    train = read_labels(paths.work / "train.csv").take(range(DRAWN_FROM))
    test = read_labels(paths.work / "validation.csv").take(range(TESTED))
    assert recipe.stage_2.crops_per_image is not None

    def column(name: str) -> Tensor:
        both = [read_column(paths, name, (part,), n) for part, n in (("train", DRAWN_FROM), ("validation", TESTED))]
        return torch.cat(both)

    columns = {name: column(name) for name in ("tokens", "features", "scenes", "pooled")}
    kept = Activations(**columns, plain=recipe.stage_2.crops_per_image)
    start = start_of_stage_2(paths, recipe)
    for seed, shots in itertools.product(range(SEEDS), SHOTS):
        drawn, _ = draw_shots(train.scores, shots, seed)
        rows = np.concatenate([drawn, DRAWN_FROM + np.arange(TESTED)])
        for qgr_lambda in LAMBDAS:
            config = dataclasses.replace(
                recipe.stage_2, lr=None, qgr_lambda=qgr_lambda, epochs=PASSES // shots, warm_up_epochs=0, seed=seed
            )
            compare(table, {"shots": shots, "seed": seed}, start, train.take(drawn), test, config, kept.take(rows))


@main.command()
@click.option("--labels", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="mini", show_default=True)
@click.option("--splits", default=10, show_default=True)
@click.option("--shots", "numbers", multiple=True, type=int, default=SHOTS, show_default=True)
@click.pass_obj
def blocks(paths: Paths, labels: Path, model: str, splits: int, numbers: tuple[int, ...]) -> None:
    """The bundled model adapted: gradient descent over the blocks after the closed form, on `protocol`'s splits."""
    table, scorer = Table(paths.work / f"table-blocks-{labels.parent.name}.jsonl"), Scorer.from_pretrained(model)
    known, images = find_references([read_labels(labels)])[0], itertools.count(1)
    kept = compute_activations(
        scorer.model,
        known,
        CropReader.of(scorer),
        teacher=None,
        keep_pooled=True,
        precision=native_precision(scorer.device),
        progress=lambda _: show("read")(next(images), len(known)),
    )
    for split, shots in itertools.product(range(splits), numbers):
        train, test = draw_test(known.scores, round(0.2 * len(known)), split, known.groups)
        drawn = train[draw_shots(known.scores[train], shots, split)[0]]
        config = FewShotConfig(train="blocks", qgr_lambda=0.0, folds=0, token_share=0.25, seed=split)
        key, rows = {"shots": shots, "seed": split}, np.concatenate([drawn, test])
        compare(table, key, scorer, known.take(drawn), known.take(test), config, kept.take(rows))


@main.command()
@click.option("--photos", default=TESTED, show_default=True, help="Of the validation part.")
@click.pass_obj
def coverage(paths: Paths, photos: int) -> None:
    """How often the bundled model's standard error, 1.645 of it either way, holds the opinion."""
    labels = read_labels(paths.work / "validation.csv").take(range(photos))
    scores = [score for score in Scorer().score_many(labels.paths) if isinstance(score, Score)]
    predicted = np.array([score.value for score in scores])
    spread = np.array([score.standard_error or 0.0 for score in scores])
    slope, constant = calibration_line(predicted, labels.scores)
    off = np.abs(sigmoid(slope * logit(predicted) + constant) - labels.scores)
    figures = {
        "rmse": np.sqrt(np.mean(off**2)),
        "standard_error": spread.mean(),
        "holds": np.mean(off <= 1.645 * spread),
    }
    print(json.dumps({"photos": photos, **{name: round(float(value), 4) for name, value in figures.items()}}))


@main.command()
@click.option("--labels", multiple=True, required=True, type=click.Path(path_type=Path, exists=True))
@click.pass_obj
def baselines(paths: Paths, labels: tuple[Path, ...]) -> None:
    """SRCC of the log variance of the Laplacian, and of ridge regression on the features before stage 2."""
    recipe = Recipe()
    start = start_of_stage_2(paths, recipe)
    assert recipe.stage_2.crops_per_image is not None
    reader = CropReader.of(start).with_patches(recipe.stage_2.crops_per_image)
    train = read_column(paths, "features", ("train",)).double().mean(dim=1).numpy()
    ridge = fit_ridge(train, read_labels(paths.work / "train.csv").scores)
    for file in labels:
        known = read_labels(file)
        sharpness, predicted = [], []
        for path, crops in zip(known.paths, reader.read(known.paths), strict=True):
            grey = np.asarray(read_image(path).convert("L"), dtype=np.float64)
            sharpness.append(np.log(laplace(grey).var() + 1e-9))
            features = run_frozen(start.model, crops, native_precision(start.device)).features
            predicted.append(ridge(features.double().mean(dim=0).numpy()))
        figures = {"laplacian": srcc(sharpness, known.scores), "ridge": srcc(predicted, known.scores)}
        named = {name: round(value, 4) for name, value in figures.items()}
        print(json.dumps({"labels": file.parent.name, "images": len(known), **named}), flush=True)


def compare(
    table: Table,
    key: dict[str, Any],
    start: Scorer,
    train: Labels,
    test: Labels,
    config: FewShotConfig,
    activations: Activations,
) -> None:
    """Adds a row: SRCC of the model before, of ridge regression, of the closed form, and after gradient descent."""
    key = {**key, "qgr_lambda": config.qgr_lambda}
    if table.has(key):
        return
    head = dataclasses.replace(config, train="head", epochs=0, qgr_lambda=0.0)
    without_tokens = dataclasses.replace(activations, tokens=None)
    closed_form = adapt(start, train, head, test=test, activations=without_tokens).results
    tuned = adapt(start, train, config, test=test, activations=activations).results
    figures = {name: closed_form[name]["srcc"] for name in ("before", "ridge")}
    figures |= {"closed_form": closed_form["after"]["srcc"], "blocks": tuned["after"]["srcc"]}
    table.add({**key, **figures, "qgr": tuned["qgr"]})


if __name__ == "__main__":
    torch.manual_seed(SEED)
    main()
