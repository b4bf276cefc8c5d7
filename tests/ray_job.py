"""Jobs on a local Ray cluster, run by test_ray as processes of their own: PART MODEL PHOTOS OUT.json"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import ray
import ray.data
import torch
from PIL import Image

import grmp_score.integrations.ray
from grmp_score.errors import ConfigError, GrmpScoreError
from grmp_score.integrations.ray import score_dataset, score_paths
from grmp_score.scorer import Score, Scorer
from grmp_score.weights.folder import Weights, load

PART, MODEL, PHOTOS, OUT = sys.argv[1:]
MARK = Path(OUT).with_suffix(".killed")


class Dying(grmp_score.integrations.ray._ScoreWorker):
    """A worker whose process is killed at one image: at the first try, or at every one."""

    always = False

    def _scores(self, values: Iterable[Any]) -> Iterator[Score]:
        for value in values:
            if value == "photo20.png" and (self.always or not MARK.exists()):
                MARK.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super()._scores([value])


class DyingAlways(Dying):
    """An image that kills every worker."""

    always = True


def paths(out: dict[str, Any], model: Weights, names: list[str]) -> None:
    """One job on a cluster of its own, in which a worker is killed."""
    grmp_score.integrations.ray._ScoreWorker = Dying  # type: ignore[misc]
    out["local"] = [dataclasses.asdict(s) for s in Scorer(model, device="cpu").score_many(names)]
    out["remote"] = [dataclasses.asdict(s) for s in score_paths(iter(names), model=model, workers=2, batch_size=4)]
    out["still connected"] = ray.is_initialized()
    out["killed"] = MARK.exists()


def killing(out: dict[str, Any], model: Weights, names: list[str]) -> None:
    """An image that kills every worker that tries it."""
    grmp_score.integrations.ray._ScoreWorker = DyingAlways  # type: ignore[misc]
    try:
        list(score_paths(names, model=model, workers=2, batch_size=4))
    except GrmpScoreError as error:
        out["error"] = str(error)


def datasets(out: dict[str, Any], model: Weights, names: list[str]) -> None:
    """Datasets of every kind of column, on a cluster that this process is connected to."""
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR)
    out["none"] = list(score_paths([], model=model))
    out["still connected"] = ray.is_initialized()
    # The same pictures as paths, as bytes and as arrays, each with rows that are no image.
    some = names[:6]
    bytes_ = [Path(n).read_bytes() for n in some]
    arrays = [np.asarray(Image.open(n).convert("RGB")) for n in some]
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    tables = {
        "path": ray.data.from_arrow(pyarrow.table({"path": [*some, "broken.jpg", None], "n": range(8)})),
        "bytes": ray.data.from_arrow(pyarrow.table({"bytes": [*bytes_, b"no image", None], "n": range(8)})),
        "image": ray.data.from_items([{"image": a, "n": i} for i, a in enumerate(arrays)]),
    }
    for column, ds in tables.items():
        scored = score_dataset(ds, model=Scorer(model, device="cpu"), column=column, concurrency=1, batch_size=3)
        out[column] = [{k: v for k, v in row.items() if k != column} for row in scored.take_all()]
        out[f"{column} schema"] = {
            n: str(t) for n, t in zip(scored.schema().names, scored.schema().types, strict=True)
        }
    rough = Scorer(model, device="cpu", precision="int8")
    out["int8"] = [row["score"] for row in score_dataset(tables["path"], model=rough).take(6)]
    out["int8 local"] = [score.value for score in rough.score_many(some)]
    mistakes = {
        "no column": {"column": "file"},
        "taken": {"ds": tables["path"].rename_columns({"n": "score"}).materialize()},
        "no worker": {"concurrency": 0},
        "batch": {"batch_size": 0},
        "int8 on a GPU": {"model": rough, "num_gpus": 1},
    }
    for name, change in mistakes.items():
        try:
            score_dataset(**{"ds": tables["path"].materialize(), "model": model, **change})
        except ConfigError as error:
            out[name] = str(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(PHOTOS)  # relative paths start here, also for the workers
    names = [*sorted(p.name for p in Path().glob("photo*.png")), "broken.jpg", "gone \udcff.png"]
    out: dict[str, Any] = {"names": names}
    {"paths": paths, "killing": killing, "datasets": datasets}[PART](out, load(MODEL), names)
    Path(OUT).write_text(json.dumps(out))
