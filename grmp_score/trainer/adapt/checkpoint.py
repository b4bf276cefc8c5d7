"""Gradient descent that can be stopped at any moment and continued to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_score.errors import ConfigError, TrainingDivergedError
from grmp_score.files import replacing
from grmp_score.trainer.adapt.config import FewShotConfig, HistoryRow
from grmp_score.trainer.adapt.gradient_descent import GradientDescent
from grmp_score.trainer.data.labels import Labels

CHECKPOINT = "checkpoint.pt"

#: Settings that do not change the result.
WITHOUT_EFFECT = ("cache_bytes", "checkpoint_seconds")


@dataclass(frozen=True, eq=False)
class Trained:
    """What one training gave.

    Attributes:
        looks: of `GradientDescent`.
        values: the trained parameters; empty for a fold's training, of which only the looks are needed.
        steps: number of steps it took.
    """

    looks: dict[str, list[list[float]]]
    values: dict[str, Tensor]
    steps: int


class Checkpoint:
    """What the trainings of a run have given so far, and where the one at work stands.

    Attributes:
        history: rows of all trainings so far, in the order they were taken; without those that repeat earlier ones,
            as a training does that goes through a settled stage again.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], every: float, *, resume: bool) -> None:
        """Begins a run, or continues one.

        Args:
            folder: for the file `CHECKPOINT`; None keeps none.
            identity: of `identity_of`.
            every: seconds between two checkpoints.
            resume: continue from the file if there is one.

        Raises:
            ConfigError: the checkpoint cannot be read, or is of another run; says what differs.
        """
        self._path = None if folder is None else folder / CHECKPOINT
        self._identity, self._every = dict(identity), every
        self._rows: dict[tuple[object, ...], HistoryRow] = {}
        self._trained: dict[str, Trained] = {}
        self._at_work: tuple[str, dict[str, Any]] | None = None
        self._began = self._saved = time.monotonic()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if resume and self._path is not None and self._path.is_file():
            self._load(self._path)

    @property
    def history(self) -> tuple[HistoryRow, ...]:
        return tuple(self._rows.values())

    def record(self, row: HistoryRow) -> None:
        """Adds a row to the history, unless it was there."""
        self._rows.setdefault((row.fold, row.phase, row.step, row.loss is None), row)

    def clock(self) -> float:
        """Seconds that the run has taken, without the time that it was stopped."""
        return time.monotonic() - self._began

    def run(
        self,
        name: str,
        make: Callable[[], GradientDescent],
        on_row: Callable[[HistoryRow, int], None],
        *,
        keep: bool,
    ) -> Trained:
        """Runs one training, or what is left of it.

        Args:
            name: of the training, unique in the run.
            make: puts the model into its start state and returns the training.
            on_row: called with every row and the number of steps the training has taken; may raise to stop.
            keep: also keep the trained parameters.

        Raises:
            TrainingDivergedError: the loss became NaN or infinite; the last good checkpoint stays.
        """
        if name in self._trained:
            return self._trained[name]
        training = make()
        if self._at_work is not None and self._at_work[0] == name:
            training.load_state(self._at_work[1])
        try:
            for row in training.run():
                on_row(row, training.steps_done)
                if time.monotonic() - self._saved > self._every:
                    self._save((name, training.state()))
        except TrainingDivergedError:
            raise
        except BaseException:  # interrupted: what is done is kept
            if training.intact:
                self._save((name, training.state()))
            raise
        self._trained[name] = Trained(training.looks, training.values() if keep else {}, training.steps_done)
        for row in training.history:
            self.record(row)
        self._save(None)
        return self._trained[name]

    def _save(self, at_work: tuple[str, dict[str, Any]] | None) -> None:
        self._at_work, self._saved = at_work, time.monotonic()
        if self._path is None:
            return
        state = {
            "identity": self._identity,
            "seconds": self.clock(),
            "history": [dataclasses.asdict(row) for row in self.history],
            "trained": {name: vars(trained) for name, trained in self._trained.items()},
            "at_work": at_work,
        }
        with replacing(self._path) as temporary:
            torch.save(state, temporary)

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            theirs, seconds = dict(state["identity"]), float(state["seconds"])
            rows = [HistoryRow(**row) for row in state["history"]]
            trained = {name: Trained(**parts) for name, parts in state["trained"].items()}
            at_work = state["at_work"]
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, LookupError, TypeError) as error:
            raise ConfigError("not a readable checkpoint", path=str(path), hint="Start anew") from error
        changed = sorted(k for k in self._identity if theirs.get(k) != self._identity[k])
        if changed:
            raise ConfigError(
                f"the checkpoint is of a run with other {', '.join(changed)}",
                path=str(path),
                hint="Use the same ones, or another work folder",
            )
        self._began -= seconds
        self._trained, self._at_work = trained, at_work
        for row in rows:
            self.record(row)


def identity_of(
    config: FewShotConfig, labels: Labels, tensors: Mapping[str, Tensor], reading: Mapping[str, Any]
) -> dict[str, Any]:
    """What two runs must share to give the same weights.

    Args:
        config: settings.
        labels: training rows.
        tensors: start weights.
        reading: how images are read and computed.
    """
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in WITHOUT_EFFECT}
    rows = hashlib.sha256("\0".join(map(str, labels.paths)).encode())
    rows.update(np.ascontiguousarray(labels.scores).tobytes())
    rows.update(bytes([labels.higher_is_better]))
    values = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values.update(name.encode())
        values.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {**settings, **reading, "labels": rows.hexdigest(), "weights": values.hexdigest()}
