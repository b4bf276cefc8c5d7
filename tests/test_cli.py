"""The command line: what it prints where, its exit codes, and that no mistake of a user shows a traceback."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result

from grmp_score import __version__, weights
from grmp_score.cli.main import COMMANDS, cli
from grmp_score.config import ModelConfig
from grmp_score.images.find import find_images
from grmp_score.report.rows import FIELDS, unicode_text
from grmp_score.scorer import Scorer
from grmp_score.trainer.data import sources

from .cli_tools import MAIN, ROOT, assert_usage_error, process, run, run_jsonl
from .conftest import make_photo
from .hub_server import HubServer
from .warm import Warm

needs_bundled = pytest.mark.skipif(
    not (weights.BUNDLED / weights.DEFAULT_MODEL / weights.CONFIG).is_file(),
    reason="the bundled model is not in this tree",
)


# --------------------------------------------------------------------- formats


def test_json_lines_carry_everything(model: str, photos: Path) -> None:
    """One object per image with path, score, standard error, size, model and error, as the library gives them."""
    rows, result = run_jsonl("-m", model, photos)
    assert result.exit_code == 0 and result.stderr == ""
    expected = list(Scorer.from_pretrained(model).score_many(find_images([str(photos)])))
    assert [tuple(row) for row in rows] == [FIELDS] * 3
    for row, score in zip(rows, expected, strict=True):
        assert row == {
            "path": score.path,
            "score": score.value,
            "standard_error": score.standard_error,
            "std": score.std,
            "patches": 3,
            "label": None,
            "percentile": None,
            "width": score.width,
            "height": score.height,
            "content_hash": score.content_hash,
            "model": "tiny",
            "checksum": Scorer.from_pretrained(model).checksum,
            "error": None,
        }
        assert 0 <= row["score"] <= 1 and row["standard_error"] > 0


def test_csv_carries_the_same_as_json_lines(model: str, photos: Path) -> None:
    """Numbers keep their full precision in both."""
    result = run("-m", model, "-f", "csv", photos)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    same, _ = run_jsonl("-m", model, photos)
    assert result.exit_code == 0 and result.stderr == ""
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in same] == rows


def test_the_table_shows_scores_in_order(model: str, photos: Path) -> None:
    """One line per image with its name, score, standard error and size, and what the number means."""
    result = run("-m", model, photos)
    rows, _ = run_jsonl("-m", model, photos)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and result.stderr == "" and "\x1b" not in result.stdout
    for line, row in zip(lines[1:4], rows, strict=True):
        name, score, _bar, error, size = line.split()
        assert name == os.path.relpath(row["path"], photos)
        assert (score, error) == (f"{row['score']:.3f}", f"{row['standard_error']:.3f}")
        assert size == f"{row['width']}x{row['height']}"
    assert "0 bad .. 1 good; model tiny" in lines[-1]


@pytest.mark.parametrize("output_format", ["table", "csv", "jsonl"])
def test_output_goes_to_a_file(model: str, photos: Path, tmp_path: Path, output_format: str) -> None:
    """With -o the file holds what the screen would, and the screen stays empty."""
    screen = run("-m", model, "-f", output_format, photos)
    result = run("-m", model, "-f", output_format, "-o", tmp_path / "out", photos)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "out").read_text(encoding="utf-8") == screen.stdout


def test_the_number_of_patches_can_be_chosen(model: str, photos: Path) -> None:
    """--patches changes the number and, with one, leaves no spread."""
    rows, _ = run_jsonl("-m", model, "--patches", "1", photos)
    assert [(r["patches"], r["standard_error"]) for r in rows] == [(1, None)] * 3
    rows, _ = run_jsonl("-m", model, "--patches", "7", photos)
    assert [r["patches"] for r in rows] == [7] * 3


def test_batches_and_threads_do_not_change_scores(model: str, photos: Path) -> None:
    """Speed settings are speed settings."""
    plain, _ = run_jsonl("-m", model, photos)
    other, _ = run_jsonl("-m", model, "--batch-size", "2", "--workers", "1", photos)
    assert plain == other


# --------------------------------------------------------------------- inputs


def test_folders_are_searched_sorted_without_hidden_files(model: str, photos: Path) -> None:
    """Recursively, hidden files and folders and other files left out; named files come as named."""
    rows, _ = run_jsonl("-m", model, photos / "below" / "c.webp", photos, photos / ".hidden.png")
    names = ["below/c.webp", "a.JPG", "b.png", "below/c.webp", ".hidden.png"]
    assert [r["path"] for r in rows] == [str(photos / n) for n in names]


@pytest.mark.parametrize("output_format", ["table", "csv", "jsonl"])
def test_a_broken_file_among_good_ones_is_a_row(model: str, photos: Path, output_format: str) -> None:
    """The run goes on, the row names the reason, the exit code is 1."""
    (photos / "aa.png").write_bytes((photos / "b.png").read_bytes()[:200])
    result = run("-m", model, "-f", output_format, photos, photos / "gone.png")
    assert result.exit_code == 1
    assert result.stderr == "2 of 5 images could not be scored\n"
    if output_format == "jsonl":
        rows = [json.loads(line) for line in result.stdout.splitlines()]
    elif output_format == "csv":
        rows = [{k: v or None for k, v in r.items()} for r in csv.DictReader(io.StringIO(result.stdout))]
    else:
        lines = result.stdout.splitlines()
        assert re.match(r"aa\.png +error +the file is truncated \(PNG\)", lines[2])
        assert re.match(r"gone\.png +error +no such file", lines[5])
        return
    assert [r["score"] is None for r in rows] == [False, True, False, False, True]
    assert [bool(r["error"]) for r in rows] == [False, True, False, False, True]
    assert rows[4]["error"] == "no such file" and rows[4]["path"] == str(photos / "gone.png")
    assert {r["model"] for r in rows} == {"tiny"}


def test_reasons_can_be_read_on_a_narrow_screen(model: str, photos: Path) -> None:
    """In 80 columns a table still says why an image could not be scored."""
    result = run("-m", model, photos / "b.png", photos / "gone.png", columns=80)
    assert "no such file" in result.stdout and max(map(len, result.stdout.splitlines())) <= 80


def test_files_called_like_commands_can_be_scored(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ./info, after --, or as score info; a name that is no command needs nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("info", "photo", "score"):
        make_photo().save(name, format="PNG")
    options = ["-m", model, "--format", "jsonl"]
    for args, name in (
        ([*options, "./info"], "./info"),
        ([*options, "--", "info"], "info"),
        ([*options, "info"], "info"),
        (["score", *options, "info"], "info"),
        (["score", *options, "score"], "score"),
        (["photo", *options], "photo"),
    ):
        result = run(*args)
        assert result.exit_code == 0
        assert [json.loads(line)["path"] for line in result.stdout.splitlines()] == [name]


def test_a_mistyped_command_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    assert_usage_error(run("lable", "photos"), "no command, file or folder 'lable'; did you mean 'label'?")
    (tmp_path / "lable").mkdir()
    assert_usage_error(run("lable"), "no images found in: lable")


def test_a_double_dash_may_come_first(bundled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`grmp-score -- info` scores the file."""
    monkeypatch.chdir(tmp_path)
    make_photo().save("info", format="PNG")
    result = run("--", "info")
    assert result.exit_code == 0 and result.stdout.splitlines()[1].startswith("info ")


ODD_NAMES = [b"with space.png", b"new\nline.png", "\N{CAMERA} snow\N{COMBINING DIAERESIS}.png".encode()]
ODD_NAMES += [b"invalid \xff\xfe.png", b"[red]markup[bold].png", b'quo"te,comma.png']


@pytest.fixture
def odd_files(tmp_path: Path) -> list[str]:
    """Photos with names that break careless programs."""
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/odd/" + name) for name in ODD_NAMES]
    (tmp_path / "odd").mkdir()
    try:
        for path in paths:
            make_photo().save(path)
    except OSError:
        pytest.skip("this file system does not take such names")
    return paths


@pytest.mark.parametrize("charset", ["utf-8", "ascii", "cp1252"])
@pytest.mark.parametrize("output_format", ["table", "csv", "jsonl"])
def test_odd_file_names_are_written(model: str, odd_files: list[str], output_format: str, charset: str) -> None:
    """Spaces, newlines, emoji and markup survive every format and encoding; bytes that are no text become codes."""
    result = run("-m", model, "--patches", "1", "-f", output_format, *odd_files, charset=charset)
    assert result.exit_code == 0 and result.stderr == ""
    text = result.stdout_bytes.decode(charset, "surrogateescape")
    written = [unicode_text(path) for path in odd_files]
    if output_format == "jsonl":
        assert [json.loads(line)["path"] for line in text.splitlines()] == written
    elif output_format == "csv":
        paths = [r["path"] for r in csv.DictReader(io.StringIO(text, newline=""))]
        assert len(paths) == len(odd_files)
        if charset == "utf-8":
            assert paths == written
    else:
        lines = text.splitlines()
        assert len(lines) == 1 + len(odd_files) + 1
        assert lines[1].startswith("with space.png ") and lines[2].startswith(r"new\nline.png ")
        assert lines[4].startswith(r"invalid \udcff\udcfe.png ") and lines[5].startswith("[red]markup[bold].png ")


@pytest.mark.parametrize("output_format", ["table", "csv", "jsonl"])
def test_odd_file_names_are_written_to_files(
    model: str, odd_files: list[str], tmp_path: Path, output_format: str
) -> None:
    """So they do with -o."""
    out = tmp_path / "out"
    result = run("-m", model, "--patches", "1", "-f", output_format, "-o", out, *odd_files)
    assert result.exit_code == 0
    if output_format == "csv":
        text = out.read_text(encoding="utf-8")
        paths = [r["path"] for r in csv.DictReader(io.StringIO(text, newline=""))]
        assert paths == [unicode_text(path) for path in odd_files]


# ------------------------------------------------------------------- mistakes


def test_what_was_skipped_is_counted(model: str, photos: Path) -> None:
    """One line on stderr; -v names each, -q says nothing, --exclude takes more out."""
    (photos / "notes.txt").touch()
    (photos / "@eaDir").mkdir(exist_ok=True)
    result = run("-m", model, "-f", "paths", photos)
    told = "Skipped in folders: 1 excluded by name, 1 not named like an image"
    assert result.exit_code == 0 and result.stderr == f"{told}; -v lists them\n"
    verbose = run("-m", model, "-f", "paths", "-v", photos).stderr.splitlines()
    assert f"skipped (not named like an image): {photos / 'notes.txt'}" in verbose and verbose[-1] == told
    assert run("-m", model, "-f", "paths", "-q", photos).stderr == ""
    everything = len(result.stdout.splitlines())
    fewer = run("-m", model, "-f", "paths", "-q", "--exclude", Path(result.stdout.splitlines()[0]).name, photos)
    assert len(fewer.stdout.splitlines()) == everything - 1


def test_no_images_found(model: str, tmp_path: Path) -> None:
    """A folder without images is wrong usage, and named."""
    (tmp_path / "empty").mkdir()
    assert_usage_error(run("-m", model, tmp_path / "empty"), "no images found in: .*empty")


@pytest.mark.parametrize(
    ("args", "pattern"),
    [
        (["--formt", "csv", "x.png"], "--formt"),
        (["x.png", "--patchs", "3"], "--patchs"),
        (["x.png", "--format", "xml"], "xml"),
        (["x.png", "--patches", "0"], "--patches"),
        (["--format", "csv"], "PATHS"),
        (["score"], "PATHS"),
        (["x.png", "--filename", "a.pt"], "--filename needs --model"),
        (["info", "--jsn"], "--jsn"),
        (["convert"], "FILE.pt"),
        (["convert", "a.pt"], "--output"),
        (["pretrain", "--epochs", "1"], "--output"),
        (["pretrain", "-o", "out"], "at least one of --references"),
        (["pretrain", "-o", "out", "--references", "x", "--method", "magic"], "magic"),
    ],
)
def test_wrong_usage_names_what_is_wrong(args: list[str], pattern: str) -> None:
    """Typos and missing arguments end with 2 before anything is loaded."""
    assert_usage_error(run(*args), pattern)


def test_an_unknown_model_is_one_line(photos: Path, hub: HubServer) -> None:
    """No such folder, no such repository, a file, a folder of something else."""
    assert_usage_error(run("-m", "no/such/folder", photos), "no/such/folder: no such folder")
    assert_usage_error(run("-m", "org/unknown", photos), "org/unknown.*no such repository")
    assert_usage_error(run("-m", photos / "b.png", photos), "is a file, not a weights folder")
    assert_usage_error(run("-m", photos, photos), "not a weights folder: config.json is missing")
    assert_usage_error(run("info", "no/such/folder"), "no such folder")


def test_output_that_cannot_be_written(model: str, photos: Path, tmp_path: Path) -> None:
    """A folder that does not exist is named."""
    result = run("-m", model, "-o", tmp_path / "none" / "out.csv", photos)
    assert_usage_error(result, r"cannot write .*out\.csv: No such file")


def test_a_failing_system_call_is_one_line(model: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not a programming error."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grmp_score.report.writers.JsonLinesWriter.write", full)
    assert_usage_error(run("-m", model, "-f", "jsonl", photos), "No space left on device")


# --------------------------------------------------------------- default model


@pytest.fixture
def bundled(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tiny weights in the place of the bundled ones."""
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "mini").symlink_to(model, target_is_directory=True)
    monkeypatch.setattr("grmp_score.weights.folder.BUNDLED", tmp_path / "bundled")
    yield


def test_the_default_is_the_bundled_model_wherever_one_stands(
    bundled: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of photos that is called like the bundled model does not take its place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    make_photo().save(tmp_path / "mini" / "photo.png")
    rows, result = run_jsonl("mini")
    assert result.exit_code == 0 and [r["path"] for r in rows] == [os.path.join("mini", "photo.png")]
    assert json.loads(run("info", "--json").stdout)["name"] == "tiny"


@needs_bundled
def test_the_bundled_model_scores_without_a_word(photos: Path) -> None:
    """`grmp-score photos/` needs nothing else."""
    rows, result = run_jsonl("--patches", "1", photos / "b.png")
    assert result.exit_code == 0 and [r["model"] for r in rows] == ["mini"]


@needs_bundled
def test_the_bundled_model_has_a_description() -> None:
    """`grmp-score info` is about the bundled model."""
    assert json.loads(run("info", "--json").stdout)["name"] == "mini"


# ------------------------------------------------------------------ help, info


@pytest.mark.parametrize("name", COMMANDS)
def test_help_mentions_every_option(name: str) -> None:
    """Nothing is hidden."""
    result = run(name, "--help")
    command = cli.get_command(click.Context(cli), name)
    assert result.exit_code == 0 and command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.name == "device"
            for option in parameter.opts:
                assert option in result.stdout


@pytest.mark.parametrize("name", ["score", "report"])
def test_the_batch_size_is_as_the_help_says(name: str) -> None:
    """On a CPU it depends on the cores."""
    assert "[default: 1 to 8 on a CPU, else 16]" in " ".join(run(name, "--help").stdout.split())
    assert [Scorer(threads=threads, device="cpu").batch_size for threads in (1, 2, 4, 16, 64)] == [1, 1, 2, 8, 8]


def test_help_names_every_command() -> None:
    """-h and --help give the same, and no arguments at all show it too, as wrong usage."""
    result = run("--help")
    assert result.exit_code == 0 and result.stdout == run("-h").stdout
    assert all(f"  {name} " in result.stdout for name in COMMANDS)
    assert run().exit_code == 2


def test_version() -> None:
    """--version and -V print what decides scores: the program, its model, its libraries; a line for each."""
    for option in ("--version", "-V"):
        lines = run(option).stdout.splitlines()
        assert lines[0] == f"grmp-score {__version__}"
        assert f"torch {metadata.version('torch')}" in lines and f"pillow {metadata.version('pillow')}" in lines
        assert any(re.fullmatch(r"model mini \(bundled\), backbone sha256 [0-9a-f]{16}", line) for line in lines)


def test_info_is_text_or_json(model: str) -> None:
    """The text names backbone, prompts, patches, training and results; the JSON holds the configuration too."""
    text = run("info", model).stdout
    for part in ("tiny", "3 image blocks", "2 visual prompts", "3 of 32x32", "random tensors", "srcc: 0.5"):
        assert part in text
    result = run("info", model, "--json")
    shown, config = json.loads(result.stdout), weights.load(model).config
    named = {field.name for field in dataclasses.fields(config)}
    assert ModelConfig.from_json(json.dumps({k: v for k, v in shown.items() if k in named})) == config
    assert shown["checksum"] == Scorer.from_pretrained(model).checksum and shown["checksum"] in text
    assert shown["libraries"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert result.stderr == ""


# -------------------------------------------------------------------- convert


def test_convert_errors_are_one_line(tmp_path: Path) -> None:
    """A missing file, a file that is no checkpoint, and one of another layout; nothing is written."""
    (tmp_path / "text.pt").write_text("not a pickle")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for name, pattern in (
        ("gone.pt", r"gone\.pt: .*"),
        ("text.pt", r"text\.pt: .*"),
        ("other.pt", "not an official GRMP-IQA checkpoint"),
    ):
        assert_usage_error(run("convert", tmp_path / name, "-o", tmp_path / "out"), pattern)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------- pretrain


@pytest.fixture
def pretrain(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`pretrain(out, ...)` runs the command on five tiny clean photos and two distortion types."""
    clean = tmp_path / "clean"
    clean.mkdir()
    for i in range(5):
        make_photo(64, 48, seed=i).save(clean / f"{i}.png")
    everything = sources.references_items

    def few(folder: Path) -> list[sources.Item]:
        kept = ("references/clean", "references/jpeg", "references/gaussian_blur")
        return [i for i in everything(folder) if i.task in kept]

    monkeypatch.setattr(sources, "references_items", few)

    def invoke(out: Path, *args: str) -> Result:
        fast = ["--tasks-per-step", "1", "--n-visual", "2", "--support-batch", "4", "--query-batch", "3"]
        fast += ["--jobs", "1", "--device", "cpu", "--outer-lr-end", "1"]
        fast += [] if "--inner-lr" in args else ["--inner-lr", "0.02"]
        return run("pretrain", "--references", clean, "-o", out, "-m", model, *fast, *args)

    return invoke


def test_pretrain_writes_weights_that_score(pretrain: Callable[..., Result], tmp_path: Path, photos: Path) -> None:
    """From clean photos to a model that scores, continues and is not overwritten by accident."""
    out = tmp_path / "mine"
    result = pretrain(out, "--epochs", "2")
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"wrote {out}")
    written = {p.name for p in out.iterdir()}
    assert {"config.json", "adapter.safetensors", "checkpoint.pt", "log.csv", "log.png", "prepared"} <= written
    rows, scored = run_jsonl("-m", out, photos)
    assert scored.exit_code == 0 and {r["model"] for r in rows} == {"mine"}
    assert json.loads(run("info", out, "--json").stdout)["training"]["stage_1"]["outer_steps"] == 4

    assert_usage_error(pretrain(out, "--epochs", "2"), "already holds weights")
    kept = (out / "adapter.safetensors").read_bytes(), (out / "log.png").read_bytes()
    assert pretrain(out, "--epochs", "2", "--resume").exit_code == 0  # nothing left to do
    assert kept == ((out / "adapter.safetensors").read_bytes(), (out / "log.png").read_bytes())

    assert pretrain(out, "--epochs", "3", "--resume").exit_code == 0
    assert len((out / "log.csv").read_text().splitlines()) == 1 + 6
    longer = tmp_path / "longer" / "mine"
    assert pretrain(longer, "--epochs", "3").exit_code == 0
    assert (longer / "adapter.safetensors").read_bytes() == (out / "adapter.safetensors").read_bytes()

    (out / "config.json").unlink()
    assert_usage_error(pretrain(out, "--epochs", "2"), "holds a stopped run.*--resume")
    assert_usage_error(pretrain(out, "--resume", "--inner-lr", "0.5"), "other settings: inner_lr")
    assert_usage_error(pretrain(out, "--resume", "--n-visual", "1"), "other settings: n_visual")
    assert_usage_error(pretrain(out, "--resume", "--views", "squeezed"), "holds other prepared data")


def test_pretrain_as_the_authors_did(pretrain: Callable[..., Result], tmp_path: Path) -> None:
    """The preset runs on clean photos; an option wins over it; resumed it ends in the same file."""
    options = ("--preset", "authors", "--tasks-per-step", "0", "--outer-lr", "0.5", "--support-batch", "6")
    for args in (("a", "3"), ("a", "4", "--resume"), ("b", "4")):
        result = pretrain(tmp_path / args[0] / "mine", *options, "--epochs", *args[1:])
        assert result.exit_code == 0, result.stderr
    first, second = ((tmp_path / name / "mine" / "adapter.safetensors").read_bytes() for name in "ab")
    assert first == second
    used = json.loads(run("info", tmp_path / "b" / "mine", "--json").stdout)["training"]["stage_1"]
    assert (used["working_copy"], used["outer_lr"], used["n_visual"], used["outer_steps"]) == ("carried", 0.5, 2, 4)


def test_pretrain_without_training(model: str, tmp_path: Path, photos: Path) -> None:
    """Untrained prompts need no images, and score."""
    result = run("pretrain", "--method", "none", "-o", tmp_path / "start", "-m", model, "--device", "cpu")
    assert result.exit_code == 0 and result.stdout == ""
    assert run_jsonl("-m", tmp_path / "start", photos)[1].exit_code == 0


def test_pretrain_mistakes_are_one_line(pretrain: Callable[..., Result], tmp_path: Path, model: str) -> None:
    """Wrong folders, settings and models are told before anything is trained."""
    assert_usage_error(run("pretrain", "-o", tmp_path / "o", "--kadid10k", tmp_path), r"dmos\.csv is missing")
    assert_usage_error(run("pretrain", "-o", tmp_path / "o", "--tid2013", tmp_path), "mos_with_names")
    assert_usage_error(run("pretrain", "-o", tmp_path / "o", "--references", tmp_path / "x"), "no such folder")
    assert_usage_error(pretrain(tmp_path / "o", "--seed", "-1"), "seed must be")
    assert_usage_error(pretrain(tmp_path / "o", "--outer-lr", "0"), "outer_lr must be positive")
    assert_usage_error(pretrain(tmp_path / "o", "--epochs", "1", "--outer-lr", "1e-3"), "Raise inner_lr, outer_lr")
    assert_usage_error(pretrain(tmp_path / "o", "-m", "no/such/folder"), "no such folder")
    (tmp_path / "file").write_text("")
    assert_usage_error(pretrain(tmp_path / "file" / "o"), "Not a directory")


def test_pretrain_without_matplotlib_notes_it(
    pretrain: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights matter, the plot is an extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = pretrain(tmp_path / "mine", "--epochs", "1")
    assert result.exit_code == 0 and "Note: the plot of the run needs" in result.stderr
    assert (tmp_path / "mine" / "config.json").is_file() and not (tmp_path / "mine" / "log.png").exists()


# --------------------------------------------------------------- real processes


def test_help_and_wrong_usage_do_not_wait_for_torch(tmp_path: Path) -> None:
    """No command imports torch, open_clip or NumPy to show its help or to refuse its arguments."""
    code = f"""
import sys
from grmp_score.cli.main import cli
for name in {list(COMMANDS)!r}:
    cli.main([name, "--help"], standalone_mode=False)
for args in (["--help"], ["--version"], ["x.png", "--formt", "csv"], [sys.argv[1]], ["pretrain", "-o", "x"]):
    try:
        cli.main(args, standalone_mode=False)
    except Exception as error:
        print(type(error).__name__, error)
print([m for m in ("torch", "open_clip", "numpy", "PIL") if m in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": ROOT}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "no images found" in result.stdout and "No such option" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_typo_as_a_real_process() -> None:
    """Exit code 2, the mistake on stderr, nothing on stdout."""
    result = process("photos", "--formt", "csv")
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"--formt" in result.stderr and b"Traceback" not in result.stderr


def test_scoring_as_a_real_process(model: str, odd_files: list[str], photos: Path, warm: Warm) -> None:
    """Results only on stdout, as valid UTF-8, everything else on stderr."""
    result = warm.run(MAIN, "-m", model, "--format", "csv", *odd_files, photos / "gone.png")
    assert result.returncode == 1
    assert result.stderr == b"1 of 7 images could not be scored\n"
    rows = list(csv.DictReader(io.StringIO(result.stdout.decode("utf-8"), newline="")))
    assert [r["path"] for r in rows[:-1]] == [unicode_text(path) for path in odd_files]
    assert np.isfinite([float(r["score"]) for r in rows[:-1]]).all()
