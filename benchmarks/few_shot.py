"""How well `adapt` learns from few labels: many draws from one file of labels, as a table.

    python benchmarks/few_shot.py --labels labels.csv
    python benchmarks/few_shot.py --labels labels.csv --train blocks --seeds 2 --qgr-lambda 0 --keep kept.pt

Every image is read once and its activations are kept (with `--train blocks` the tokens too: 2 MB per crop of the
bundled model), so a draw takes seconds, or minutes with blocks.  Draws, training and measuring are those of
`grmp-score adapt`; the figures are median / mean (least .. largest) test SRCC over the draws, in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import FewShotConfig, adapt
from grmp_score.trainer.adapt.features import Activations, CropReader, compute_activations, teacher_of
from grmp_score.trainer.data.labels import Labels, read_labels

CONTENDERS = ("before", "ridge", "after")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", help="weights folder or Hub repository; the bundled model by default")
    parser.add_argument("--shots", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", choices=["head", "prompts", "blocks"], default="head")
    parser.add_argument("--no-head-first", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--crops-per-step", type=int)
    parser.add_argument("--qgr-lambda", type=float)
    parser.add_argument("--folds", type=int)
    parser.add_argument("--keep", type=Path, help="file for the activations, to be used again")
    options = parser.parse_args()
    labels = read_labels(options.labels)
    scorer = Scorer.from_pretrained(options.model) if options.model else Scorer()
    given = {k: getattr(options, k) for k in ("epochs", "lr", "crops_per_step", "qgr_lambda", "folds")}
    settings = {k: v for k, v in given.items() if v is not None} | {
        "train": options.train,
        "head_first": not options.no_head_first,
        "precision": "float32",
    }
    kept = activations_of(scorer, labels, options.keep, tokens=options.train == "blocks")
    print(json.dumps(settings))
    print(f"{'shots':>5}  " + "  ".join(f"{name:^29}" for name in CONTENDERS) + "  after best in")
    for shots in options.shots:
        found = []
        for seed in range(options.seeds):
            began = time.monotonic()
            config = FewShotConfig(shots=shots, seed=seed, **settings)
            results = adapt(scorer, labels, config, activations=kept).results
            found.append({name: results[name]["srcc"] for name in CONTENDERS})
            row = {k: round(v, 3) for k, v in found[-1].items()} | {"chosen": results["chosen"]}
            say(f"{shots} shots, seed {seed}: {json.dumps(row)} {time.monotonic() - began:.0f} s")
        cells = []
        for name in CONTENDERS:
            values = [f[name] for f in found]
            middle = f"{statistics.median(values):.3f} / {statistics.mean(values):.3f}"
            cells.append(f"{middle} ({min(values):.3f} .. {max(values):.3f})")
        best = sum(f["after"] > max(f["before"], f["ridge"]) for f in found)
        print(f"{shots:>5}  " + "  ".join(cells) + f"  {best} of {len(found)}", flush=True)


def activations_of(scorer: Scorer, labels: Labels, path: Path | None, *, tokens: bool) -> Activations:
    """Of all images; from the file, if it is there."""
    if path is not None and path.is_file():
        return Activations(**torch.load(path, mmap=True, weights_only=True))
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if done % 50 == 0:
            say(f"read {done} of {len(labels)} images")

    model = scorer.weights.build().to(scorer.device).requires_grad_(False)
    kept = compute_activations(
        model,
        labels,
        CropReader.of(scorer),
        teacher=teacher_of(scorer.weights)[0].to(scorer.device) if tokens else None,
        keep_tokens=tokens,
        keep_pooled=True,
        cache_bytes=2**40,
        progress=count,
    )
    if path is not None:
        torch.save(vars(kept), path)
    return kept


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
