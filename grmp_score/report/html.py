"""The report: one HTML page with everything in it, that needs no network and, but for sorting, no JavaScript."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from grmp_score.errors import GrmpScoreError
from grmp_score.files import replacing
from grmp_score.report.bursts import bursts
from grmp_score.report.colours import colour
from grmp_score.report.gallery import Gallery, Shot, encode, shrink
from grmp_score.report.rows import printable, short_names
from grmp_score.score import WORST, verdict_of

_PAGE = Path(__file__).parent / "page"
_BINS = 20
#: Images shown as the best, and as the worst.
_EXTREMES = 6
#: Longer side of the thumbnails of bursts, which lie in the page a second time.
_SMALL = 120


@dataclass(frozen=True)
class Facts:
    """What the page says besides the images.

    Attributes:
        title: heading of the page.
        model: name of the weights.
        checksum: of the weights; None leaves it out.
        patches: patches per image.
        created: date and time as text.
        verdicts: `grmp_score.score.thresholds` of the weights; may be empty.
        version: of this package.
        note: what the reader should know first, e.g. that the run was stopped.
    """

    title: str
    model: str
    checksum: str | None
    patches: int
    created: str
    version: str
    note: str = ""
    verdicts: Sequence[tuple[str, float]] = ()


def write_page(target: Path, gallery: Gallery, facts: Facts) -> None:
    """Writes the page, complete or not at all.

    Args:
        target: HTML file; links to images are relative to its folder where possible.
        gallery: the images, whose thumbnails are read one by one.
        facts: what else it says.

    Raises:
        GrmpScoreError: the page cannot be written.
    """
    page = _Page(gallery, facts, os.path.abspath(target.parent))
    try:
        with replacing(target) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            for text in page.parts():
                file.write(text)
    except OSError as error:
        raise GrmpScoreError(f"cannot write the report: {error.strerror or error}", path=target) from error


def link(path: str, folder: str) -> str | None:
    """The URL of an image in a page that lies in ``folder``.

    Returns:
        a relative URL, percent-encoded byte by byte; ``file:`` where none leads there (another drive); web
        addresses as they are; None for other addresses, which browsers do not know.
    """
    if "://" in path:
        return path if re.match(r"https?://", path, re.IGNORECASE) else None
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(absolute, folder)
    except ValueError:
        return Path(absolute).as_uri()
    # A colon is encoded too: "javascript:x.jpg" is a file, not a script.
    return quote(os.fsencode(relative.replace(os.sep, "/")), safe="/")


def text(value: object) -> str:
    """Any text as HTML, inside of elements and of quoted attributes; characters that cannot be shown as codes."""
    return html.escape(printable(str(value)), quote=True)


class _Page:
    """The page as a stream of texts."""

    def __init__(self, gallery: Gallery, facts: Facts, folder: str) -> None:
        self._gallery, self._facts, self._folder = gallery, facts, folder
        self._shots = gallery.shots
        self._names = short_names([shot.path for shot in self._shots])
        self._best_first = sorted(range(len(self._shots)), key=lambda i: (-self._shots[i].value, i))
        # In the order of names shots of a burst follow each other.
        by_name = sorted(range(len(self._shots)), key=lambda i: self._shots[i].path)
        groups = bursts([self._shots[i].preview.fingerprint for i in by_name]) if by_name else []
        rank = {shot: n for n, shot in enumerate(self._best_first)}
        self._bursts = [sorted((by_name[n] for n in group), key=rank.__getitem__) for group in groups]
        self._burst_of = {i: (n, i == group[0]) for n, group in enumerate(self._bursts) for i in group}

    def parts(self) -> Iterator[str]:
        style, script = ((_PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        # Nothing is fetched from anywhere, and no script runs but ours: not even if a name were not escaped.
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; "
        policy += "base-uri 'none'; form-action 'none'"
        fill: dict[str, Callable[[], Iterable[str]]] = {
            "policy": lambda: [policy],
            "title": lambda: [text(self._facts.title)],
            "style": lambda: [style],
            "script": lambda: [script],
            "summary": self._summary,
            "meaning": self._meaning,
            "histogram": self._histogram,
            "extremes": self._extremes,
            "bursts": self._burst_list,
            "images": lambda: (self._card(i, main=True) for i in self._best_first),
            "failures": self._failures,
            "footer": self._footer,
        }
        template = (_PAGE / "page.html").read_text(encoding="utf-8")
        for number, part in enumerate(re.split(r"<!-- (\w+) -->", template)):
            yield from fill[part]() if number % 2 else [part]

    def _summary(self) -> Iterator[str]:
        shots, failures = len(self._shots), len(self._gallery.failures)
        parts = [_count(shots, "image"), f"created {text(self._facts.created)}"]
        if failures:
            parts.insert(1, f'<a href="#failures">{failures} could not be scored</a>')
        if self._bursts:
            spare = sum(len(group) - 1 for group in self._bursts)
            of = f"{_count(len(self._bursts), 'burst')} with {spare} spare"
            parts.insert(1, f'<a href="#bursts">{of}</a>')
        yield f'<p class="facts">{" · ".join(parts)}</p>'
        if self._facts.note:
            yield f"<p><strong>{text(self._facts.note)}</strong></p>"

    def _meaning(self) -> Iterator[str]:
        facts = self._facts
        checksum = f" (checksum {text(facts.checksum)})" if facts.checksum else ""
        yield (
            f"<p>0 is bad, 1 is good. The model <strong>{text(facts.model)}</strong>{checksum} looks at "
            f"{_count(facts.patches, 'patch', 'patches')} of an image: how probable is it that “high quality” "
            "describes the patch better than “low quality”? The score is the mean of these probabilities.</p>"
            "<p>± is the standard error over the patches: two images whose scores differ by less cannot be told "
            "apart. It is about technical quality, such as sharpness, noise and compression, not about what is "
            "shown. Scores of different models cannot be compared.</p>"
        )
        if facts.verdicts:
            words = ", ".join(f"<strong>{text(word)}</strong> from {limit:.2f}" for word, limit in facts.verdicts)
            yield (
                f"<p>In words: {words}, below that <strong>{text(WORST)}</strong>. Excellent is better than three "
                "quarters of clean reference photos, good better than a quarter; poor is worse than half of "
                "heavily distorted photos.</p>"
            )

    def _histogram(self) -> Iterator[str]:
        if not self._shots:
            yield "<p>No image could be scored.</p>"
            return
        values = [shot.value for shot in self._shots]
        counts = [0] * _BINS
        for value in values:
            counts[min(_BINS - 1, int(value * _BINS))] += 1
        width, height, step, highest = 720, 170, 36, max(counts)
        middle = f"median {statistics.median(values):.2f}, lowest {min(values):.2f}, highest {max(values):.2f}"
        yield (
            f'<svg viewBox="-4 -18 {width + 8} {height + 52}" role="img" aria-label="Histogram of '
            f'{_count(len(values), "score")}: {middle}">'
        )
        for i, count in enumerate(counts):
            tall = count / highest * height
            low, high = i / _BINS, (i + 1) / _BINS
            fill = _css(colour((low + high) / 2))
            yield (
                f'<g><title>{low:.2f} to {high:.2f}: {count}</title><rect x="{i * step + 1}" '
                f'y="{height - tall:.1f}" width="{step - 2}" height="{tall:.1f}" fill="{fill}"/>'
            )
            if count:
                above = f'y="{height - tall - 5:.1f}" text-anchor="middle"'
                yield f'<text class="count" x="{(i + 0.5) * step}" {above}>{count}</text>'
            yield "</g>"
        yield f'<path class="axis" d="M0 {height}.5H{width}"/>'
        for at, anchor, label in (
            (0.0, "start", "0 bad"),
            (0.25, "middle", "0.25"),
            (0.5, "middle", "0.5"),
            (0.75, "middle", "0.75"),
            (1.0, "end", "1 good"),
        ):
            yield f'<text x="{at * width:g}" y="{height + 25}" text-anchor="{anchor}">{label}</text>'
        yield f"</svg><p>{middle[0].upper()}{middle[1:]}.</p>"

    def _extremes(self) -> Iterator[str]:
        # Of few images "best" and "worst" would be the same ones.
        n = min(_EXTREMES, len(self._shots) // 2)
        if not n:
            return
        # The spare shots of a burst would fill the best places with one picture.
        spare = {i for i, (_, first) in self._burst_of.items() if not first}
        for key, title, which in (
            ("best", "Best", [i for i in self._best_first if i not in spare][:n]),
            ("worst", "Worst", self._best_first[: -n - 1 : -1]),
        ):
            yield f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2><ul class="grid">\n'
            yield from (self._card(i) for i in which)
            yield "</ul></section>\n"

    def _burst_list(self) -> Iterator[str]:
        if not self._bursts:
            return
        yield (
            '<section aria-labelledby="bursts"><h2 id="bursts">Bursts</h2>'
            '<p>Images that look nearly the same, best score first.</p><ul class="bursts">\n'
        )
        for n, group in enumerate(self._bursts):
            yield f'<li id="burst{n + 1}"><h3>Burst {n + 1}: {len(group)} images</h3><ul class="strip">\n'
            for place, i in enumerate(group):
                yield self._card(i, small=True, best=place == 0)
            yield "</ul></li>\n"
        yield "</ul></section>"

    def _card(self, i: int, *, main: bool = False, small: bool = False, best: bool = False) -> str:
        shot, name = self._shots[i], text(self._names[i])
        number = f"{shot.value:.3f}"
        spread = "" if shot.standard_error is None else f"± {shot.standard_error:.3f}"
        judgement = verdict_of(self._facts.verdicts, shot.value)
        word = f" <span>{text(judgement)}</span>" if judgement else ""
        size = "" if small else f"{shot.width}×{shot.height}"
        attributes, note = "", ""
        if main:
            attributes = f' id="image{i + 1}" data-score="{shot.value!r}" data-file="{i}" data-name="{name}"'
            if i in self._burst_of:
                burst, first = self._burst_of[i]
                attributes += "" if first else " data-spare"
                note = f'<a href="#burst{burst + 1}">burst {burst + 1}</a>{": best shot" if first else ""}'
        else:
            note = f'<a href="#image{i + 1}">in the list</a>'
        mark = '<p class="note"><span class="mark">★ best shot</span></p>' if best else ""
        url = link(shot.path, self._folder)
        picture = self._picture(shot, name, small)
        picture = picture if url is None else f'<a class="photo" href="{text(url)}">{picture}</a>'
        return (
            f'<li class="card{" best" if best else ""}"{attributes}>{picture}{mark}'
            f'<p class="score"><b>{number}</b> <span>{spread}</span>{word}</p>'
            f'<div class="bar" style="--v:{shot.value:.3f};--c:{_css(colour(shot.value))}"><i></i></div>'
            f'<p class="name">{name}</p>'
            f'<p class="note">{" · ".join(filter(None, (size, note)))}</p></li>\n'
        )

    def _picture(self, shot: Shot, name: str, small: bool) -> str:
        data, size = self._gallery.thumbnail(shot), (shot.preview.width, shot.preview.height)
        if small and max(size) > _SMALL:
            with Image.open(io.BytesIO(data)) as picture:
                smaller = shrink(picture, _SMALL)
            data, size = encode(smaller), smaller.size
        return (
            f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}" alt="{name}" width="{size[0]}" '
            f'height="{size[1]}" decoding="async">'
        )

    def _failures(self) -> Iterator[str]:
        failures = self._gallery.failures
        if not failures:
            return
        yield (
            '<section aria-labelledby="failures"><h2 id="failures">Could not be scored</h2><ul class="failures">\n'
        )
        for failure in failures:
            yield f"<li><strong>{text(failure.path)}</strong>: {text(failure.reason)}</li>\n"
        yield "</ul></section>"

    def _footer(self) -> Sequence[str]:
        return [f"<p>Made with grmp-score {text(self._facts.version)}. Everything is in this file.</p>"]


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _css(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
