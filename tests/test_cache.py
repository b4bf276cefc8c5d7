"""The cache: what it finds is what would be computed, whatever changed is computed anew, and its file is safe."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grmp_score.errors import CacheError
from grmp_score.model.patches import Patches
from grmp_score.pipeline import cache as cache_module
from grmp_score.pipeline.cache import Entry, FileState, ScoreCache
from grmp_score.score import Score
from grmp_score.scorer import Scorer
from grmp_score.weights.folder import Weights

from .cli_tools import ROOT
from .conftest import make_photo, random_weights


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """A scorer with the tiny random model."""
    return Scorer(tiny_weights, device="cpu", workers=2)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Five photos that were written long ago."""
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for i, path in enumerate(paths):
        make_photo(60, 50, seed=i).save(path)
        os.utime(path, ns=(10**18, 10**18 + i))
    return paths


def counted(scorer: Scorer, paths: list[str], cache: ScoreCache) -> tuple[list[Score], int]:
    """The scores, and how many of them the model had to compute: it takes one patch at a time."""
    passes: list[Any] = []
    p_high = scorer.engine.p_high

    def counting(patches: Patches) -> list[float]:
        passes.extend(patches)
        return p_high(patches)

    scorer.engine.p_high = counting  # type: ignore[method-assign]
    try:
        scores = list(scorer.score_many(paths, cache=cache))
        computed, rest = divmod(len(passes), scorer.preprocess.patches)
        assert not rest
        return scores, computed
    finally:
        scorer.engine.p_high = p_high  # type: ignore[method-assign]


def test_a_second_run_computes_nothing(scorer: Scorer, files: list[str], tmp_path: Path) -> None:
    """And gives exactly the same scores, down to patches, size and hash."""
    plain = list(scorer.score_many(files))
    for expected in (5, 0):
        with ScoreCache(tmp_path / "c.sqlite") as cache:
            scores, computed = counted(scorer, files, cache)
            assert (scores, computed, cache.hits) == (plain, expected, 5 - expected)


def test_an_image_is_known_by_its_content(scorer: Scorer, files: list[str], tmp_path: Path) -> None:
    """Under another name and as bytes it is found; with one byte changed it is not."""
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        (first,), _ = counted(scorer, files[:1], cache)
        copy = tmp_path / "copy"
        copy.write_bytes(Path(files[0]).read_bytes())
        (renamed,), computed = counted(scorer, [str(copy)], cache)
        assert (renamed, computed) == (dataclasses.replace(first, path=str(copy)), 0)
        make_photo(60, 50, seed=9).save(files[0])
        (changed,), computed = counted(scorer, files[:1], cache)
        assert computed == 1 and changed.content_hash != first.content_hash and changed == scorer.score(files[0])
        pictures = [Image.open(path) for path in files]
        assert [s.content_hash for s in scorer.score_many(pictures, cache=cache)] == [None] * 5


def test_every_setting_has_its_own_scores(tiny_weights: Weights, files: list[str], tmp_path: Path) -> None:
    """Other tensors, patches, backgrounds and limits never get each other's scores; a mere name is no setting."""
    config = tiny_weights.config
    renamed = dataclasses.replace(tiny_weights, config=dataclasses.replace(config, name="x", results={"srcc": 1}))
    scorers = [
        Scorer(tiny_weights),
        Scorer(random_weights(config, seed=1)),
        Scorer(tiny_weights, patches=2),
        Scorer(tiny_weights, background="black"),
        Scorer(tiny_weights, max_pixels=10**6),
    ]
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        for scorer in scorers:
            assert counted(scorer, files, cache) == (list(scorer.score_many(files)), 5)
        for scorer in [*scorers, Scorer(renamed)]:
            assert counted(scorer, files, cache)[1] == 0
    assert len({scorer.settings_key for scorer in scorers}) == 5
    assert tiny_weights.checksum() == scorers[0].checksum == Scorer(renamed).checksum
    assert len({scorer.checksum for scorer in scorers}) == 2


def test_failures_are_not_kept(scorer: Scorer, tmp_path: Path) -> None:
    """What fails today may be read tomorrow, with another library; its hash is told all the same."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        for _ in range(2):
            broken, gone = scorer.score_many([str(tmp_path / "broken.png"), str(tmp_path / "gone")], cache=cache)
            assert broken.error and (broken.content_hash or "").startswith("sha256:")
            assert gone.error == "no such file" and gone.content_hash is None
        assert cache.hits == 0


def test_trusted_files_are_not_read(
    scorer: Scorer, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known path, size and time: the content is not even looked at; anything else: it is."""
    plain = list(scorer.score_many(files))
    with ScoreCache(tmp_path / "c.sqlite", trust_mtime=True) as cache:
        assert list(scorer.score_many(files, cache=cache)) == plain
        monkeypatch.setattr("grmp_score.pipeline.prepare.image_bytes", None)
        assert list(scorer.score_many(files, cache=cache)) == plain
        monkeypatch.undo()
        make_photo(60, 50, seed=9).save(files[0])
        (changed,), computed = counted(scorer, files[:1], cache)
        assert computed == 1 and changed == scorer.score(files[0])
    with ScoreCache(tmp_path / "c.sqlite") as cache:  # without trust everything is read
        assert counted(scorer, files, cache) == ([changed, *plain[1:]], 0)


def test_a_file_that_was_just_written_is_not_trusted(scorer: Scorer, files: list[str], tmp_path: Path) -> None:
    """A change within the coarseness of time stamps would not be seen."""
    with ScoreCache(tmp_path / "c.sqlite", trust_mtime=True) as cache:
        make_photo(60, 50, seed=7).save(files[0])
        list(scorer.score_many(files[:2], cache=cache))
        states = [FileState.of(path) for path in files[:2]]
        assert states[0] is not None and cache.known_hash(states[0]) is None
        assert states[1] is not None and cache.known_hash(states[1]) is not None
    assert FileState.of(tmp_path) is None and FileState.of(tmp_path / "gone") is None


def test_entries_are_on_disk_at_once(tmp_path: Path) -> None:
    """Another connection sees an entry while the first is still open: nothing is lost however a program ends."""
    digest = "sha256:" + "0f" * 32
    with ScoreCache(tmp_path / "c.sqlite") as one, ScoreCache(tmp_path / "c.sqlite") as two:
        one.put(digest, b"settings", Entry((0.25, 0.1), 3, 4))
        assert two.get(digest, b"settings") == Entry((0.25, 0.1), 3, 4)
        assert two.get(digest, b"others") is None and two.get("sha256:" + "00" * 32, b"settings") is None


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Four processes that open a new cache and write at the same time lose nothing and wait for each other."""
    code = f"""
import sys
sys.path.insert(0, {ROOT!r})
from grmp_score.model.patches import Patches
from grmp_score.pipeline.cache import Entry, ScoreCache
with ScoreCache(sys.argv[1]) as cache:
    for i in range(50):
        cache.put(f"sha256:{{i:064x}}", sys.argv[2].encode(), Entry((i / 50,), i, i))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "c.sqlite")]
    running = [subprocess.Popen([*command, str(i)], stderr=subprocess.PIPE) for i in range(4)]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in running]
    assert ended == [(b"", 0)] * 4
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        for who in range(4):
            for i in (0, 25, 49):
                assert cache.get(f"sha256:{i:064x}", str(who).encode()) == Entry((i / 50,), i, i)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    """Text, another program's database, another version: named in one line, and not a byte is changed."""
    text, foreign, newer = (tmp_path / name for name in ("text", "foreign", "newer"))
    text.write_text("this is no database, but a long enough text to be looked at " * 20)
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE albums (name TEXT)")
    database.commit()
    database.close()
    ScoreCache(newer).close()
    database = sqlite3.connect(newer)
    database.execute("PRAGMA user_version = 99")
    database.close()
    for file, reason in (
        (text, "is not an SQLite file"),
        (foreign, "another program"),
        (newer, "version 99, expected 1.*another version of grmp_score"),
    ):
        before = file.read_bytes()
        with pytest.raises(CacheError, match=reason):
            ScoreCache(file)
        assert file.read_bytes() == before
    with pytest.raises(CacheError, match="folder does not exist"):
        ScoreCache(tmp_path / "none" / "c.sqlite")
    with pytest.raises(CacheError, match="unable to open"):
        ScoreCache(tmp_path)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not after hours of scoring."""
    path = tmp_path / "c.sqlite"
    ScoreCache(path).close()
    connect = sqlite3.connect

    def read_only(name: str, **options: object) -> sqlite3.Connection:
        return connect(f"file:{name}?mode=ro", uri=True, **options)  # type: ignore[call-overload, no-any-return]

    # The tests may run as a user whom no permission stops, so SQLite itself is told.
    monkeypatch.setattr(cache_module.sqlite3, "connect", read_only)
    with pytest.raises(CacheError, match="readonly database"):
        ScoreCache(path)


def test_a_lock_held_by_another_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time to wait there is one line."""
    monkeypatch.setattr(cache_module, "BUSY_SECONDS", 0.0)
    with ScoreCache(tmp_path / "c.sqlite") as cache:
        other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheError, match="locked"):
            cache.put("sha256:" + "00" * 32, b"", Entry((0.5,), 1, 1))
        other.close()
