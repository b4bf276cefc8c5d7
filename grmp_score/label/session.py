"""One rater's way through the photos: what is shown, what was said, back and undo."""

from __future__ import annotations

import math
import random
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grmp_score.errors import ConfigError, DataError
from grmp_score.label.learner import Learner, is_look
from grmp_score.label.photos import Photos
from grmp_score.label.store import Label, LabelFile, now
from grmp_score.trainer.data.raters import MIN_COMMON
from grmp_score.trainer.metrics import bootstrap_interval, srcc, srcc_rows

#: Seconds for a photo beyond which the rater was somewhere else.
_PAUSE = 120.0
#: One photo in so many is shown again, at least `_APART` labels later.
REPEAT_EVERY, _APART = 8, 8
#: A request as JSON -> the new state.
Action = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Scale:
    """The grades that may be given: 1 to ``best`` by key, or 0 to 100 by slider; 0 is a reject."""

    best: int = 5

    def check(self, score: object) -> float:
        """A score that may be given.

        Raises:
            ConfigError: it is no number of this scale.
        """
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= self.best:
            raise ConfigError(f"the score is {score!r}, expected a number from 0 to {self.best}")
        return float(score)


class Session:
    """What one rater does; methods may be called by any thread, and have written to disk when they return.

    Attributes:
        photos: that may be shown.
        learner: that chooses and learns.
        rater: whose labels are read and written; those of others in the file stay as they are.
        scale: of the scores.
        target: labels to give; more may be given.
        actions: what the page may ask for, by name.
    """

    def __init__(
        self, photos: Photos, file: LabelFile, learner: Learner, *, rater: str, scale: Scale, target: int, seed: int
    ) -> None:
        """Goes on where the file ends.

        Raises:
            DataError: the file has scores that are not of this scale.
        """
        self.photos, self.learner, self.rater, self.scale = photos, learner, rater, scale
        self.target, self.file = min(target, len(photos)), file
        self._names = [file.name_of(path) for path in photos.paths]
        self._lock = threading.RLock()
        self._rng = random.Random(seed)
        rows = file.read()
        for row in rows:
            if not 0 <= row.score <= scale.best:
                raise DataError(
                    f"the score of {row.image!r} is {row.score:g}, expected 0 to {scale.best}",
                    path=file.path,
                    hint="Name a new file for labels on another scale",
                )
        numbers = {name: number for number, name in enumerate(self._names)}
        mine = sorted((r for r in rows if r.rater == rater and r.image in numbers), key=lambda r: r.time)
        self._labels = {numbers[row.image]: row for row in mine}
        #: What was shown before, the latest at the end, and whether it was shown again.
        self._past: list[tuple[int, bool]] = [(number, False) for number in self._labels]
        #: What comes next; those that have a label are shown again, blindly.
        self._coming: list[int] = []
        self._put_off: set[int] = set()  # skipped, or a near duplicate
        self._unreadable: set[int] = set()
        self._steps_back = 0
        self._fill()
        self.actions: dict[str, Action] = {
            "rate": lambda given: self.rate(photo(given, photos), given.get("score"), seconds(given)),
            "skip": lambda given: self.skip(photo(given, photos), unreadable=given.get("unreadable") is True),
            "back": lambda _: self.back(),
            "undo": lambda _: self.undo(),
        }

    # ------------------------------------------------------------ what is shown

    @property
    def scores(self) -> dict[int, float]:
        """This rater's labels by photo."""
        with self._lock:
            return {number: label.score for number, label in self._labels.items()}

    def state(self) -> dict[str, Any]:
        """What the page shows, JSON-ready."""
        with self._lock:
            back = bool(self._steps_back)
            current = self._past[-self._steps_back][0] if back else next(iter(self._coming), None)
            label = self._labels.get(current) if back and current is not None else None
            return {
                "shown": [] if current is None else [current],
                "names": [] if current is None else [self.photos.names[current]],
                "score": None if label is None else label.score,
                "coming": self._coming[0 if back else 1 :],
                "done": len(self._labels),
                "target": self.target,
                "seconds_left": self._seconds_left(),
                "can_go_back": self._steps_back < len(self._past),
                "can_undo": bool(self._labels),
            }

    def _seconds_left(self) -> float | None:
        """By the median time of a photo; None before the third."""
        taken = [min(r.seconds, _PAUSE) for r in self._labels.values() if math.isfinite(r.seconds)]
        left = self.target - len(self._labels)
        if len(taken) < 3 or left <= 0:
            return None
        return statistics.median(taken) * left * (1 + 1 / REPEAT_EVERY)

    def consistency(self) -> dict[str, Any] | None:
        """`consistency` of the photos that were rated twice."""
        with self._lock:
            return consistency([(one.score, one.repeat) for one in self._labels.values() if one.repeat is not None])

    def _fill(self) -> None:
        """Chooses the photos to come: the next one, and one more that the browser fetches meanwhile."""
        while len(self._coming) < 2 and (number := self._choose()) is not None:
            self._coming.append(number)

    def _choose(self) -> int | None:
        again = [n for n in self._coming if n in self._labels]
        repeats = len(again) + sum(label.repeat is not None for label in self._labels.values())
        old = [n for n in list(self._labels)[:-_APART] if self._labels[n].repeat is None and n not in again]
        if old and repeats < len(self._labels) // REPEAT_EVERY - 1:
            return self._rng.choice(old)
        out = {*self._labels, *self._coming, *self._unreadable, *self.learner.failed}
        left = [n for n in range(len(self.photos)) if n not in out]
        seen = [*self._labels, *self._coming]
        while fresh := [n for n in left if n not in self._put_off]:
            number = self.learner.choose(seen, fresh)
            if not self.learner.is_copy(number, seen):
                return number
            self._put_off.add(number)
        return self.learner.choose(seen, left) if left else None

    # ------------------------------------------------------------- what is done

    def rate(self, number: int, score: object, taken: float) -> dict[str, Any]:
        """Takes a score for a photo; it is on disk when this returns.

        Args:
            number: of the photo: the one that is shown, or any other, whose score is then corrected.
            score: of `Scale`.
            taken: seconds that it was looked at.

        Returns:
            the new `state`.

        Raises:
            ConfigError: no such score.
        """
        value = self.scale.check(score)
        with self._lock:
            next_one = not self._steps_back and self._coming[:1] == [number]
            old = self._labels.get(number)
            if next_one and old is not None:
                self._labels[number] = self.file.repeat(old, value)
            else:
                again = None if old is None else old.repeat
                label = Label(self._names[number], value, self.rater, now(), taken, again)
                self.file.rate(label)
                self._labels.pop(number, None)
                self._labels[number] = label
            if next_one:
                self._past.append((number, old is not None))
            elif (number, False) not in self._past:
                self._past.append((number, False))
            self._steps_back = 0
            if number in self._coming:
                self._coming.remove(number)
            self._put_off.discard(number)
            self._fill()
            if old is None and is_look(len(self._labels)):
                self.learner.learn(self.scores)
            return self.state()

    def skip(self, number: int, *, unreadable: bool = False) -> dict[str, Any]:
        """Goes on without a label; the photo comes again when all others have one, unless it cannot be shown."""
        with self._lock:
            if unreadable:
                self._unreadable.add(number)
                self._past = [step for step in self._past if step[0] != number]
            if self._steps_back:
                self._steps_back = 0 if unreadable else self._steps_back - 1
            elif number in self._coming:
                self._past.append((number, number in self._labels))
            if number in self._coming:
                self._coming.remove(number)
            self._put_off.add(number)
            self._fill()
            return self.state()

    def back(self) -> dict[str, Any]:
        """Shows the photo before the one that is shown; its label stays until another is given."""
        with self._lock:
            self._steps_back = min(self._steps_back + 1, len(self._past))
            return self.state()

    def undo(self) -> dict[str, Any]:
        """Takes the last label back and shows its photo."""
        with self._lock:
            while self._past:
                number, again = self._past.pop()
                label = self._labels.get(number)
                if label is None or (again and label.repeat is None):  # was skipped
                    continue
                if again:
                    self._labels[number] = self.file.repeat(label, None)
                else:
                    self.file.remove(self._names[number], self.rater)
                    del self._labels[number]
                    self._past = [step for step in self._past if step[0] != number]
                self._coming = [number, *(n for n in self._coming if n != number)][:2]
                break
            self._steps_back = 0
            return self.state()


def consistency(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """How well a rater agrees with himself, and the ceiling that this sets; None before `MIN_COMMON` repeats.

    With r the correlation of the same photos rated twice, a model that knew the rater's true opinion would
    correlate with single ratings at the root of r (the reliability of one rating).

    Args:
        pairs: first and second rating of each photo that was rated twice.
    """
    if len(pairs) < MIN_COMMON:
        return None
    first, again = zip(*pairs, strict=True)
    values = [srcc(first, again), *bootstrap_interval(srcc_rows, first, again)]
    if any(math.isnan(value) for value in values):
        return None
    root = [math.sqrt(max(0.0, value)) for value in values]
    return {"repeats": len(pairs), "srcc": values[0], "ceiling": root[0], "interval": root[1:]}


def photo(given: dict[str, Any], photos: Photos, key: str = "photo") -> int:
    """The number of a photo in a request.

    Raises:
        ConfigError: there is no such photo.
    """
    number = given.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(photos):
        raise ConfigError(f"the {key} is {number!r}, expected the number of a photo, 0 to {len(photos) - 1}")
    return number


def seconds(given: dict[str, Any]) -> float:
    """The seconds that a request says a photo was looked at; NaN where it does not.

    Raises:
        ConfigError: they are no such number.
    """
    value = given.get("seconds")
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e7:
        raise ConfigError(f"the seconds are {value!r}, expected a number from 0")
    return float(value)
