"""Every example of every --help runs, in a folder that holds what the examples name and with tiny models.

`grmp-score` runs in this process and the other programs of a pipe in bash.  The lines of one command run in their
order in one folder, so that a later one may go on where an earlier one ended.
"""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from grmp_score.cli.main import COMMANDS, DEFAULT, cli
from grmp_score.sidecars.xmp import EMPTY, XMP, Packet
from grmp_score.trainer.data import sources

from .conftest import make_photo
from .hub_server import HubServer

ROOT = Path(__file__).parents[1]

#: Examples that are understood but not run: what they need, and where it is tested instead.
NOT_RUN = {
    r"\.pt\b": "needs a real checkpoint of 600 MB; test_parity converts one of that layout",
    r"TID2013|KADID": "needs the data sets; test_sources and test_pretrain use small ones of their layout",
    r"(s3|gs|https?)://": "needs the network; addresses are tested on memory:// and a local server",
    r"grmp-score label": "serves a page until Ctrl-C; test_label_browser rates photos with it",
    r"--ray": "needs Ray and minutes; test_ray runs a local cluster",
    r"ViT-B-16-quickgelu:openai": "needs OpenAI's weights; test_zero_shot uses a tiny architecture",
    r"protocol .*(live\.csv|--methods paper)": "trains in many cells; test_protocol_cli runs all methods on few",
    r"--model clive-50": "what the example before it would have written",
}
#: Added to the examples of commands that would take long.
FASTER = {
    "adapt": "--epochs 1 --folds 0 --precision float32",
    "protocol": "--shots 8 --splits 1",
    "pretrain": "--epochs 1 --tasks-per-step 1 --n-visual 2 --support-batch 4 --query-batch 3 --jobs 1 "
    "--inner-lr 0.1 --outer-lr 1",
}


def examples(text: str) -> list[str]:
    """The lines of the Examples section of a help text, without remarks in brackets."""
    section = re.search(r"^[ \t]*Examples?:[ \t]*\n(.*?)(?:\n[ \t\b]*\n|\Z)", inspect.cleandoc(text), re.M | re.S)
    lines = re.sub(r"\s*\\\n\s*", " ", section[1]).splitlines() if section else []
    return [re.split(r"\s{3,}\(|\s+# ", line)[0].strip() for line in lines]


def help_of(name: str) -> str:
    """The text that --help shows, as it was written."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help is not None
    return command.help


def arguments(line: str) -> list[str]:
    """The words after `grmp-score` in a line, up to a pipe or redirection."""
    words = shlex.split(line[line.index("grmp-score") :])[1:]
    end = next((i for i, word in enumerate(words) if re.fullmatch(r"[|<>&]+|\d?>.*", word)), len(words))
    return words[:end]


def name_of(line: str) -> str:
    """The command that a line runs."""
    words = arguments(line)
    return words[0] if words and words[0] in COMMANDS else DEFAULT


def reason(line: str) -> str | None:
    """Why an example is not run, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photos and labels that the examples name."""
    folder = tmp_path_factory.mktemp("things")
    for name, count in (("photos", 8), ("clean", 5), ("labelled", 110), ("others", 8), ("keep", 4), ("reject", 4)):
        (folder / name).mkdir()
        for i in range(count):
            make_photo(64, 48, seed=i + 50 * (name == "reject")).save(folder / name / f"{i}.jpg")
    for i in range(8):
        rated = Packet(EMPTY).set(XMP, "xmp", "Rating", str(1 + i % 5))
        (folder / "photos" / f"{i}.jpg.xmp").write_bytes(rated.data)
    make_photo().save(folder / "adapt", format="JPEG")
    shutil.copy(folder / "photos" / "0.jpg", folder / "holiday.jpg")
    (folder / "list.txt").write_text("".join(f"photos/{i}.jpg\n" for i in range(4)))

    def table(name: str, header: str, rows: Iterator[str]) -> None:
        (folder / name).write_text("\n".join([header, *rows]) + "\n")

    table("mine.csv", "image,mos", (f"labelled/{i}.jpg,{i % 11}" for i in range(110)))
    table("other.csv", "image,mos", (f"others/{i}.jpg,{i % 7}" for i in range(8)))
    table("test.csv", "image,mos,camera", (f"others/{i}.jpg,{i % 7},{'ab'[i % 2]}" for i in range(8)))
    table("set.csv", "image,mos,ref", (f"labelled/{i}.jpg,{i % 11},{i // 2}" for i in range(110)))
    table("votes.csv", "image,stars", (f"{i}.jpg,{1 + i % 5}" for i in range(8)))
    return folder


@pytest.fixture
def here(things: Path, model: str, bundled: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder with a model, and a Hub with the repository that the examples name."""
    monkeypatch.chdir(things)
    shutil.copytree(model, "my-camera", dirs_exist_ok=True)
    files = {p.name: p.read_bytes() for p in Path(model).iterdir()}
    hub.add_repo("owner/name", files)
    hub.commit("owner/name", files, branch="v1.0")
    everything = sources.references_items

    def few(folder: Path) -> list[sources.Item]:
        return [i for i in everything(folder) if i.task in ("references/clean", "references/jpeg")]

    monkeypatch.setattr(sources, "references_items", few)


def run(line: str) -> None:
    """Runs a line as a shell does: programs with pipes between them, and a file for the output of the last one."""
    programs, _, target = line.partition(" > ")
    data = b""
    for program in programs.split(" | "):
        if program.startswith("grmp-score"):
            words = [*arguments(program), *shlex.split(FASTER.get(name_of(program), ""))]
            result = CliRunner().invoke(cli, words, input=data, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.stderr}"
            data = result.stdout_bytes
        else:
            data = subprocess.run(["bash", "-c", program], input=data, stdout=subprocess.PIPE, check=True).stdout
    if target:
        Path(target).write_bytes(data)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", COMMANDS)
def test_examples_run(name: str) -> None:
    """All examples of a command, in their order, end with exit status 0."""
    lines = examples(help_of(name))
    assert lines, f"{name} --help has no examples"
    for line in lines:
        assert "grmp-score" in line
        if reason(line) is None:
            # What is there already is not written over: neither what other examples use nor what they wrote.
            if name == "adapt":
                for folder in ("my-camera", "mine-adapted"):
                    shutil.rmtree(folder, ignore_errors=True)
            run(line)


@pytest.mark.usefixtures("here")
def test_the_example_of_the_group_runs() -> None:
    """What `grmp-score --help` ends with."""
    run(re.split(r"\s{3,}", str(cli.epilog).removeprefix("Example: "))[0])


@pytest.mark.parametrize("line", [line for name in COMMANDS for line in examples(help_of(name)) if reason(line)])
def test_examples_that_are_not_run_are_understood(line: str) -> None:
    """Down to the last option, by the command they are about."""
    words = arguments(line)
    words = words[1:] if words[0] in COMMANDS else words
    sub = cli.get_command(click.Context(cli), name_of(line))
    assert sub is not None
    sub.make_context(name_of(line), words)


def test_lines_are_taken_as_they_are_meant() -> None:
    """Remarks fall away, broken lines are joined, the section ends at an empty line."""
    text = (
        "Do.\n\n\b\nExamples:\n  grmp-score a    (why)\n  x | grmp-score b \\\n      -o c  # so\n\nExit status: 0\n"
    )
    assert examples(text) == ["grmp-score a", "x | grmp-score b -o c"]
    assert arguments("x | grmp-score b -o c > d | e") == ["b", "-o", "c"]
