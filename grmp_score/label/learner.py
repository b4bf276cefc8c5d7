"""What is learned while photos are rated, in a thread beside the server: features, next photo, new order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grmp_score.errors import DataError, ImageReadError
from grmp_score.images.near_duplicates import THRESHOLD, connected, fingerprint
from grmp_score.images.read import read_image
from grmp_score.label.order import Array, stratified
from grmp_score.label.photos import Photos
from grmp_score.model.patches import make_patches

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

    from grmp_score.scorer import Scorer
    from grmp_score.trainer.data.labels import Labels
    from grmp_score.weights.folder import Weights

Pooled = NDArray[np.float16]

#: Fewest labels to learn from; and how many there are when it is first done without being asked.
FEWEST, FIRST_LOOK = 10, 20
#: Shares of the training part that make the learning curve.
_SHARES = (0.5, 1.0)
_FOLDS = 5


def is_look(count: int) -> bool:
    """Whether it is time to learn without being asked: at 20, 40, 80 ... labels."""
    return count % FIRST_LOOK == 0 and (count // FIRST_LOOK).bit_count() == 1


@dataclass(frozen=True)
class Known:
    """What is known of a photo.

    Attributes:
        pooled: [P, F] float16, what the image tower gives for its crops, before it is projected.
        before: p(high) by the model as it is.
        print: fingerprint of what it shows.
    """

    pooled: Pooled
    before: float
    print: bytes


@dataclass(frozen=True)
class Learned:
    """What some labels taught.

    Attributes:
        labels: scores by photo.
        srcc: of the cross-validation: agreement with labels that were not learned from.
        interval: 95 % bootstrap interval of that.
        srcc_before: of the model as it is, on the same labels.
        curve: number of labels learned from, and `srcc` with so many: with half of the training part and all of it.
        before: p(high) by photo, by the model as it is.
        after: by the new one.
    """

    labels: dict[int, float]
    srcc: float
    interval: tuple[float, float]
    srcc_before: float
    curve: tuple[tuple[int, float], tuple[int, float]]
    before: dict[int, float]
    after: dict[int, float]


class Learner:
    """Looks at the photos one by one; learns from labels when told to.

    Attributes:
        photos: all of them.
        stratified: whether the photos come evenly over the model's scores, and not at random.
        failed: photos that cannot be read.
        learned: the latest; None before the first.
        finished: how often something was learned.
        error: why the last task failed, in words.
        saved: folder of the model that was written last.
    """

    def __init__(self, photos: Photos, scorer: Scorer, order: str, seed: int, cache: Path) -> None:
        """Nothing is computed before `start`.

        Args:
            photos: that are looked at, in random order.
            scorer: whose model is learned from.
            order: "stratified" or "random".
            seed: of everything random.
            cache: folder for what is known of the photos; made when it is needed.
        """
        self.photos, self.stratified, self.failed = photos, order == "stratified", set[int]()
        self.learned: Learned | None = None
        self.finished = 0
        self.error, self.saved = "", ""
        self._scorer, self._cache = scorer, cache
        self._rng = np.random.default_rng(seed)
        self._known: dict[int, Known] = {}
        self._left = random.Random(seed).sample(range(len(photos)), len(photos))
        self._tasks: dict[str, Callable[[], None]] = {}
        self._wake = threading.Condition()
        self.busy = False

    # ------------------------------------------------------------ the thread

    def start(self) -> None:
        """Begins to look at photos."""
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._tasks or self._left)
                task = self._tasks.pop(next(iter(self._tasks))) if self._tasks else None
                number = self._left.pop(0) if task is None else -1
            try:
                if task is None:
                    self._look_at(number)
                else:
                    task()
            except ImageReadError:
                self.failed.add(number)
            except Exception as error:  # the page says it, and the next task may go well
                self.error = str(error)
            finally:
                with self._wake:
                    self.busy = bool(self._tasks)

    def _do(self, kind: str, task: Callable[[], None]) -> None:
        """Queues a task; one of the same kind that has not begun is dropped."""
        with self._wake:
            self.busy, self.error = True, ""
            self._tasks[kind] = task
            self._wake.notify()

    # ------------------------------------------------------- looking at photos

    @property
    def ready(self) -> int:
        """How many photos have been looked at."""
        return len(self._known) + len(self.failed)

    def _look_at(self, number: int) -> None:
        path = self.photos.checked(number)
        status = os.stat(path)
        key = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape")
        file = self._cache / f"{hashlib.sha256(self._scorer.settings_key + key).hexdigest()[:32]}.npz"
        with contextlib.suppress(OSError, ValueError, KeyError, EOFError), np.load(file) as kept:
            self._known[number] = Known(kept["pooled"], float(kept["before"]), kept["print"].tobytes())
            return
        import torch

        from grmp_score.trainer.adapt.features import run_frozen
        from grmp_score.trainer.adapt.measure import mean_p_high

        scorer = self._scorer
        image = read_image(path, background=scorer.background, max_pixels=scorer.max_pixels)
        made = run_frozen(scorer.model, torch.from_numpy(make_patches(image, scorer.preprocess)), "float32")
        known = Known(
            made.pooled.cpu().numpy().astype(np.float16),
            float(mean_p_high(scorer.model, made.features[None])[0]),
            fingerprint(image),
        )
        self._known[number] = known
        self._cache.mkdir(exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(
            partial,
            pooled=known.pooled,
            before=known.before,
            print=np.frombuffer(known.print, np.uint8),
        )
        os.replace(partial, file)

    # ---------------------------------------------------------- the next photo

    def choose(self, labelled: Sequence[int], candidates: Sequence[int]) -> int:
        """One of the candidates, of those that have been looked at if there are any."""
        known = dict(self._known)
        if not self.stratified or not any(n in known for n in candidates):
            return int(self._rng.choice(np.asarray(candidates)))
        numbers = list(known)
        at = {number: i for i, number in enumerate(numbers)}
        chosen = stratified(
            np.array([one.before for one in known.values()]),
            [at[n] for n in labelled if n in at],
            [at[n] for n in candidates if n in at],
            self._rng,
        )
        return numbers[chosen]

    def is_copy(self, number: int, others: Sequence[int]) -> bool:
        """Whether a photo is a near duplicate of another, as far as both have been looked at."""
        if number not in self._known:
            return False
        bits = int.from_bytes(self._known[number].print, "big")
        prints = (int.from_bytes(self._known[n].print, "big") for n in others if n in self._known)
        return any((bits ^ other).bit_count() <= THRESHOLD for other in prints)

    # --------------------------------------------------------------- learning

    def learn(self, scores: Mapping[int, float]) -> None:
        """Learns from labels, in the thread; `learned` or `error` is set at its end, and `busy` is false again."""
        given = dict(scores)
        self._do("learn", lambda: self._learn(given))

    def _labels(self, scores: Mapping[int, float], source: Path) -> tuple[list[int], Labels]:
        from grmp_score.trainer.data.labels import Labels

        for number in scores:
            if number not in self._known and number not in self.failed:
                self._look_at(number)
        numbers = [n for n in scores if n in self._known]
        values = np.array([scores[n] for n in numbers], dtype=np.float64)
        if len(numbers) < FEWEST or len(set(values)) < 2:
            what = f"{len(numbers)} labels" if len(numbers) < FEWEST else f"labels that are all {values[0]:g}"
            raise DataError(f"{what}, expected at least {FEWEST} that differ", hint="Rate more photos")
        first = connected([self._known[n].print for n in numbers])
        paths = tuple(Path(os.path.abspath(self.photos.paths[n])) for n in numbers)
        references = tuple(str(paths[i]) for i in first)
        rows = tuple(range(2, len(numbers) + 2))
        return numbers, Labels(source, paths, rows, values, "score", references=references)

    def _learn(self, scores: dict[int, float]) -> None:
        from grmp_score.trainer.adapt.folds import all_rows, join_held_out, make_folds
        from grmp_score.trainer.evaluation import agreement
        from grmp_score.trainer.metrics import srcc

        numbers, labels = self._labels(scores, Path())
        pooled = [self._known[n].pooled for n in numbers]
        folds = make_folds(labels, _FOLDS, 0)
        curve, joined = [], np.zeros(len(numbers))
        for share in _SHARES:
            predictions, counts = [], []
            for fold in folds:
                rows = np.random.default_rng(0).permutation(fold.rows)[: max(4, round(share * len(fold.rows)))]
                counts.append(len(rows))
                fitted = self._fit(
                    [pooled[i] for i in rows], fold.targets[rows], [pooled[i] for i in fold.held_out]
                )
                predictions.append(fitted)
            joined = join_held_out(predictions, folds, labels)
            curve.append((round(float(np.mean(counts))), srcc(joined, labels.scores)))
        known = dict(self._known)
        before = {n: one.before for n, one in known.items()}
        everything = all_rows(labels)
        after = self._fit(pooled, everything.targets, [one.pooled for one in known.values()])
        measured = agreement(joined, labels.scores)
        self.learned = Learned(
            dict(zip(numbers, labels.scores.tolist(), strict=True)),
            measured.srcc,
            measured.srcc_interval,
            srcc([before[n] for n in numbers], labels.scores),
            (curve[0], curve[1]),
            before,
            dict(zip(known, after.tolist(), strict=True)),
        )
        self.finished += 1

    def _fit(self, pooled: Sequence[Pooled], targets: NDArray[np.floating], others: Sequence[Pooled]) -> Array:
        """p(high) of other photos [m] by the model fitted to ``pooled``, n times [P, F], and ``targets`` [n]."""
        import torch

        from grmp_score.trainer.adapt.closed_form import fit_closed_form
        from grmp_score.trainer.adapt.measure import mean_p_high
        from grmp_score.trainer.adapt.parameters import SHIFT, closed_form_names, set_values, values_of

        def tensor(parts: Sequence[Pooled]) -> Tensor:
            return torch.from_numpy(np.stack(parts)).to(self._scorer.device)

        model = self._scorer.model
        old = values_of(model, closed_form_names(model))
        new = fit_closed_form(model, tensor(pooled), targets)
        try:
            set_values(model, new)
            with torch.no_grad():
                text, shift = model.encode_quality(), new[SHIFT] - old[SHIFT]
                parts = [
                    mean_p_high(model, model.image.project(tensor(others[i : i + 64]).float() + shift), text)
                    for i in range(0, len(others), 64)
                ]
        finally:
            set_values(model, old)
        return np.concatenate(parts)

    def save(self, scores: Mapping[int, float], source: Path) -> None:
        """Writes the folder of an adapted model, in the thread; ``saved`` is its path at the end.

        Args:
            scores: labels to learn from.
            source: the file that they are in; the folder is ``NAME-adapted`` beside it, or with a number.
        """
        given = dict(scores)
        self._do("save", lambda: self._save(given, source))

    def _save(self, scores: dict[int, float], source: Path) -> None:
        import torch

        from grmp_score.report.folder import publish, write_folder
        from grmp_score.trainer.adapt.config import FewShotConfig
        from grmp_score.trainer.adapt.features import Activations
        from grmp_score.trainer.adapt.run import adapt

        numbers, labels = self._labels(scores, source)
        model = self._scorer.model
        pooled = torch.from_numpy(np.stack([self._known[n].pooled for n in numbers]))
        with torch.no_grad():
            features = torch.stack(
                [model.image.project(one.to(self._scorer.device).float()).cpu() for one in pooled]
            )
        kept = Activations(None, features, None, features.shape[1], pooled)
        adapted = adapt(self._scorer, labels, FewShotConfig(folds=_FOLDS), activations=kept)
        names = (f"{source.stem}-adapted{i}" for i in ("", *(f"-{k}" for k in range(2, 1000))))
        folder = next(f for f in map(source.with_name, names) if not os.path.lexists(f))
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        weights: Weights = publish(adapted, self._scorer.weights, folder=folder.name)
        try:
            write_folder(partial, weights, adapted.history, adapted.test_predictions, unit="score")
            os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self.saved = str(folder)

    # ------------------------------------------------------------ for the page

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ready": self.ready,
            "photos": len(self.photos),
            "busy": self.busy,
            "error": self.error,
            "saved": self.saved,
            "finished": self.finished,
        }
