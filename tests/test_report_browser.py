"""The report in a real browser, at a desk and on a phone; skipped where there is none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from grmp_score.report.html import write_page
from grmp_score.score import FailedScore

from .browser import CHROMIUM, DRIVER, Browser, browser
from .conftest import make_photo
from .test_report import HOSTILE, INFO, gallery_of

pytestmark = pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="no chromium with chromedriver")

ROWS = "[...document.querySelectorAll('#images > li')]"
SHOWN = f"return {ROWS}.filter(row => row.checkVisibility()).map(row => row.dataset.name)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a page of odd names; three images of one scene are a burst."""
    target = tmp_path_factory.mktemp("page") / "report.html"
    pictures = [make_photo(300, 200, seed if seed > 2 else 0) for seed in range(len(HOSTILE))]
    with gallery_of(*((n, i / 20, p) for i, (n, p) in enumerate(zip(HOSTILE, pictures, strict=True)))) as gallery:
        gallery.failures += [FailedScore(f"reason {name}", name) for name in HOSTILE]
        write_page(target, gallery, INFO)
    return target.as_uri()


@pytest.fixture(scope="module")
def desktop(page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A wide window in which the page is open."""
    with browser(tmp_path_factory.mktemp("desktop"), width=1280, height=900) as window:
        window.open(page)
        yield window


def shown(window: Browser) -> list[int]:
    """Which images are shown, by their number, in the order on the page."""
    names = [n if n.isprintable() else n.encode("unicode_escape").decode() for n in HOSTILE]
    return [names.index(name) for name in window.run(SHOWN)]


def wait(window: Browser, count: str) -> None:
    """Until the page says that so many images are shown."""
    says = f"document.getElementById('count').textContent.startsWith('{count}')"
    window.run(f"return new Promise(done => {{ (function look() {{ {says} ? done() : setTimeout(look) }})() }})")


def test_sorting_and_filtering(desktop: Browser) -> None:
    """Every control does what it says, together with the others, and reset undoes all."""
    every = list(range(len(HOSTILE)))
    assert shown(desktop) == every[::-1]
    desktop.set("order", "worst")
    assert shown(desktop) == every
    desktop.set("least", 0.1)
    desktop.set("most", 0.2)
    assert shown(desktop) == [2, 3, 4]
    assert desktop.run("return document.getElementById('count').textContent") == "3 of 11 images shown"
    desktop.set("most", "")
    assert shown(desktop) == every[2:]
    desktop.set("least", 0)
    desktop.set("bestonly", True)
    assert shown(desktop) == every[2:]
    desktop.set("text", "ALERT(1)")
    assert shown(desktop) == [4]
    desktop.run("document.querySelector('button[type=reset]').click()")
    wait(desktop, "11 of 11")
    assert shown(desktop) == every[::-1]
    desktop.set("order", "name")
    letters = [i for i in shown(desktop) if HOSTILE[i][0].isalpha() and HOSTILE[i][0].isascii()]
    assert letters == sorted(letters, key=lambda i: HOSTILE[i]) and len(letters) == 4
    desktop.set("order", "file")
    assert shown(desktop) == every


def test_a_link_into_the_list_shows_what_a_filter_hides(desktop: Browser) -> None:
    """Following a link from a burst to an image takes filters away that hide it."""
    desktop.set("least", 1)
    assert shown(desktop) == []
    desktop.run("location.hash = '#image1'")
    wait(desktop, "11 of 11")
    assert len(shown(desktop)) == len(HOSTILE)


def test_nothing_is_executed_or_complained_about(desktop: Browser) -> None:
    """Odd names run no script and load nothing; the console stays empty."""
    assert desktop.run("return document.title") == INFO.title
    assert desktop.run("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert desktop.run("return document.scripts.length") == 1
    assert (
        desktop.run("return performance.getEntriesByType('resource').filter(r => !/^data:/.test(r.name)).length")
        == 0
    )
    assert desktop.complaints() == []


def test_complaints_are_heard(desktop: Browser) -> None:
    """The check above can fail: what the page's policy blocks is in the console."""
    desktop.run("const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
    desktop.run("document.body.insertAdjacentHTML('beforeend', '<p onclick=\"alert(1)\">x</p>')")
    assert any("Content Security Policy" in message for message in desktop.complaints())


def test_picks_of_a_burst_are_saved(page: str, tmp_path: Path) -> None:
    """The best shot is picked at first; the space bar picks another, and the list holds both paths."""
    with browser(tmp_path, width=1280, height=900) as window:
        window.open(page)
        window.run(
            "window.saved = new Promise(done => {"
            "URL.createObjectURL = blob => { blob.text().then(done); return '#' } })"
        )
        pressed = "return [...document.querySelectorAll('.pick')].map(b => b.getAttribute('aria-pressed'))"
        assert window.run(pressed) == ["true", "false", "false"]
        window.run("document.querySelectorAll('.pick')[1].focus()")
        window.press(" ")
        assert window.run(pressed) == ["true", "true", "false"]
        window.run("document.getElementById('export').click()")
        assert window.run("return window.saved") == f"{HOSTILE[2]}\n{HOSTILE[1]}\n"


def test_on_a_phone(page: str, tmp_path: Path) -> None:
    """At phone width nothing is cut off at the side, two images stand side by side, and text is readable."""
    with browser(tmp_path, width=390, height=844, phone=True) as window:
        window.open(page)
        assert window.run("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        assert window.run(f"return new Set({ROWS}.map(row => row.getBoundingClientRect().left)).size") == 2
        assert window.run("return parseFloat(getComputedStyle(document.querySelector('.name')).fontSize)") >= 13
        assert window.complaints() == []
        light = window.picture()
        window.dark()
        dark = window.picture()

    def brightness(picture: bytes) -> float:
        with Image.open(io.BytesIO(picture)) as image:
            return float(image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))  # type: ignore[arg-type]

    assert brightness(light) > 150 > 90 > brightness(dark)


def test_without_javascript(tmp_path: Path) -> None:
    """A static list, best first, without controls that would do nothing."""
    gallery = gallery_of(*((f"{i}.jpg", i / 10, make_photo(60, 40, i)) for i in range(4)))
    with gallery:
        write_page(tmp_path / "report.html", gallery, INFO)
    with browser(tmp_path / "profile", width=900, height=700, scripts=False) as window:
        window.open((tmp_path / "report.html").as_uri())
        assert window.run(SHOWN) == ["3.jpg", "2.jpg", "1.jpg", "0.jpg"]
        assert not window.run("return document.getElementById('controls').checkVisibility()")
        assert "need JavaScript" in window.run("return document.body.innerText")
