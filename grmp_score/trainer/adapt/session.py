"""A run of stage 2 as a sequence of trainings that can be stopped at any moment and continued to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grmp_score.errors import ConfigError, GrmpScoreError
from grmp_score.trainer.adapt.fewshot import FewShotConfig, HistoryRow
from grmp_score.trainer.adapt.tuning import Curves, Training
from grmp_score.trainer.data.labels import Labels

CHECKPOINT = "checkpoint.pt"

#: Settings that do not change the result.
_IDLE = ("cache_bytes", "checkpoint_seconds")


@dataclass(frozen=True, eq=False)
class Result:
    """What one training gave: its curves (see `Training`) and, if kept, the trained parameters."""

    curves: Curves
    parameters: dict[str, Tensor]


class Session:
    """Runs trainings one after another and keeps what they gave in a checkpoint.

    Attributes:
        history: rows of all trainings so far, in the order they were taken.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Mapping[str, Any],
        *,
        resume: bool,
        checkpoint_seconds: float,
        on_row: Callable[[Training, HistoryRow], None],
    ) -> None:
        """Makes a session, or continues one.

        Args:
            folder: for the checkpoint; None keeps none.
            identity: of `identity_of`; a checkpoint of another run is refused.
            resume: continue from the checkpoint if there is one.
            checkpoint_seconds: time between checkpoints.
            on_row: called after every row of a training; may raise to stop.

        Raises:
            ConfigError: the checkpoint is of another run; says what differs.
        """
        self.history: list[HistoryRow] = []
        self._path = None if folder is None else folder / CHECKPOINT
        self._identity, self._every, self._on_row = dict(identity), checkpoint_seconds, on_row
        self._results: dict[str, Result] = {}
        self._current: tuple[str, dict[str, Any]] | None = None
        self._saved = time.monotonic()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if resume and self._path is not None and self._path.is_file():
            self._load(self._path)

    def run(self, name: str, make: Callable[[float], Training], *, keep: bool = False) -> Result:
        """Runs one training, or what is left of it.

        Args:
            name: of the training, unique in the session.
            make: makes it; takes the seconds that the session has run.
            keep: also keep the trained parameters.

        Raises:
            GrmpScoreError: the training failed; the last good checkpoint stays.
        """
        if name not in self._results:
            training = make(self.history[-1].seconds if self.history else 0.0)
            if self._current is not None and self._current[0] == name:
                training.load_state(self._current[1])
            try:
                for row in training.run():
                    self._on_row(training, row)
                    if time.monotonic() - self._saved > self._every:
                        self._save((name, training.state()))
            except GrmpScoreError:
                raise
            except BaseException:  # interrupted: what is done is kept
                if training.whole:
                    self._save((name, training.state()))
                raise
            self._results[name] = Result(training.curves, training.tensors() if keep else {})
            self.history += training.history
            self._save(None)
        return self._results[name]

    def _save(self, current: tuple[str, dict[str, Any]] | None) -> None:
        self._current, self._saved = current, time.monotonic()
        if self._path is None:
            return
        state = {
            "identity": self._identity,
            "history": [dataclasses.asdict(row) for row in self.history],
            "results": {name: dataclasses.asdict(result) for name, result in self._results.items()},
            "current": current,
        }
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._path)

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ConfigError("not a readable checkpoint", path=str(path), hint="Start anew") from error
        theirs = state["identity"]
        changed = sorted(k for k in self._identity if theirs.get(k) != self._identity[k])
        if changed:
            raise ConfigError(
                f"the checkpoint is of a run with other {', '.join(changed)}",
                path=str(path),
                hint="Use the same ones, or another work folder",
            )
        self.history = [HistoryRow(**row) for row in state["history"]]
        self._results = {name: Result(**result) for name, result in state["results"].items()}
        self._current = state["current"]


def identity_of(
    config: FewShotConfig, labels: Labels, tensors: Mapping[str, Tensor], computing: Mapping[str, Any]
) -> dict[str, Any]:
    """What two runs must share to give the same weights: settings, labels, start weights, way of computing."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in _IDLE}
    rows = hashlib.sha256("\0".join(map(str, labels.paths)).encode())
    rows.update(np.ascontiguousarray(labels.scores).tobytes())
    rows.update(bytes([labels.higher_is_better]))
    values = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values.update(name.encode())
        values.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {**settings, **computing, "labels": rows.hexdigest(), "weights": values.hexdigest()}
