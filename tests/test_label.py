"""Rating photos: the file, the order, back and undo, pairs, learning, and what the server refuses."""

from __future__ import annotations

import csv
import http.client
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from grmp_score import FewShotConfig, Scorer, read_labels
from grmp_score.cli.label import _take_stars
from grmp_score.cli.main import cli
from grmp_score.errors import ConfigError, DataError, ImageReadError
from grmp_score.label.learner import Learner, is_look
from grmp_score.label.order import stratified
from grmp_score.label.pairs import PairSession, bradley_terry
from grmp_score.label.photos import Photos
from grmp_score.label.results import results
from grmp_score.label.server import listen, make_app, make_server, new_token
from grmp_score.label.session import REPEAT_EVERY, Scale, Session
from grmp_score.label.store import Label, LabelFile
from grmp_score.sidecars.ratings import write_score
from grmp_score.sidecars.xmp import EMPTY, XMP, Packet

from .conftest import make_photo

HTML_NAME = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve photos, one of them a near duplicate, one with HTML for a name, and a link that leads out."""
    made = tmp_path / "photos"
    made.mkdir()
    for i in range(10):
        make_photo(80, 60, i).save(made / f"{i}.png")
    make_photo(80, 60, 3).save(made / "copy.jpg", quality=95)
    make_photo(80, 60, 11).save(made / HTML_NAME)
    make_photo(80, 60, 12).save(tmp_path / "secret.png")
    (made / "link.png").symlink_to(tmp_path / "secret.png")
    return made


def photos_of(folder: Path) -> Photos:
    return Photos.of(sorted(map(str, folder.iterdir())), [str(folder)])


def start(
    folder: Path, model: str, *, rater: str = "ann", order: str = "stratified", looked: bool = False, **given: Any
) -> Session:
    """A session whose learner works when it is told to, in this thread."""
    photos = photos_of(folder)
    learner = Learner(photos, Scorer.from_pretrained(model), order, 0, folder.parent / ".mine.features")
    if looked:
        for number in range(len(photos)):
            learner._look_at(number)
    settings = {"scale": Scale(5), "target": 100, "seed": 0, **given}
    return Session(photos, LabelFile(folder.parent / "mine.csv"), learner, rater=rater, **settings)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder.parent / "mine.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- the session


def test_every_label_is_on_disk_and_a_second_start_goes_on(folder: Path, model: str) -> None:
    """Rows are image, score, rater, time and seconds; photos with a label do not come again."""
    session = start(folder, model)
    for score in (1, 5, 0):
        shown = session.state()["shown"][0]
        session.rate(shown, score, 1.5)
        assert rows(folder)[-1]["image"] == f"photos/{session.photos.names[shown]}"
    assert [(r["score"], r["rater"], r["seconds"]) for r in rows(folder)] == [
        ("1", "ann", "1.5"),
        ("5", "ann", "1.5"),
        ("0", "ann", "1.5"),
    ]
    again = start(folder, model)
    state = again.state()
    assert state["done"] == 3 and state["shown"][0] not in again.scores
    assert state["seconds_left"] == pytest.approx(1.5 * 9 * (1 + 1 / REPEAT_EVERY))


def test_two_raters_share_a_file(folder: Path, model: str) -> None:
    """Each sees his own labels; a change keeps the other's, whoever writes last."""
    ann, bob = start(folder, model), start(folder, model, rater="bob")
    for number in range(6):
        ann.rate(number, number % 5, 1.0)
        bob.rate(number, 5 - number % 5, 1.0)
    ann.rate(0, 3, 1.0)
    assert start(folder, model).scores[0] == 3 and start(folder, model, rater="bob").scores[0] == 5
    labels = read_labels(folder.parent / "mine.csv")
    assert labels.raters == ("bob", "ann") and len(labels) == 6


def test_a_second_instance_loses_nothing(folder: Path, model: str) -> None:
    """The same rater at two pages: every label is kept, and of two for one photo the later one."""
    one, two = start(folder, model), start(folder, model)
    for number in range(6):
        one.rate(number, 1, 1.0)
        two.rate(number + 5, 2, 1.0)
    assert len(rows(folder)) == 11
    assert sorted(start(folder, model).scores.items()) == [(n, 1.0 if n <= 5 else 2.0) for n in range(11)]


def test_back_undo_skip(folder: Path, model: str) -> None:
    """Back shows the label and may change it; undo takes it away; what is skipped comes at the end."""
    session = start(folder, model)
    first = session.state()["shown"][0]
    session.rate(first, 4, 1.0)
    second = session.state()["shown"][0]
    state = session.back()
    assert (state["shown"], state["score"]) == ([first], 4.0)
    state = session.rate(first, 2, 1.0)
    assert state["shown"] == [second] and session.scores == {first: 2.0}
    assert session.undo()["shown"] == [first] and rows(folder) == []
    session.skip(first)
    seen = []
    while (shown := session.state()["shown"]) and shown[0] != first:
        seen.append(shown[0])
        session.rate(shown[0], len(seen) % 5, 1.0)
    assert len(seen) == 11 and session.state()["shown"] == [first]
    session.rate(first, 1, 1.0)
    assert session.state()["shown"] == []


def test_photos_come_again_blindly(tmp_path: Path, model: str) -> None:
    """One in eight is shown again, long after; its first score stays and the consistency is measured."""
    made = tmp_path / "photos"
    made.mkdir()
    for i in range(100):
        make_photo(40, 30, i).save(made / f"{i}.png")
    session = start(made, model, order="random")
    shown: list[int] = []
    while len(session.scores) < 100:
        state = session.state()
        assert state["score"] is None
        number = state["shown"][0]
        if number in session.scores:
            assert len(shown) - shown.index(number) > 8
        session.rate(number, (number + (number in session.scores) * (number % 7 == 0)) % 6, 1.0)
        shown.append(number)
    repeats = [label for label in LabelFile(tmp_path / "mine.csv").read() if label.repeat is not None]
    assert len(repeats) == 100 // REPEAT_EVERY - 1 == len(shown) - 100
    consistency = session.consistency()
    assert consistency is not None and consistency["repeats"] == len(repeats)
    expected = spearmanr([r.score for r in repeats], [r.repeat for r in repeats]).statistic
    assert consistency["srcc"] == pytest.approx(expected)
    assert consistency["ceiling"] == pytest.approx(max(0.0, expected) ** 0.5)
    assert start(made, model).consistency() == consistency  # after a new start as well


def test_near_duplicates_come_last(folder: Path, model: str) -> None:
    """Of two photos that look alike one comes, the other when nothing else is left."""
    session = start(folder, model, looked=True)
    pair = {session.photos.names.index("3.png"), session.photos.names.index("copy.jpg")}
    seen = []
    while shown := session.state()["shown"]:
        if shown[0] not in session.scores:
            seen.append(shown[0])
        session.rate(shown[0], 1, 1.0)
    assert len(seen) == 12 and seen[-1] in pair and seen[-2] not in pair


@pytest.mark.parametrize("score", [6, -1, "5", None, True, float("nan")])
def test_what_is_no_score_is_refused(folder: Path, model: str, score: object) -> None:
    """Nothing is written."""
    with pytest.raises(ConfigError, match="expected a number from 0 to 5"):
        start(folder, model).rate(0, score, 1.0)
    assert not (folder.parent / "mine.csv").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,mos\na.png,3\n", "expected image,score,rater"),
        ("image,score,rater,time,seconds,repeat\na.png,good,ann,,,\n", "row 2.*expected a number"),
        ("image,score,rater,time,seconds,repeat\na.png,3,ann,,,\na.png,3,ann,,,\n", "row 3.*already rated"),
        ("image,score,rater,time,seconds,repeat\na.png,77,ann,,,\n", "is 77, expected 0 to 5"),
    ],
)
def test_a_file_of_something_else_is_not_touched(folder: Path, model: str, text: str, says: str) -> None:
    """File, row and value are named."""
    file = folder.parent / "mine.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        start(folder, model)
    assert file.read_text() == text


def test_odd_names_and_links(folder: Path, model: str, tmp_path: Path) -> None:
    """Links that lead out and names that are no text are left out; a link put in a photo's place is refused."""
    os.rename(folder / "9.png", os.fsencode(folder) + b"/\xff.png")
    photos = photos_of(folder)
    assert len(photos) == 11 and "link.png" not in photos.names and HTML_NAME in photos.names
    number = photos.names.index("0.png")
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageReadError, match="leads out"):
        photos.picture(number)


# ------------------------------------------------------------------- order and learning


def test_the_order_covers_the_scores() -> None:
    """1, 2, 4 ... labels lie in as many strata of the model's scores, and every photo comes once."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=64)
    chosen: list[int] = []
    for count in range(1, 65):
        left = [i for i in range(64) if i not in chosen]
        chosen.append(stratified(scores, chosen, left, rng))
        if count.bit_count() == 1:
            ranks = np.argsort(np.argsort(scores))[chosen]
            assert len(set(ranks * count // 64)) == count
    assert sorted(chosen) == list(range(64))


def test_the_learner_measures_what_adapt_measures(folder: Path, model: str) -> None:
    """The same cross-validation, and the model that is saved gives the order that was shown."""
    session = start(folder, model, looked=True)
    learner = session.learner
    for number in range(12):
        session.rate(number, (number * 7) % 6, 1.0)
    learner._learn(session.scores)
    assert learner.learned is not None and learner.finished == 1
    shown = results(session)
    assert "Learned from 12 labels" in shown["sentences"][0] and "Learning curve" in shown["sentences"][-1]
    assert [len(section["after"]) for section in shown["sections"]] == [12, 12, 12]
    assert {card["photo"] for card in shown["sections"][0]["before"]} == set(range(12))
    learner._save(session.scores, session.file.path)
    saved = Scorer.from_pretrained(learner.saved)
    assert Path(learner.saved).name == "mine-adapted"
    assert saved.config.results["after"]["srcc"] == pytest.approx(learner.learned.srcc, abs=0.02)
    assert saved.config.training["stage_2"]["labels"] == "mine.csv"
    assert saved.config.label_scale is not None and saved.config.label_scale.maximum == 5
    for number, value in learner.learned.after.items():
        assert saved.score(session.photos.paths[number]).value == pytest.approx(value, abs=2e-3)
    learner._save(session.scores, session.file.path)
    assert Path(learner.saved).name == "mine-adapted-2"
    assert FewShotConfig().train == "head"


def test_features_are_kept(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start looks nothing up but its cache; a damaged entry is made anew."""
    learner = start(folder, model, looked=True).learner
    cache = folder.parent / ".mine.features"
    assert len(list(cache.iterdir())) == 12
    next(cache.iterdir()).write_bytes(b"damaged")
    again = start(folder, model, looked=True).learner
    assert again.ready == 12 and all(
        np.array_equal(again._known[n].pooled, learner._known[n].pooled) for n in range(12)
    )
    monkeypatch.setattr("grmp_score.label.learner.read_image", None)
    assert start(folder, model, looked=True).learner.ready == 12


def test_too_few_labels_are_said(folder: Path, model: str) -> None:
    """In words, and nothing is learned."""
    session = start(folder, model, looked=True)
    with pytest.raises(DataError, match="0 labels, expected at least 10"):
        session.learner._learn(session.scores)
    for number in range(10):
        session.rate(number, 3, 1.0)
    with pytest.raises(DataError, match="labels that are all 3"):
        session.learner._learn(session.scores)


def test_when_the_page_speaks() -> None:
    """After 20, 40, 80, 160 labels."""
    assert [count for count in range(200) if is_look(count)] == [20, 40, 80, 160]


# ------------------------------------------------------------------------------- pairs


def test_bradley_terry_finds_the_scores() -> None:
    """On many answers by known scores it finds them, and the standard errors are honest."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=30)
    pairs = []
    for _ in range(1500):
        a, b = rng.choice(30, 2, replace=False)
        pairs.append((a, b) if rng.random() < 1 / (1 + np.exp(truth[b] - truth[a])) else (b, a))
    scores, errors = bradley_terry(pairs, 30)
    assert spearmanr(scores, truth).statistic > 0.9
    z = (scores - truth + truth.mean()) / errors
    assert 0.6 < z.std() < 1.4
    assert bradley_terry([(0, 1)] * 50, 2)[0][0] < 10  # the prior keeps what always won finite


def test_pairs(folder: Path, model: str) -> None:
    """Answers are kept, scores follow, undo and a second start work, and read_labels reads the scores."""

    def begin() -> PairSession:
        learner = Learner(photos_of(folder), Scorer.from_pretrained(model), "stratified", 0, folder.parent / "f")
        return PairSession(learner.photos, folder.parent / "mine.csv", learner, rater="ann", target=50, seed=0)

    session = begin()
    for _ in range(40):
        a, b = sorted(session.state()["shown"])
        session.choose(b, a, 1.0)  # a higher number is better
    answers = (folder.parent / "mine.pairs.csv").read_text().splitlines()
    assert len(answers) == 41 and answers[0] == "better,worse,rater,time,seconds"
    scores = session.scores
    assert spearmanr(list(scores), list(scores.values())).statistic > 0.8
    labels = read_labels(folder.parent / "mine.csv")
    assert len(labels) == len(scores) and all(float(row["standard_error"]) > 0 for row in rows(folder))
    shown = session.undo()["shown"]
    assert session.state()["done"] == 39 and len((folder.parent / "mine.pairs.csv").read_text().splitlines()) == 40
    again = begin()
    assert again.state()["done"] == 39 and again.scores == pytest.approx(session.scores)
    session.skip({})
    assert set(session.state()["shown"]) != set(shown)
    session.skip({"photo": session.state()["shown"][0], "unreadable": True})
    assert 5 in session.compare(5)["shown"]
    with pytest.raises(ConfigError):
        session.choose(1, 1, 1.0)


# ---------------------------------------------------------------------------- the server


class Page:
    """A server in a thread, and requests to it as any program on this machine could send them."""

    def __init__(self, session: Session) -> None:
        self.listener = listen()
        self.port, self.token = self.listener.getsockname()[1], new_token()
        self.server = make_server(make_app(session, port=self.port, token=self.token, title="<b>photos</b>"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def ask(
        self, path: str, body: object = None, *, token: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers; a request with a body is a POST from the page itself unless told otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            method = "GET" if body is None else "POST"
            sent = {} if body is None else {"Origin": f"http://127.0.0.1:{self.port}"}
            sent |= {name.capitalize(): value for name, value in headers.items()}
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            path = f"/{self.token if token is None else token}/{path}" if not path.startswith("/") else path
            connection.request(method, path, data, {k: v for k, v in sent.items() if v})
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def page(folder: Path, model: str) -> Iterator[Page]:
    """A running server."""
    running = Page(start(folder, model))
    yield running
    running.stop()


def test_the_page_and_its_policy(page: Page) -> None:
    """Served with a policy that lets nothing else in; the title is escaped; photos are the file's own bytes."""
    status, body, headers = page.ask("")
    assert status == 200 and b"&lt;b&gt;photos&lt;/b&gt;" in body and b"<b>photos" not in body
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert page.ask("script.js")[2]["content-type"].startswith("text/javascript")
    status, body, headers = page.ask("photo/0")
    assert (status, headers["content-type"]) == (200, "image/png") and headers[
        "x-content-type-options"
    ] == "nosniff"
    assert page.ask("photo/0?small")[2]["content-type"] == "image/jpeg"
    assert page.ask(f"/{page.token}")[0] == 307


def test_what_comes_from_elsewhere_is_refused(page: Page, folder: Path) -> None:
    """A foreign Host or Origin, none where something changes, and a wrong token: nothing is shown or changed."""
    given = {"photo": 0, "score": 3, "seconds": 1}
    own = f"http://127.0.0.1:{page.port}"
    assert page.ask("", host="evil.example")[0] == 421
    assert page.ask("", host="127.0.0.1")[0] == 421
    for origin in ("http://evil.example", "null", "http://127.0.0.1", own + ".evil.example", ""):
        assert page.ask("rate", given, origin=origin)[0] == 403
    assert page.ask("state", origin="http://evil.example")[0] == 403
    for token in ("", "x", page.token[:-1], page.token + "x", page.token.swapcase()):
        assert page.ask("state", token=token)[0] == 404 and page.ask("rate", given, token=token)[0] == 404
    assert not (folder.parent / "mine.csv").exists()
    assert page.ask("rate", given, host=f"localhost:{page.port}", origin=f"http://localhost:{page.port}")[0] == 200
    assert [row["score"] for row in rows(folder)] == ["3"]


def test_nothing_but_the_photos_is_served(page: Page, folder: Path) -> None:
    """Paths that climb, numbers that are none, and a link put in a photo's place end in 404."""
    for path in (
        *("../../secret.png", "..%2f..%2fsecret.png", "photo/..%2f..%2fsecret.png", "photo/-1", "photo/12"),
        *(
            "photo/99999999999999999999",
            "photo/0/../../x",
            "photo/0.png",
            "page.html",
            "session.py",
            "%00",
            "photo/",
        ),
    ):
        assert page.ask(path)[0] == 404, path
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(folder.parent / "secret.png")
    numbers = [n for n in range(12) if page.ask(f"photo/{n}")[0] == 404]
    assert len(numbers) == 1
    assert page.ask(f"photo/{numbers[0]}?small")[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"photo": 1e9}',
        b'{"photo": "0", "score": 1}',
        b'{"photo": 0, "score": 9}',
        b"1",
    ],
)
def test_what_makes_no_sense_is_answered_in_words(page: Page, folder: Path, body: bytes) -> None:
    """400 and a sentence, never a traceback; nothing is written."""
    status, text, _ = page.ask("rate", body)
    assert status == 400 and text and b"Traceback" not in text
    assert not (folder.parent / "mine.csv").exists()
    assert page.ask("rate", b" " * 2000)[0] == 413
    assert page.ask("rate")[0] == 404  # a GET


def test_a_thousand_requests_at_once(page: Page, folder: Path) -> None:
    """All are answered, and all labels are there."""

    def ask(i: int) -> int:
        if i % 10 == 0:
            return page.ask("rate", {"photo": i // 10 % 12, "score": i % 6, "seconds": 1})[0]
        return page.ask(("state", "photo/1", "", "photo/2?small")[i % 4])[0]

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(ask, range(1000))) == {200}
    assert len(rows(folder)) == 12


def test_a_disk_that_fails_is_said(page: Page, folder: Path) -> None:
    """The page hears that the label is not saved; the next one is."""
    file = folder.parent / "mine.csv"
    file.mkdir()
    assert page.ask("rate", {"photo": 0, "score": 3, "seconds": 1})[0] == 500
    file.rmdir()
    assert page.ask("rate", {"photo": 0, "score": 3, "seconds": 1})[0] == 200


def test_wrong_usage(folder: Path, tmp_path: Path) -> None:
    """One line and status 2: an image as output, no photos, no folder, a port that is taken, no name."""

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(cli, ["label", *arguments, "--no-open"], standalone_mode=True)
        assert done.exit_code in (1, 2), done.output
        return done.output if done.exit_code == 2 else str(done.exception)

    assert "results are no .jpg file" in run(str(folder), "-o", str(tmp_path / "x.jpg"))
    assert "expected at least 2" in run(str(tmp_path / "none"), "-o", str(tmp_path / "x.csv"))
    assert "no such folder" in run(str(folder), "-o", str(tmp_path / "no" / "x.csv"))
    assert "is no name" in run(str(folder), "-o", str(tmp_path / "x.csv"), "--rater", " ")
    with listen() as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen" in run(str(folder), "-o", str(tmp_path / "x.csv"), "--port", port)


def test_stars_are_a_start(folder: Path) -> None:
    """Photos with stars get a label, rejected ones 0; what the rater has said already stays."""
    paths = photos_of(folder).paths
    for name, stars in (("0.png", 4), ("1.png", 2), ("2.png", -1)):
        (folder / f"{name}.xmp").write_bytes(Packet(EMPTY).set(XMP, "xmp", "Rating", str(stars)).data)
    write_score(str(folder / "4.png"), 0.9, 5)  # a model's stars are nobody's
    file = LabelFile(folder.parent / "mine.csv")
    file.rate(Label(file.name_of(folder / "1.png"), 5.0, "ann", "", 1.0))
    assert (_take_stars(file, paths, "ann"), _take_stars(file, paths, "ann")) == (2, 0)
    assert {label.image: label.score for label in file.read()} == {
        "photos/1.png": 5.0,
        "photos/0.png": 4.0,
        "photos/2.png": 0.0,
    }
    result = CliRunner().invoke(cli, ["label", str(folder), "-o", str(folder / "x.csv"), "--stars", "--pairs"])
    assert result.exit_code == 2 and "--stars are grades" in result.stderr
