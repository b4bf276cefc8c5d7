"""The report: one HTML page with everything in it, that needs no network and, but for sorting, no JavaScript.

What the page says is in ``templates/page.html``; here is what it says it about.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from grmp_score import __version__
from grmp_score.display import css_colour, data_uri, jpeg, shrink
from grmp_score.errors import GrmpScoreError
from grmp_score.files import replacing
from grmp_score.images.near_duplicates import near_duplicates
from grmp_score.report.gallery import Gallery, ScoredImage
from grmp_score.report.links import link
from grmp_score.report.rows import WeightsInfo
from grmp_score.report.text import TEMPLATES, count, direction, number, short_names, templates
from grmp_score.score import Score

if TYPE_CHECKING:
    from grmp_score.trainer.data.labels import Labels

_BINS = 20
#: Images shown as the best, as the worst, and as those that the labels disagree about.
_EXTREMES = 6
#: Longer side of the thumbnails of bursts, which lie in the page a second time.
_SMALL = 120


@dataclass(frozen=True)
class ReportInfo:
    """What the page says besides the images.

    Attributes:
        title: heading of the page.
        weights: what scored the images.
        patches: patches per image.
        created: date and time as text.
        note: what the reader should know first, e.g. that the run was stopped.
    """

    title: str
    weights: WeightsInfo
    patches: int
    created: str
    note: str = ""


@dataclass
class Entry:
    """An image as the page shows it.

    Attributes:
        index: its position in the order of the files.
        image: its score and its thumbnail.
        name: what it is called on the page.
        url: of the image itself; None where a browser cannot open it.
        burst: number of the burst that it belongs to, from 1; None if it belongs to none.
        best_of_burst: whether it is the best one of its burst.
        label: somebody's own score for it, in the unit of the labels; None where there is none.
        gap: share of the labelled images that the model puts below it, less that of the labels, -1..1; positive
            where the model likes it better.
    """

    index: int
    image: ScoredImage
    name: str
    url: str | None
    burst: int | None = None
    best_of_burst: bool = False
    label: float | None = None
    gap: float = 0.0

    @property
    def score(self) -> Score:
        """The image's score."""
        return self.image.score

    @property
    def is_spare(self) -> bool:
        """Whether there is a better image of its burst."""
        return self.burst is not None and not self.best_of_burst


def _best_first(entry: Entry) -> tuple[float, int]:
    return -entry.score.value, entry.index


class Page:
    """What the template is filled with."""

    def __init__(self, gallery: Gallery, folder: str, labels: Labels | None = None) -> None:
        self._gallery = gallery
        names = short_names([image.path for image in gallery.images])
        self._entries = [
            Entry(index, image, name, link(image.path, folder))
            for index, (image, name) in enumerate(zip(gallery.images, names, strict=True))
        ]
        self.best_first = sorted(self._entries, key=_best_first)
        self.failures = gallery.failures
        # In the order of names the pictures of a scene follow each other.
        by_name = sorted(self._entries, key=lambda entry: entry.image.path)
        groups = near_duplicates([entry.image.thumbnail.fingerprint for entry in by_name])
        self.bursts = [sorted((by_name[n] for n in group), key=_best_first) for group in groups]
        for place, burst in enumerate(self.bursts, start=1):
            for entry in burst:
                entry.burst, entry.best_of_burst = place, entry is burst[0]
        self.labelled = [] if labels is None else self._add_labels(labels)

    def _add_labels(self, labels: Labels) -> list[Entry]:
        """The images that have a label, those that model and labels disagree about most first."""
        from scipy.stats import rankdata

        known = {os.path.realpath(path): score for path, score in zip(labels.paths, labels.scores, strict=True)}
        for entry in self._entries:
            label = known.get(os.path.realpath(entry.image.path))
            entry.label = None if label is None else float(label)
        found = [entry for entry in self._entries if entry.label is not None]
        sign = 1 if labels.higher_is_better else -1
        by_model = rankdata([entry.score.value for entry in found])
        by_labels = rankdata([sign * entry.label for entry in found if entry.label is not None])
        for entry, ours, theirs in zip(found, by_model, by_labels, strict=True):
            entry.gap = float(ours - theirs) / len(found)
        return sorted(found, key=lambda entry: (-abs(entry.gap), entry.index))

    @property
    def disputed(self) -> list[Entry]:
        """Where model and labels disagree most."""
        return [entry for entry in self.labelled[:_EXTREMES] if entry.gap]

    @property
    def spare(self) -> int:
        """How many images have a better one in their burst."""
        return sum(entry.is_spare for entry in self._entries)

    @cached_property
    def histogram(self) -> list[tuple[float, float, int]]:
        """From, to, and number of the scores in each of `_BINS` bins of equal width."""
        counts = [0] * _BINS
        for entry in self._entries:
            counts[min(_BINS - 1, int(entry.score.value * _BINS))] += 1
        return [(i / _BINS, (i + 1) / _BINS, number) for i, number in enumerate(counts)]

    @property
    def distribution(self) -> str:
        """The histogram in words."""
        values = [entry.score.value for entry in self._entries]
        return f"median {statistics.median(values):.2f}, lowest {min(values):.2f}, highest {max(values):.2f}"

    @property
    def extremes(self) -> list[tuple[str, str, Sequence[Entry]]]:
        """The best and the worst images: id of the section, heading, images."""
        number = min(_EXTREMES, len(self._entries) // 2)
        if not number:  # of a single image, best and worst would be the same
            return []
        # The spare images of a burst would fill the best places with one picture.
        best = [entry for entry in self.best_first if not entry.is_spare][:number]
        return [("best", "Best", best), ("worst", "Worst", self.best_first[: -number - 1 : -1])]

    def picture(self, entry: Entry, small: bool) -> tuple[str, int, int]:
        """The thumbnail of an image as address, width and height; it is read when the page comes to it."""
        data, thumbnail = self._gallery.thumbnail(entry.image), entry.image.thumbnail
        size = thumbnail.width, thumbnail.height
        if small and max(size) > _SMALL:
            with Image.open(io.BytesIO(data)) as picture:
                smaller = shrink(picture, _SMALL)
            data, size = jpeg(smaller), smaller.size
        return data_uri(data), *size


def write_page(target: Path, gallery: Gallery, info: ReportInfo, labels: Labels | None = None) -> None:
    """Writes the page, complete or not at all.

    Args:
        target: HTML file; links to images are relative to its folder where possible.
        gallery: the images, whose thumbnails are read one by one.
        info: what else it says.
        labels: somebody's own scores of some of the images, to be shown next to the model's.

    Raises:
        GrmpScoreError: the page cannot be written.
    """
    environment = templates()
    environment.filters |= {
        "colour": css_colour,
        "count": count,
        "direction": direction,
        "number": lambda value, scale: number(value, scale.maximum - scale.minimum),
    }
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pieces = environment.get_template("page.html").generate(
        page=Page(gallery, os.path.abspath(target.parent), labels),
        info=info,
        style=style,
        script=script,
        # Nothing is fetched from anywhere, and no script runs but ours: not even if a name were not escaped.
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        "base-uri 'none'; form-action 'none'",
        version=__version__,
    )
    try:
        with replacing(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
    except OSError as error:
        raise GrmpScoreError(f"cannot write the report: {error.strerror or error}", path=target) from error
