"""Whether stage 1 learns: a tiny random CLIP before and after it, by either preset and by ordinary training.

    python benchmarks/stage_1.py                 # three seeds, some minutes on one core
    python benchmarks/stage_1.py --seeds 0 --epochs 20

Small pictures lose red or gain green or blue; nothing but the prompts is trained, on twelve pictures in every
version, and the figures are SRCC with the label on four others.  All runs see as many images as the authors' loop
does in its epochs, in batches of the same size and with as many visual prompts; every other value is the preset's.
"before" is the model with the run's own untrained prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from grmp_score.config import Backbone, ModelConfig, Preprocess
from grmp_score.model.quality_clip import QualityCLIP
from grmp_score.trainer.data.sources import CLEAN, Item
from grmp_score.trainer.pretrain.config import PretrainConfig
from grmp_score.trainer.pretrain.crops import TrainingCrops, Views
from grmp_score.trainer.pretrain.held_out import evaluate_held_out
from grmp_score.trainer.pretrain.meta import MetaTrainer
from grmp_score.trainer.pretrain.run import new_model
from grmp_score.weights import Weights

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2, "vocab_size": 600, "context_length": 24},
}
#: How much of a colour each distortion takes away at its heaviest.
DISTORTIONS = {"less_red": (1.0, 0.0, 0.0), "more_green": (0.0, -1.0, 0.0), "more_blue": (0.0, 0.0, -1.0)}
#: Their names decide in which order the authors' loop visits them, and what it does with Adam.
DATA_SETS = ("tid2013", "kadid10k")
REFERENCES, HELD_OUT, LEVELS = 8, 2, 5  # the former two in each data set
CONTENDERS = {
    "reptile": {"name": "reptile"},
    "authors": {"name": "authors"},
    "ordinary": {"name": "reptile", "method": "ordinary"},
}
#: What is not the preset's, since pictures and model are small.
SMALL = {"n_visual": 8, "support_batch": 4, "query_batch": 3}
EPOCHS = PretrainConfig.preset("authors").epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the authors' loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"SRCC on held-out pictures, before -> after, with the seeds {options.seeds}; median gain")
    for name in CONTENDERS:
        results = [contest(name, seed, options.epochs) for seed in options.seeds]
        cells = "   ".join(f"{r.before:6.3f} -> {r.after:5.3f}" for r in results)
        gain = statistics.median(r.after - r.before for r in results)
        print(f"{name:10} {results[0].images:>7} {results[0].steps:>6}  {cells}   {gain:+.3f}", flush=True)


@dataclasses.dataclass(frozen=True)
class Result:
    """Held-out SRCC before and after a run, images seen and outer steps taken."""

    before: float
    after: float
    images: int
    steps: int


def contest(name: str, seed: int, epochs: int) -> Result:
    """One run of a contender on as many images as the authors' loop sees in its epochs."""
    authors = PretrainConfig.preset("authors", epochs=epochs, **SMALL)
    images = epochs * _trainer(authors).images_per_epoch
    config = PretrainConfig.preset(**CONTENDERS[name], **SMALL, seed=seed)
    config = dataclasses.replace(config, epochs=round(images / _trainer(config).images_per_epoch))
    trainer = _trainer(config)
    trainer.check_reach()
    held_out = sorted(set(trainer.crops.references()) - {*trainer.support, *trainer.query})

    def agreement() -> float:
        trainer.model.refresh_text()
        return evaluate_held_out(trainer.model, trainer.crops, held_out).overall

    before = agreement()
    for _ in trainer.run():
        pass
    return Result(before, agreement(), config.epochs * trainer.images_per_epoch, trainer.total_steps)


def _trainer(config: PretrainConfig) -> MetaTrainer:
    base = tiny_base()
    model = new_model(dataclasses.replace(base.config, prompts=config.prompts), base, seed=config.seed)
    crops = tiny_crops(config.views)
    held_out = [f"{data_set}/{number}.png" for data_set in DATA_SETS for number in range(HELD_OUT)]
    return MetaTrainer(model, crops, config, references=[r for r in crops.references() if r not in held_out])


def tiny_base() -> Weights:
    """A tiny CLIP with random weights, always the same, wide enough that pictures differ in their features."""
    config = ModelConfig(
        "tiny", Backbone(TINY_CLIP), preprocess=Preprocess(patch_size=32, patches=4), adapted_blocks=2
    )
    model, generator = QualityCLIP(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.clip.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.5)
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise + float(name.endswith("weight")))
            else:
                parameter.copy_(noise * min(0.5, parameter.shape[1:].numel() ** -0.5))
    return Weights(config, {}, model.clip.state_dict(), origin="tiny")


def tiny_crops(views: Views) -> TrainingCrops:
    """All versions of all pictures, as `cut_crops` gives them: labels 1 (clean) to 0."""
    rng = np.random.default_rng(0)
    items, pictures = [], []
    for data_set, number in itertools.product(DATA_SETS, range(REFERENCES)):
        name, clean = f"{number}.png", _picture(rng)
        for task, colours in {CLEAN: (0.0, 0.0, 0.0), **DISTORTIONS}.items():
            for level in range(1, LEVELS + 1) if task != CLEAN else [0]:
                group = CLEAN if task == CLEAN else "colour"
                items.append(Item(f"{data_set}/{task}", group, level, name, 1 - level / LEVELS, Path(name)))
                pixels = clean * (1 - np.array(colours) * level / (LEVELS + 1)) + rng.normal(0, 20, clean.shape)
                pictures.append(np.clip(pixels, 0, 255).astype(np.uint8))
    labels = np.array([item.label for item in items])
    if views == "squeezed":
        larger, whole = (np.stack([_resized(p, side) for p in pictures]) for side in (37, 32))
        return TrainingCrops(items, labels, whole[:, None], larger)
    places = rng.integers(0, 48 - 32 + 1, size=(len(items), 3, 2))
    crops = [[p[y : y + 32, x : x + 32] for y, x in at] for p, at in zip(pictures, places, strict=True)]
    return TrainingCrops(items, labels, np.array(crops))


def _picture(rng: np.random.Generator) -> NDArray[np.float64]:
    """Soft random colours [48, 48, 3], not too bright or dark."""
    coarse = rng.uniform(100, 180, (4, 4, 3)).astype(np.uint8)
    return _resized(coarse, 48).astype(np.float64)


def _resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
