"""Weights as folders and Hub repositories: exact round trips, strict loading, errors that say what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from grmp_score.config import Backbone, LabelScale, ModelConfig
from grmp_score.errors import ConfigError, GrmpScoreError, HubError, WeightsError
from grmp_score.scorer import Scorer
from grmp_score.weights import hub as hub_module
from grmp_score.weights.folder import ADAPTER, BACKBONE, CARD, CONFIG, Weights, load
from grmp_score.weights.hub import looks_like_repo, sha256_of

from .conftest import Photo, random_weights
from .hub_server import HubServer
from .test_parity import SMALL_CLIP, small_state

REPO = "org/camera"


def files_of(folder: Path) -> dict[str, bytes]:
    """Name to content of a weights folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tiny_weights: Weights, tmp_path: Path) -> Path:
    """A saved weights folder."""
    return tiny_weights.save(tmp_path / "weights")


def same_tensors(one: Weights, other: Weights) -> bool:
    """Whether both have exactly the same tensors, by name, type and value."""
    for a, b in ((one.adapter, other.adapter), (one.backbone_state(), other.backbone_state())):
        if a.keys() != b.keys():
            return False
        if not all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a):
            return False
    return True


# ---------------------------------------------------------------------- round trip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folder_round_trip_is_exact(tiny_config: ModelConfig, tmp_path: Path, dtype: torch.dtype) -> None:
    """Every tensor comes back in its own type with its own bits; so do the settings and the card."""
    config = dataclasses.replace(
        tiny_config, label_scale=LabelScale(1, 5, False), results={"srcc": 0.5}, training={"seed": 3}
    )
    before = random_weights(config, dtype=dtype)
    folder = before.save(tmp_path / "a" / "b")
    after = load(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted([CONFIG, ADAPTER, BACKBONE, CARD])
    assert same_tensors(before, after)
    assert dataclasses.replace(after.config, backbone=config.backbone) == config
    assert after.config.backbone.sha256 == sha256_of(folder / BACKBONE)
    assert (after.card, after.origin) == (before.card, str(folder))
    adapted = "clip.ln_final.weight"
    assert after.adapter[adapted].dtype == dtype
    assert after.adapter["text_prompt.ctx"].dtype == after.adapter["text_features"].dtype == torch.float32


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Loading and saving changes no file, in another folder or in place."""
    before = files_of(folder)
    assert files_of(load(folder).save(tmp_path / "copy")) == before
    assert files_of(load(folder).save(folder)) == before


def test_building_gives_a_float32_model_in_eval_mode(tiny_config: ModelConfig) -> None:
    """Whatever the stored type, the model computes in float32 and is ready to score."""
    model = random_weights(tiny_config, dtype=torch.bfloat16).build()
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


def test_an_empty_adapter_and_no_card(tiny_weights: Weights, tmp_path: Path) -> None:
    """Weights without a card load; the card is for people."""
    folder = dataclasses.replace(tiny_weights, card="").save(tmp_path / "w")
    assert load(folder).card == ""
    (folder / CARD).unlink(missing_ok=True)
    assert load(folder).card == ""


# ---------------------------------------------------------------------- strictness


def changed(source: Weights, change: Callable[[dict[str, torch.Tensor]], object]) -> Weights:
    """Weights with another adapter."""
    adapter = dict(source.adapter)
    change(adapter)
    return dataclasses.replace(source, adapter=adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(surprise=torch.zeros(1)), "unknown tensors: surprise"),
        (lambda a: a.pop("text_prompt.ctx"), "missing tensors: text_prompt.ctx"),
        (lambda a: a.pop("clip.ln_final.bias"), "missing tensors: clip.ln_final.bias"),
        (
            lambda a: a.update({"text_prompt.ctx": torch.zeros(5, 32)}),
            r"mis-shaped tensors: text_prompt.ctx \(expected \[4, 32\], got \[5, 32\]\)",
        ),
        (lambda a: a.clear(), "missing tensors: .* and [0-9]+ more"),
    ],
)
def test_tensors_must_be_exactly_those_expected(
    tiny_weights: Weights, tmp_path: Path, change: Callable[..., object], message: str
) -> None:
    """Unknown, missing and mis-shaped tensors are an error that names them and the folder."""
    folder = changed(tiny_weights, change).save(tmp_path / "w")
    with pytest.raises(WeightsError, match=message) as caught:
        load(folder).build()
    assert caught.value.path == str(folder)


def test_several_problems_are_named_at_once(tiny_weights: Weights) -> None:
    """One error lists everything that is wrong."""
    broken = changed(tiny_weights, lambda a: (a.update(x=torch.zeros(1)), a.pop("text_features")))
    with pytest.raises(WeightsError, match="unknown tensors: x; missing tensors: text_features"):
        broken.build()


def test_a_config_of_another_shape(tiny_weights: Weights) -> None:
    """A configuration that does not fit the tensors is found by them."""
    prompts = dataclasses.replace(tiny_weights.config.prompts, n_visual=7)
    other = dataclasses.replace(tiny_weights, config=dataclasses.replace(tiny_weights.config, prompts=prompts))
    with pytest.raises(WeightsError, match=r"visual_prompts\.tokens"):
        other.build()


@pytest.mark.parametrize("name", [ADAPTER, BACKBONE])
@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "header"])
def test_damaged_safetensors(folder: Path, name: str, damage: str) -> None:
    """A damaged tensor file is named when it is read."""
    data = (folder / name).read_bytes()
    damaged = {"empty": b"", "truncated": data[:-10], "text": b"text" * 99, "header": b"\xff" * 8 + data[8:]}
    (folder / name).write_bytes(damaged[damage])
    config = json.loads((folder / CONFIG).read_text())
    config["backbone"]["sha256"] = None
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not a readable safetensors file") as caught:
        load(folder).build()
    assert caught.value.path == str(folder / name)


def test_a_replaced_backbone_is_noticed(folder: Path) -> None:
    """A backbone with another checksum than the configuration's is refused before it is read."""
    data = bytearray((folder / BACKBONE).read_bytes())
    data[-1] ^= 1
    (folder / BACKBONE).write_bytes(data)
    with pytest.raises(WeightsError, match="checksum differs") as caught:
        load(folder)
    assert caught.value.path == str(folder / BACKBONE) and caught.value.hint


@pytest.mark.parametrize("name", [CONFIG, ADAPTER, BACKBONE])
def test_missing_files(folder: Path, name: str) -> None:
    """An incomplete folder is named with the file it lacks."""
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing") as caught:
        load(folder)
    assert caught.value.path == str(folder)


def test_an_empty_folder_and_a_file(tmp_path: Path) -> None:
    """An empty folder, and a file in a folder's place, are told apart from weights."""
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        load(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match="is a file, not a weights folder"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize("source", ["./no/such/folder", "a/b/c", "/nowhere", "", "~/x"])
def test_neither_a_folder_nor_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """A path that does not exist is not asked for on the Hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError):
        load(source)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ConfigError, "not valid JSON"),
        ("[]", ConfigError, "expected an object"),
        ('{"name": "x"}', ConfigError, "missing entries"),
        (b"\xff\xfe\x00", WeightsError, "cannot read it"),
    ],
)
def test_broken_config(folder: Path, text: str | bytes, error: type[GrmpScoreError], message: str) -> None:
    """A configuration that cannot be read is named with its file."""
    (folder / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert caught.value.path == str(folder / CONFIG)


def test_a_missing_bundled_model_is_not_looked_for_on_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the bundled files the default is an error about the installation, never a download."""
    monkeypatch.setattr("grmp_score.weights.folder.BUNDLED", tmp_path / "bundled")
    with pytest.raises(WeightsError, match="bundled model is missing"):
        load()
    assert hub.requests == []


def test_bundled_names(tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundled model is found by name; the default one is `mini`; an existing folder of that name wins."""
    monkeypatch.setattr("grmp_score.weights.folder.BUNDLED", tmp_path / "bundled")
    tiny_weights.save(tmp_path / "bundled" / "mini")
    monkeypatch.chdir(tmp_path)
    assert same_tensors(load(), tiny_weights) and same_tensors(load("mini"), tiny_weights)
    (tmp_path / "mini").mkdir()
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        load("mini")
    assert same_tensors(load(), tiny_weights)


# ------------------------------------------------------------------------- writing


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("kind", ["os", "safetensors"])
def test_a_failure_in_the_middle_leaves_the_old_files(
    tiny_config: ModelConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, kind: str
) -> None:
    """A full disk leaves every file either as it was or complete, no temporary one, and the error says why."""
    before = files_of(folder)
    calls = 0

    def full_disk(tensors: dict[str, torch.Tensor], path: Path, metadata: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            path.write_bytes(b"half")
            if kind == "os":
                raise OSError(28, "No space left on device")
            raise SafetensorError("No space left on device")
        path.write_bytes(save(tensors, metadata))

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(WeightsError, match="cannot write weights: No space left on device") as caught:
        random_weights(tiny_config, seed=1).save(folder)
    assert caught.value.path == str(folder)
    after = files_of(folder)
    assert after.keys() == before.keys()
    assert after[CONFIG] == before[CONFIG] and after[ADAPTER] == before[ADAPTER]
    load_file(folder / BACKBONE)


def test_an_interruption_leaves_no_temporary_file(
    tiny_weights: Weights, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even Ctrl-C cleans up and leaves the old files."""
    before = files_of(folder)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tiny_weights.save(folder)
    assert files_of(folder) == before


def test_a_place_that_cannot_be_written(tiny_weights: Weights, tmp_path: Path) -> None:
    """A file in the folder's place is an error about that place."""
    (tmp_path / "x").write_text("")
    with pytest.raises(WeightsError, match="cannot write weights") as caught:
        tiny_weights.save(tmp_path / "x")
    assert caught.value.path == str(tmp_path / "x")


# ----------------------------------------------------------------------------- Hub


def values(source: Any, photo: Photo, **options: Any) -> tuple[float, ...]:
    """Patch scores of one picture with weights from a folder or the Hub."""
    return Scorer.from_pretrained(source, device="cpu", **options).score(photo()).patch_values


@pytest.fixture
def served(hub: HubServer, folder: Path) -> HubServer:
    """A Hub that has the folder as `org/camera`."""
    hub.add_repo(REPO, files_of(folder))
    return hub


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment variable HF_HUB_OFFLINE=1 does, which the client reads at import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def refused(source: str = REPO, **options: Any) -> HubError:
    """The error of loading from the Hub; every one has a remedy."""
    with pytest.raises(HubError) as caught:
        load(source, **options)
    assert caught.value.hint and caught.value.path
    return caught.value


def test_a_repository_is_a_folder(served: HubServer, folder: Path, photo: Photo, tmp_path: Path) -> None:
    """Weights from the Hub score exactly as from the folder, and lie in the cache that was asked for."""
    assert values(REPO, photo, cache_dir=tmp_path / "mine") == values(folder, photo)
    assert list((tmp_path / "mine").rglob(ADAPTER)) and not (tmp_path / "hf").exists()
    assert load(REPO).origin == REPO


def test_revisions(served: HubServer, folder: Path, tiny_config: ModelConfig, tmp_path: Path) -> None:
    """A branch, and a commit, give their own weights; the default follows the newest."""
    old = load(REPO)
    newer = random_weights(tiny_config, seed=9)
    first = served.head(REPO)
    served.commit(REPO, files_of(newer.save(tmp_path / "new")))
    assert same_tensors(load(REPO), newer)
    assert same_tensors(load(REPO, revision="main"), newer)
    assert same_tensors(load(REPO, revision=first), old)


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_push_between_two_files_changes_nothing(
    served: HubServer,
    tiny_weights: Weights,
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    revision: str | None,
) -> None:
    """All files are of the commit that the first is of; the next load takes the new ones, and offline too."""
    newer = random_weights(dataclasses.replace(tiny_config, name="newer"), seed=9)
    files, fetch = files_of(newer.save(tmp_path / "new")), hub_module.fetch_file

    def pushed_after_the_first(repo: str, filename: str, **options: Any) -> Path:
        path = fetch(repo, filename, **options)
        if filename == CONFIG:
            served.commit(REPO, {**files, "README.md": b"of the newer"})
        return path

    with monkeypatch.context() as patched:
        patched.setattr(hub_module, "fetch_file", pushed_after_the_first)
        old = load(REPO, revision=revision)
    assert same_tensors(old, tiny_weights) and old.config.name == "tiny" and old.card == tiny_weights.card
    assert served.files(REPO)["README.md"] == b"of the newer"
    online = load(REPO, revision=revision)
    assert same_tensors(online, newer) and (online.config.name, online.card) == ("newer", "of the newer")
    served.clear_requests()
    assert same_tensors(load(REPO, revision=revision, local_files_only=True), newer) and served.requests == []
    served.stop()
    assert same_tensors(load(REPO, revision=revision), newer)


def test_what_is_cached_costs_one_request(served: HubServer) -> None:
    """Where the branch points to is asked once, for the first file; of a commit nothing is asked."""
    load(REPO)
    served.clear_requests()
    load(REPO)
    assert [(r.method, r.path.rsplit("/", 1)[1]) for r in served.requests] == [("HEAD", CONFIG)]
    served.clear_requests()
    load(REPO, revision=served.head(REPO))
    assert served.requests == []


def test_a_card_that_is_not_there_is_asked_for_once(
    hub: HubServer, folder: Path, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit does not change: later loads neither ask for its card again nor wait for it without a network."""
    hub.add_repo(REPO, {name: data for name, data in files_of(folder).items() if name != CARD})
    load(REPO)
    assert hub.count("HEAD", CARD) > 0
    hub.clear_requests()
    assert same_tensors(load(REPO), tiny_weights) and hub.count("HEAD", CARD) == 0
    hub.stop()
    waits: list[float] = []
    monkeypatch.setattr(hub_module.time, "sleep", waits.append)
    assert same_tensors(load(REPO), tiny_weights) and load(REPO).card == "" and waits == []


def test_wrong_repository_revision_and_file(served: HubServer) -> None:
    """What does not exist is named: the repository, the revision or the file."""
    assert "no such repository" in refused("org/nothing").reason
    error = refused(revision="v9")
    assert "no revision 'v9'" in error.reason and error.path is not None and error.path.startswith(REPO)
    served.add_repo("org/other", {"model.bin": b"1"})
    error = refused("org/other")
    assert (error.path, error.reason) == (f"org/other/{CONFIG}", "the repository has no such file")


def test_private_repository(hub: HubServer, folder: Path, tiny_weights: Weights) -> None:
    """A private repository needs its token; the error says so; a bad token is told to be one."""
    hub.add_repo(REPO, files_of(folder), private=True, token="hf_right")
    hub.add_token("hf_other")
    for options in ({}, {"token": "hf_other"}):
        error = refused(**options)
        assert "private" in error.reason and "hf auth login" in str(error.hint)
    error = refused(token="hf_bad")
    assert "token" in error.reason and "hf auth login" in str(error.hint)
    assert same_tensors(load(REPO, token="hf_right"), tiny_weights)


def test_gated_repository(hub: HubServer, folder: Path) -> None:
    """A gated repository is told apart from a missing one."""
    hub.add_repo(REPO, files_of(folder), gated=True, token="hf_right")
    assert "requested" in refused().reason
    assert load(REPO, token="hf_right")


def test_interrupted_download_leaves_nothing_and_can_be_repeated(served: HubServer, tiny_weights: Weights) -> None:
    """A connection that breaks for good is a `HubError`; the next try succeeds."""
    served.drop("adapter", times=None, after=100)
    error = refused()
    assert "transfer failed" in error.reason and "Try again" in str(error.hint)
    served.heal()
    assert same_tensors(load(REPO), tiny_weights)


def test_a_passing_interruption_is_not_noticed(served: HubServer, tiny_weights: Weights) -> None:
    """One broken connection is repaired by the client itself."""
    served.drop("adapter", times=1, after=100)
    assert same_tensors(load(REPO), tiny_weights)


@pytest.mark.parametrize("name", [CONFIG, ADAPTER, BACKBONE])
def test_a_corrupted_download_is_repeated_once(served: HubServer, tiny_weights: Weights, name: str) -> None:
    """Wrong bytes on the way are noticed by their checksum and fetched again."""
    pattern = name if name == CONFIG else "/lfs/"
    served.corrupt(pattern, times=1)
    assert same_tensors(load(REPO), tiny_weights)


@pytest.mark.parametrize("name", [CONFIG, ADAPTER])
def test_a_file_corrupted_in_the_cache_is_repaired(served: HubServer, tiny_weights: Weights, name: str) -> None:
    """A file that went bad on the disk is fetched again, by one more download of that file only."""
    load(REPO)
    cached = next(p for p in Path(constants.HF_HUB_CACHE).rglob(name))
    data = cached.read_bytes()
    cached.resolve().write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    served.clear_requests()
    assert same_tensors(load(REPO), tiny_weights)
    assert served.count("GET", name) == 1
    assert cached.read_bytes() == data


def test_a_download_corrupted_for_ever(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong bytes twice are an error that names the damaged file, offline too; it can then be deleted."""
    served.corrupt("/lfs/")
    error = refused()
    assert "damaged" in error.reason and Path(str(error.path)).is_file()
    go_offline(monkeypatch)
    assert refused().path == error.path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    served.heal()
    Path(str(error.path)).unlink()
    assert load(REPO)


def test_offline_with_a_cache_makes_no_request(
    served: HubServer, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fetched once scores without the network: in offline mode, or when asked for local files."""
    online = values(REPO, photo)
    served.clear_requests()
    assert values(REPO, photo, local_files_only=True) == online
    go_offline(monkeypatch)
    assert values(REPO, photo) == online
    assert served.requests == []


def test_offline_without_a_cache(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was never fetched is an error that says how to get it, without a request."""
    error = refused(local_files_only=True)
    assert "offline mode" in error.reason and "HF_HUB_OFFLINE" in str(error.hint)
    go_offline(monkeypatch)
    assert "offline mode" in refused().reason
    assert served.requests == []


def test_without_a_network(served: HubServer, tiny_weights: Weights) -> None:
    """When the Hub cannot be reached the cache serves; without one the error speaks of the network."""
    load(REPO)
    served.stop()
    assert same_tensors(load(REPO), tiny_weights)
    error = refused("org/never-fetched")
    assert "cannot be reached" in error.reason and "network" in str(error.hint)


def test_without_a_network_nobody_waits_long(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of waits between attempts there are three seconds; a network that comes back within them is enough."""
    waits: list[float] = []
    for module in (hub_module, file_download, _http):
        monkeypatch.setattr(module.time, "sleep", waits.append)  # of the fixture's copies of `time`
    look, failures = huggingface_hub.get_hf_file_metadata, [OSError("no route"), OSError("no route")]

    def flaky(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return look(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(huggingface_hub, "get_hf_file_metadata", flaky)
        load(REPO)
    assert waits == [1, 2]
    served.stop()
    waits.clear()
    assert "cannot be reached" in refused("org/never-fetched").reason and waits == [1, 2]


def test_a_silent_network_is_asked_once(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a connection takes as long as the client allows, there is no second attempt."""
    clock = iter([0.0, 10.0])
    waits: list[float] = []
    monkeypatch.setattr(hub_module.time, "sleep", waits.append)
    monkeypatch.setattr(hub_module.time, "monotonic", lambda: next(clock))
    served.stop()
    assert "cannot be reached" in refused().reason and waits == []


def test_an_answer_of_the_hub_is_enough(served: HubServer, tiny_weights: Weights) -> None:
    """A Hub that is busy can be reached: the client's own patience begins."""
    served.fail(503, times=3, methods=["HEAD"])
    assert same_tensors(load(REPO), tiny_weights)


def test_backbone_from_another_repository(
    hub: HubServer, tiny_weights: Weights, folder: Path, photo: Photo, tmp_path: Path
) -> None:
    """An adapter can name a backbone on the Hub; its checksum is verified, and saving keeps the reference."""
    base = (folder / BACKBONE).read_bytes()
    hub.add_repo("lab/clip", {"weights/clip.safetensors": base})
    reference = Backbone(
        tiny_weights.config.backbone.model_cfg,
        repo="lab/clip",
        filename="weights/clip.safetensors",
        revision=hub.head("lab/clip"),
        sha256=sha256_of(folder / BACKBONE),
    )

    def publish(backbone: Backbone) -> None:
        config = dataclasses.replace(tiny_weights.config, backbone=backbone)
        hub.add_repo(REPO, {CONFIG: config.to_json().encode(), ADAPTER: (folder / ADAPTER).read_bytes()})

    publish(reference)
    assert values(REPO, photo) == values(folder, photo)
    saved = load(REPO).save(tmp_path / "again")
    assert sorted(p.name for p in saved.iterdir() if p.stat().st_size) == [ADAPTER, CONFIG]
    assert load(saved).config.backbone == reference
    publish(dataclasses.replace(reference, sha256="0" * 64))
    with pytest.raises(WeightsError, match="checksum differs"):
        load(REPO)
    publish(dataclasses.replace(reference, filename="other.safetensors"))
    assert refused().path == "lab/clip/other.safetensors"


def test_a_cached_backbone_is_hashed_once(
    hub: HubServer, tiny_weights: Weights, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over the file serves the Hub's entity tag and the checksum in the configuration."""
    hub.add_repo("lab/clip", {"clip.safetensors": (folder / BACKBONE).read_bytes()})
    sha256 = sha256_of(folder / BACKBONE)
    backbone = Backbone(
        tiny_weights.config.backbone.model_cfg, "clip", "lab/clip", "clip.safetensors", sha256=sha256
    )
    config = dataclasses.replace(tiny_weights.config, backbone=backbone)
    hub.add_repo(REPO, {CONFIG: config.to_json().encode(), ADAPTER: (folder / ADAPTER).read_bytes()})
    load(REPO)
    hashed: list[str] = []

    def counting(path: str | Path) -> str:
        hashed.append(Path(path).name)
        return sha256_of(path)

    monkeypatch.setattr("grmp_score.weights.hub.sha256_of", counting)
    monkeypatch.setattr("grmp_score.weights.checksum.sha256_of", counting)
    load(REPO)
    assert hashed.count("clip.safetensors") == 1


@pytest.mark.parametrize("card", [True, False])
def test_push_and_fetch(hub: HubServer, tiny_weights: Weights, photo: Photo, card: bool) -> None:
    """What is pushed is fetched back with identical scores, with or without a model card."""
    hub.add_token("hf_me", user="me")
    source = tiny_weights if card else dataclasses.replace(tiny_weights, card="")
    scorer = Scorer(source, device="cpu")
    url = scorer.push_to_hub("me/my-camera", private=True, token="hf_me")
    assert hub.is_private("me/my-camera") and hub.head("me/my-camera") in url
    expected = {CONFIG, ADAPTER, BACKBONE} | ({CARD} if card else set())
    assert set(hub.files("me/my-camera")) - {".gitattributes"} == expected
    again = Scorer.from_pretrained("me/my-camera", token="hf_me", device="cpu")
    assert again.score(photo()) == scorer.score(photo())
    assert again.weights.card == source.card


def test_push_keeps_the_preprocessing_in_use(hub: HubServer, tiny_weights: Weights, photo: Photo) -> None:
    """A scorer with another number of patches pushes that number; pushing again updates the repository."""
    hub.add_token("hf_me", user="me")
    Scorer(tiny_weights, device="cpu").push_to_hub("me/x", token="hf_me")
    changed = Scorer(tiny_weights, device="cpu", patches=2)
    changed.push_to_hub("me/x", token="hf_me")
    assert values("me/x", photo) == changed.score(photo()).patch_values


def test_push_refused(hub: HubServer, tiny_weights: Weights) -> None:
    """Without a token, with a bad or a reading one, a push is a `HubError` that says to log in."""
    hub.add_token("hf_reader", write=False)
    scorer = Scorer(tiny_weights, device="cpu")
    for token in (None, "hf_bad", "hf_reader"):
        with pytest.raises(HubError) as caught:
            scorer.push_to_hub("me/x", token=token)
        assert "hf auth login" in str(caught.value.hint)
    with pytest.raises(HubError, match="not a valid repository name"):
        scorer.push_to_hub("a/b/c", token="hf_reader")
    assert not hub.has_repo("me/x")


def test_official_checkpoint_from_the_hub(
    hub: HubServer, photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository and the name of an official file score as the same file in a folder."""
    monkeypatch.setattr("grmp_score.weights.official.architecture", lambda name: SMALL_CLIP)
    torch.save(small_state(), tmp_path / "clive_50.pt")
    hub.add_repo("zz/official", {"clive_50.pt": (tmp_path / "clive_50.pt").read_bytes()})
    fetched = values("zz/official", photo, filename="clive_50.pt")
    assert fetched == values(tmp_path, photo, filename="clive_50.pt")
    assert len(fetched) == 1
    with pytest.raises(HubError, match="no such file"):
        Scorer.from_pretrained("zz/official", filename="other.pt")
    with pytest.raises(WeightsError, match="no such file"):
        Scorer.from_pretrained(tmp_path, filename="other.pt")
    with pytest.raises(GrmpScoreError, match="no such folder"):
        Scorer.from_pretrained("./nowhere/at/all", filename="other.pt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", True),
        ("gpt2", True),
        ("a.b/c-d_e.1", True),
        ("a/b/c", False),
        ("/abs", False),
        ("./rel", False),
        ("../up", False),
        ("a\\b", False),
        ("", False),
        ("a b/c", False),
        ("owner/", False),
    ],
)
def test_form_of_a_repository_id(text: str, expected: bool) -> None:
    """Repository ids are told apart from paths by their form."""
    assert looks_like_repo(text) is expected


def test_a_folder_wins_over_a_repository(
    served: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder that has the name of a repository is what is meant."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / REPO)
    load(REPO)
    assert served.requests == []
