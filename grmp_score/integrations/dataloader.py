"""Scores with PyTorch's `DataLoader`: its worker processes read and cut images, the main process scores them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from grmp_score.images import ImageSource
from grmp_score.pipeline.prepare import PreparedImage
from grmp_score.score import FailedScore, Score
from grmp_score.scorer import Scorer


class PatchDataset(IterableDataset["PreparedImage | Score | FailedScore"]):
    """Reads and cuts images in the worker processes of a `DataLoader`; `Scorer.score_prepared` scores them.

    Use ``batch_size=None``: there is nothing to collate, since an image's patches are a batch already.  The order
    is that of ``images`` for any number of workers.

    Example:
        >>> loader = DataLoader(PatchDataset(paths, scorer), batch_size=None, num_workers=4)  # doctest: +SKIP
        >>> for score in scorer.score_prepared(loader): ...  # doctest: +SKIP
    """

    def __init__(self, images: Iterable[ImageSource], scorer: Scorer) -> None:
        """Keeps what is needed for reading; the model does not go to the workers.

        Args:
            images: paths, bytes or arrays; every worker goes through all of them and reads its share.
            scorer: whose preprocessing is used.
        """
        self.images = images
        self._preparer = scorer.preparer()

    def __iter__(self) -> Iterator[PreparedImage | Score | FailedScore]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        # The loader asks its workers in turn, so every n-th image for each gives the order of the input.
        return map(self._preparer.try_prepare, islice(self.images, first, None, step))


def score_prepared(
    items: Iterable[PreparedImage | Score | FailedScore], scorer: Scorer
) -> Iterator[Score | FailedScore]:
    """`Scorer.score_prepared`, under its name of version 0.1."""
    return scorer.score_prepared(items)
