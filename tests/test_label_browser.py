"""Rating photos in a real browser, from the first key to the saved model; skipped where there is none."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grmp_score import Scorer

from .browser import CHROMIUM, DRIVER, Browser, browser
from .cli_tools import COMMAND
from .conftest import make_photo

pytestmark = pytest.mark.skipif(not (DRIVER and CHROMIUM), reason="no chromium with chromedriver")

COUNT = "document.getElementById('count').textContent"
SHOWN = "return document.querySelector('.frame img').getAttribute('src')"


@contextlib.contextmanager
def program(folder: Path, model: str, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command as a process of its own, and the address that it prints."""
    arguments = ["label", str(folder / "photos"), "-o", str(folder / "mine.csv"), "--model", model, "--no-open"]
    with subprocess.Popen(
        [*COMMAND, *arguments, "--rater", "ann", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        try:
            yield next(m[0] for line in process.stderr if (m := re.search(r"http://\S+", line))), process
        finally:
            process.kill()


def rate(window: Browser, key: str, done: int) -> None:
    """Presses a key once the photo is there, and waits until the page says that so many are done."""
    window.wait("document.querySelector('.frame img').naturalWidth > 0")
    window.press(key)
    window.wait(f"{COUNT}.startsWith('{done} of')")


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "mine.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty photos, one with a name that is HTML, and one file that is none."""
    (tmp_path / "photos").mkdir()
    for i in range(59):
        make_photo(160, 120, i).save(tmp_path / "photos" / f"{i:02}.jpg", quality=90)
    make_photo(160, 120, 60).save(tmp_path / "photos" / "<img src=x onerror=alert(1)>.jpg")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    return tmp_path


def test_forty_photos_from_the_first_key_to_the_saved_model(folder: Path, model: str, tmp_path: Path) -> None:
    """Rated by keys, killed in the middle, gone on with, trained, shown in the new order, corrected, saved."""
    with browser(tmp_path / "profile", width=1280, height=900) as window:
        with program(folder, model, "--count", "40") as (address, process):
            window.open(address)
            window.wait(f"{COUNT}.startsWith('0 of 40')")
            for done in range(1, 18):
                rate(window, "12345x"[done % 6], done)
                assert len(rows(folder)) == done  # before the next photo is asked for
            last = window.run(SHOWN)
            window.press("b")
            window.wait("document.querySelector('#answers .mine')")
            assert window.run("return document.querySelector('#answers .mine').dataset.score") == "0"
            window.press("4")
            window.wait("!document.querySelector('#answers .mine')")
            assert window.run(SHOWN) == last and rows(folder)[-1]["score"] == "4"
            window.press("u")
            window.wait(f"{COUNT}.startsWith('16 of')")
            rate(window, "5", 17)
            window.press("s")
            window.wait(f"document.querySelector('.frame img').getAttribute('src') !== '{last}'")
            window.press("p")
            window.wait("document.getElementById('paused').open")
            window.press("3", "Enter")
            window.wait("!document.getElementById('paused').open")
            window.press("z")
            assert window.run("return document.querySelector('.frame img').getBoundingClientRect().width") == 160
            window.press("Escape")
            assert len(rows(folder)) == 17
            process.send_signal(signal.SIGKILL)
            process.wait()
            window.press("3")
            window.wait("document.getElementById('error').textContent.includes('start it again')")
        assert len(rows(folder)) == 17
        with program(folder, model, "--count", "40") as (address, _):
            window.complaints()  # the browser's own, of the server that was gone
            window.open(address)
            window.wait(f"{COUNT}.startsWith('17 of 40')")
            shown = ""
            while (done := len(rows(folder))) < 40:
                window.wait(f"document.querySelector('.frame img').getAttribute('src') !== '{shown}'")
                window.wait("document.querySelector('.frame img').naturalWidth > 0")
                shown = window.run(SHOWN)
                repeats = sum(row["repeat"] != "" for row in rows(folder))
                window.press("12345"[done % 5])
                window.wait(f"document.querySelector('.frame img').getAttribute('src') !== '{shown}'")
                now = rows(folder)
                assert len(now) + sum(row["repeat"] != "" for row in now) == done + repeats + 1
            assert sum(row["repeat"] != "" for row in rows(folder)) >= 3
            window.wait("document.getElementById('news').textContent.includes('Learned from 40')")
            window.press("t")
            window.wait("!document.getElementById('results').hidden")
            assert window.run(
                "return [...document.querySelectorAll('#results ul')].map(u => u.children.length)"
            ) == [*(24, 24, 24, 24, 24)]
            card = "document.querySelector('#results ul li .card')"
            number = window.run(f"{card}.focus(); return Number({card}.dataset.photo)")
            window.press("1")
            window.wait(f"{card}.querySelector('.said').textContent === 'your label: 1'")
            name = window.run(f"return {card}.querySelector('p').textContent")
            assert [row["score"] for row in rows(folder) if row["image"] == f"photos/{name}"] == ["1"], number
            window.run("document.getElementById('save').click()")
            window.wait("document.getElementById('news').textContent.includes('mine-adapted')")
            assert Scorer.from_pretrained(folder / "mine-adapted").config.name == "mine-adapted"
            window.press("Escape")
            assert window.run("return !document.getElementById('rating').hidden")
            assert [text for text in window.complaints() if "photo/" not in text] == []  # the broken one is 404
            assert window.run("return document.scripts.length") == 1


@pytest.mark.parametrize(("width", "options"), [(390, []), (390, ["--pairs"]), (2560, ["--scale", "100"])])
def test_it_fits_and_needs_no_mouse(
    folder: Path, model: str, tmp_path: Path, width: int, options: list[str]
) -> None:
    """Nothing is cut off at the side, everything is in one window, and every control has a name and is reached."""
    height = 844 if width < 600 else 1440
    with (
        program(folder, model, *options) as (address, _),
        browser(tmp_path / "profile", width=width, height=height, phone=width < 600) as window,
    ):
        window.open(address)
        window.wait(f"{COUNT} !== ''")
        window.wait("[...document.querySelectorAll('.frame img')].every(i => i.naturalWidth > 0)")
        assert window.run("return document.documentElement.scrollWidth") == width
        assert window.run("return document.documentElement.scrollHeight <= innerHeight")
        controls = "[...document.querySelectorAll('button, input')].filter(b => b.checkVisibility() && !b.disabled)"
        names = window.run(
            f"return {controls}.map(b => b.ariaLabel || b.textContent.trim() || b.labels[0].textContent)"
        )
        assert all(names)
        reached = set()
        for _ in range(len(names) + 4):
            window.press("Tab")
            reached.add(window.run(f"return {controls}.indexOf(document.activeElement)"))
        assert set(range(len(names))) <= reached
        first = window.run(SHOWN)
        window.run("document.activeElement.blur()")
        window.press(*(["Right"] if "--pairs" in options else ["Left", "Enter"] if options else ["4"]))
        window.wait(f"{COUNT}.startsWith('1 of')")
        assert "--pairs" in options or window.run(SHOWN) != first
        expected = {"4"} if not options else {"49"} if "100" in options else {row["score"] for row in rows(folder)}
        assert {row["score"] for row in rows(folder)} == expected
        assert window.complaints() == []
