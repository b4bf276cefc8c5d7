"""Labels without a table: the stars that the images of a folder have, or two folders, of good and of bad images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from grmp_score.errors import DataError
from grmp_score.images.find import find_images
from grmp_score.sidecars.ratings import REJECTED, Rating, read_rating
from grmp_score.trainer.data.labels import Labels

#: Share of the rated images from which on they are taken to be rated by a program and not by a person.
NEARLY_ALL = 0.9

_PICKS = {1: "rejected", 2: "pending", 3: "accepted"}


def read_rated_folder(folder: str | Path, *, minimum: int = 5) -> Labels:
    """The stars of the images in a folder and below, as labels.

    Args:
        folder: searched as `find_images` does it.
        minimum: fewest images to be of use.

    Returns:
        Labels in stars, 1..5; a rejected image has 0.  In a folder without any stars digiKam's pick labels are the
        labels: 0 rejected, 1 pending, 2 accepted.  ``notes`` say what was found, and what was ignored; ``rows``
        number the images.

    Raises:
        DataError: too few images are rated, or all have the same rating.
    """
    images, ratings, broken = [], list[Rating](), list[DataError]()
    total = 0
    for image in find_images([str(folder)]):
        total += 1
        try:
            rating = read_rating(image)
        except DataError as error:
            broken.append(error)
        else:
            images.append(image)
            ratings.append(rating)
    if not total:
        raise DataError("no images in this folder, expected rated ones or a CSV", path=folder)
    by_stars = any(rating.given > 0 for rating in ratings)
    values = [_value(rating, by_stars) for rating in ratings]
    rated = [i for i, value in enumerate(values) if value is not None]
    notes = tuple(_notes(images, ratings, rated, total, broken, by_stars))
    found = "; ".join(notes)
    if len(rated) < minimum:
        raise DataError(
            f"{len(rated)} of {total} images are rated, expected at least {minimum}",
            path=folder,
            hint="Rate some in your photo program, and have it write the ratings to files",
        )
    scores = np.array([values[i] for i in rated], dtype=np.float64)
    if (scores == scores[0]).all():
        raise DataError(f"all images have the same rating, expected ratings that differ. {found}", path=folder)
    return Labels(
        source=Path(folder),
        paths=tuple(Path(images[i]) for i in rated),
        rows=tuple(range(1, len(rated) + 1)),
        scores=scores,
        score_column="stars" if by_stars else "pick",
        notes=notes,
    )


def read_good_and_bad(good: str | Path, bad: str | Path, *, minimum: int = 5) -> Labels:
    """The images of two folders as labels: 1 for those in ``good`` and below, 0 for those in ``bad``.

    Args:
        good, bad: searched as `find_images` does it.
        minimum: fewest images to be of use.

    Raises:
        DataError: there are too few images, none in one of the folders, or an image is in both.
    """
    paths, scores = list[Path](), list[float]()
    known: dict[tuple[int, int], str] = {}
    for folder, score in ((good, 1.0), (bad, 0.0)):
        if not os.path.isdir(folder):
            raise DataError("no such folder, expected one of images", path=folder)
        images = list(find_images([str(folder)]))
        if not images:
            raise DataError("no images in this folder", path=folder)
        for image in images:
            if os.path.exists(image):  # a link that leads nowhere is told where images are read
                status = os.stat(image)
                first = known.setdefault((status.st_dev, status.st_ino), image)
                if first is not image:
                    raise DataError(f"is the same file as {first}, expected every image once", path=image)
            paths.append(Path(image))
            scores.append(score)
    if len(paths) < minimum:
        raise DataError(f"{len(paths)} images, with those in {bad}, expected at least {minimum}", path=good)
    count = int(sum(scores))
    return Labels(
        source=Path(good),
        paths=tuple(paths),
        rows=tuple(range(1, len(paths) + 1)),
        scores=np.array(scores),
        score_column="good",
        notes=(f"{count} good images in {good}, {len(paths) - count} bad ones in {bad}",),
    )


def _value(rating: Rating, by_stars: bool) -> float | None:
    """The label of an image; None where it has none."""
    if rating.given == REJECTED:
        return 0.0
    if by_stars:
        return rating.given or None
    return float(rating.pick - 1) if rating.pick else None


def _notes(
    images: Sequence[str],
    ratings: Sequence[Rating],
    rated: Sequence[int],
    total: int,
    broken: Sequence[DataError],
    by_stars: bool,
) -> Iterator[str]:
    """What was found, and what was ignored, a sentence each."""
    words = Counter(_word(ratings[i]) for i in rated)
    found = ", ".join(f"{words[word]:,} {word}" for word in sorted(words, reverse=True))
    rest = "; the others have no rating, or 0 stars" if len(rated) < total else ""
    yield f"{len(rated):,} of {total:,} images are rated{': ' if found else ''}{found}{rest}"
    ours = [i for i, rating in enumerate(ratings) if rating.stars and not rating.given]
    if ours:
        yield f"{_count(ours)} with stars that grmp-score wrote left out, as {_first(images, ours)}"
    picked = [i for i, rating in enumerate(ratings) if by_stars and rating.pick and not rating.given]
    if picked:
        yield f"{_count(picked)} with a pick label and no stars left out, as {_first(images, picked)}"
    odd = [i for i, rating in enumerate(ratings) if rating.odd is not None]
    if odd:
        values = ", ".join(sorted({repr(rating.odd) for rating in ratings if rating.odd is not None})[:5])
        yield f"{_count(odd)} with a rating other than -1 and 0 to 5 ({values}) left out, as {_first(images, odd)}"
    if broken:
        yield f"{_count(broken)} left out, because a sidecar cannot be read: {broken[0]}"
    differ = [i for i, rating in enumerate(ratings) if rating.embedded is not None]
    if differ:
        first = ratings[differ[0]]
        yield (
            f"{_count(differ)} with one rating in the sidecar and another in the image: the sidecar's is taken "
            f"({first.source}: {_stars(first.stars)}, not {_stars(first.embedded or 0)})"
        )
    if rated and (most := words.most_common(1)[0])[1] >= NEARLY_ALL * len(rated) and len(rated) > most[1]:
        yield f"{most[1]:,} of {len(rated):,} have the same rating, {most[0]}: little can be learned from them"
    ones = sum(ratings[i].darktable and ratings[i].stars == 1 for i in rated)
    if ones >= 0.5 * len(rated) > 0:
        yield (
            f"darktable gives 1 star to every image it imports, and {ones:,} have 1 star from it: give those that "
            "you have not rated 0 stars there, and they are left out"
        )


def _word(rating: Rating) -> str:
    if rating.stars:
        return _stars(rating.stars)
    return _PICKS[rating.pick]


def _stars(stars: float) -> str:
    if stars == REJECTED:
        return "rejected"
    return "not rated" if stars == 0 else f"with {stars:g} star{'' if stars == 1 else 's'}"


def _count(of: Sequence[object]) -> str:
    return f"{len(of):,} image{'' if len(of) == 1 else 's'}"


def _first(images: Sequence[str], indices: Iterable[int]) -> str:
    return images[next(iter(indices))]
