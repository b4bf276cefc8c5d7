"""The local Hub, proven with the real client; also a record of what the client does when things go wrong."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .hub_server import HubServer, git_blob_sha1, hub_fixture  # noqa: F401 (the fixture `hub`)

# Older clients neither resume nor keep listings, and differ in what they retry.
since_2 = pytest.mark.skipif(
    int(huggingface_hub.__version__.split(".")[0]) < 2, reason="behaviour of huggingface_hub 2.0 and newer"
)

REPO = "org/name"
WEIGHTS = bytes(range(256)) * 256
FILES = {
    "config.json": b'{"format": 1}\n',
    "adapter.safetensors": WEIGHTS,
    "notes/a b.txt": "ünï\n".encode(),
}
CARD = "---\nlicense: mit\n---\n\nA card.\n"


def content(folder: str | Path) -> dict[str, bytes]:
    """Read a folder into path to content."""
    root = Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_download_gives_the_bytes(hub: HubServer, name: str) -> None:
    """Every kind of file arrives as it is, under the commit's sha."""
    sha = hub.add_repo(REPO, FILES)
    path = Path(hf_hub_download(REPO, name))
    assert path.read_bytes() == FILES[name]
    assert sha in path.parts


def test_large_files_come_from_the_storage_without_the_token(hub: HubServer) -> None:
    """The token goes to the Hub and never to the storage that large files are redirected to."""
    hub.add_repo(REPO, FILES, private=True, token="hf_owner")
    hf_hub_download(REPO, "adapter.safetensors", token="hf_owner")
    head, get = hub.requests
    assert (head.method, head.host, head.headers.get("authorization")) == ("HEAD", "hub", "Bearer hf_owner")
    assert (get.method, get.host, get.headers.get("authorization")) == ("GET", "storage", None)


def test_cached_blobs_are_named_by_their_checksum(hub: HubServer) -> None:
    """The cache names a large file by SHA-256 and a small one by git's id: a copy can be verified offline."""
    hub.add_repo(REPO, FILES)
    folder = Path(snapshot_download(REPO))
    assert (folder / "adapter.safetensors").resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
    assert (folder / "config.json").resolve().name == git_blob_sha1(FILES["config.json"])


def test_snapshot_gives_all_files(hub: HubServer) -> None:
    """A snapshot holds exactly the repository's files."""
    hub.add_repo(REPO, FILES)
    assert content(snapshot_download(REPO)) == FILES


def test_snapshot_patterns(hub: HubServer) -> None:
    """Patterns choose files and the rest is not asked for."""
    hub.add_repo(REPO, FILES)
    assert set(content(snapshot_download(REPO, allow_patterns=["*.json"]))) == {"config.json"}
    assert hub.count(match="adapter") == 0


def test_snapshot_to_a_local_folder(hub: HubServer, tmp_path: Path) -> None:
    """A download to a chosen folder holds the files themselves."""
    hub.add_repo(REPO, FILES)
    snapshot_download(REPO, local_dir=tmp_path / "here")
    here = content(tmp_path / "here")
    assert {name: here[name] for name in FILES} == FILES


@since_2
def test_cached_load_makes_one_request_for_a_branch_and_none_for_a_sha(hub: HubServer) -> None:
    """A second load asks only what the branch points to, and by sha asks nothing."""
    sha = hub.add_repo(REPO, FILES)
    first = snapshot_download(REPO)
    hub.clear_requests()
    assert snapshot_download(REPO) == first
    assert [(r.method, r.path) for r in hub.requests] == [("GET", f"/api/models/{REPO}/revision/main")]
    hub.clear_requests()
    assert snapshot_download(REPO, revision=sha) == first
    assert hf_hub_download(REPO, "config.json", revision=sha) == os.path.join(first, "config.json")
    assert snapshot_download(REPO, local_files_only=True) == first
    assert hub.requests == []


def test_new_commit_is_seen_and_old_one_still_served(hub: HubServer) -> None:
    """A branch follows its newest commit while an older sha keeps its files."""
    old = hub.add_repo(REPO, FILES)
    new = hub.commit(REPO, {"config.json": b"{}"})
    assert new != old and hub.head(REPO) == new
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"
    assert Path(hf_hub_download(REPO, "config.json", revision=old)).read_bytes() == FILES["config.json"]


def test_branches_tags_commits_and_listing(hub: HubServer) -> None:
    """References, history and listing are those of the repository."""
    sha = hub.add_repo(REPO, FILES, token="hf_owner")
    api = HfApi(token="hf_owner")
    api.create_branch(REPO, branch="next")
    api.create_tag(REPO, tag="v1.0")
    later = hub.commit(REPO, {"new.txt": b"x"}, branch="next", title="more")
    refs = api.list_repo_refs(REPO)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": sha, "next": later}
    assert {t.name: t.target_commit for t in refs.tags} == {"v1.0": sha}
    assert [c.commit_id for c in api.list_repo_commits(REPO, revision="next")] == [later, sha]
    assert api.list_repo_files(REPO, revision="v1.0") == sorted(FILES)
    assert {e.path for e in api.list_repo_tree(REPO)} == {"config.json", "adapter.safetensors", "notes"}
    info = api.model_info(REPO, files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings or []} == {n: len(d) for n, d in FILES.items()}
    (weights,) = api.get_paths_info(REPO, ["adapter.safetensors", "absent"])
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


def test_each_kind_of_not_found(hub: HubServer) -> None:
    """A missing repository, revision and file are told apart."""
    hub.add_repo(REPO, FILES)
    with pytest.raises(RepositoryNotFoundError) as repo:
        hf_hub_download("org/absent", "config.json")
    assert repo.value.response.status_code == 401  # to a stranger it might be a private one
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "absent.json")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("org/absent")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(REPO, revision="absent")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(REPO, revision="0" * 40)


def test_private_repository_needs_its_token(hub: HubServer) -> None:
    """Without the right token a private repository does not exist; a wrong token is named as wrong."""
    hub.add_repo(REPO, FILES, private=True, token="hf_owner")
    hub.add_token("hf_other")
    with pytest.raises(RepositoryNotFoundError) as stranger:
        snapshot_download(REPO, token=False)
    assert stranger.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError) as other:
        snapshot_download(REPO, token="hf_other")
    assert other.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as bad:
        snapshot_download(REPO, token="hf_bad")
    assert bad.value.response.status_code == 401 and not isinstance(bad.value, RepositoryNotFoundError)
    assert content(snapshot_download(REPO, token="hf_owner")) == FILES


def test_a_bad_token_fails_on_a_public_repository_too(hub: HubServer) -> None:
    """A stale token in the environment breaks downloads that need none."""
    hub.add_repo(REPO, FILES)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        hf_hub_download(REPO, "config.json", token="hf_stale")


def test_token_from_the_environment(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN is used where no token is given."""
    hub.add_repo(REPO, FILES, private=True, token="hf_owner")
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert HfApi().whoami()["name"] == "org"
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]


def test_gated_repository(hub: HubServer) -> None:
    """A gated repository is listed for everybody and its files are for its members."""
    hub.add_repo(REPO, FILES, gated=True, token="hf_member")
    assert HfApi().model_info(REPO).gated == "manual"
    with pytest.raises(GatedRepoError):
        hf_hub_download(REPO, "config.json")
    with pytest.raises(GatedRepoError):
        snapshot_download(REPO)
    assert content(snapshot_download(REPO, token="hf_member")) == FILES


@since_2
def test_dropped_connection_is_resumed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a drop the client asks only for what it has not got."""
    # What has come of an unfinished chunk is lost, and a chunk has 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.add_repo(REPO, FILES)
    hub.drop("adapter", times=2, after=10_240)
    path = Path(hf_hub_download(REPO, "adapter.safetensors"))
    assert path.read_bytes() == WEIGHTS
    gets = [r for r in hub.requests if r.method == "GET"]
    assert [r.headers.get("range") for r in gets] == [None, "bytes=10240-", "bytes=20480-"]
    assert [r.status for r in gets] == [0, 0, 206]


@since_2
def test_dropped_connection_without_a_whole_chunk_starts_anew(hub: HubServer) -> None:
    """A file below the chunk size is fetched again from its start."""
    hub.add_repo(REPO, FILES)
    hub.drop("adapter", after=10_240)
    assert Path(hf_hub_download(REPO, "adapter.safetensors")).read_bytes() == WEIGHTS
    assert hub.count("GET", "adapter") == 2


@since_2
def test_connection_dropped_for_ever_leaves_no_file(hub: HubServer) -> None:
    """After its last attempt it raises its transport's error, no OSError, and leaves no partial file."""
    hub.add_repo(REPO, FILES)
    hub.drop("adapter", times=None, after=100)
    with pytest.raises(Exception, match="without sending complete") as caught:
        hf_hub_download(REPO, "adapter.safetensors")
    assert type(caught.value).__name__ == "RemoteProtocolError" and not isinstance(caught.value, OSError)
    assert hub.count("GET", "adapter") == 6
    assert list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete")) == []
    assert list(Path(constants.HF_HUB_CACHE).rglob("adapter*")) == []
    hub.heal()
    assert Path(hf_hub_download(REPO, "adapter.safetensors")).read_bytes() == WEIGHTS


def test_reset_connection_is_not_retried(hub: HubServer) -> None:
    """A reset in the middle of a file ends the download at once with the transport's error."""
    hub.add_repo(REPO, FILES)
    hub.drop("adapter", after=100, reset=True)
    with pytest.raises(Exception) as caught:
        hf_hub_download(REPO, "adapter.safetensors")
    assert type(caught.value).__name__ == "ReadError" and not isinstance(caught.value, OSError)
    assert hub.count("GET", "adapter") == 1


@pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
def test_corrupted_file_passes_the_client(hub: HubServer, name: str) -> None:
    """The client checks a download's length and not its bytes; the name of the cached blob tells."""
    hub.add_repo(REPO, FILES)
    hub.corrupt(name)
    path = Path(hf_hub_download(REPO, name))
    data = path.read_bytes()
    assert data != FILES[name] and len(data) == len(FILES[name])
    expected = path.resolve().name
    actual = hashlib.sha256(data).hexdigest() if len(expected) == 64 else git_blob_sha1(data)
    assert actual != expected
    hub.heal()
    assert Path(hf_hub_download(REPO, name)).read_bytes() == data  # the cache keeps serving it
    assert Path(hf_hub_download(REPO, name, force_download=True)).read_bytes() == FILES[name]


@since_2
def test_corrupted_file_is_found_by_asking_the_hub(hub: HubServer) -> None:
    """The client's own check of a cached repository names the corrupted file."""
    hub.add_repo(REPO, FILES)
    hub.corrupt("adapter")
    snapshot_download(REPO)
    found = HfApi().verify_repo_checksums(REPO)
    assert [m["path"] for m in found.mismatches] == ["adapter.safetensors"] and found.checked_count == len(FILES)


@since_2
def test_server_error_once_is_retried(hub: HubServer) -> None:
    """A first-time download survives a passing 503 on the HEAD request."""
    hub.add_repo(REPO, FILES)
    hub.fail(503, "config.json", times=2)
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]
    assert [r.status for r in hub.requests] == [503, 503, 200, 200]


@since_2
def test_server_error_for_ever(hub: HubServer) -> None:
    """Without a copy a failing server is an error; with one the copy is used."""
    hub.add_repo(REPO, FILES)
    hub.fail(503, times=None)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "config.json")
    assert hub.count() == 7  # one quick look, then six attempts with growing waits
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO)
    hub.heal()
    folder = snapshot_download(REPO)
    hub.fail(503, times=None)
    assert snapshot_download(REPO) == folder
    assert hf_hub_download(REPO, "config.json") == os.path.join(folder, "config.json")


def test_no_network(hub: HubServer) -> None:
    """Without a network a cached repository loads and any other is a LocalEntryNotFoundError."""
    hub.add_repo(REPO, FILES)
    folder = snapshot_download(REPO)
    hub.stop()
    assert snapshot_download(REPO) == folder
    assert hf_hub_download(REPO, "config.json") == os.path.join(folder, "config.json")
    with pytest.raises(LocalEntryNotFoundError) as caught:
        snapshot_download("org/other")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/other", "config.json")


def test_offline_mode(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In offline mode no request is made: cached files load, others are a LocalEntryNotFoundError."""
    hub.add_repo(REPO, FILES)
    folder = snapshot_download(REPO)
    hub.clear_requests()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot_download(REPO) == folder
    assert hf_hub_download(REPO, "config.json") == os.path.join(folder, "config.json")
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download("org/other")
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/other", "config.json")
    with pytest.raises(LocalEntryNotFoundError):
        snapshot_download(REPO, revision="never-seen")
    with pytest.raises(ConnectionError, match="offline mode"):
        HfApi().model_info(REPO)
    assert hub.requests == []


@since_2
def test_incomplete_snapshot_is_known_offline(hub: HubServer) -> None:
    """A snapshot with only some files fetched is refused offline, unless only those are asked for."""
    hub.add_repo(REPO, FILES)
    folder = snapshot_download(REPO, allow_patterns=["config.json"])
    with pytest.raises(LocalEntryNotFoundError, match="incomplete"):
        snapshot_download(REPO, local_files_only=True)
    assert snapshot_download(REPO, allow_patterns=["config.json"], local_files_only=True) == folder


def test_upload_folder_round_trip(hub: HubServer, tmp_path: Path) -> None:
    """What is uploaded is what is downloaded; only a large file goes to the storage."""
    hub.add_token("hf_me", user="me")
    api = HfApi(token="hf_me")
    url = api.create_repo("me/camera", private=True)
    assert str(url) == f"{hub.endpoint}/me/camera" and hub.is_private("me/camera")
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in {"README.md": CARD.encode(), **FILES}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    info = api.upload_folder(repo_id="me/camera", folder_path=folder, commit_message="tuned")
    assert info.oid == hub.head("me/camera")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert [r.path for r in hub.requests if r.host == "storage"] == [f"/upload/{sha256}"]
    assert api.list_repo_commits("me/camera")[0].title == "tuned"
    downloaded = content(snapshot_download("me/camera", token="hf_me"))
    assert downloaded.pop(".gitattributes").startswith(b"*.safetensors filter=lfs")
    assert downloaded == content(folder)


def test_unchanged_upload_makes_no_commit(hub: HubServer, tmp_path: Path) -> None:
    """Uploading the same bytes again neither sends them nor commits."""
    sha = hub.add_repo(REPO, FILES, token="hf_owner")
    folder = tmp_path / "same"
    folder.mkdir()
    (folder / "config.json").write_bytes(FILES["config.json"])
    (folder / "adapter.safetensors").write_bytes(WEIGHTS)
    HfApi(token="hf_owner").upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.head(REPO) == sha
    assert hub.count("PUT") == 0


def test_upload_file_and_module_level_functions(hub: HubServer) -> None:
    """The functions of the package itself, bound to an object made at import, reach the server too."""
    hub.add_repo(REPO, FILES, token="hf_owner")
    huggingface_hub.upload_file(
        path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO, token="hf_owner", revision="main"
    )
    assert hub.files(REPO) == {**FILES, "config.json": b"{}"}
    huggingface_hub.delete_file("notes/a b.txt", REPO, token="hf_owner")
    assert set(hub.files(REPO)) == {"config.json", "adapter.safetensors"}


def test_upload_refusals(hub: HubServer) -> None:
    """Uploads without a token, with a wrong one, with a reading one and to nowhere fail, each in its way."""
    hub.add_repo(REPO, FILES, token="hf_owner")
    hub.add_token("hf_reader", write=False)
    before = hub.head(REPO)

    def upload(token: str | bool, repo_id: str = REPO) -> int:
        with pytest.raises(HfHubHTTPError) as caught:
            HfApi(token=token).upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo_id)
        return caught.value.response.status_code

    assert [upload(False), upload("hf_bad"), upload("hf_reader"), upload("hf_owner", "org/absent")] == [
        401,
        401,
        403,
        404,
    ]
    assert hub.head(REPO) == before


def test_create_repo_twice(hub: HubServer) -> None:
    """Creating an existing repository is an error unless `exist_ok`."""
    hub.add_token("hf_me", user="me")
    api = HfApi(token="hf_me")
    api.create_repo("me/camera")
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("me/camera")
    assert api.create_repo("me/camera", exist_ok=True).repo_id == "me/camera"
    api.delete_repo("me/camera")
    assert not hub.has_repo("me/camera")


def test_commit_onto_a_moved_branch_is_refused(hub: HubServer) -> None:
    """A commit that names an outdated parent is refused."""
    old = hub.add_repo(REPO, FILES, token="hf_owner")
    hub.commit(REPO, {"config.json": b"{}"})
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi(token="hf_owner").upload_file(
            path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=REPO, parent_commit=old
        )


def test_interrupted_upload_is_retried(hub: HubServer, tmp_path: Path) -> None:
    """A passing 503 of the storage does not end an upload."""
    hub.add_repo(REPO, {"config.json": b"{}"}, token="hf_owner")
    hub.fail(503, "/upload/", times=2)
    HfApi(token="hf_owner").upload_file(path_or_fileobj=WEIGHTS, path_in_repo="w.safetensors", repo_id=REPO)
    assert hub.files(REPO)["w.safetensors"] == WEIGHTS
    assert hub.count("PUT") == 3


def test_other_hosts_are_refused(hub: HubServer) -> None:
    """A request to any address but the server's is an error of the test."""
    with pytest.raises(AssertionError, match="tried to reach"):
        HfApi(endpoint="http://127.0.0.1:9").model_info(REPO)


def test_subprocess_with_the_environment(hub: HubServer, tmp_path: Path) -> None:
    """A process of its own is pointed at the server by its environment alone."""
    hub.add_repo(REPO, FILES, private=True, token="hf_owner")
    download = f"hf_hub_download({REPO!r}, 'config.json')"
    code = f"from huggingface_hub import hf_hub_download; print(open({download}).read(), end='')"
    environment = hub.environment(tmp_path / "home", HF_TOKEN="hf_owner")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert done.stdout == FILES["config.json"], done.stderr.decode()
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    hub.clear_requests()
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, timeout=60)
    assert done.stdout == FILES["config.json"], done.stderr.decode()
    assert hub.requests == []
