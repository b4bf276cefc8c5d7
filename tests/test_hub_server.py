"""The Hub in memory behaves, to the real client, as the Hub does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub_server import HubServer, etag_of

REPO = "org/name"
WEIGHTS = bytes(range(256)) * 256
FILES = {"config.json": b'{"format": 1}\n', "adapter.safetensors": WEIGHTS, "notes/a b.txt": "ünï\n".encode()}


@pytest.mark.parametrize("name", FILES)
def test_downloads(hub: HubServer, name: str) -> None:
    """The bytes, under the commit's sha, in a blob that is named by their checksum."""
    sha = hub.add_repo(REPO, FILES)
    path = Path(hf_hub_download(REPO, name))
    assert path.read_bytes() == FILES[name] and sha in path.parts
    assert path.resolve().name == etag_of(name, FILES[name])


def test_large_files_come_from_the_storage_without_the_token(hub: HubServer) -> None:
    """The token goes to the Hub and never to the storage that large files are redirected to."""
    hub.add_repo(REPO, FILES, private=True, token="hf_owner")
    hf_hub_download(REPO, "adapter.safetensors", token="hf_owner")
    seen = [(request.method, request.host, request.headers.get("authorization")) for request in hub.requests]
    assert seen == [("HEAD", "huggingface.co", "Bearer hf_owner"), ("GET", "storage.test", None)]


def test_revisions(hub: HubServer) -> None:
    """A branch is its newest commit, while an older one keeps its files."""
    old = hub.add_repo(REPO, FILES)
    new = hub.commit(REPO, {"config.json": b"{}"})
    assert new != old and hub.head(REPO) == new
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"
    assert Path(hf_hub_download(REPO, "config.json", revision=old)).read_bytes() == FILES["config.json"]


def test_what_does_not_exist_or_is_not_for_everybody(hub: HubServer) -> None:
    """Each kind is an error of its own, by which this package words its own."""
    hub.add_repo(REPO, FILES)
    hub.add_repo("org/private", FILES, private=True, token="hf_owner")
    hub.add_repo("org/gated", FILES, gated=True, token="hf_owner")
    hub.add_token("hf_other")
    for repo, options, expected in (
        ("org/absent", {}, RepositoryNotFoundError),
        (REPO, {"revision": "absent"}, RevisionNotFoundError),
        (REPO, {"filename": "absent.json"}, EntryNotFoundError),
        ("org/private", {}, RepositoryNotFoundError),
        ("org/private", {"token": "hf_other"}, RepositoryNotFoundError),
        ("org/gated", {"token": "hf_other"}, GatedRepoError),
        (REPO, {"token": "hf_stale"}, HfHubHTTPError),
    ):
        with pytest.raises(expected):
            hf_hub_download(repo, **{"filename": "config.json", **options})
    for repo in ("org/private", "org/gated"):
        assert Path(hf_hub_download(repo, "config.json", token="hf_owner")).read_bytes() == FILES["config.json"]


def test_transfers_that_go_wrong(hub: HubServer) -> None:
    """A closed connection is tried again, wrong bytes pass the client, and without a network the cache is used."""
    hub.add_repo(REPO, FILES)
    hub.drop("adapter", after=100)
    hub.fail(503, methods=["HEAD"])
    assert Path(hf_hub_download(REPO, "adapter.safetensors")).read_bytes() == WEIGHTS
    hub.corrupt("config")
    assert len(data := Path(hf_hub_download(REPO, "config.json")).read_bytes()) == len(FILES["config.json"])
    assert data != FILES["config.json"]
    hub.stop()
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == data
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "notes/a b.txt")


def test_uploads(hub: HubServer, tmp_path: Path) -> None:
    """What is uploaded is what is there; only a large file goes to the storage."""
    hub.add_token("hf_me", user="me")
    api = HfApi(token="hf_me")
    url = api.create_repo("me/camera", private=True)
    assert str(url) == f"{constants.ENDPOINT}/me/camera" and hub.is_private("me/camera")
    assert api.create_repo("me/camera", exist_ok=True).repo_id == "me/camera"
    for name, data in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    commit = api.upload_folder(repo_id="me/camera", folder_path=tmp_path / "model")
    assert commit.oid == hub.head("me/camera") and {**hub.files("me/camera"), **FILES} == hub.files("me/camera")
    stored = [request.path for request in hub.requests if request.host == "storage.test"]
    assert stored == [f"/lfs/{hashlib.sha256(WEIGHTS).hexdigest()}"]


def test_uploads_that_are_refused(hub: HubServer) -> None:
    """Without a token, with a wrong one, with a reading one, and to nowhere."""
    sha = hub.add_repo(REPO, FILES, token="hf_owner")
    hub.add_token("hf_reader", write=False)
    for token, repo in ((False, REPO), ("hf_bad", REPO), ("hf_reader", REPO), ("hf_owner", "org/absent")):
        with pytest.raises(HfHubHTTPError):
            HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    assert hub.head(REPO) == sha and not hub.has_repo("org/absent")


def test_other_hosts_are_errors(hub: HubServer) -> None:
    """A test has no network."""
    with pytest.raises(AssertionError, match="tried to reach"):
        HfApi(endpoint="http://127.0.0.1:9").model_info(REPO)
