"""What `grmp-score` writes where: formats, fields, selections, lists, files that appear whole, resume, cache."""

from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from grmp_score import weights
from grmp_score.cli import progress as progress_module
from grmp_score.cli.main import cli, main
from grmp_score.cli.output import results_file
from grmp_score.cli.progress import progress_bar
from grmp_score.cli.score import count_ahead
from grmp_score.config import LabelScale
from grmp_score.report.rows import FIELDS
from grmp_score.report.writers import ROW_GROUP, ParquetWriter
from grmp_score.scorer import Scorer

from .cli_tools import MAIN, ROOT, assert_usage_error, run, run_jsonl
from .conftest import make_photo
from .warm import Warm

UNIFORM = [i / 100 for i in range(101)]


@pytest.fixture(scope="session")
def telling(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with a label scale and reference distributions, so that every field has a value."""
    loaded = weights.load(model)
    config = dataclasses.replace(
        loaded.config,
        label_scale=LabelScale(1, 5),
        reference_percentiles={"clean": UNIFORM, "distorted_level_5": [x / 4 for x in UNIFORM]},
    )
    folder = tmp_path_factory.mktemp("models") / "telling"
    return str(dataclasses.replace(loaded, config=config).save(folder))


# --------------------------------------------------------------------- formats


def test_every_field_has_its_value(telling: str, photos: Path) -> None:
    """Label on its scale, percentile, hash and checksum are in every row."""
    rows, _ = run_jsonl("-m", telling, photos)
    scorer = Scorer.from_pretrained(telling)
    for row in rows:
        assert row["label"] == pytest.approx(1 + 4 * row["score"], abs=1e-12)
        assert row["percentile"] == pytest.approx(100 * row["score"], abs=1e-9)
        assert row["checksum"] == scorer.checksum and row["content_hash"].startswith("sha256:")


def test_the_table_says_what_scores_mean(telling: str, photos: Path) -> None:
    """With label scale and reference distributions there are labels and verdicts, and where they begin."""
    lines = run("-m", telling, photos).stdout.splitlines()
    rows, _ = run_jsonl("-m", telling, photos)
    assert lines[0].split() == ["image", "score", "±", "std.", "error", "label", "verdict", "pixels"]
    words = {True: "excellent", False: "good" if rows[0]["score"] >= 0.25 else "fair"}
    for line, row in zip(lines[1:4], rows, strict=True):
        label, word, _size = line.split()[-3:]
        assert label == f"{row['label']:.2f}"
        limits = ((0.75, "excellent"), (0.25, "good"), (0.125, "fair"), (0.0625, "poor"), (0, "bad"))
        assert word == next(w for limit, w in limits if row["score"] >= limit), words
    assert "label: 1 .. 5, higher is better" in lines[-2]
    assert lines[-1].startswith("excellent from 0.75, good from 0.25, fair from 0.12, poor from 0.06")


def test_tab_separated_values(model: str, photos: Path) -> None:
    """The same as CSV, with tabs."""
    comma = csv.reader(io.StringIO(run("-m", model, "-f", "csv", photos).stdout))
    tab = csv.reader(io.StringIO(run("-m", model, "-f", "tsv", photos).stdout), delimiter="\t")
    assert list(comma) == list(tab)


def test_paths_only(model: str, photos: Path) -> None:
    """One a line or ended by NUL; what fails is named on stderr instead."""
    gone = photos / "gone.png"
    result = run("-m", model, "-f", "paths", photos, gone)
    expected = [str(photos / name) for name in ("a.JPG", "b.png", "below/c.webp")]
    assert (result.exit_code, result.stdout.splitlines()) == (1, expected)
    assert result.stderr == f"{gone}: no such file\n1 of 4 images could not be scored\n"
    result = run("-m", model, "-f", "paths", "-0", photos)
    assert result.stdout == "".join(f"{path}\0" for path in expected)


def test_parquet(model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of JSON lines with types, in groups."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("grmp_score.report.writers.ROW_GROUP", 2)
    odd = photos / "bad\udcff.png"
    result = run("-m", model, "-o", tmp_path / "o.parquet", photos, odd)
    assert (result.exit_code, result.stdout) == (1, "")
    rows, _ = run_jsonl("-m", model, photos, odd)
    assert rows[3]["path"] == str(photos / "bad\\xff.png")
    file = parquet.ParquetFile(tmp_path / "o.parquet")
    assert file.read().to_pylist() == rows and file.metadata.num_row_groups == 2
    assert [str(field.type) for field in file.schema_arrow][:5] == ["string", "double", "double", "double", "int64"]
    assert ROW_GROUP == 1000 and ParquetWriter.__doc__


def test_parquet_without_pyarrow(model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install, and no file is left."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_usage_error(run("-m", model, "-o", tmp_path / "o.parquet", photos), r"grmp_score\[parquet\]")
    assert list(tmp_path.glob("o.parquet*")) == []


def test_fields_are_chosen_and_ordered(model: str, photos: Path) -> None:
    """In every format that has them."""
    rows, _ = run_jsonl("-m", model, "--fields", "score, path", photos)
    assert [list(row) for row in rows] == [["score", "path"]] * 3
    assert run("-m", model, "-f", "csv", "--fields", "path,model", photos).stdout.startswith("path,model\n")


def test_the_format_follows_the_suffix(model: str, photos: Path, tmp_path: Path) -> None:
    """-o scores.csv is CSV; --format wins."""
    for name, options in (("a.csv", []), ("b.jsonl", ["-f", "csv"])):
        run("-m", model, "-o", tmp_path / name, *options, photos)
        assert (tmp_path / name).read_text().startswith(",".join(FIELDS) + "\n")
    run("-m", model, "-o", tmp_path / "c.jsonl", photos)
    assert len([json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]) == 3


def test_no_colour(telling: str, photos: Path) -> None:
    """NO_COLOR is obeyed where colours would be used."""
    colours = {}
    for name, env in (("with", {}), ("without", {"NO_COLOR": "1"})):
        colours[name] = "\x1b[32m" in run("-m", telling, photos, env={"FORCE_COLOR": "1", **env}).stdout
        colours[name] |= "\x1b[31m" in run("-m", telling, photos, env={"FORCE_COLOR": "1", **env}).stdout
        colours[name] |= "\x1b[33m" in run("-m", telling, photos, env={"FORCE_COLOR": "1", **env}).stdout
    assert colours == {"with": True, "without": False}


# ------------------------------------------------------------------- selection


def test_the_best_and_the_worst(model: str, photos: Path) -> None:
    """--top, --bottom, --sort and limits on real scores; a file that fails is named, not selected."""
    rows, _ = run_jsonl("-m", model, photos)
    ranked = sorted(rows, key=lambda r: -r["score"])
    assert run_jsonl("-m", model, "--top", "2", photos)[0] == ranked[:2]
    assert run_jsonl("-m", model, "--bottom", "2", photos)[0] == ranked[:-3:-1]
    assert run_jsonl("-m", model, "--sort", "score", "--asc", photos)[0] == ranked[::-1]
    middle = str(ranked[1]["score"])
    assert run_jsonl("-m", model, "--min-score", middle, "--sort", "score", photos)[0] == ranked[:2]
    assert run_jsonl("-m", model, "--max-score", middle, "--sort", "score", photos)[0] == ranked[1:]
    found, result = run_jsonl("-m", model, "--top", "1", photos, photos / "gone.png")
    assert found == ranked[:1] and result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"{photos / 'gone.png'}: no such file",
        "1 of 4 images could not be scored",
    ]


# ------------------------------------------------------------------------ lists


def test_lists_from_standard_input_and_files(model: str, photos: Path, tmp_path: Path) -> None:
    """By lines or NULs, next to arguments, folders in them too."""
    names = [str(photos / "b.png"), str(photos / "below")]
    expected = [str(photos / "b.png"), str(photos / "below/c.webp")]
    for separator in ("\n", "\0"):
        data = separator.join(names).encode()
        result = run("-m", model, "-f", "paths", "-", stdin=data)
        assert result.stdout.splitlines() == expected
        (tmp_path / "list").write_bytes(data)
        result = run("-m", model, "-f", "paths", "--from-file", tmp_path / "list", photos / "a.JPG")
        assert result.stdout.splitlines() == [str(photos / "a.JPG"), *expected]
    assert_usage_error(run("-m", model, "-", stdin=b""), "no images found in: -")


def test_background_and_pixel_limit(model: str, tmp_path: Path) -> None:
    """Both reach the reader."""
    picture = make_photo()
    picture.putalpha(128)
    picture.save(tmp_path / "a.png")
    scores = {run_jsonl("-m", model, "--background", c, tmp_path)[0][0]["score"] for c in ("white", "#102030")}
    assert len(scores) == 2
    rows, result = run_jsonl("-m", model, "--max-pixels", "100", tmp_path)
    assert result.exit_code == 1 and "pixels" in rows[0]["error"]


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        (
            ["--fields", "path,scor", "-f", "csv"],
            r"unknown field 'scor', did you mean 'score'.*valid are path, score",
        ),
        (["--fields", "path,path", "-f", "csv"], "stands twice"),
        (["--fields", "path"], "--fields goes with --format csv, tsv, jsonl or parquet"),
        (["-0"], "--null goes with --format paths"),
        (["-f", "parquet"], "needs -o FILE"),
        (["--trust-mtime"], "goes with --cache"),
        (["--address", "auto"], "goes with --ray"),
        (["--ray", "--cache", "c.sqlite"], "--cache does not work with --ray"),
        (["--desc"], "go with --sort"),
        (["-v", "-q"], "contradict"),
        (["--top", "0"], "--top"),
        (["--background", "blurple"], "no colour; expected"),
        (["--resume", "o.jsonl", "-o", "p.jsonl"], "leave out --output"),
        (["--resume", "o.parquet"], "csv, tsv, jsonl, not parquet"),
        (["--resume", "o.jsonl", "--top", "3"], "leave out --sort"),
        (["--resume", "o.jsonl", "--fields", "path,score"], "needs the field 'checksum'"),
        (["-", "-"], "read only once"),
        (["--from-file", "none.txt"], "none.txt"),
    ],
)
def test_options_that_do_not_go_together(
    args: list[str], pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is loaded, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    assert_usage_error(run("x.png", *args), pattern)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------- files appear whole


def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes when so many images have been scored."""
    original = Scorer.score_many

    def stopped(self: Scorer, images: Any, **options: Any) -> Iterator[Any]:
        for index, score in enumerate(original(self, images, **options)):
            if index == count:
                raise KeyboardInterrupt
            yield score

    monkeypatch.setattr(Scorer, "score_many", stopped)


def run_main(*args: str | Path) -> int:
    """The entry point with its handling of Ctrl-C; the exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["grmp-score", *map(str, args)])
        main()
    return int(str(caught.value.code or 0))


def test_ctrl_c_ends_with_130(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was scored stays on stdout, nobody sees a traceback."""
    rows = run_jsonl("-m", model, photos)[0]
    interrupted_after(1, monkeypatch)
    assert run_main("-m", model, "-f", "jsonl", photos) == 130
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == rows[:1]
    assert captured.err.strip() == "Interrupted"


def test_a_full_disk_is_told_with_the_file(model: str, photos: Path, tmp_path: Path) -> None:
    """Which of several disks is full, the system does not say."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grmp_score.report.writers.DelimitedWriter.write", full)
        result = run("-m", model, "-o", tmp_path / "out.csv", photos)
    assert_usage_error(result, f"No space left on device: '{tmp_path / 'out.csv.partial'}'")


def test_ctrl_c_keeps_the_old_file_and_what_is_done(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """-o replaces its target only when complete; the rest lies beside it, and --resume goes on with that."""
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    whole = run_jsonl("-m", model, photos)[0]
    out.write_text("old results\n")
    with monkeypatch.context() as patch:
        interrupted_after(2, patch)
        assert run_main("-m", model, "-o", out, "--overwrite", photos) == 130
    assert out.read_text() == "old results\n"
    assert [json.loads(line) for line in partial.read_text().splitlines()] == whole[:2]
    assert capsys.readouterr().err.split("\n") == [f"What was done is in {partial}", "", "Interrupted", ""]
    with monkeypatch.context() as patch:
        scored: list[str] = []
        original = Scorer.score_many

        def noting(self: Scorer, images: Any, **options: Any) -> Iterator[Any]:
            for score in original(self, images, **options):
                scored.append(score.path or "")
                yield score

        patch.setattr(Scorer, "score_many", noting)
        assert run("-m", model, "--resume", out, photos).exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == whole
    assert scored == [whole[2]["path"]] and not partial.exists()


def test_ctrl_c_still_shows_the_best_so_far(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A selection that waits for the end is made of what there is."""
    rows = run_jsonl("-m", model, photos)[0][:2]
    interrupted_after(2, monkeypatch)
    assert run_main("-m", model, "-f", "jsonl", "--top", "1", photos) == 130
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == [max(rows, key=lambda r: r["score"])]
    assert captured.err.strip() == "Interrupted"


def test_ctrl_c_ends_a_table_once(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines below a table say what the scores mean, and say it once."""
    interrupted_after(2, monkeypatch)
    assert run_main("-m", model, photos) == 130
    assert capsys.readouterr().out.count("0 bad .. 1 good") == 1


def test_links_and_devices_as_output(model: str, photos: Path, tmp_path: Path) -> None:
    """A link is followed, a device is written to, and nothing is left beside them."""
    (tmp_path / "real.csv").write_text("path,score\n")
    (tmp_path / "real.csv").chmod(0o640)
    (tmp_path / "link.csv").symlink_to("real.csv")
    assert run("-m", model, "-o", tmp_path / "link.csv", photos).exit_code == 0
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o640
    assert len((tmp_path / "real.csv").read_text().splitlines()) == 4
    assert run("-m", model, "-o", os.devnull, "-f", "csv", photos).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "real.csv", "link.csv"}


def test_two_runs_do_not_write_one_file(model: str, photos: Path, tmp_path: Path) -> None:
    """The second is refused, whether it begins or resumes, and the first goes on; a killed one blocks nobody."""
    out, partial = tmp_path / "out.csv", tmp_path / "out.csv.partial"
    rows = "path,score\nof the first run,0\n"
    partial.write_text(rows)
    with results_file(out, resume=True):
        assert_usage_error(run("-m", model, "-o", out, photos), "out.csv: another run is writing it")
        assert_usage_error(run("-m", model, "--resume", out, photos), "out.csv: another run is writing it")
        assert partial.read_text() == rows
    assert out.read_text() == rows
    (tmp_path / ".out.csv.lock").touch()
    assert run("-m", model, "-o", out, photos).exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "out.csv"}


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError()])
def test_a_file_system_without_locks(
    error: Exception, model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is written to all the same."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    assert run("-m", model, "-o", tmp_path / "out.csv", photos).exit_code == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


# ----------------------------------------------------------- resume and cache


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_resume_from_nothing_and_after_a_kill(model: str, photos: Path, tmp_path: Path, suffix: str) -> None:
    """A first run begins the file, a torn one is repaired, a complete one is left as it is."""
    out = tmp_path / f"o.{suffix}"
    assert run("-m", model, "--resume", out, photos).exit_code == 0
    whole = out.read_bytes()
    assert whole.decode() == run("-m", model, "-f", suffix, photos).stdout
    for length in (len(whole) // 2, len(whole) - 1, 3):
        out.write_bytes(whole[:length])
        assert run("-m", model, "--resume", out, photos).exit_code == 0
        assert out.read_bytes() == whole
    assert run("-m", model, "--resume", out, photos).exit_code == 0 and out.read_bytes() == whole


def test_resume_keeps_fields_and_counts_earlier_failures(model: str, photos: Path, tmp_path: Path) -> None:
    """The rows go on as they began; an image that failed before still makes the run end with 1."""
    out, gone = tmp_path / "o.csv", photos / "gone.png"
    run("-m", model, "--resume", out, "--fields", "checksum,path,error", gone)
    result = run("-m", model, "--resume", out, gone, photos)
    assert (result.exit_code, result.stderr) == (1, "1 of 4 images could not be scored\n")
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert list(rows[0]) == ["checksum", "path", "error"] and len(rows) == 4
    assert_usage_error(run("-m", model, "--resume", out, "--fields", "path,checksum", photos), "--fields differs")


def test_resume_keeps_the_permissions(model: str, photos: Path, tmp_path: Path) -> None:
    """Of the file that a stopped run with -o would have replaced."""
    out, partial = tmp_path / "o.jsonl", tmp_path / "o.jsonl.partial"
    run("-m", model, "-f", "jsonl", "-o", partial, photos / "b.png")
    out.touch(mode=0o640)
    assert run("-m", model, "--resume", out, photos).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o640 and not partial.exists()


def test_resume_refuses_another_model(model: str, telling: str, photos: Path, tmp_path: Path) -> None:
    """And another number of patches; the file stays as it was, torn end and all."""
    out = tmp_path / "o.jsonl"
    run("-m", model, "--resume", out, photos / "b.png")
    before = out.read_bytes() + b'{"path": "torn'
    out.write_bytes(before)
    assert_usage_error(run("-m", telling, "--resume", out, photos), r"results of the model 'tiny' \(checksum")
    assert_usage_error(run("-m", model, "--patches", "2", "--resume", out, photos), "3 patches per image")
    assert out.read_bytes() == before
    (tmp_path / "letter.jsonl").write_text("Dear Anna")
    assert_usage_error(run("-m", model, "--resume", tmp_path / "letter.jsonl", photos), "something else")
    assert (tmp_path / "letter.jsonl").read_text() == "Dear Anna"


def test_a_cached_run_gives_the_same_rows(model: str, photos: Path, tmp_path: Path) -> None:
    """And says with -v how many it found, and whether the model was needed; a cache that is none is one line."""
    plain, _ = run_jsonl("-m", model, photos)
    for hits, used in ((0, "onnxruntime on cpu in float32"), (3, "the model was not needed")):
        rows, result = run_jsonl("-m", model, "-v", "--cache", tmp_path / "c.sqlite", photos)
        assert rows == plain
        assert re.search(
            rf"^3 images in .* s \(.* per second\), {hits} from the cache, {used}$", result.stderr, re.MULTILINE
        )
    assert_usage_error(run("-m", model, "--cache", photos / "b.png", photos), "is not an SQLite file")


# ---------------------------------------------------------- stderr and progress


def test_verbose_and_quiet(model: str, photos: Path) -> None:
    """-v names model, device and failures; -q says nothing, and the exit code stays."""
    _, result = run_jsonl("-m", model, "-v", photos, photos / "gone.png")
    assert re.match(
        r"model tiny, checksum [0-9a-f]{16}\n3 patches per image, onnxruntime on cpu in float32\n", result.stderr
    )
    assert f"{photos / 'gone.png'}: no such file\n" in result.stderr
    rows, result = run_jsonl("-m", model, "-q", photos, photos / "gone.png")
    assert (len(rows), result.exit_code, result.stderr) == (4, 1, "")


class Terminal(io.StringIO):
    """A screen."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("piped", "options", "bar"),
    [(True, ["-f", "csv"], True), (True, [], True), (False, [], False), (False, ["--top", "2"], True)],
)
def test_a_bar_and_results(
    piped: bool, options: list[str], bar: bool, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results go where stdout goes.  On the screen no bar tears them apart: there is none while they stream, and it
    has gone when they were held back."""
    args = ["-m", model, *options, photos]
    expected, screen = run(*args, columns=80).stdout, Terminal()
    stdout = io.StringIO() if piped else screen
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", stdout)
    assert run_main(*args) == 0
    before, _, results = stdout.getvalue().rpartition("image  ")
    if piped:
        assert stdout.getvalue() == expected
    shown = screen.getvalue() if piped else before
    assert ("Scoring" in shown) == bar and "Scoring" not in results
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == bar  # the cursor is hidden while there is a bar


def test_logs_are_not_flooded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is a line a minute, with the pace and, when the end is known, the time left."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with progress_bar("Scoring", None, unit="images") as progress:
        for step in range(500):
            progress.total = 1000 if step > 250 else None
            now[0] += 0.5
            progress()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Scoring: 120 images, 2.0/s",
        "Scoring: 240 images, 2.0/s",
        "Scoring: 360/1000 images, 2.0/s, 5 min left",
        "Scoring: 480/1000 images, 2.0/s, 4 min left",
    ]
    with progress_bar("Scoring", None, unit="images", quiet=True) as progress:
        now[0] += 100
        progress()
    assert capsys.readouterr().err == ""


def test_the_number_of_images_is_counted_meanwhile(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders and lists, less what is done; not of what can be read only once."""

    class Now:
        def __init__(self, target: Any, **_: Any) -> None:
            self.start = target

    monkeypatch.setattr("grmp_score.cli.score.threading.Thread", Now)
    with progress_bar("Scoring", None, unit="images", quiet=True) as unseen:
        count_ahead([str(photos)], [], [], unseen)
        assert unseen.total is None  # nobody looks
    with progress_bar("Scoring", None, unit="images") as progress:
        count_ahead(["-", str(photos)], [], [], progress)
        assert progress.total is None
        count_ahead([str(photos)], [], [], progress, less=1)
        assert progress.total == 2


def test_a_live_table_shows_rows_at_once(telling: str, photos: Path) -> None:
    """On a terminal every row is there before the next is scored, in columns that stay where they are."""
    from grmp_score.report.rows import WeightsInfo
    from grmp_score.report.table import TableWriter

    scorer = Scorer.from_pretrained(telling)
    text = io.StringIO()
    writer = TableWriter(text, WeightsInfo.of(scorer), live=True)
    seen = []
    for score in scorer.score_many([str(photos / "b.png"), str(photos / "gone.png"), str(photos / "a.JPG")]):
        writer.write(score)
        seen.append(len(text.getvalue().splitlines()))
    assert seen[0] >= 2 and seen == sorted(set(seen))
    lines = [line for line in text.getvalue().splitlines() if re.search(r"\d\.\d{3} ", line)]
    assert len({re.search(r"\d\.\d{3} ", line).start() for line in lines}) == 1  # type: ignore[union-attr]
    assert "no such file" in text.getvalue()


# ------------------------------------------------------------------------- help


def test_help_is_a_manual() -> None:
    """Headings, every field, exit codes and environment; every option under one heading only."""
    text = run("score", "--help").stdout
    for title in ("Inputs:", "Output:", "Selection:", "Model:", "Speed:", "Exit status:", "Environment:"):
        assert title in text
    assert all(re.search(rf"\b{name}\b", text.split("Fields of")[1]) for name in FIELDS)
    command = cli.get_command(click.Context(cli), "score")
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Option):
            assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}\b", text, re.MULTILINE)) == 1, option.opts


# ----------------------------------------------------------------- real process


#: The command, whose reader has left, as `head` does when it has enough.
HEAD = f"""
import os, sys
reader, writer = os.pipe()
os.close(reader)
sys.stdout = open(writer, "w")
{MAIN}
"""


@pytest.mark.parametrize("name", ["csv", "jsonl", "paths", "table"])
def test_sending_rows_to_head_ends_quietly_in_every_format(name: str, model: str, photos: Path, warm: Warm) -> None:
    """A reader that closes its end is no error."""
    done = warm.run(HEAD, "-m", model, "-f", name, photos)
    assert (done.returncode, done.stderr) == (0, b"")


#: The command, which is killed when it is about to write the row of this number.
KILLED = f"""
import os, signal, sys
from grmp_score.report.writers import JsonLinesWriter
write, left = JsonLinesWriter.write, int(sys.argv.pop(1))

def counting(self, score):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(self, score)

JsonLinesWriter.write = counting
{MAIN}
"""


def test_killed_runs_are_resumed_and_cached_runs_equal(model: str, tmp_path: Path, warm: Warm) -> None:
    """Killed twice by SIGKILL, with a torn row left behind, a run ends with the rows of one that was left alone;
    the same rows come out of the cache, by content and by the files' times."""
    photos, alone, out = tmp_path / "photos", tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    photos.mkdir()
    for i in range(60):
        make_photo(40, 40, seed=i).save(photos / f"{i}.jpg")
        os.utime(photos / f"{i}.jpg", (1_500_000_000, 1_500_000_000))
    common = ["-m", model, "--quiet", photos]
    cache = ["--cache", tmp_path / "c.sqlite", "--trust-mtime"]
    for name, options in (("alone", cache), ("hashed", cache[:2]), ("known", cache)):
        done = run(*common, *options, "-o", tmp_path / f"{name}.jsonl")
        assert (done.exit_code, done.stderr) == (0, "")
        assert (tmp_path / f"{name}.jsonl").read_bytes() == alone.read_bytes()
    for option, rows, total in (("-o", 12, 12), ("--resume", 20, 32)):
        assert warm.run(KILLED, str(rows), *common, option, out).returncode == -signal.SIGKILL
        assert partial.read_bytes() == b"".join(alone.read_bytes().splitlines(keepends=True)[:total])
        with partial.open("ab") as file:
            file.write(b'{"path": "torn')  # the worst that a kill can leave
    done = run(*common, "--resume", out)
    assert (done.exit_code, done.stderr, partial.exists()) == (0, "", False)
    assert out.read_bytes() == alone.read_bytes() and len(alone.read_bytes().splitlines()) == 60
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []  # nor is a lock left


@pytest.mark.slow
def test_many_images_small(tmp_path: Path) -> None:
    """The check with ten thousand images, with a hundred, each run a new interpreter; the test above does the same
    with fewer images and is always run."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    script = Path(__file__).parents[1] / "benchmarks" / "many_images.py"
    env = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, str(script), "--images", "100"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["each_image_once"] and figures["same_scores"]
    assert 0 < figures["killed_at_rows"][0] <= figures["killed_at_rows"][1] < 100


def test_engines_that_are_not_installed_are_one_line(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--ray without Ray says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_usage_error(run("-m", model, "--ray", photos), r"grmp_score\[ray\]")
