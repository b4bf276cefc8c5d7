"""No command writes over a file that is not its own: inputs, images and other people's work stay as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grmp_score.cli.overwriting import check_output

from . import cli_tools
from .cli_tools import assert_usage_error
from .conftest import make_photo


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos, a list of them, labels for them and a letter."""
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        make_photo(40, 36, seed=i).save(f"{i}.jpg")
    shutil.copy("0.jpg", "renamed.dat")
    Path("list.txt").write_text("".join(f"{i}.jpg\n" for i in range(5)))
    Path("labels.csv").write_text("image,mos\n" + "".join(f"{i}.jpg,{i}\n" for i in range(5)))
    Path("letter.txt").write_text("Dear all,\n")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    """All files and what they hold."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("command", "pattern"),
    [
        (
            "score 1.jpg 2.jpg -o 0.jpg",
            "cannot write 0.jpg: results are no .jpg file; name the file for the results",
        ),
        ("score 0.jpg -o 0.jpg", "cannot write 0.jpg: it is an input of this run"),
        ("score 0.jpg -o new.nef", "cannot write new.nef: results are no .nef file"),
        ("score --from-file list.txt -o list.txt", "list.txt: it is an input of this run"),
        ("score --from-file list.txt -o list.txt --overwrite", "list.txt: it is an input of this run"),
        ("score 0.jpg -o renamed.dat --overwrite", "renamed.dat: it holds an image"),
        (
            "score 0.jpg -o letter.txt",
            "letter.txt: the file is there and holds no results of grmp-score.*--overwrite",
        ),
        ("score 0.jpg -f parquet -o letter.txt", "holds no results of grmp-score"),
        ("report 1.jpg -o 0.jpg", "results are no .jpg file"),
        ("report 1.jpg -o letter.txt", "holds no results of grmp-score"),
        ("evaluate --labels labels.csv -o labels.csv", "labels.csv: it is an input of this run"),
        ("evaluate --labels labels.csv -o letter.txt", "holds no results of grmp-score"),
        ("evaluate --labels labels.csv -o 3.jpg", "3.jpg: results are no .jpg file|3.jpg: it is an input"),
        ("protocol --labels labels.csv --shots 4 -o labels.csv", "labels.csv: it is an input of this run"),
        ("protocol --labels labels.csv --shots 4 -o 0.jpg", "results are no .jpg file"),
        ("download mini -o .", "the folder holds other things"),
        ("pretrain --method none -o .", "the folder holds other things"),
        ("convert letter.txt -o .", "the folder holds other things"),
    ],
)
def test_what_is_not_ours_is_refused(here: Path, model: str, command: str, pattern: str) -> None:
    """Exit code 2 with the way out, before anything is read, and every file is as it was."""
    before = everything(here)
    name, *words = command.split()
    with_model = ["-m", model] if name in ("score", "report", "evaluate", "protocol") else []
    assert_usage_error(cli_tools.run(name, *words, *with_model), pattern)
    assert everything(here) == before


@pytest.mark.parametrize(
    ("command", "output"),
    [
        *((f"score 0.jpg 1.jpg --format {kind}", f"out.{kind}") for kind in ("csv", "tsv", "jsonl", "table")),
        ("score 0.jpg --fields path,score --format csv", "out.txt"),
        ("report 0.jpg", "out.html"),
        ("evaluate --labels labels.csv", "out.txt"),
        ("evaluate --labels labels.csv --format json", "out.json"),
    ],
)
def test_our_own_results_are_replaced(here: Path, model: str, command: str, output: str) -> None:
    """The same command again needs no option."""
    for _ in range(2):
        result = cli_tools.run(*command.split(), "-o", output, "-m", model)
        assert result.exit_code == 0, result.stderr
    assert Path(output).stat().st_size


def test_parquet_of_ours_is_known(here: Path, model: str) -> None:
    """By the columns in its schema."""
    pytest.importorskip("pyarrow")
    for _ in range(2):
        assert cli_tools.run("score", "0.jpg", "-o", "out.parquet", "-m", model).exit_code == 0


def test_other_files_only_with_overwrite(here: Path, model: str) -> None:
    """A list of paths looks like anybody's."""
    command = ("score", "0.jpg", "--format", "paths", "-o", "best.txt", "-m", model)
    assert cli_tools.run(*command).exit_code == 0
    assert_usage_error(cli_tools.run(*command), "--overwrite")
    assert cli_tools.run(*command, "--overwrite").exit_code == 0


@pytest.mark.parametrize("content", ["", '{"path": "a", "score": 1}\n', "path\tscore\n", "score\n0.5\n"])
def test_files_that_may_be_replaced(tmp_path: Path, content: str) -> None:
    """Empty ones, and those whose columns are ours."""
    (tmp_path / "a").write_text(content)
    check_output(tmp_path / "a", [])


@pytest.mark.parametrize("content", [json.dumps({"a": 1}), "name,score\nx,1\n", "\n", "[]", '{"pa'])
def test_files_that_may_not(tmp_path: Path, content: str) -> None:
    """Other columns, other JSON, text."""
    import click

    (tmp_path / "a").write_text(content)
    with pytest.raises(click.UsageError, match="--overwrite"):
        check_output(tmp_path / "a", [])


def test_links_lead_to_the_input(here: Path, model: str) -> None:
    """Under another name it is the same file."""
    try:
        Path("other.txt").symlink_to("list.txt")
    except OSError:
        pytest.skip("no links here")
    result: Any = cli_tools.run("score", "--from-file", "list.txt", "-o", "other.txt", "-m", model)
    assert_usage_error(result, "input of this run")
