"""The recipe of the bundled model "mini": from public base weights to ``grmp_score/bundled/mini``.

    python examples/mini/make_mini.py --dinov2 dinov2_vits14.safetensors --pairs pairs/pairs.csv \\
        --references references/ --biq2021 BIQ2021/ --work runs/mini [STAGE...]

README.md beside this file says what the inputs and the stages are.  Each stage is seeded, skips what is done and
continues what was stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from dinov2 import convert_dinov2
from photos import PhotoFeatures
from safetensors.torch import load_file, save_file
from sources import without_source
from text_tower import TEXT_CFG, ContrastiveConfig, train_dual_encoder
from torch import Tensor

from grmp_score import FailedScore, FewShotConfig, Scorer, adapt, pretrain, read_labels, weights
from grmp_score.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    ModelConfig,
    Opinion,
    Preprocess,
    PromptConfig,
)
from grmp_score.images import read_image
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.report.plots import plot_pretraining
from grmp_score.trainer.adapt.config import Progress
from grmp_score.trainer.adapt.features import (
    Activations,
    CropReader,
    compute_activations,
    native_precision,
    teacher_of,
)
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.sources import distorted_version, references_items
from grmp_score.trainer.metrics import plcc, rmse, srcc
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops, cut_crops, load_crops
from grmp_score.trainer.pretrain.held_out import encode_crops, evaluate_held_out
from grmp_score.trainer.pretrain.meta import LogRow, split_references
from grmp_score.trainer.pretrain.run import LOG, PLOT
from grmp_score.weights import Weights
from grmp_score.weights.tensors import TensorFile

SEED = 0
#: The five grades of ITU-T P.910 in the words of BIQ2021's raters, best first.
GRADES = ("excellent", "good", "fair", "bad", "very bad")
#: Runs of stage 1: those of the paper's tables 4 and 5 in miniature, and the authors' loop.
KINDS = {
    "none": {"method": "none"},
    "ordinary": {"method": "ordinary"},
    "meta": {},
    "meta-text": {"train": "text"},
    "meta-visual": {"train": "visual"},
}
STAGES = ("split", "prepare", "base", "stage-1", "read", "labels", "stage-2", "order", "test", "bundle")
#: Photos whose activations are written, and after a stop read, together.
PART = 250


CONTRASTIVE = ContrastiveConfig()
PREPROCESS = Preprocess(
    resize="shorter",
    size=768,
    scales=(1.0, 1.0, 1.0, 224 / 768),
    patches=8,
    layout="grid",
    spread=0.75,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
STAGE_1 = PretrainConfig(precision="bfloat16", epochs=4, seed=SEED)
STAGE_2 = FewShotConfig(
    train="blocks",
    optimizer="adamw",
    lr=5e-5,
    qgr_lambda=0.0,
    epochs=3,
    crops_per_image=4,
    crops_per_step=1,
    crops_per_epoch=4,
    token_share=0.25,
    folds=0,
    seed=SEED,
)


@dataclass(frozen=True)
class Recipe:
    """Everything that is chosen.

    Attributes:
        depth: blocks of the image tower that are kept.
        readout_blocks: those that the features are made of, from 1.  Quality is read best from all heights at once
            (4 of them as well as all), meaning from the upper ones.
        embed_dim: width of the common space.
        text_cfg: of the text tower.
        contrastive: of its training.
        preprocess: three quarters of the patches at full size, one of the whole image.
        stage_1: settings that all runs of stage 1 share.
        chosen: the run of stage 1 that stage 2 starts from.
        source_shares: of what a photo's source adds to its label, the share that is taken out for a run of stage 2,
            and that run's weight in the mean of all.
        stage_2: settings of a run.
        tuned_share: how far the weights go from the closed form, where the runs begin, to where they end.
        validation: photos of BIQ2021's training split that choose, and measure, and are not trained on.
        held_out: share of the references that no training sees.
        ordered: references, of those held out, whose versions all are looked at.
    """

    depth: int = 9
    readout_blocks: tuple[int, ...] = (3, 5, 7, 9)
    embed_dim: int = 512
    text_cfg: Mapping[str, Any] = field(default_factory=lambda: TEXT_CFG)
    contrastive: ContrastiveConfig = CONTRASTIVE
    preprocess: Preprocess = PREPROCESS
    stage_1: PretrainConfig = STAGE_1
    chosen: str = "meta-text"
    source_shares: tuple[tuple[float, float], ...] = ((0.0, 0.25), (0.5, 0.75))
    stage_2: FewShotConfig = STAGE_2
    tuned_share: float = 2 / 3
    validation: int = 1000
    held_out: float = 0.2
    ordered: int = 5


@dataclass(frozen=True)
class Paths:
    """Inputs, the working folder, the folder that is bundled, and the processes of the stage ``prepare``."""

    dinov2: Path
    pairs: Path
    references: Path
    biq2021: Path
    work: Path
    target: Path
    jobs: int = 2


def split(paths: Paths, recipe: Recipe) -> None:
    """Divides BIQ2021's training split into ``train.csv`` and ``validation.csv``."""
    parts = {"validation": slice(recipe.validation), "train": slice(recipe.validation, None)}
    write_lists(paths, "Train (Images and MOS).csv", parts)


def write_lists(paths: Paths, table: str, parts: Mapping[str, slice]) -> None:
    """Writes lists of labels from parts of one of BIQ2021's tables in random order."""
    folder = paths.biq2021 / "Images"
    with open(paths.biq2021 / table, newline="", encoding="utf-8") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file)][1:]
    # One file has another spelling of its suffix than its row.
    there = {path.name.casefold(): path for path in folder.iterdir()}
    listed = [(there[name.casefold()], mos) for name, mos in rows]
    order = np.random.default_rng(SEED).permutation(len(listed))
    for name, part in parts.items():
        rows = ((listed[i][0], listed[i][1], listed[i][0].name[:4]) for i in order[part])
        write_csv(paths.work / f"{name}.csv", ("image", "mos", "subset"), rows)


def prepare(paths: Paths, recipe: Recipe) -> None:
    """Distorts and labels the reference photos and cuts training crops."""
    size = recipe.preprocess.patch_size
    items = references_items(paths.references)
    cut_crops(items, paths.work / "prepared", patch_size=size, jobs=paths.jobs, progress=show("prepare"))


def make_base(paths: Paths, recipe: Recipe) -> None:
    """Image tower, text tower and projections, rounded to the float16 they are bundled in."""
    target = paths.work / "base" / weights.BACKBONE
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    size = recipe.preprocess.patch_size
    vision_cfg, vision_state = convert_dinov2(load_file(paths.dinov2), depth=recipe.depth, image_size=size)
    cached = paths.work / "base" / "features.pt"
    features = PhotoFeatures(*torch.load(cached, weights_only=True)) if cached.exists() else None
    result = train_dual_encoder(
        vision_cfg,
        vision_state,
        paths.pairs,
        readout_blocks=recipe.readout_blocks,
        text_cfg=recipe.text_cfg,
        embed_dim=recipe.embed_dim,
        seed=SEED,
        config=recipe.contrastive,
        features=features,
        progress=lambda stage, done, total: show(stage)(done, total),
    )
    write_json(paths.work / "base" / "model.json", {"model_cfg": result.model_cfg, "report": result.report})
    save_file({k: v.to(torch.float16).contiguous() for k, v in result.state_dict.items()}, target)


def load_base(paths: Paths, recipe: Recipe) -> Weights:
    """The result of `make_base`."""
    described = read_json(paths.work / "base" / "model.json")
    name = f"dual encoder on DINOv2 ViT-S/14, {recipe.depth} blocks"
    backbone = Backbone(model_cfg=described["model_cfg"], name=name)
    config = ModelConfig("mini", backbone, PromptConfig(), recipe.preprocess)
    return Weights(config, {}, TensorFile(paths.work / "base" / weights.BACKBONE), origin="base")


def held_out_references(crops: TrainingCrops, recipe: Recipe) -> tuple[list[str], list[str]]:
    """References to train on, references held out."""
    return split_references(crops.references(), recipe.held_out, SEED)


def stage_1(paths: Paths, recipe: Recipe) -> None:
    """Runs of stage 1, each measured on the references held out and, zero-shot, on the validation photos."""
    crops = load_crops(paths.work / "prepared")
    train, held_out = held_out_references(crops, recipe)
    held_out = held_out[: recipe.ordered]
    labels = read_labels(paths.work / "validation.csv")
    for name, changes in KINDS.items():
        folder = paths.work / "stage-1" / name
        if (folder / "report.json").exists():
            continue
        config = dataclasses.replace(recipe.stage_1, **changes)

        def on_step(row: LogRow, name: str = name) -> None:
            losses = f"support {row.support_loss:.4f} query {row.query_loss:.4f}"
            say(f"{name} step {row.step}, epoch {row.epoch}: {losses}, {row.seconds:.0f} s")

        if not (folder / weights.CONFIG).exists():
            base = load_base(paths, recipe)
            pretrain(
                crops,
                folder,
                config,
                base=base,
                name="mini",
                references=train,
                resume=True,
                device="cpu",
                on_step=on_step,
            )
            if config.method != "none":
                plot_pretraining(folder / LOG, folder / PLOT)
        model = weights.load(str(folder))
        built = model.build()
        features = encode_crops(built, crops, crops.indices(held_out), views=(0,))
        agreement = evaluate_held_out(built, crops, held_out, features=features)
        predicted = predictions(Scorer(model, patches=2), labels.paths, name)
        report = {
            "held_out_references": {
                "srcc": round(agreement.overall, 4),
                "srcc_mean_per_type": round(agreement.mean_per_task, 4),
                "images": agreement.images,
            },
            "validation": {"srcc": round(srcc(predicted, labels.scores), 4), "n": len(labels)},
        }
        say(f"{name}: {report}")
        write_json(folder / "report.json", report)


def start_of_stage_2(paths: Paths, recipe: Recipe) -> Scorer:
    """The chosen run of stage 1."""
    return Scorer(weights.load(str(paths.work / "stage-1" / recipe.chosen)))


def read(paths: Paths, recipe: Recipe) -> None:
    """What the frozen blocks make of every photo of BIQ2021's training split, in files of `PART` photos."""
    start, config = start_of_stage_2(paths, recipe), recipe.stage_2
    model = start.weights.build()
    teacher, _ = teacher_of(start.weights)
    assert config.crops_per_image is not None
    reader = CropReader.of(start).with_patches(config.crops_per_image)
    (paths.work / "activations").mkdir(exist_ok=True)
    for part in ("train", "validation"):
        labels = read_labels(paths.work / f"{part}.csv")
        for begin in range(0, len(labels), PART):
            target = paths.work / "activations" / f"{part}-{begin:05}.safetensors"
            if target.exists():
                continue
            kept = compute_activations(
                model,
                labels.take(range(begin, min(begin + PART, len(labels)))),
                reader,
                teacher=teacher,
                keep_pooled=True,
                precision=native_precision(start.device),
            )
            assert kept.tokens is not None and kept.scenes is not None and kept.pooled is not None
            tensors = {
                "tokens": kept.tokens,
                "features": kept.features,
                "scenes": kept.scenes,
                "pooled": kept.pooled,
            }
            unfinished = target.with_suffix(".unfinished")
            save_file(tensors, unfinished)
            unfinished.rename(target)
            say(f"read {part} {begin + len(kept.features)}/{len(labels)}")


def read_again(paths: Paths, recipe: Recipe) -> Activations:
    """The result of `read`: training part, then validation part."""
    columns = {name: read_column(paths, name) for name in ("tokens", "features", "scenes", "pooled")}
    assert recipe.stage_2.crops_per_image is not None
    return Activations(**columns, plain=recipe.stage_2.crops_per_image)


def read_column(
    paths: Paths, name: str, parts: tuple[str, ...] = ("train", "validation"), photos: int | None = None
) -> Tensor:
    """One kind of what `read` writes; of the first ``photos`` where their number is given."""
    files = [f for part in parts for f in sorted(paths.work.glob(f"activations/{part}-*.safetensors"))]
    if photos is not None:
        files = files[: -(-photos // PART)]
    return torch.cat([load_file(file)[name] for file in files])[:photos]


def adjust_labels(paths: Paths, recipe: Recipe) -> None:
    """Takes shares of what a photo's source adds to its label out of the training labels."""
    labels = read_labels(paths.work / "train.csv")
    features = read_column(paths, "pooled", ("train",)).double().mean(dim=1).numpy()
    sources = np.array(labels.column("subset"))
    for number, (share, _) in enumerate(recipe.source_shares):
        adjusted = without_source(features, labels.scores, sources, share)
        for source in np.unique(sources):
            mean = (adjusted - labels.scores)[sources == source].mean()
            say(f"run {number}, labels of {source}: {mean:+.3f} in the mean")
        rows = zip(labels.paths, np.round(adjusted, 5), sources, strict=True)
        write_csv(paths.work / f"labels-{number}.csv", ("image", "mos", "subset"), rows)


def stage_2(paths: Paths, recipe: Recipe) -> None:
    """Fine-tuning on BIQ2021's training part: the mean of the runs, calibrated on the validation part."""
    target = paths.work / "stage-2"
    if (target / weights.CONFIG).exists():
        return
    started = time.monotonic()

    def progress(step: Progress) -> None:
        if step.row is not None and step.row.loss is not None and step.done % max(1, step.total // 100) == 0:
            say(f"step {step.done}/{step.total}, loss {step.row.loss:.4f}, {time.monotonic() - started:.0f} s")

    start, kept = start_of_stage_2(paths, recipe), read_again(paths, recipe)
    validation = read_labels(paths.work / "validation.csv")
    head = dataclasses.replace(recipe.stage_2, train="head", epochs=0)
    pooled = dataclasses.replace(kept, tokens=None)  # for the closed form, which trains no blocks
    parts, few_crops = list[tuple[Weights, float]](), list[dict[str, float]]()
    for number, (_, part) in enumerate(recipe.source_shares):
        train = read_labels(paths.work / f"labels-{number}.csv")
        closed_form = adapt(start, train, head, test=validation, activations=pooled)
        tuned = adapt(
            start,
            train,
            recipe.stage_2,
            activations=kept.take(np.arange(len(train))),
            work=paths.work / f"stage-2-unfinished-{number}",
            resume=True,
            progress=progress,
        )
        parts.append((closed_form.scorer.weights, (1 - recipe.tuned_share) * part))
        parts.append((tuned.scorer.weights, recipe.tuned_share * part))
        keys = {"stage_1": "before", "ridge": "ridge", "closed_form": "after"}
        few_crops.append({name: round(closed_form.results[key]["srcc"], 4) for name, key in keys.items()})
    model = mean_of([(made.build(), part) for made, part in parts])
    made = in_float16(parts[-1][0], model)
    scores = measure(Scorer(made), validation, paths.work / "validation-scores.csv")
    opinion = calibrate(scores, validation.scores)
    results = {"validation": {**figures(scores, validation, opinion), "few_crops": few_crops}}
    say(f"validation: {results}")
    mean = {"source_shares": recipe.source_shares, "tuned_share": round(recipe.tuned_share, 4)}
    config = dataclasses.replace(
        made.config,
        name="mini",
        label_scale=None,
        opinion=opinion,
        results=results,
        training={**made.config.training, "mean_of_runs": mean},
    )
    dataclasses.replace(made, config=config).save(target)


@torch.no_grad()
def mean_of(parts: Sequence[tuple[QualityCLIP, float]]) -> QualityCLIP:
    """The mean of the parameters of models, each with its part in it; written into the last of them.

    Source: Wortsman et al., "Model soups" (arXiv 2203.05482) and "Robust fine-tuning of zero-shot models"
    (arXiv 2109.01903): on images from elsewhere, the mean is better than where training ended.
    """
    models = [(dict(model.named_parameters()), part) for model, part in parts]
    for name, parameter in models[-1][0].items():
        parameter.copy_(sum((part * values[name] for values, part in models), torch.zeros(())))
    return parts[-1][0]


def measure(scorer: Scorer, labels: Labels, table: Path) -> np.ndarray:
    """p(high) [n] of labelled photos as they are scored, also written to a table."""
    scores = predictions(scorer, labels.paths, table.stem)
    names = (path.name for path in labels.paths)
    rows = zip(names, labels.scores, labels.column("subset"), scores, strict=True)
    write_csv(table, ("image", "mos", "subset", "score"), rows)
    return scores


def in_float16(made: Weights, model: QualityCLIP) -> Weights:
    """The model as it is bundled: tuned blocks in the place of the original ones, in float16.

    ``made`` are the weights that it was built from.
    """
    state = model.clip.state_dict()
    backbone = {name: state[name].to(torch.float16).contiguous() for name in made.backbone_state()}
    small = {name: v for name, v in made.adapter.items() if not name.startswith("clip.")}
    rounded = dataclasses.replace(made, adapter=small, backbone=backbone).build()
    rounded.refresh_text()
    return dataclasses.replace(made, adapter=weights.adapter_of(rounded, []), backbone=backbone)


def calibrate(predicted: np.ndarray, opinions: np.ndarray) -> Opinion:
    """What p(high) says about the mean opinion, by a straight line between their logits.

    Args:
        predicted: p(high) [n] of photos that were not trained on.
        opinions: their mean opinions [n], 0..1.

    Returns:
        Grades that begin where the expected opinion is halfway between two grades, with the expected error.
    """
    slope, constant = calibration_line(predicted, opinions)
    expected = sigmoid(slope * logit(predicted) + constant)
    halfway = [1 - (i + 0.5) / (len(GRADES) - 1) for i in range(len(GRADES) - 1)]
    limits = [round(float(sigmoid((logit(np.array(h)) - constant) / slope)), 3) for h in halfway]
    return Opinion(
        "30 people per photo (BIQ2021)",
        tuple(zip(GRADES, [*limits, 0.0], strict=True)),
        expected_error=round(rmse(expected, opinions), 4),
        within_90=round(float(np.quantile(np.abs(expected - opinions), 0.9)), 4),
    )


def figures(predicted: np.ndarray, labels: Labels, opinion: Opinion) -> dict[str, Any]:
    """What the card says about predictions [n] for labelled photos: agreement, also within subsets, and grades."""
    opinions, names = labels.scores, np.array(labels.column("subset"))
    limits = [limit for _, limit in opinion.grades[:-1]]
    given = np.searchsorted(np.sort(limits), predicted, side="right")
    wanted = np.searchsorted(np.arange(1, len(GRADES)) / (len(GRADES) - 1) - 0.125, opinions, side="right")
    return {
        "n": len(opinions),
        "srcc": round(srcc(predicted, opinions), 4),
        "plcc": round(plcc(predicted, opinions), 4),
        "rmse": round(rmse(predicted, opinions), 4),
        "srcc_within": {
            str(s): round(srcc(predicted[names == s], opinions[names == s]), 4) for s in sorted({*names})
        },
        "grade_right": round(float(np.mean(given == wanted)), 4),
        "grade_off_by_one_at_most": round(float(np.mean(np.abs(given - wanted) <= 1)), 4),
    }


def calibration_line(predicted: np.ndarray, opinions: np.ndarray) -> tuple[float, float]:
    """Slope and constant by which the logit of p(high) becomes that of the opinion; least cross-entropy."""
    x = np.column_stack([logit(predicted), np.ones(len(predicted))])
    at = np.array([1.0, 0.0])
    for _ in range(50):  # Newton's method; the problem is convex
        p = sigmoid(x @ at)
        at = at - np.linalg.solve(x.T @ ((p * (1 - p))[:, None] * x), x.T @ (p - opinions))
    return float(at[0]), float(at[1])


def logit(p: np.ndarray) -> np.ndarray:
    """Natural logarithm of the odds, finite at 0 and 1."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The inverse of `logit`."""
    return 1 / (1 + np.exp(-x))


def order(paths: Paths, recipe: Recipe) -> None:
    """Whether the versions of a photo are in the right order, by type of distortion; percentiles of their scores.

    The versions are scored as any image, whole.  Photos held out from stage 1: of some of them all versions, of the
    others the clean one.
    """
    target = paths.work / "order.json"
    if target.exists():
        return
    held_out = held_out_references(load_crops(paths.work / "prepared"), recipe)[1]
    ordered = set(held_out[: recipe.ordered])
    items = [
        item
        for item in references_items(paths.references)
        if item.full_reference in ordered or (item.full_reference in held_out and not item.level)
    ]
    images = (distorted_version(np.asarray(read_image(item.path)), item) for item in items)
    scorer = Scorer(weights.load(str(paths.work / "stage-2")), workers=1)
    scores = predictions(scorer, images, "order", len(items))
    values = {
        (item.full_reference, item.task, item.level): float(score)
        for item, score in zip(items, scores, strict=True)
    }
    found = share_in_order({key: value for key, value in values.items() if key[0] in ordered})
    percentiles = {
        name: [
            round(float(v), 4)
            for v in np.percentile([v for (_, _, at), v in values.items() if at == level], range(101))
        ]
        for name, level in (("clean", 0), ("distorted_level_5", 5))
    }
    write_json(target, {"order": {"references": len(ordered), **found}, "percentiles": percentiles})


def share_in_order(values: Mapping[tuple[str, str, int], float]) -> dict[str, Any]:
    """Share of the pairs of versions of one photo, of one type, in which the more distorted one scores lower.

    Args:
        values: score by reference, task and level; the clean photo has level 0.
    """
    clean = {reference: value for (reference, _, level), value in values.items() if level == 0}
    right: dict[str, list[bool]] = {}
    beside: list[bool] = []
    for reference in clean:
        by_type: dict[str, dict[int, float]] = {}
        for (name, task, level), value in values.items():
            if name == reference and level:
                by_type.setdefault(task.split("/")[1], {0: clean[reference]})[level] = value
        for task, found in by_type.items():
            levels = sorted(found)
            pairs = [(a, b) for a in levels for b in levels if a < b]
            right.setdefault(task, []).extend(found[a] > found[b] for a, b in pairs)
            beside.extend(found[0] > found[level] for level in levels[1:])
    shares = {task: round(float(np.mean(pairs)), 4) for task, pairs in sorted(right.items())}
    return {
        "in_order": round(float(np.mean([pair for pairs in right.values() for pair in pairs])), 4),
        "below_the_original": round(float(np.mean(beside)), 4),
        "by_type": shares,
    }


def test(paths: Paths, recipe: Recipe) -> None:
    """Agreement on BIQ2021's test split: looked at once, when nothing is left to choose."""
    target = paths.work / "test.json"
    if target.exists():
        return
    write_lists(paths, "Test (Images and MOS).csv", {"test": slice(None)})
    labels = read_labels(paths.work / "test.csv")
    made = weights.load(str(paths.work / "stage-2"))
    assert made.config.opinion is not None
    scores = measure(Scorer(made), labels, paths.work / "test-scores.csv")
    report = figures(scores, labels, made.config.opinion)
    say(f"test: {report}")
    write_json(target, report)


def bundle(paths: Paths, recipe: Recipe) -> None:
    """Writes the weights folder with its measured numbers and its card."""
    made = weights.load(str(paths.work / "stage-2"))
    described = read_json(paths.work / "base" / "model.json")["report"]
    order = read_json(paths.work / "order.json")
    reports = {name: paths.work / "stage-1" / name / "report.json" for name in KINDS}
    scenes = ("scene_accuracy", "majority_rate", "balanced_accuracy", "held_out")
    results = {
        **made.config.results,
        "test": read_json(paths.work / "test.json"),
        "order": order["order"],
        "stage_1": {name: read_json(report) for name, report in reports.items() if report.exists()},
        "scenes": {k: described[k] for k in scenes},
    }
    training = {
        **made.config.training,
        "recipe": "examples/mini/make_mini.py",
        "base": f"DINOv2 ViT-S/14 (Apache-2.0), first {recipe.depth} blocks; text tower by locked-image tuning",
    }
    percentiles = order["percentiles"]
    config = dataclasses.replace(made.config, reference_percentiles=percentiles, results=results, training=training)
    card = Path(__file__).parents[2] / "weights_cards" / "mini.md"
    dataclasses.replace(made, config=config, card=card.read_text(encoding="utf-8")).save(paths.target)
    say(f"wrote {paths.target}: {sum(f.stat().st_size for f in paths.target.iterdir()) / 1e6:.1f} MB")


def predictions(scorer: Scorer, images: Any, what: str, total: int | None = None) -> np.ndarray:
    """p(high) [n] of images, as they are scored."""
    values: list[float] = []
    total = len(images) if total is None else total
    for score in scorer.score_many(images):
        if isinstance(score, FailedScore):
            raise RuntimeError(score.error)
        values.append(score.value)
        show(what)(len(values), total)
    return np.array(values)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a table."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(what: str) -> Callable[[int, int], None]:
    """A progress callback that prints a line for every tenth."""

    def progress(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            say(f"{what} {done}/{total}")

    return progress


def run(paths: Paths, recipe: Recipe, stages: tuple[str, ...] = STAGES) -> None:
    """Runs stages in their order."""
    paths.work.mkdir(parents=True, exist_ok=True)
    functions = (split, prepare, make_base, stage_1, read, adjust_labels, stage_2, order, test, bundle)
    for name, function in zip(STAGES, functions, strict=True):
        if name in stages:
            function(paths, recipe)


@click.command()
@click.option("--dinov2", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--pairs", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--references", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--biq2021", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    default=Path(weights.__file__).parents[1] / "bundled" / "mini",
    help="Folder to write.  [default: the bundled one]",
)
@click.option("--jobs", default=2, show_default=True, help="Processes of the stage prepare.")
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
def main(stages: tuple[str, ...], **paths: Any) -> None:
    """Makes the bundled model; all stages by default."""
    run(Paths(**paths), Recipe(), stages or STAGES)


if __name__ == "__main__":
    main()
