"""`grmp-score download`: a model of the Hub, complete and verified, for use without a network."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes

from grmp_score import weights
from grmp_score.scorer import Scorer
from grmp_score.weights.folder import Weights
from grmp_score.weights.tensors import TensorFile

from . import cli_tools
from .cli_tools import assert_usage_error
from .conftest import make_photo
from .hub_server import HubServer

run = partial(cli_tools.run, "download")


def files_of(folder: Path) -> dict[str, bytes]:
    """Name to content."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def published(hub: HubServer, tiny_weights: Weights, tmp_path: Path) -> str:
    """The tiny model as a repository."""
    hub.add_repo("org/tiny", files_of(tiny_weights.save(tmp_path / "published")))
    return "org/tiny"


def test_what_was_fetched_works_without_a_network(hub: HubServer, published: str) -> None:
    """The folder of the cache on stdout, size and usage on stderr; afterwards nothing is asked of the Hub."""
    result = run(published)
    assert result.exit_code == 0
    folder = Path(result.stdout.removesuffix("\n"))
    names = {"config.json", "adapter.safetensors", "backbone.safetensors", "README.md"}
    assert {p.name for p in folder.iterdir()} == names
    size = sum(p.stat().st_size for p in folder.iterdir())
    usage = "use it with: grmp-score PATHS --model org/tiny"
    assert result.stderr.splitlines()[-1] == f"4 files, {size / 1e6:.1f} MB; {usage}"
    hub.clear_requests()
    Scorer.from_pretrained(published, local_files_only=True).score(make_photo())
    assert hub.count() == 0
    assert run(published).stdout == result.stdout
    assert hub.count("GET", "safetensors") == 0  # what is there is not fetched again


def test_a_backbone_of_another_repository_comes_along(
    hub: HubServer, tiny_weights: Weights, tmp_path: Path
) -> None:
    """It is in the cache; with -o it becomes a file of a folder that stands alone, with the same scores."""
    base = to_bytes(tiny_weights.backbone_state())
    hub.add_repo("base/clip", {"clip.safetensors": base})
    named = dataclasses.replace(tiny_weights.config.backbone, repo="base/clip", filename="clip.safetensors")
    config = dataclasses.replace(tiny_weights.config, backbone=named)
    (tmp_path / "clip.safetensors").write_bytes(base)
    published = dataclasses.replace(tiny_weights, config=config, backbone=TensorFile(tmp_path / "clip.safetensors"))
    hub.add_repo("org/tiny", files_of(published.save(tmp_path / "published")))
    out = tmp_path / "alone"
    result = run("org/tiny", "-o", out)
    assert result.exit_code == 0 and result.stdout == f"{out}\n"
    assert "4 files" in result.stderr and f"--model {out}" in result.stderr
    assert (out / "backbone.safetensors").is_file()
    hub.clear_requests()
    expected = Scorer(tiny_weights, device="cpu").score(make_photo())
    assert Scorer.from_pretrained(out, device="cpu").score(make_photo()).value == expected.value
    assert hub.count() == 0


def test_revisions(hub: HubServer, published: str) -> None:
    """The commit asked for, not the newest; the usage names it."""
    first = hub.head(published)
    hub.commit(published, {"README.md": b"new"})
    result = run(published, "--revision", first)
    assert result.stdout.strip().endswith(first)
    assert f"--model org/tiny --revision {first}" in result.stderr


def test_a_model_without_a_card(hub: HubServer, tiny_weights: Weights, tmp_path: Path) -> None:
    """A card is for people."""
    files = files_of(tiny_weights.save(tmp_path / "published"))
    del files["README.md"]
    hub.add_repo("org/tiny", files)
    result = run("org/tiny")
    assert result.exit_code == 0 and "3 files" in result.stderr


def test_models_of_this_machine_need_no_fetching(tiny_weights: Weights, tmp_path: Path) -> None:
    """A folder, and the bundled model where it is; said so, and no failure."""
    folder = tiny_weights.save(tmp_path / "mine")
    for model, place in ((str(folder), folder), (weights.DEFAULT_MODEL, weights.BUNDLED / weights.DEFAULT_MODEL)):
        result = run(model)
        assert result.exit_code == 0 and result.stdout == f"{place}\n"
        assert "on this machine already" in result.stderr


def test_what_cannot_be_had_is_one_line(
    hub: HubServer, tiny_weights: Weights, published: str, tmp_path: Path
) -> None:
    """No such repository, a damaged file, tensors that make no model, a checkpoint that is none: exit code 2."""
    files = files_of(tmp_path / "published")
    files["adapter.safetensors"] = to_bytes({"stranger": torch.zeros(2)})
    hub.add_repo("org/wrong", files)
    hub.add_repo("org/text", {"x.pt": b"text"})
    hub.corrupt("adapter.safetensors")
    for args, message in (
        (["org/gone"], "no such repository"),
        ([published], "checksum"),
        (["org/text", "--filename", "x.pt"], "x.pt"),
        (["not a name"], "not the form of a Hub repository"),
    ):
        assert_usage_error(run(*args), message)
    hub.heal()
    assert_usage_error(run("org/wrong"), "unknown tensors: stranger")
