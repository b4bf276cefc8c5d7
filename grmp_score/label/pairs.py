"""Which of two photos is better: answers, and the scores that follow from them (Bradley and Terry 1952)."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from grmp_score.errors import ConfigError, DataError
from grmp_score.label.learner import FEWEST, Learner, is_look
from grmp_score.label.photos import Photos
from grmp_score.label.session import Action, photo, seconds
from grmp_score.label.store import SharedTable, now

Array = NDArray[np.float64]

#: Standard deviation of the Gaussian prior over scores: without one, a photo that won every time has none.
PRIOR_DEVIATION = 2.0
#: Comparisons of a photo before another one joins.
COMPARISONS = 6


def bradley_terry(pairs: Sequence[tuple[int, int]], count: int) -> tuple[Array, Array]:
    """Scores s of ``count`` photos, so that photo i is better than j with probability 1 / (1 + exp(s_j - s_i)).

    Args:
        pairs: better and worse photo of every answer.
        count: number of photos.

    Returns:
        Posterior mode [count], of mean 0, under a Gaussian prior, and standard errors [count] (Laplace) of the
        distance to that mean.
    """
    if not count:
        return np.zeros(0), np.zeros(0)
    at = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    signs = np.zeros((len(at), count))
    signs[np.arange(len(at)), at[:, 0]], signs[np.arange(len(at)), at[:, 1]] = 1.0, -1.0
    scores, prior = np.zeros(count), np.eye(count) / PRIOR_DEVIATION**2
    for _ in range(100):  # Newton; the posterior is log-concave
        wrong = expit(-signs @ scores)
        information = (signs * (wrong * (1 - wrong))[:, None]).T @ signs + prior
        step = np.linalg.solve(information, signs.T @ wrong - prior @ scores)
        scores += step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    centre = np.eye(count) - 1 / count
    return scores, np.sqrt(np.diag(centre @ np.linalg.inv(information) @ centre))


class PairSession:
    """As `session.Session`, for comparisons.  Answers are in ``NAME.pairs.csv``, scores in the file of labels.

    Attributes:
        photos, learner, rater, target, actions: as there; the target is a number of answers.
        file: of the scores; written anew after every answer.
    """

    def __init__(
        self, photos: Photos, output: Path, learner: Learner, *, rater: str, target: int, seed: int
    ) -> None:
        """Goes on where the answers end.

        Raises:
            DataError: a file is none of ours.
        """
        self.photos, self.learner, self.rater, self.target = photos, learner, rater, target
        self.file = SharedTable(output, ("image", "score", "rater", "standard_error", "comparisons"))
        path = self.file.path
        self._answers = SharedTable(
            path.with_name(f"{path.stem}.pairs.csv"), ("better", "worse", "rater", "time", "seconds")
        )
        self._rng = np.random.default_rng(seed)
        self._names = [self.file.name_of(photo) for photo in photos.paths]
        numbers = {name: number for number, name in enumerate(self._names)}
        self._pairs: list[tuple[int, int]] = []
        self._taken: list[float] = []
        for number, (better, worse, who, _, taken) in self._answers.rows():
            if who == rater and better in numbers and worse in numbers:
                try:
                    self._taken.append(float(taken or 0))
                except ValueError as error:
                    raise DataError(f"row {number}: {error}, expected seconds", path=self._answers.path) from error
                self._pairs.append((numbers[better], numbers[worse]))
        self._lock = threading.RLock()
        self._scores: dict[int, tuple[float, float, int]] = {}
        self._out: set[int] = set()
        self._skipped: set[frozenset[int]] = set()
        self._fit()
        self._shown = self._choose()
        self.actions: dict[str, Action] = {
            "choose": lambda given: self.choose(
                photo(given, photos, "better"), photo(given, photos, "worse"), seconds(given)
            ),
            "skip": self.skip,
            "undo": lambda _: self.undo(),
            "compare": lambda given: self.compare(photo(given, photos)),
        }

    # ------------------------------------------------------------ what is shown

    @property
    def scores(self) -> dict[int, float]:
        """Bradley-Terry scores of the photos that were compared."""
        with self._lock:
            return {number: score for number, (score, _, _) in self._scores.items()}

    def state(self) -> dict[str, Any]:
        """What the page shows, JSON-ready."""
        with self._lock:
            left = self.target - len(self._pairs)
            typical = statistics.median(min(t, 120.0) for t in self._taken) if len(self._taken) > 2 else None
            return {
                "shown": self._shown,
                "names": [self.photos.names[number] for number in self._shown],
                "score": None,
                "coming": [],
                "done": len(self._pairs),
                "target": self.target,
                "seconds_left": typical * left if typical is not None and left > 0 else None,
                "can_go_back": False,
                "can_undo": bool(self._pairs),
            }

    def consistency(self) -> None:
        """No pair is asked twice: the standard errors say how sure the scores are."""

    def _fit(self) -> None:
        seen = list(dict.fromkeys(number for pair in self._pairs for number in pair))
        at = {number: i for i, number in enumerate(seen)}
        values, errors = bradley_terry([(at[a], at[b]) for a, b in self._pairs], len(seen))
        counts = np.bincount([at[n] for pair in self._pairs for n in pair], minlength=len(seen))
        rows = zip(values.tolist(), errors.tolist(), counts.tolist(), strict=True)
        self._scores = dict(zip(seen, rows, strict=True))

    def _choose(self, first: int | None = None) -> list[int]:
        """Two photos, left and right: one that was compared least, or a new one, and one of nearly its score."""
        left_out = self._out | self.learner.failed
        seen = [n for n in self._scores if n not in left_out]
        fresh = [n for n in range(len(self.photos)) if n not in self._scores and n not in left_out]
        few = [n for n in seen if self._scores[n][2] < COMPARISONS]
        if first is None:
            if few and len(seen) > 2:
                first = min(few, key=lambda n: (-self._scores[n][2], self._rng.random()))
            elif fresh:
                first = self.learner.choose(seen, fresh)
            elif seen:
                first = min(seen, key=lambda n: (self._scores[n][2], self._rng.random()))
            else:
                return []
        asked = {frozenset(pair) for pair in self._pairs} | self._skipped
        others = [n for n in seen if n != first and frozenset((n, first)) not in asked]
        score = self._scores.get(first, (0.0, 0.0, 0))[0]
        if len(others) > 2 or (others and not fresh):
            second = min(others, key=lambda n: abs(self._scores[n][0] - score) + self._rng.exponential(0.5))
        else:
            fresh = [n for n in fresh if n != first]
            if not fresh:
                return []
            second = self.learner.choose([*seen, first], fresh)
        return [first, second] if self._rng.random() < 0.5 else [second, first]

    # ------------------------------------------------------------- what is done

    def choose(self, better: int, worse: int, taken: float) -> dict[str, Any]:
        """Takes an answer; it is on disk when this returns."""
        if better == worse:
            raise ConfigError("a photo is not better than itself")
        with self._lock:
            row = (
                self._names[better],
                self._names[worse],
                self.rater,
                now(),
                "" if math.isnan(taken) else f"{taken:.1f}",
            )
            self._answers.change(lambda rows: [*rows, row])
            self._pairs.append((better, worse))
            self._taken.append(taken)
            self._write()
            self._shown = self._choose()
            if is_look(len(self._pairs)) and len(self._scores) >= FEWEST:
                self.learner.learn(self.scores)
            return self.state()

    def skip(self, given: dict[str, Any]) -> dict[str, Any]:
        """Another pair; with ``unreadable`` the photo of that number does not come again."""
        with self._lock:
            if given.get("unreadable") is True:
                self._out.add(photo(given, self.photos))
            self._skipped.add(frozenset(self._shown))
            self._shown = self._choose()
            return self.state()

    def undo(self) -> dict[str, Any]:
        """Takes the last answer back and shows its pair."""
        with self._lock:
            if self._pairs:
                mine = (*(self._names[n] for n in self._pairs[-1]), self.rater)

                def without(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
                    last = max((i for i, cells in enumerate(rows) if cells[:3] == mine), default=len(rows))
                    return rows[:last] + rows[last + 1 :]

                self._answers.change(without)
                self._shown = list(self._pairs.pop())
                self._taken.pop()
                self._write()
            return self.state()

    def compare(self, number: int) -> dict[str, Any]:
        """Shows a pair with this photo next."""
        with self._lock:
            self._shown = self._choose(number) or self._shown
            return self.state()

    def _write(self) -> None:
        self._fit()
        mine = [
            (self._names[number], f"{score:.4f}", self.rater, f"{error:.4f}", str(count))
            for number, (score, error, count) in self._scores.items()
        ]
        self.file.change(lambda rows: [*(cells for cells in rows if cells[2] != self.rater), *mine])
