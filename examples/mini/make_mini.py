"""The recipe of the bundled model "mini": from public base weights to ``grmp_score/bundled/mini``.

    python examples/mini/make_mini.py --dinov2 dinov2_vits14.safetensors --pairs pairs/pairs.csv \\
        --references references/ --work runs/mini [STAGE...]

README.md beside this file says what the inputs and the stages are.  Each stage is seeded, skips what is done and
continues what was stopped.

Single-threaded on purpose: the same numbers on every machine with the same libraries, and the stages ``meta`` and
``ordinary`` can run side by side.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from dinov2 import convert_dinov2
from photos import PhotoFeatures, image_tower
from safetensors.torch import load_file, save_file
from text_tower import QualityViews, train_dual_encoder

from grmp_score import FailedScore, Scorer, pretrain, weights
from grmp_score.config import IMAGENET_MEAN, IMAGENET_STD, Backbone, ModelConfig, Preprocess, PromptConfig
from grmp_score.images import read_image
from grmp_score.report.plots import plot_pretraining
from grmp_score.trainer.data.distortions import LEVELS
from grmp_score.trainer.data.sources import CLEAN, by_reference, distorted_version, references_items
from grmp_score.trainer.pretrain.crops import TrainingCrops, cut_crops, load_crops
from grmp_score.trainer.pretrain.held_out import HeldOutAgreement, encode_crops, evaluate_held_out
from grmp_score.trainer.pretrain.meta import LogRow, PretrainConfig, split_references, to_patches
from grmp_score.trainer.pretrain.run import LOG, PLOT, new_model
from grmp_score.weights import Weights
from grmp_score.weights.tensors import TensorFile

SEED = 0
#: Blocks of the image tower that are kept, and how many of them, the last ones, make the features.
DEPTH, READOUT_BLOCKS = 6, 4
#: Families of distortions to learn from: what cameras, codecs and sharing do to photos.  Changes of colour,
#: brightness, contrast and place, which the metrics punish and people mind less, made photos' scores worse.
GROUPS = ("blurs", "compression", "noise", "mixtures")
#: Share of the references that no training sees.
TEST_SHARE = 0.2

#: No visual prompts: eight per block, untrained or meta-learned for 64 outer steps, put photos in a worse order.
PROMPTS = PromptConfig(n_ctx=4, n_visual=0)
#: Pixels as sharp as a photo of 768 rows has them, and none at its borders, where photos are empty or out of focus.
PREPROCESS = Preprocess(
    resize="shorter", size=768, patches=10, layout="grid", spread=0.5, mean=IMAGENET_MEAN, std=IMAGENET_STD
)
#: The paper's beta = 1e-2 needs tens of thousands of outer steps; with few steps theta goes all the way to the mean
#: of the adapted parameters at first (Reptile's usual choice), and ever less far towards the end.
STAGE_1 = PretrainConfig(
    tasks_per_step=2,
    inner_steps=1,
    adam="kept",
    groups=GROUPS,
    precision="bfloat16",
    inner_lr=5e-4,
    outer_lr=1.0,
    outer_lr_end=0.1,
    support_batch=12,
    query_batch=8,
    epochs=8,
    seed=SEED,
)
RUNS = {"meta": STAGE_1, "ordinary": dataclasses.replace(STAGE_1, method="ordinary")}
CHOSEN = "meta"
STAGES = ("prepare", "base", "meta", "ordinary", "calibrate", "report", "levels", "bundle")


@dataclasses.dataclass(frozen=True)
class Paths:
    """Inputs, the working folder, and the processes of the stage ``prepare``."""

    dinov2: Path
    pairs: Path
    references: Path
    work: Path
    jobs: int = 2


def prepare(paths: Paths) -> None:
    """Distorts and labels the reference photos and cuts training crops."""
    items = references_items(paths.references)
    cut_crops(items, paths.work / "prepared", jobs=paths.jobs, progress=show("prepare"))


def make_base(paths: Paths) -> None:
    """Image tower, text tower and projections, rounded to the float16 they are bundled in."""
    target = paths.work / "base" / weights.BACKBONE
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    vision_cfg, vision_state = convert_dinov2(load_file(paths.dinov2), depth=DEPTH)
    cached = paths.work / "base" / "features.pt"
    features = PhotoFeatures(*torch.load(cached, weights_only=True)) if cached.exists() else None
    result = train_dual_encoder(
        vision_cfg,
        vision_state,
        paths.pairs,
        quality_views(paths, vision_cfg, vision_state),
        readout_blocks=READOUT_BLOCKS,
        seed=SEED,
        features=features,
        progress=lambda stage, done, total: show(stage)(done, total),
    )
    (paths.work / "base" / "model.json").write_text(
        json.dumps({"model_cfg": result.model_cfg, "report": result.report}, indent=2), encoding="utf-8"
    )
    save_file({k: v.to(torch.float16).contiguous() for k, v in result.state_dict.items()}, target)


def quality_views(paths: Paths, vision_cfg: dict[str, Any], vision_state: dict[str, torch.Tensor]) -> QualityViews:
    """Features of 6,000 crops of the training references, with their labels."""
    cached = paths.work / "base" / "quality.pt"
    if cached.exists():
        return QualityViews(*torch.load(cached, weights_only=True))
    crops = load_crops(paths.work / "prepared")
    train, _ = parts(crops)
    rng = np.random.default_rng([SEED, 2])
    used = [i for i in crops.indices(train) if crops.items[i].group in (*GROUPS, CLEAN)]
    rows = rng.permutation(used)[:6000]  # [n]
    pixels = crops.pixels[rows, rng.integers(0, 3, size=len(rows))]  # [n, S, S, 3]
    encode = image_tower(vision_cfg, vision_state, READOUT_BLOCKS)
    features = []
    for start in range(0, len(pixels), 16):
        features.append(encode(to_patches(pixels[start : start + 16], PREPROCESS)))
        show("quality views")(start // 16, len(pixels) // 16)
    views = QualityViews(torch.cat(features), torch.from_numpy(crops.labels[rows]).float())
    torch.save((views.features, views.labels), cached)
    return views


def load_base(paths: Paths) -> Weights:
    """The result of `make_base`."""
    described = json.loads((paths.work / "base" / "model.json").read_text(encoding="utf-8"))
    backbone = Backbone(model_cfg=described["model_cfg"], name=f"dual encoder on DINOv2 ViT-S/14, {DEPTH} blocks")
    config = ModelConfig(name="mini", backbone=backbone, prompts=PROMPTS, preprocess=PREPROCESS)
    return Weights(config, {}, TensorFile(paths.work / "base" / weights.BACKBONE), origin="base")


def parts(crops: TrainingCrops) -> tuple[list[str], list[str]]:
    """References to train on, references held out."""
    return split_references(crops.references(), TEST_SHARE, SEED)


def run(paths: Paths, name: str) -> None:
    """One run of stage 1."""
    folder = paths.work / name
    if (folder / weights.CONFIG).exists():
        return
    crops = load_crops(paths.work / "prepared")
    train, _ = parts(crops)

    def on_step(row: LogRow) -> None:
        losses = f"support {row.support_loss:.4f} query {row.query_loss:.4f}"
        say(f"{name} step {row.step}, epoch {row.epoch} of {STAGE_1.epochs}: {losses}, {row.seconds:.0f} s")

    pretrain(
        crops,
        folder,
        RUNS[name],
        base=load_base(paths),
        prompts=PROMPTS,
        name="mini",
        references=train,
        resume=True,
        device="cpu",
        on_step=on_step,
    )
    plot_pretraining(folder / LOG, folder / PLOT)


def calibrate(paths: Paths) -> None:
    """Sets ``quality_scale`` of the chosen run from the clean training references."""
    chosen = weights.load(paths.work / CHOSEN)
    if chosen.config.prompts.quality_scale != 1.0:
        return
    train, _ = split_references(list(by_reference(references_items(paths.references))), TEST_SHARE, SEED)
    values = scores(chosen, paths, train, level=0)
    lower_quartile = float(np.percentile(values, 25))
    scale = round(max(1.0, float(np.log(0.7 / 0.3) / np.log(lower_quartile / (1 - lower_quartile)))), 3)
    say(f"lower quartile of clean training references {lower_quartile:.3f}: quality_scale {scale}")
    prompts = dataclasses.replace(chosen.config.prompts, quality_scale=scale)
    dataclasses.replace(chosen, config=dataclasses.replace(chosen.config, prompts=prompts)).save(
        paths.work / CHOSEN
    )


def report(paths: Paths) -> None:
    """Every run, and untrained prompts, on the held-out references; the image side is the same in all."""
    crops, base = load_crops(paths.work / "prepared"), load_base(paths)
    _, held_out = parts(crops)
    cached = paths.work / "held_out.pt"
    if not cached.exists():
        model = new_model(base.config, base, seed=SEED)
        rows = crops.indices(held_out)
        torch.save(encode_crops(model, crops, rows, views=(0,), progress=show("held-out crops")), cached)
    features = torch.load(cached, weights_only=True)
    for name in ("untrained", *RUNS):
        target = paths.work / f"report_{name}.json"
        if target.exists():
            continue
        if name == "untrained":
            model = new_model(base.config, base, seed=SEED)
        elif (paths.work / name / weights.CONFIG).exists():
            model = weights.load(paths.work / name).build()
        else:
            continue
        say(f"{name}: {len(held_out)} references")
        result = evaluate_held_out(model, crops, held_out, features=features)
        target.write_text(json.dumps(as_record(result), indent=2), encoding="utf-8")
        say(f"{name}: overall {result.overall:.3f}, mean per type {result.mean_per_task:.3f}")


def as_record(result: HeldOutAgreement) -> dict[str, object]:
    """The numbers of an evaluation, rounded."""
    return {
        "srcc_overall": round(result.overall, 4),
        "srcc_mean_per_type": round(result.mean_per_task, 4),
        "srcc_per_type": {k.split("/")[1]: round(v, 4) for k, v in result.per_task.items()},
        "images": result.images,
    }


def scores(model: Weights, paths: Paths, references: list[str], *, level: int) -> list[float]:
    """Scores of all versions of some references at one level, 0 for the clean ones."""
    items = references_items(paths.references)
    wanted = [i for i in items if i.level == level and i.full_reference in references]
    images = (distorted_version(np.asarray(read_image(item.path)), item) for item in wanted)
    values = []
    for score in Scorer(model, workers=1).score_many(images):
        if isinstance(score, FailedScore):
            raise RuntimeError(score.error)
        values.append(score.value)
        show(f"level {level}")(len(values), len(wanted))
    return values


def levels(paths: Paths) -> None:
    """How the chosen run scores whole held-out references: percentiles 0..100, clean and at the heaviest level."""
    target = paths.work / "levels.json"
    if target.exists():
        return
    chosen = weights.load(paths.work / CHOSEN)
    _, held_out = split_references(list(by_reference(references_items(paths.references))), TEST_SHARE, SEED)
    clean, heavy = (np.array(scores(chosen, paths, held_out, level=level)) for level in (0, max(LEVELS)))
    percentiles = {
        name: [round(float(v), 4) for v in np.percentile(values, np.arange(101))]
        for name, values in (("clean", clean), ("distorted_level_5", heavy))
    }
    shares = {
        "clean": len(clean),
        "clean_above_0.7": round(float(np.mean(clean > 0.7)), 4),
        "level_5": len(heavy),
        "level_5_below_0.3": round(float(np.mean(heavy < 0.3)), 4),
    }
    say(f"held-out references: {shares}")
    target.write_text(json.dumps({"percentiles": percentiles, "shares": shares}, indent=2), encoding="utf-8")


def bundle(paths: Paths) -> None:
    """Writes ``grmp_score/bundled/mini`` from the chosen run, with its measured numbers."""
    chosen = weights.load(paths.work / CHOSEN)
    described = json.loads((paths.work / "base" / "model.json").read_text(encoding="utf-8"))
    reports = {
        name: json.loads((paths.work / f"report_{name}.json").read_text(encoding="utf-8"))
        for name in ("untrained", *RUNS)
    }
    mine = reports[CHOSEN]
    whole = json.loads((paths.work / "levels.json").read_text(encoding="utf-8"))
    keep = ("srcc_overall", "srcc_mean_per_type")
    results = {
        "held_out_references": mine,
        "whole_held_out_references": whole["shares"],
        "compared": {name: {k: reports[name][k] for k in keep} for name in reports},
        "scenes": {
            k: described["report"][k] for k in ("scene_accuracy", "majority_rate", "balanced_accuracy", "held_out")
        },
    }
    training = {
        **chosen.config.training,
        "recipe": "examples/mini/make_mini.py",
        "seed": SEED,
        "base": "DINOv2 ViT-S/14 (Apache-2.0), first 6 blocks; text tower by locked-image contrastive tuning",
    }
    config = dataclasses.replace(
        chosen.config, reference_percentiles=whole["percentiles"], results=results, training=training
    )
    folder = Path(weights.__file__).parent / "bundled" / "mini"
    card = Path(__file__).parents[2] / "weights_cards" / "mini.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    dataclasses.replace(chosen, config=config, card=text).save(folder)
    say(f"wrote {folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(what: str) -> Callable[[int, int], None]:
    """A progress callback that prints a line for every tenth."""

    def progress(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            say(f"{what} {done}/{total}")

    return progress


@click.command()
@click.option("--dinov2", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--pairs", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--references", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--work", required=True, type=click.Path(path_type=Path))
@click.option("--jobs", default=2, show_default=True, help="Processes of the stage prepare.")
@click.argument("stages", nargs=-1, type=click.Choice(STAGES))
def main(dinov2: Path, pairs: Path, references: Path, work: Path, jobs: int, stages: tuple[str, ...]) -> None:
    """Makes the bundled model; all stages by default."""
    torch.set_num_threads(1)
    paths = Paths(dinov2, pairs, references, work, jobs)
    for stage in stages or STAGES:
        if stage in RUNS:
            run(paths, stage)
        else:
            {
                "prepare": prepare,
                "base": make_base,
                "calibrate": calibrate,
                "report": report,
                "levels": levels,
                "bundle": bundle,
            }[stage](paths)


if __name__ == "__main__":
    main()
