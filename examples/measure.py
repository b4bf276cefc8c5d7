"""Agreement of a model with human opinion scores: SRCC and PLCC on a CSV of labels, nothing is trained.

    python examples/measure.py labels.csv [--model mini]

The CSV has the columns ``image`` (path relative to the CSV) and ``mos`` (higher is better).
"""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import click
import numpy as np

from grmp_score import Scorer
from grmp_score.metrics import plcc, srcc


@click.command()
@click.argument("labels", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="mini", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write image, mos and score here as CSV.")
def main(labels: Path, model: str, output: Path | None) -> None:
    """Scores every labelled image once and prints one line of JSON."""
    with open(labels, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    started = time.monotonic()
    scorer = Scorer.from_pretrained(model)
    loaded = time.monotonic()
    scores = list(scorer.score_many(labels.parent / row["image"] for row in rows))
    seconds = time.monotonic() - loaded
    mos = np.array([float(row["mos"]) for row in rows])
    values = np.array([np.nan if s.value is None else s.value for s in scores])
    scored = np.isfinite(values)
    if output is not None:
        with open(output, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image", "mos", "score"]])
            csv.writer(file).writerows(zip((r["image"] for r in rows), mos, values, strict=True))
    result = {
        "labels": str(labels),
        "model": scorer.config.name,
        "n": int(scored.sum()),
        "failed": int((~scored).sum()),
        "srcc": round(srcc(values[scored], mos[scored]), 4),
        "plcc": round(plcc(values[scored], mos[scored]), 4),
        "load_seconds": round(loaded - started, 1),
        "images_per_second": round(len(rows) / seconds, 2),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
