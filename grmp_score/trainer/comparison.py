"""The protocol by which the paper measures (METHOD section 4): many splits, several methods on each, medians.

Every cell (method, shots, split) is one line of a JSON lines file and is never run twice: a run that was stopped
goes on, and further methods, shots or splits are added to what is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from grmp_score import __version__
from grmp_score.errors import ConfigError, DataError, TrainingDivergedError
from grmp_score.files import replacing
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt.checkpoint import WITHOUT_EFFECT
from grmp_score.trainer.adapt.config import FewShotConfig
from grmp_score.trainer.adapt.features import Activations, CropReader, compute_activations
from grmp_score.trainer.adapt.run import adapt
from grmp_score.trainer.data.labels import Indices, Labels
from grmp_score.trainer.data.splits import draw_shots, draw_test
from grmp_score.trainer.evaluation import MIN_ROWS
from grmp_score.trainer.methods import Method
from grmp_score.weights.checksum import sha256_of

_Key = tuple[Method, int, int]


@dataclass(frozen=True)
class ProtocolConfig:
    """What is measured.

    Attributes:
        shots: numbers of training rows.
        splits: how many; split s draws test part and shots with seed s, and the same test part for all shots.
        test_share: of all rows, to test on; whole references where the labels have some.
    """

    shots: tuple[int, ...] = (50, 100, 200)
    splits: int = 10
    test_share: float = 0.2

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 2 or self.splits < 1 or not 0 < self.test_share < 1:
            raise ConfigError(f"no protocol: {self}")


@dataclass(frozen=True)
class Step:
    """Where a run of the protocol stands.

    Attributes:
        stage: ``"reading"`` (what all cells need of the images, in images) or ``"measuring"`` (in cells).
        done: units of this stage done.
        total: units of this stage.
        note: what is at work.
    """

    stage: Literal["reading", "measuring"]
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What `compare` found.

    Attributes:
        cells: one for every method, shots and split, in this order; as in the file.
        failures: cells whose training diverged, in words.
    """

    cells: tuple[dict[str, Any], ...]
    failures: tuple[str, ...]


#: What every line of the file begins with (see `_identity`).
_FIRST = b'{"method": '


class CellFile:
    """Cells in a file of JSON lines; what a killed run left of a line is cut off before the next is written."""

    def __init__(self, path: Path) -> None:
        """Reads what is there.

        Raises:
            ConfigError: a line is no cell.
        """
        self.path = path
        self._cells: list[dict[str, Any]] = []
        with open(path, "a+b") as file:  # what cannot be written is better known now
            file.seek(0)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._size = len(whole)
        for number, line in enumerate(whole.splitlines() or [text] * bool(text), start=1):
            if not _is_cell(line, torn=not whole):
                hint = "Name another file, or remove this one"
                raise ConfigError(f"row {number} is no cell of a protocol", path=str(path), hint=hint)
            if whole:
                self._cells.append(json.loads(line))

    def find(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The cell with all of these entries."""
        wanted = json.loads(json.dumps(identity))
        return next((c for c in self._cells if all(k in c and c[k] == v for k, v in wanted.items())), None)

    def add(self, cell: dict[str, Any]) -> None:
        """Writes one line."""
        line = json.dumps(cell, allow_nan=False).encode() + b"\n"
        with open(self.path, "ab") as file:
            file.truncate(self._size)
            file.write(line)
        self._size += len(line)
        self._cells.append(json.loads(json.dumps(cell)))


def _is_cell(line: bytes, *, torn: bool) -> bool:
    """Whether this is a line that `CellFile.add` wrote, or the beginning of one."""
    if torn:
        return line.startswith(_FIRST[: len(line)])
    try:
        cell = json.loads(line)
    except ValueError:
        return False
    return isinstance(cell, dict) and {"method", "rows_sha256"} <= cell.keys()


def compare(
    scorer: Scorer,
    labels: Labels,
    methods: Sequence[Method],
    config: ProtocolConfig,
    file: Path,
    *,
    split_by: str | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Outcome:
    """Runs every cell that the file does not hold.

    Args:
        scorer: where all methods start.
        labels: images and opinion scores; with ``references`` these decide what stays on one side.
        methods: of `make_methods`.
        config: what is measured.
        file: of the cells; JSON lines.  Image features are kept beside it, as ``.features.safetensors``.
        split_by: where the references come from, for the record.
        progress: called after every image, step and cell; what it raises stops the run like Ctrl-C.

    Raises:
        DataError: too few rows for these shots, or an image cannot be read.
        ConfigError: the file is not of a protocol, or the model has no text context that a method trains.
    """
    report = progress or (lambda _: None)
    for method in methods:
        if method.config.train == "prompts" and not scorer.config.prompts.n_ctx:
            raise ConfigError(f"{method.name}: {scorer.config.name} has no text context to train")
    splits = [_split(labels, config, split) for split in range(config.splits)]
    kept = CellFile(file)
    common = _common(scorer, labels, config, split_by)
    plan = {
        (method, shots, split): _identity(method, shots, split, labels, splits[split], common)
        for split in range(config.splits)
        for shots in config.shots
        for method in methods
    }
    missing = [key for key, identity in plan.items() if kept.find(identity) is None]
    done, failures = 0, []
    activations: Activations | None = None
    if any(not method.reads_images for method, _, _ in missing):
        features = file.with_suffix(".features.safetensors")
        activations = kept_activations(scorer, labels, features, lambda n: report(Step("reading", n, len(labels))))
    for cells in _by_run(missing):
        method, shots, split = cells[0]
        where = f"{shots} shots, split {split}, {method.name}"
        report(Step("measuring", done, len(missing), where))
        began = time.monotonic()
        train, test = splits[split]
        drawn = _draw(labels, train, shots, split)
        try:
            results = _measure(
                scorer,
                labels,
                drawn,
                test,
                dataclasses.replace(method.config, seed=split),
                None if method.reads_images else activations,
                lambda text, done=done, where=where: report(  # type: ignore[misc]
                    Step("measuring", done, len(missing), f"{where}: {text}")
                ),
            )
        except TrainingDivergedError as error:
            failures.append(f"{where}: {error}")
        else:
            for key in cells:
                figures = results[key[0].measured]
                kept.add(
                    {
                        **plan[key],
                        "n_test": figures["n"],
                        **{name: figures[name] for name in ("srcc", "plcc", "krcc", "plcc_logistic", "rmse")},
                        "chosen": results["chosen"],
                        "qgr": results["qgr"] if key[0].measured == "after" else None,
                        "seconds": round(time.monotonic() - began, 3),
                        "model": scorer.config.name,
                        "labels": labels.source.name,
                        "device": str(scorer.device),
                        "versions": _versions(),
                    }
                )
        done += len(cells)
        report(Step("measuring", done, len(missing), where))
    order = [(m, shots, s) for m in methods for shots in config.shots for s in range(config.splits)]
    found = [kept.find(plan[key]) for key in order]
    return Outcome(tuple(cell for cell in found if cell is not None), tuple(failures))


# ------------------------------------------------------------------------ parts


def _split(labels: Labels, config: ProtocolConfig, split: int) -> tuple[Indices, Indices]:
    """Positions to train and to test on."""
    train, test = draw_test(labels.scores, round(config.test_share * len(labels)), split, labels.groups)
    if len(train) < max(config.shots) or len(test) < MIN_ROWS:
        raise DataError(
            f"{len(labels)} labels divide into {len(train)} to train and {len(test)} to test on, expected at least "
            f"{max(config.shots)} and {MIN_ROWS}",
            path=labels.source,
            hint="Label more images, or take fewer shots or another share to test on",
        )
    return train, test


def _draw(labels: Labels, train: Indices, shots: int, split: int) -> Indices:
    """Positions of the shots, drawn as `adapt` draws them: evenly over the scores."""
    return train[draw_shots(labels.scores[train], shots, split)[0]]


def _common(scorer: Scorer, labels: Labels, config: ProtocolConfig, split_by: str | None) -> dict[str, Any]:
    """What all cells of a run share and other runs may not."""
    return {
        "test_share": config.test_share,
        "split_by": split_by,
        "labels_sha256": _labels_sha256(labels),
        "higher_is_better": labels.higher_is_better,
        "model_checksum": scorer.checksum,
        "preprocess": dataclasses.asdict(scorer.preprocess),
        "background": scorer.background,
    }


def _labels_sha256(labels: Labels) -> str:
    """Of the file; where the labels are no file, of what it would hold."""
    if labels.source.is_file():
        return sha256_of(labels.source)
    table = [list(map(str, labels.paths)), labels.scores.tolist()]
    return hashlib.sha256(json.dumps(table).encode()).hexdigest()


def _identity(
    method: Method,
    shots: int,
    split: int,
    labels: Labels,
    sides: tuple[Indices, Indices],
    common: dict[str, Any],
) -> dict[str, Any]:
    """By what a cell is known: two with the same have the same figures."""
    left_out = ("shots", "seed", *WITHOUT_EFFECT)
    settings = {k: v for k, v in dataclasses.asdict(method.config).items() if k not in left_out}
    train, test = sides
    rows = [[labels.rows[i] for i in part] for part in (_draw(labels, train, shots, split), test)]
    digest = hashlib.sha256(json.dumps([rows, labels.scores.tolist()]).encode()).hexdigest()[:16]
    return {
        "method": method.name,
        "shots": shots,
        "split": split,
        "seed": split,
        "rows_sha256": digest,
        **common,
        "settings": settings,
    }


def _by_run(missing: Iterable[_Key]) -> Iterator[list[_Key]]:
    """Cells that come out of one run of `adapt`: the same settings, shots and split."""
    runs: dict[tuple[FewShotConfig, int, int], list[_Key]] = {}
    for method, shots, split in missing:
        runs.setdefault((method.config, shots, split), []).append((method, shots, split))
    yield from runs.values()


def _measure(
    scorer: Scorer,
    labels: Labels,
    drawn: Indices,
    test: Indices,
    config: FewShotConfig,
    activations: Activations | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """The results of one run of `adapt`."""
    both = np.concatenate([drawn, test])
    return adapt(
        scorer,
        labels.take(drawn),
        config,
        test=labels.take(test),
        activations=None if activations is None else activations.take(both),
        progress=lambda step: tell(f"{step.stage} {step.done}/{step.total}"),
    ).results


def kept_activations(scorer: Scorer, labels: Labels, file: Path, progress: Callable[[int], None]) -> Activations:
    """What methods that leave the image tower's blocks alone need of all images; kept in a file for later runs."""
    stats = [(str(path), status.st_size, status.st_mtime_ns) for path in labels.paths for status in [path.stat()]]
    key = hashlib.sha256(scorer.settings_key + json.dumps(stats).encode()).hexdigest()
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, "pt") as kept:
        if kept.metadata().get("key") == key:
            features, pooled = (kept.get_tensor(name) for name in ("features", "pooled"))
            return Activations(None, features, None, scorer.preprocess.patches, pooled)
    read = iter(range(1, len(labels) + 1))
    made = compute_activations(
        scorer.model,
        labels,
        CropReader.of(scorer),
        teacher=None,
        keep_tokens=False,
        keep_pooled=True,
        dtype=torch.float32,
        progress=lambda _: progress(next(read)),
    )
    assert made.pooled is not None
    with replacing(file) as temporary:
        save_file({"features": made.features, "pooled": made.pooled}, temporary, metadata={"key": key})
    return made


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "open_clip_torch", "numpy", "pillow")}
    return {"grmp_score": __version__, "python": platform.python_version(), **libraries}
