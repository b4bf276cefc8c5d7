"""`grmp-score report`: one page with everything, whatever files are called and wherever links lead."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from grmp_score import GrmpScoreError
from grmp_score.cli.main import cli
from grmp_score.config import LabelScale
from grmp_score.display import html_templates
from grmp_score.files import replacing
from grmp_score.report.gallery import Gallery
from grmp_score.report.html import ReportInfo, write_page
from grmp_score.report.links import AllowedFiles, link
from grmp_score.report.rows import WeightsInfo
from grmp_score.score import FailedScore, Score, verdict_of
from grmp_score.scorer import Scorer
from grmp_score.trainer.data.labels import Labels

from .conftest import Photo

INFO = ReportInfo("My photos", WeightsInfo("tiny", lambda: "0123456789abcdef"), 4, "2026-01-01 12:00")
HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    "a \"b\" 'c' & d.jpg",
    "</script><script>document.title=1.jpg",
    "new\nline\r\ttab.jpg",
    "javascript:alert(1).jpg",
    "日本 😀 100%.jpg",
    "--> <!-- title -->.jpg",
    "# ? ;.jpg",
    "$title ${title} {0}.jpg",
    "\u202egpj.evil.jpg",
    os.fsdecode(b"bad\xff\xfe.jpg"),
]


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "input", "rect", "path"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def cards(self) -> list[dict[str, str]]:
        """The cards of the main list, in their order."""
        return [a for a in self.all("li") if "data-score" in a]


def gallery_of(*images: tuple[str, float, Image.Image], limits: tuple[tuple[str, float], ...] = ()) -> Gallery:
    """A gallery of pictures with scores made up."""
    gallery = Gallery(64)
    for path, value, picture in images:
        gallery.keep_thumbnail(path, picture)
        word = verdict_of(limits, value)
        gallery.add(Score(value, 0.1, 0.03, (value,), path, picture.width, picture.height, verdict=word))
    return gallery


def page_of(gallery: Gallery, target: Path) -> Page:
    """Writes the page and reads it."""
    with gallery:
        write_page(target, gallery, INFO)
    return Page(target.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------ pieces


FILLED = html_templates().from_string("{{ value }}")


@given(st.text())
def test_text_is_text(value: str) -> None:
    """Whatever a template is filled with, no markup, no end of an attribute and nothing unprintable comes out."""
    safe = FILLED.render(value=value)
    assert not re.search(r"[<>\"'\n\r\0]", safe)
    safe.encode("utf-8")
    assert re.sub(r"&(amp|lt|gt|#34|#39);", "", safe).count("&") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
@given(
    st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b and b"/" not in b and b not in (b".", b".."))
)
def test_links_lead_back_to_the_file(raw: bytes) -> None:
    """A relative URL of plain letters that decodes to the very bytes of the name, and cannot be a scheme."""
    url = link("/photos/x/" + os.fsdecode(raw), "/photos/reports")
    assert url is not None and re.fullmatch(r"[A-Za-z0-9_.~%/-]+", url)
    assert unquote_to_bytes(url) == b"../x/" + raw


def test_links_to_addresses() -> None:
    """What a browser can open is linked, the rest is not."""
    assert link("https://example.org/a.jpg", "/x") == "https://example.org/a.jpg"
    assert link("s3://bucket/a.jpg", "/x") is None and link("javascript://%0aalert(1)", "/x") is None


def test_thumbnails_carry_nothing_but_pixels(photo: Photo) -> None:
    """No comment, position or profile of the photo gets into the page, and the photo itself is left alone."""
    picture = photo(300, 200)
    picture.info = {"comment": b"secret", "icc_profile": b"secret", "exif": b"secret"}
    with gallery_of(("a.jpg", 0.5, picture)) as gallery:
        data = gallery.thumbnail(gallery.images[0])
    assert b"secret" not in data and picture.size == (300, 200)
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.size) == ("JPEG", (64, 43))


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    """A failure leaves the old file and no other."""
    target = tmp_path / "page"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["page"]
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["page"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_lead_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links inside are inside, links out are not, unless the file or its folder was named."""
    for name in ("in/a.jpg", "in/sub/b.jpg", "out/c.jpg", "in2/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/out.jpg").symlink_to(tmp_path / "out/c.jpg")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    (tmp_path / "in/near.jpg").symlink_to("sub/b.jpg")
    (tmp_path / "in/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "in/gone.jpg").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)

    def inside(*named: str) -> Callable[[str], bool]:
        return AllowedFiles(named).__contains__

    for folder in ("in", str(tmp_path / "in"), "in/*.jpg", "./out/../in", "in/s*b/../*.jpg"):
        assert inside(folder)("in/a.jpg") and inside(folder)("in/near.jpg")
        assert not inside(folder)("in/out.jpg") and not inside(folder)("in/folder/c.jpg")
        assert not inside(folder)("in/../out/c.jpg") and not inside(folder)("in2/d.jpg")
        assert inside(folder)("in/loop.jpg") and inside(folder)("in/gone.jpg")  # nothing to show
    assert inside("in", "out")("in/out.jpg") and inside("in/out.jpg")("in/out.jpg")
    assert inside("in", "out/c.jpg")("in/out.jpg")
    assert not inside("missing.jpg", "in")("in2/d.jpg")
    assert inside("s3://bucket")("s3://bucket/a.jpg")


# ------------------------------------------------------------------------- pages


def test_what_a_page_shows(photo: Photo, tmp_path: Path) -> None:
    """Every image with thumbnail, link, score and size, best first; bursts with the best marked; errors."""
    same, other = photo(300, 200, 1), photo(200, 300, 2)
    gallery = gallery_of(
        (str(tmp_path / "in/a.jpg"), 0.25, same),
        (str(tmp_path / "in/b b.jpg"), 0.5, same.filter(ImageFilter.GaussianBlur(1))),
        (str(tmp_path / "in/c.jpg"), 0.75, other),
    )
    gallery.failures.append(FailedScore("cannot decode <it>", "in/broken.jpg"))
    page = page_of(gallery, tmp_path / "report.html")
    assert [c["data-score"] for c in page.cards()] == ["0.75", "0.5", "0.25"]
    assert [c["data-name"] for c in page.cards()] == ["c.jpg", "b b.jpg", "a.jpg"]
    assert ["data-spare" in c for c in page.cards()] == [False, False, True]
    links = [a["href"] for a in page.all("a")]
    assert {"in/a.jpg", "in/b%20b.jpg", "in/c.jpg"} <= set(links)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in links if href.startswith("#")} <= set(ids)
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in page.all("img"))
    words = " ".join(data for tag, data in page.texts if tag not in ("style", "script"))
    for expected in ("My photos", "tiny", "0123456789abcdef", "4 patches", "3 images", "1 could not be scored"):
        assert expected in words
    assert words.count("★ best shot") == 1 and "burst 1" in words and "median 0.50" in words.lower()
    assert "in/broken.jpg" in words and "cannot decode <it>" in words


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_labels_stand_beside_the_scores(photo: Photo, tmp_path: Path, higher_is_better: bool) -> None:
    """Ranks by the model and by the labels among the images that have one; the others stay as they are."""
    scores = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "none": 0.5}
    liked = {"a": 4.0, "b": 1.0, "c": 2.0, "d": 3.0}  # the model puts a last, its label first: 3 of 4 ranks lower
    sign = 1 if higher_is_better else -1
    labels = Labels(
        tmp_path / "mine.csv",
        tuple(tmp_path / f"{name}.jpg" for name in liked),
        (2, 3, 4, 5),
        np.array([sign * value for value in liked.values()]),
        "mos",
        higher_is_better,
    )
    target = tmp_path / "page.html"
    with gallery_of(
        *((str(tmp_path / f"{n}.jpg"), v, photo(60, 40, i)) for i, (n, v) in enumerate(scores.items()))
    ) as g:
        write_page(target, g, INFO, labels)
    page = Page(target.read_text(encoding="utf-8"))
    gaps = {c["data-name"]: float(c["data-gap"]) for c in page.cards()}
    assert gaps == {"a.jpg": 0.75, "b.jpg": 0.25, "c.jpg": 0.25, "d.jpg": 0.25, "none.jpg": 0}
    words = " ".join(" ".join(data for tag, data in page.texts if tag == "p").split())
    assert (
        f"your label {sign * 4}: ranked 75 % lower" in words
        and f"your label {sign * 1}: ranked 25 % higher" in words
    )
    assert "disagreement with your labels" in " ".join(data for tag, data in page.texts if tag == "option")
    headings = [a["id"] for a in page.all("h2")]
    assert "disputed" in headings


def test_a_page_fetches_nothing(photo: Photo, tmp_path: Path) -> None:
    """No element loads anything, and the policy of the page would not let it."""
    page = page_of(gallery_of(("a.jpg", 0.5, photo())), tmp_path / "report.html")
    sources = [a[k] for _, a in page.elements for k in ("src", "srcset", "data", "poster", "action") if k in a]
    assert all(s.startswith("data:image/jpeg;") for s in sources)
    assert not page.all("link") and not page.all("iframe") and not page.all("base")
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "http" not in policy
    style = next(data for tag, data in page.texts if tag == "style")
    assert "url(" not in style and "@import" not in style


def test_hostile_names_are_nothing_but_names(photo: Photo, tmp_path: Path) -> None:
    """Markup in names stays text: the page of odd names has the elements of the page of plain ones."""
    pictures = [photo(60, 40, seed) for seed in range(len(HOSTILE))]

    def page(names: list[str], target: str) -> Page:
        gallery = gallery_of(*((n, i / 20, p) for i, (n, p) in enumerate(zip(names, pictures, strict=True))))
        gallery.failures += [FailedScore(f"reason {n}", n) for n in names]
        with gallery:
            write_page(
                tmp_path / target,
                gallery,
                ReportInfo(names[0], WeightsInfo(names[1], lambda: names[2]), 4, names[3], names[4]),
            )
        return Page((tmp_path / target).read_text(encoding="utf-8"))

    odd, plain = page(HOSTILE, "odd.html"), page([f"{i}.jpg" for i in range(len(HOSTILE))], "plain.html")
    assert [(tag, set(a)) for tag, a in odd.elements] == [(tag, set(a)) for tag, a in plain.elements]
    assert [t for t in odd.texts if t[0] in ("script", "style")] == [
        t for t in plain.texts if t[0] in ("script", "style")
    ]
    assert {a["data-name"] for a in odd.cards()} == {n if n.isprintable() else _coded(n) for n in HOSTILE}


def _coded(name: str) -> str:
    return name.encode("unicode_escape").decode()


def test_pages_of_nothing_and_of_one(photo: Photo, tmp_path: Path) -> None:
    """A page without any score says so, one of a single image has no best and worst."""
    with Gallery() as gallery:
        gallery.failures.append(FailedScore("b", "a"))
        write_page(tmp_path / "none.html", gallery, INFO)
    assert "No image could be scored" in (tmp_path / "none.html").read_text(encoding="utf-8")
    page = page_of(gallery_of(("a.jpg", 1.0, photo())), tmp_path / "one.html")
    assert len(page.all("img")) == 1 and "best" not in {a.get("id") for a in page.all("h2")}


def test_an_adapted_model_shows_labels(photo: Photo, tmp_path: Path) -> None:
    """Of every image the score on the scale of the labels, and which scale that is."""
    info = dataclasses.replace(INFO, weights=WeightsInfo("mine", lambda: "0123", LabelScale(1, 5)))
    with Gallery(64) as gallery:
        gallery.keep_thumbnail("a.jpg", photo())
        gallery.add(Score(0.5, 0.1, 0.03, (0.5,), "a.jpg", 80, 60, label=3.0))
        write_page(tmp_path / "report.html", gallery, info)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "labels from 1 to 5\n(higher is better)" in text and "<span>label 3.000</span>" in text


def test_a_page_that_cannot_be_written(photo: Photo, tmp_path: Path) -> None:
    """An error with the path, and nothing left behind."""
    (tmp_path / "report.html").mkdir()
    with (
        gallery_of(("a.jpg", 1.0, photo())) as gallery,
        pytest.raises(GrmpScoreError, match="cannot write the report"),
    ):
        write_page(tmp_path / "report.html", gallery, INFO)
    assert os.listdir(tmp_path) == ["report.html"]


# ----------------------------------------------------------------------- command


def test_the_command(model: str, photo: Photo, tmp_path: Path) -> None:
    """Broken files and links that lead out are listed, the rest is scored as ever, and the exit code tells."""
    folder, target = tmp_path / "photos", tmp_path / "page.html"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "sub/b.jpg", "../secret.png"]):
        photo(90 + number, 60, number).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(90, 40, 7).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "way_out.png").symlink_to(tmp_path / "secret.png")
    result = CliRunner().invoke(
        cli, ["report", str(folder), str(folder / "a.png"), "-o", str(target), "-m", model, "--title", "A <b>"]
    )
    assert result.exit_code == 1, result.output
    assert result.stdout == "" and "2 of 5 images could not be scored" in result.stderr
    page = Page(target.read_text(encoding="utf-8"))
    assert sorted(c["data-name"] for c in page.cards()) == ["a.png", "sub/b.jpg", "turned.jpg"]
    sizes = {a["alt"]: (a["width"], a["height"]) for a in page.all("img")}
    assert sizes["turned.jpg"] == ("40", "90")
    words = " ".join(data for _, data in page.texts)
    assert "A <b>" in words and "leads out of the folders named" in words
    scored = CliRunner().invoke(cli, [str(folder / "a.png"), "-m", model, "--format", "jsonl"])
    value = re.search(r'"score": ([0-9.e-]+)', scored.stdout)
    assert value is not None
    assert [c["data-score"] for c in page.cards() if c["data-name"] == "a.png"] == [value[1]]


def test_success_and_wrong_usage(model: str, photo: Photo, tmp_path: Path) -> None:
    """0 when all is well; 2 for a folder without images or a page without a folder, before a model is loaded."""
    photo().save(tmp_path / "a.png")
    target = str(tmp_path / "page.html")
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "a.png"), "-o", target, "-m", model]).exit_code == 0
    (tmp_path / "empty").mkdir()
    for arguments in (
        [str(tmp_path / "empty"), "-o", target],
        [str(tmp_path), "-o", str(tmp_path / "no/page.html")],
    ):
        result = CliRunner().invoke(cli, ["report", *arguments, "-m", "no such model"])
        assert result.exit_code == 2 and "no such model" not in result.output


def test_a_cache_changes_nothing_but_the_time(
    model: str, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With scores from a cache the page is the same, thumbnails included, and nothing is computed."""
    for number in range(3):
        photo(80, 60, number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    pages = []
    for _ in range(2):
        arguments = ["report", str(tmp_path), "-o", str(tmp_path / "p.html"), "-m", model]
        result = CliRunner().invoke(cli, [*arguments, "--cache", str(tmp_path / "c.sqlite")])
        assert result.exit_code == 1, result.output
        pages.append(Page((tmp_path / "p.html").read_text(encoding="utf-8")))
        monkeypatch.setattr(Scorer, "_score_batch", lambda self, items: [1 / 0 for _ in items])
    assert pages[0].elements == pages[1].elements and len(pages[1].cards()) == 3


def test_verdicts_are_explained(photo: Photo, tmp_path: Path) -> None:
    """Every image has a word for its score, and the page says where each begins."""
    limits = (("good", 0.7), ("fair", 0.4), ("bad", 0.0))
    info = dataclasses.replace(INFO, weights=WeightsInfo("tiny", lambda: "0123456789abcdef", None, limits))
    with gallery_of(("a.jpg", 0.7, photo()), ("b.jpg", 0.39, photo(50, 90, 3)), limits=limits) as gallery:
        write_page(tmp_path / "p.html", gallery, info)
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    words = [data for tag, data in page.texts if tag == "span"]
    assert words.count("good") == words.count("bad") == 2 and "fair" not in words  # in a list, and best or worst
    assert "from 0.70" in " ".join(data for _, data in page.texts)


def test_ctrl_c_keeps_what_is_done(
    model: str, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped run ends with a page of what it has, which says so, and with its own exit code."""
    for number in range(4):
        photo(80, 60, number).save(tmp_path / f"{number}.png")
    whole = Scorer.score_many

    def stopped(self: Scorer, *args: Any, **kwargs: Any) -> Iterator[Score]:
        yield from islice(whole(self, *args, **kwargs), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "score_many", stopped)
    target = tmp_path / "page.html"
    with pytest.raises(click.Abort):  # which the entry point turns into 130
        cli.main(["report", str(tmp_path), "-o", str(target), "-m", model], standalone_mode=False)
    page = Page(target.read_text(encoding="utf-8"))
    assert len(page.cards()) == 2
    assert "Stopped after 2 of 4 images." in " ".join(data for _, data in page.texts)
