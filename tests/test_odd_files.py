"""The folder of odd files, scored in one run of the real command: right scores, one row per file, no noise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import grmp_score
from grmp_score import weights
from grmp_score.config import ModelConfig
from grmp_score.errors import ImageReadError
from grmp_score.images import read_image
from grmp_score.report.rows import unicode_text
from grmp_score.scorer import Scorer

from .conftest import random_weights
from .odd_files import OddFile, make, variants

COMMAND = [sys.executable, "-c", "from grmp_score.cli.main import main; main()"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the names and links need a POSIX file system")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[OddFile]]:
    """The folder, and what is in it."""
    folder = tmp_path_factory.mktemp("odd") / "photos"
    folder.mkdir()
    return folder, make(folder)


def command(*args: str | Path) -> tuple[dict[str, dict[str, Any]], subprocess.CompletedProcess[bytes]]:
    """The command as a process: its rows by path, which must be different, and how it ended."""
    root = str(Path(grmp_score.__file__).parents[1])
    env = {
        **os.environ,
        "PYTHONPATH": root,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "always",
    }
    ended = subprocess.run([*COMMAND, *map(str, args)], env=env, capture_output=True, timeout=300)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows)
    return by_path, ended


def test_one_run_over_everything(odd: tuple[Path, list[OddFile]], tiny_config: ModelConfig, tmp_path: Path) -> None:
    """At least sixty odd files: one row each, a score where an image exists, else a reason; exit 1; no noise."""
    folder, files = odd
    assert len(files) >= 60
    model = random_weights(tiny_config).save(tmp_path / "tiny")
    rows, ended = command("--format", "jsonl", "-m", model, folder, folder / "vanished.jpg")
    wrong = [f for f in files if f.like == "error"]
    assert ended.returncode == 1
    assert ended.stderr.decode() == f"{len(wrong) + 1} of {len(files) + 1} images could not be scored\n"
    assert rows.keys() == {unicode_text(str(folder / f.name)) for f in files} | {str(folder / "vanished.jpg")}
    scorer = Scorer.from_pretrained(model)
    expected = {kind: scorer.score(image).value for kind, image in variants().items()}
    for file in files:
        row = rows[unicode_text(str(folder / file.name))]
        if file.like == "error":
            assert row["score"] is None and row["error"] and "\n" not in row["error"], file
        else:
            assert row["error"] is None and 0 <= row["score"] <= 1, (file, row["error"])
            if file.like in expected:
                assert (row["width"], row["height"]) == (320, 240), file
            if file.exact:
                # A tiny random model is steep; a level in 255 may move it, another picture moves it far more.
                assert row["score"] == pytest.approx(expected[file.like], abs=0.01), file
    assert rows[str(folder / "vanished.jpg")]["error"] == "no such file"


def test_the_reasons(odd: tuple[Path, list[OddFile]]) -> None:
    """The reasons of errors say what is wrong with each file."""
    folder, files = odd
    expected = {
        "empty.jpg": "the file is empty",
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "html.jpg": "HTML",
        "pdf.tif": "PDF",
        "video.heic": "video",
        "bomb.png": "megapixels",
        "link broken.jpg": "no such file",
        "link loop.jpg": "symbolic links",
        "pipe.jpg": "not a regular file",
        "float 0 to 255.tif": "more than half of them",
    }
    for name in (file.name for file in files if file.like == "error"):
        with pytest.raises(ImageReadError, match=expected.get(name, ".")):
            read_image(folder / name)


def test_the_pictures_are_right(odd: tuple[Path, list[OddFile]]) -> None:
    """Every variant shows the reference: to the level where its format keeps all, else nearly so."""
    folder, files = odd
    pictures = {kind: np.asarray(image).astype(int) for kind, image in variants().items()}
    for file in files:
        if file.like in pictures:
            difference = np.abs(np.asarray(read_image(folder / file.name)).astype(int) - pictures[file.like])
            assert difference.max() <= 1 if file.exact else difference.mean() < 4, (file, difference.mean())


@pytest.mark.skipif(
    not (weights.BUNDLED / weights.DEFAULT_MODEL / weights.CONFIG).is_file(),
    reason="the bundled model is not in this tree",
)
def test_variants_score_alike(odd: tuple[Path, list[OddFile]]) -> None:
    """By the bundled model, orientation and bit depth move a score by less than 0.01, and so do lossy formats."""
    folder, files = odd
    scorer = Scorer(patches=1)
    values: dict[bytes, float] = {}

    def value(image: Image.Image) -> float:
        """Scored once for the same pixels, which most files give."""
        pixels = image.tobytes()
        if pixels not in values:
            values[pixels] = scorer.score(image).value
        return values[pixels]

    pictures = variants()
    alike = ("orientation", "rgb", "grey", "profile", "cmyk", "iphone", "a.")
    for file in files:
        if file.like in pictures and file.name.startswith(alike):
            expected = value(pictures[file.like])
            assert value(read_image(folder / file.name)) == pytest.approx(expected, abs=0.01), file
