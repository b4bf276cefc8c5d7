"""In which order photos should be labelled: SRCC on photos not seen, by order and number of labels.

    python benchmarks/label_order.py macro_photos/labels.csv ai_images/labels.csv

The scores of a file play the rater.  Every seed draws a quarter of the photos to test on; each order picks its
labels from the others (spread: the photo that is farthest from all that have a label, in image features and score),
the closed form of `adapt` learns from them, and SRCC is measured on the test photos.  Image features are computed
once and kept in ``--work``.

With ``--error`` the rater is one who errs: grades 1 to 5 of the score plus a normal error, and some photos graded
twice, as by `grmp-score label`.  The ceiling that this measures is printed beside what it stands for: the SRCC of
grades with the scores that they come from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from grmp_score import Scorer, read_labels
from grmp_score.label.order import in_emptiest_strata, stratified
from grmp_score.label.session import REPEAT_EVERY, consistency
from grmp_score.trainer.adapt.closed_form import fit_closed_form
from grmp_score.trainer.adapt.measure import mean_p_high
from grmp_score.trainer.adapt.parameters import SHIFT, closed_form_names, set_values, values_of
from grmp_score.trainer.comparison import kept_activations
from grmp_score.trainer.metrics import srcc

ORDERS = ("stratified", "spread", "stratified-spread", "random")
COUNTS = (10, 20, 40, 60, 80, 100, 150, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("labels", type=Path, nargs="+", help="CSV of images and scores")
    parser.add_argument("--model", default="mini", help="weights to start from")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--error", type=float, help="of one grade, in standard deviations of the scores")
    parser.add_argument("--work", type=Path, default=Path("."), help="folder for the features")
    options = parser.parse_args()
    for file in options.labels:
        work, counts = options.work, options.counts
        figures = simulate(options.model, file, work, options.orders, counts, options.seeds, options.error)
        show(file, figures, options.orders, counts)
        if options.error is not None:
            show_ceiling(read_labels(file).scores, counts, options.seeds, options.error)


def simulate(
    model_name: str, file: Path, work: Path, orders: list[str], counts: list[int], seeds: int, error: float | None
) -> np.ndarray:
    """SRCC [orders, counts, seeds] with the scores themselves, also where the labels learned from have errors."""
    scorer, labels = Scorer.from_pretrained(model_name), read_labels(file)
    model = scorer.model
    kept = kept_activations(scorer, labels, work / f"{file.parent.name}.features.safetensors", lambda _: None)
    scores, targets = mean_p_high(model, kept.features), labels.scores
    start = values_of(model, closed_form_names(model))
    figures = np.full((len(orders), len(counts), seeds), np.nan)
    for seed in range(seeds):
        shuffled = np.random.default_rng(seed).permutation(len(labels))
        test, pool = shuffled[: len(labels) // 4], shuffled[len(labels) // 4 :]
        given = targets if error is None else grades(targets, error, np.random.default_rng([seed, 1]))
        for at, name in enumerate(orders):
            rng = np.random.default_rng(seed)
            chosen: list[int] = []
            while len(chosen) < min(max(counts), len(pool)):
                chosen.append(choose(name, scores[pool], kept.mean_features[pool], chosen, rng))
            for column, count in enumerate(counts):
                rows = pool[chosen[:count]]
                y = (given[rows] - given[rows].min()) / np.ptp(given[rows])
                assert kept.pooled is not None
                new = fit_closed_form(model, kept.pooled[torch.from_numpy(rows)], y)
                set_values(model, new)
                with torch.no_grad():
                    features = model.image.project(
                        kept.pooled[torch.from_numpy(test)] + (new[SHIFT] - start[SHIFT])
                    )
                    figures[at, column, seed] = srcc(
                        mean_p_high(model, features, model.encode_quality()), targets[test]
                    )
                set_values(model, start)
    return figures


def grades(scores: np.ndarray, error: float, rng: np.random.Generator) -> np.ndarray:
    """Grades 1 to 5 by one who errs: fifths of the scores plus a normal error, in standard deviations."""
    fifths = np.quantile(scores, (0.2, 0.4, 0.6, 0.8))
    seen = scores + error * scores.std() * rng.standard_normal(len(scores))
    return 1.0 + np.searchsorted(fifths, seen)


def show_ceiling(scores: np.ndarray, counts: list[int], seeds: int, error: float) -> None:
    """The ceiling that blind repeats find, by number of labels, and the true one; medians over seeds."""
    measured: dict[int, list[float]] = {count: [] for count in counts}
    true = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        first, again = grades(scores, error, rng), grades(scores, error, rng)
        true.append(srcc(first, scores))
        labelled = rng.permutation(len(scores))
        for count in counts:
            twice = labelled[: max(0, count // REPEAT_EVERY - 1)]
            found = consistency(list(zip(first[twice].tolist(), again[twice].tolist(), strict=True)))
            if found is not None:
                measured[count].append(found["ceiling"])
    print(f"\na grade's SRCC with the scores: {spread(true)}")
    for count, found in measured.items():
        if found:
            print(f"ceiling by {count // REPEAT_EVERY - 1} repeats, with {count} labels: {spread(found)}")


def spread(values: list[float]) -> str:
    return f"{np.median(values):.3f} ({min(values):.3f} .. {max(values):.3f}, n = {len(values)})"


def choose(
    order: str, scores: np.ndarray, features: np.ndarray, chosen: list[int], rng: np.random.Generator
) -> int:
    """The photo that comes next."""
    left = np.setdiff1d(np.arange(len(scores)), chosen)
    if order == "random":
        return int(rng.choice(left))
    if order == "stratified":
        return stratified(scores, chosen, left.tolist(), rng)
    if order == "stratified-spread":
        left = in_emptiest_strata(scores, chosen, left.tolist())
    centred, score = features - features.mean(axis=0), (scores - scores.mean())[:, None]
    places = np.hstack([centred / np.sqrt(centred.var(axis=0).sum()), score / score.std()])
    if not chosen:
        return int(left[np.argmin(np.square(places[left]).sum(axis=1))])
    known = places[chosen]
    squares = np.square(places[left]).sum(axis=1)[:, None] + np.square(known).sum(axis=1)
    return int(left[np.argmax((squares - 2 * places[left] @ known.T).min(axis=1))])


def show(file: Path, figures: np.ndarray, orders: list[str], counts: list[int]) -> None:
    """Tables in Markdown: medians over seeds; mean gain over the last order, seed by seed; and labels needed."""
    print(f"\n{file.parent.name}\n")
    print("| order | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---|" * len(counts))
    for name, rows in zip(orders, figures, strict=True):
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in np.median(rows, axis=1)) + " |")
    for name, rows in zip(orders[:-1], figures, strict=False):
        gains = rows - figures[-1]
        cells = [f"{g.mean():+.3f} ± {g.std(ddof=1) / len(g) ** 0.5:.3f}" for g in gains]
        print(f"| {name} less {orders[-1]} | " + " | ".join(cells) + " |")
    medians = np.maximum.accumulate(np.median(figures, axis=2), axis=1)
    for at, count in enumerate(counts):
        wanted = medians[-1, at]
        needed = [
            f"{name} {np.interp(wanted, row, counts, right=np.inf):.0f}"
            for name, row in zip(orders, medians, strict=True)
        ]
        print(f"labels for SRCC {wanted:.3f}, which {orders[-1]} has with {count}: {', '.join(needed)}")


if __name__ == "__main__":
    main()
