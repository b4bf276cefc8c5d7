"""The TAB key: commands, options, values and file names, also where the name of the command is left out."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from grmp_score.cli.main import COMMANDS, cli

ROOT = Path(__file__).parents[1]


def offered(*args: str, incomplete: str = "") -> list[tuple[str, str]]:
    """(type, value) of what is offered after these words."""
    completion = ShellComplete(cli, {}, "grmp-score", "_GRMP_SCORE_COMPLETE")
    return [(item.type, item.value) for item in completion.get_completions(list(args), incomplete)]


def values(*args: str, incomplete: str = "") -> list[str]:
    """What is offered as plain words."""
    return [value for kind, value in offered(*args, incomplete=incomplete) if kind == "plain"]


def test_the_first_word_is_a_command_or_a_file() -> None:
    """Nothing typed yet: all commands, and files."""
    assert values() == list(COMMANDS)
    assert ("file", "") in offered()
    assert values(incomplete="ad") == ["adapt"] and ("file", "ad") in offered(incomplete="ad")
    assert offered(incomplete="photos/") == [("file", "photos/")]


def test_options_of_the_default_command_come_without_its_name() -> None:
    """At the first word next to --version, and after a file."""
    first = values(incomplete="--")
    assert {"--version", "--help", "--format", "--model"} <= set(first) and len(first) == len(set(first))
    assert "--format" in values("photos/", incomplete="--fo")
    assert set(values("score", incomplete="--")) == set(values("photos/", incomplete="--"))


@pytest.mark.parametrize("words", [["score", "--format"], ["--format"], ["photos/", "-f"]])
def test_values_of_options(words: list[str]) -> None:
    """The formats, whether or not a command or a file was named before."""
    assert values(*words, incomplete="c") == ["csv"]


@pytest.mark.parametrize("words", [["photos/"], ["score"], ["score", "a.jpg"], ["--"], ["--format", "csv"]])
def test_files_in_the_default_command(words: list[str]) -> None:
    """PATHS are files, wherever they stand; after the first no command is offered."""
    assert offered(*words, incomplete="b") == [("file", "b")]


def test_models_and_shells() -> None:
    """info and download offer what is bundled, completion the shells."""
    assert ("plain", "mini") in offered("info", incomplete="m") and ("dir", "m") in offered("info", incomplete="m")
    assert ("plain", "mini") in offered("download")
    assert values("completion") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str) -> None:
    """On stdout, for this program, and the shell itself finds no mistake in it."""
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0 and result.stderr == ""
    assert "_GRMP_SCORE_COMPLETE" in result.stdout and "grmp-score" in result.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n"], input=result.stdout, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `grmp-score` is a program, and a folder with files to complete."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "grmp-score"
    script.write_text(f"#!{sys.executable}\nfrom grmp_score.cli.main import main\nmain()\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "alps").mkdir()
    (tmp_path / "alps at dawn.jpg").write_text("")
    (tmp_path / "sea.jpg").write_text("")
    path = f"{script.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}


def bash(program: dict[str, str], *words: str) -> list[str]:
    """What bash offers at the last of these words, after it has read the script."""
    code = """
eval "$(grmp-score completion bash)"
compopt() { :; }  # it works only while a person presses TAB
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_grmp_score_completion grmp-score
printf '%s\\n' "${COMPREPLY[@]}"
complete -p grmp-score >&2
"""
    command = ["bash", "--norc", "-c", code, "bash", *words]
    done = subprocess.run(command, env=program, cwd=program["HOME"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == "complete -F _grmp_score_completion grmp-score\n"
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_real_bash(program: dict[str, str]) -> None:
    """Commands and files together at the first word, then options, values and files."""
    assert sorted(bash(program, "grmp-score", "a")) == ["adapt", "alps", "alps at dawn.jpg"]
    assert bash(program, "grmp-score", "se") == ["sea.jpg"]
    assert bash(program, "grmp-score", "alps", "--forma") == ["--format"]
    assert bash(program, "grmp-score", "--format", "js") == ["jsonl"]
    assert bash(program, "grmp-score", "info", "al") == ["alps"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_a_real_fish(program: dict[str, str]) -> None:
    """fish is asked what it would offer."""

    def fish(line: str) -> list[str]:
        code = f"grmp-score completion fish | source; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "-c", code], env=program, cwd=program["HOME"], capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [offer.split("\t")[0] for offer in done.stdout.splitlines()]

    assert "adapt" in fish("grmp-score ad")
    assert "sea.jpg" in fish("grmp-score se")
    assert fish("grmp-score sea.jpg --format js") == ["jsonl"]
