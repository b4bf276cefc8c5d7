"""The rating of an image: read from its sidecars and from the file itself, written into a sidecar.

Two names of sidecars are in use.  ``IMG.jpg.xmp`` (darktable, digiKam) belongs to ``IMG.jpg`` alone; ``IMG.xmp``
belongs to every ``IMG.*`` (Lightroom and Adobe's other programs, for camera RAW; digiKam reads it too, and so does
darktable when it imports).
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grmp_score.errors import DataError
from grmp_score.files import replacing
from grmp_score.images.formats import RAW_SUFFIXES, SUFFIXES
from grmp_score.sidecars.xmp import DARKTABLE, DIGIKAM, EMPTY, MAX_BYTES, MICROSOFT_PHOTO, OWN, XMP, Packet

#: What XMP and digiKam have for "rejected", and versions of darktable before 3.0.
REJECTED, _PICK_REJECTED, _DARKTABLE_REJECTED = -1, 1, "6"
#: Scores from which an image has 5, 4, 3, 2 and 1 stars where a model has no five verdicts.
FIFTHS = (0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True)
class Rating:
    """What is known about one image.

    Attributes:
        stars: 1..5 (parts of stars are possible), `REJECTED`, or 0: not rated.
        pick: digiKam's pick label of an image that is not rejected: 2 pending, 3 accepted; else 0.
        source: file that says so; None where nothing does.
        odd: a value that is no rating and was ignored.
        embedded: stars that the image itself has and a sidecar contradicts; else None.
        darktable: whether darktable wrote that file.
        ours: whether this package wrote these stars, and nobody has changed them.
    """

    stars: float = 0
    pick: int = 0
    source: str | None = None
    odd: str | None = None
    embedded: float | None = None
    darktable: bool = False
    ours: bool = False

    @property
    def given(self) -> float:
        """The stars that somebody gave, or 0: those that this package wrote are a model's, and teach nothing."""
        return 0 if self.ours and self.stars != REJECTED else self.stars


def sidecars_of(image: str) -> list[str]:
    """The sidecars that an image has, the one for it alone first."""
    bases = dict.fromkeys((image, os.path.splitext(image)[0]))
    found = ([base + suffix for suffix in (".xmp", ".XMP") if os.path.isfile(base + suffix)] for base in bases)
    return [names[0] for names in found if names]


def others_of(image: str) -> list[str]:
    """The other images that ``IMG.xmp`` belongs to: those of the same name but for the suffix, in this folder."""
    stem = os.path.splitext(image)[0]
    names = (stem + end for suffix in sorted(SUFFIXES) for end in (suffix, suffix.upper()))
    return [name for name in names if os.path.isfile(name) and not os.path.samefile(name, image)]


def sidecar_to_write(image: str) -> str:
    """Where the stars of an image go: the sidecar that is there, or a new one.

    ``IMG.xmp`` is made for camera RAW, since Lightroom reads it; all others get ``IMG.jpg.xmp``, which darktable
    and digiKam read (Lightroom reads no sidecars of theirs).  An ``IMG.xmp`` that is there is used too, unless it
    also belongs to other images.
    """
    stem, suffix = os.path.splitext(image)
    raw = suffix.lower() in RAW_SUFFIXES - {".dng"}  # Lightroom writes into DNG files
    for sidecar in sidecars_of(image):
        if os.path.splitext(sidecar)[0] != stem or raw or not others_of(image):
            return sidecar
    return f"{stem if raw else image}.xmp"


def read_rating(image: str) -> Rating:
    """The rating of an image: what ``IMG.jpg.xmp`` says, else ``IMG.xmp``, else the image itself.

    In each of them, of the first of these that is not 0: xmp:Rating (-1: rejected), Windows' MicrosoftPhoto:Rating
    (1, 25, 50, 75, 99 %), and in the image EXIF's Rating and RatingPercent.  A pick label of digiKam that says
    "rejected" counts more than stars.

    Raises:
        DataError: a sidecar cannot be read.
    """
    from grmp_score.images.metadata import read_metadata

    inside = read_metadata(image)
    try:
        packet = None if inside.xmp is None else Packet(inside.xmp, image)
    except DataError:
        packet = None  # the file is for its pixels; what is broken in it is not worth stopping for
    exif = [str(inside.rating or 0), _percent(inside.rating_percent or 0)]
    embedded = _rating(packet, image, exif) or Rating()
    for sidecar in sidecars_of(image):
        rating = _rating(read_packet(sidecar), sidecar)
        if rating is not None:
            differs = embedded.stars not in (0, rating.stars)
            return dataclasses.replace(rating, embedded=embedded.stars if differs else None)
    return embedded


def write_score(image: str, score: float, stars: int, *, overwrite: bool = False) -> bool:
    """Writes stars (xmp:Rating) and score (Score, in a namespace of our own) into the image's sidecar.

    Args:
        image: file on this disk; it is not written to.
        score: p(high quality), 0..1.
        stars: 1..5.
        overwrite: also where the image has a rating that somebody else gave it.

    Returns:
        Whether the sidecar now says so; False where somebody's rating was kept, and nothing was written.

    Raises:
        DataError: the sidecar that is there cannot be read or does not have the expected form.
        OSError: it cannot be written.
    """
    rating = read_rating(image)
    if rating.stars not in (0, stars) and not rating.ours and not overwrite:
        return False
    target = sidecar_to_write(image)
    there = os.path.exists(target)
    packet = read_packet(target) if there else Packet(EMPTY)
    new = packet.set(XMP, "xmp", "Rating", str(stars))
    new = new.set(OWN, "grmp", "Score", f"{score:.4f}")
    if rating.ours or rating.stars != stars:  # somebody's rating stays theirs where the score agrees with it
        new = new.set(OWN, "grmp", "Stars", str(stars))
    if new.data != packet.data:
        real = Path(os.path.realpath(target))
        with replacing(real) as temporary:
            temporary.write_bytes(new.data)
            if there:
                shutil.copymode(real, temporary)
    return True


def stars_of(score: float, limits: Sequence[tuple[str, float]] = ()) -> int:
    """Stars for a score.

    Args:
        score: p(high quality), 0..1.
        limits: the verdicts of the model, best first (`grmp_score.score.verdict_limits`).  Five of them are five to
            one stars; without, the range 0..1 is cut into `FIFTHS`.

    Returns:
        1..5.
    """
    bounds = [limit for _, limit in limits] if len(limits) == len(FIFTHS) else FIFTHS
    return next((5 - i for i, bound in enumerate(bounds) if score >= bound), 1)


def read_packet(path: str) -> Packet:
    """The XMP packet in a sidecar.

    Raises:
        DataError: it is none, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    return Packet(data, path)


def _rating(packet: Packet | None, source: str, exif: Sequence[str] = ()) -> Rating | None:
    """What one file says; None where it says nothing about ratings."""
    said = [] if packet is None else list(_said(packet))
    said += [text for text in exif if text != "0"]
    pick = (packet.get(DIGIKAM, "PickLabel") if packet else None) or "0"
    if not said and pick == "0":
        return None
    darktable = packet is not None and DARKTABLE in packet.namespaces
    odd, stars = None, 0.0
    for text in said:
        value = _stars(text, darktable)
        if value is None:
            odd = odd or text
        elif value != 0:
            stars = value
            break
    if pick == str(_PICK_REJECTED):
        stars = REJECTED
    return Rating(
        stars,
        int(pick) if pick in ("2", "3") and stars != REJECTED else 0,
        source,
        odd if stars == 0 else None,
        darktable=darktable,
        ours=packet is not None and said[:1] == [packet.get(OWN, "Stars")],
    )


def _said(packet: Packet) -> Iterator[str]:
    """The ratings in a packet, as texts in stars, the one that counts most first."""
    if (text := packet.get(XMP, "Rating")) is not None:
        yield text.strip()
    for namespace in MICROSOFT_PHOTO:
        if (text := packet.get(namespace, "Rating")) is not None:
            yield _percent(int(text)) if re.fullmatch(r"\d{1,3}", text.strip(), re.ASCII) else text.strip()


def _percent(value: int) -> str:
    """Windows' percentages as stars: 1, 25, 50, 75, 99."""
    return str(0 if value == 0 else 1 + round(value / 25)) if 0 <= value <= 100 else f"{value} %"


def _stars(text: str, darktable: bool) -> float | None:
    """A rating as a number; None for what is none."""
    if darktable and text == _DARKTABLE_REJECTED:
        return REJECTED
    if not re.fullmatch(r"-?\d(\.\d+)?", text, re.ASCII):
        return None
    value = float(text)
    return value if value == REJECTED or 0 <= value <= 5 else None
