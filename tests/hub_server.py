"""The Hugging Face Hub in memory, for the real `huggingface_hub` client.

The client is given an HTTP transport that ends in `HubServer.answer` instead of a socket, so nothing leaves this
process and any request that a test does not expect is an error.  What the Hub speaks here is what this package
needs: HEAD and GET of files (small ones directly, large ones by a redirect to a storage host, with the entity tags
that are their checksums), private and gated repositories, and uploads (create, preupload, LFS, commit).

    def test_download(hub):
        hub.add_repo("org/name", {"config.json": b"{}"})
        path = hf_hub_download("org/name", "config.json")
        assert hub.count("GET", "config.json") == 1
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from grmp_score.weights import hub as our_side

try:
    import httpx2 as httpx  # what huggingface_hub uses from 2.0 on
except ImportError:
    import httpx  # type: ignore[no-redef]

LARGE = (".safetensors", ".bin", ".pt")  # what is kept in the storage
STORAGE = "https://storage.test"
ALLOWED = [urlsplit(address).hostname for address in (constants.ENDPOINT, STORAGE)]


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names in lower case."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Repo:
    """Commits by their sha, each with all its files, and what branches and tags point to."""

    repo_id: str
    private: bool
    gated: bool
    token: str | None  # who owns it
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Mapping[str, bytes]) -> str:
        """Makes these files the content of a branch; the sha."""
        tags = [f"{path} {etag_of(path, data)}" for path, data in files.items()]
        sha = hashlib.sha1("\n".join([self.repo_id, str(len(self.commits)), *tags]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def sha_of(self, revision: str) -> str:
        """The sha that a branch or a sha stands for."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


@dataclass
class Fault:
    """Something that goes wrong for the next `left` requests (None: for ever)."""

    kind: str  # "drop", "corrupt" or "fail"
    methods: Iterable[str]
    match: str
    left: int | None
    after: int = 0  # of "drop": the bytes that arrive
    status: int = 0  # of "fail"


class Refusal(Exception):
    """An answer other than success; the client tells the kinds apart by status and code."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        headers |= {"X-Error-Code": code, "X-Error-Message": message}
        self.answer = httpx.Response(status, headers=headers, json={"error": message})


class CutOff(httpx.SyncByteStream):
    """A body whose connection is closed before its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self.data
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def etag_of(path: str, data: bytes) -> str:
    """A file's entity tag: SHA-256 in the storage for large files, the id that git gives it elsewhere."""
    if path.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """Repositories, and the answers to the client; `requests` are those so far."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._repos: dict[str, Repo] = {}
        self._storage: dict[str, bytes] = {}  # by SHA-256
        self._tokens: dict[str, tuple[str, bool]] = {}  # user, may write
        self._faults: list[Fault] = []
        self._stopped = False
        self._lock = threading.RLock()  # the client sends large files from several threads

    # ---------------------------------------------------------------- content

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
        token: str | None = None,
    ) -> str:
        """A repository with one commit on `main`; the commit's sha.

        A private one does not exist but for who has `token`; of a gated one the files are for `token` alone.
        """
        if token is not None:
            self.add_token(token, user=repo_id.split("/")[0])
        self._repos[repo_id] = Repo(repo_id, private, gated, token)
        return self.commit(repo_id, files)

    def add_token(self, token: str, *, user: str = "someone", write: bool = True) -> None:
        """Makes a token valid; any other is refused."""
        self._tokens[token] = (user, write)

    def commit(self, repo_id: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Adds or replaces files, as somebody else does; the new sha."""
        repo = self._repos[repo_id]
        self._storage.update({etag_of(path, data): data for path, data in files.items() if path.endswith(LARGE)})
        before = repo.commits[repo.branches[branch]] if branch in repo.branches else {}
        return repo.commit(branch, {**before, **files})

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Path to content, on `main`."""
        return self._repos[repo_id].commits[self.head(repo_id)]

    def head(self, repo_id: str) -> str:
        """The newest sha of `main`."""
        return self._repos[repo_id].branches["main"]

    def has_repo(self, repo_id: str) -> bool:
        """Whether the repository exists."""
        return repo_id in self._repos

    def is_private(self, repo_id: str) -> bool:
        """Whether the repository is private."""
        return self._repos[repo_id].private

    # --------------------------------------------------------------- requests

    def count(self, method: str | None = None, match: str = "") -> int:
        """How many requests used `method` (None: any) on a path that contains `match`."""
        return sum(method in (None, r.method) and match in r.path for r in self.requests)

    def clear_requests(self) -> None:
        """Forgets the requests so far."""
        self.requests.clear()

    # --------------------------------------------------------------- failures

    def stop(self) -> None:
        """From now on there is no network."""
        self._stopped = True

    def drop(self, match: str, *, times: int | None = 1, after: int = 0) -> None:
        """Closes the connection of the next GETs of a path that contains `match` after so many bytes."""
        self._faults.append(Fault("drop", ("GET",), match, times, after=after))

    def corrupt(self, match: str, *, times: int | None = None) -> None:
        """Answers GETs of a path that contains `match` with wrong bytes of the right number."""
        self._faults.append(Fault("corrupt", ("GET",), match, times))

    def fail(self, status: int, *, methods: Iterable[str], match: str = "", times: int | None = 1) -> None:
        """Answers `status` to the next requests of a path that contains `match`."""
        self._faults.append(Fault("fail", methods, match, times, status=status))

    def heal(self) -> None:
        """Ends all failures but `stop`."""
        self._faults.clear()

    def _fault(self, kind: str, request: Request) -> Fault | None:
        for fault in self._faults:
            wanted = fault.kind == kind and request.method in fault.methods and fault.match in request.path
            if wanted and fault.left != 0:
                fault.left = fault.left and fault.left - 1
                return fault
        return None

    # ---------------------------------------------------------------- answers

    def answer(self, message: httpx.Request) -> httpx.Response:
        """The answer to a request of the client."""
        if self._stopped:
            raise httpx.ConnectError("no route to host", request=message)
        url = message.url
        request = Request(message.method, url.host, unquote(url.path), message.headers, message.read())
        assert request.host in ALLOWED, f"a test tried to reach {request.host}"
        routes = [
            ("GET|HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._file),
            ("GET", r"/lfs/(?P<sha256>[0-9a-f]{64})/.+", self._stored),
            ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", self._exists),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", self._validate),
            ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>.+)", self._preupload),
            ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", self._where_to_upload),
            ("PUT", r"/lfs/(?P<sha256>[0-9a-f]{64})", self._store),
            ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>.+)", self._commit),
        ]
        with self._lock:
            self.requests.append(request)
            if fault := self._fault("fail", request):
                return httpx.Response(fault.status)
            for methods, pattern, function in routes:
                found = re.fullmatch(pattern, request.path)
                if found and re.fullmatch(methods, request.method):
                    try:
                        return function(request, **found.groupdict())
                    except Refusal as refusal:
                        return refusal.answer
        raise AssertionError(f"no such request is known: {message.method} {url}")

    def _token(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self._tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return token or None

    def _writer(self, request: Request) -> str:
        token = self._token(request)
        if token is None:
            raise Refusal(401, "", "Invalid username or password.")
        if not self._tokens[token][1]:
            raise Refusal(403, "", "You don't have the rights to write.")
        return token

    def _repo(self, request: Request, repo_id: str) -> Repo:
        token = self._token(request)
        repo = self._repos.get(repo_id)
        if repo is None or (repo.private and token != repo.token):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and token != repo.token:
            raise Refusal(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    def _file(self, request: Request, repo: str, revision: str, path: str) -> httpx.Response:
        found = self._repo(request, repo)
        sha = found.sha_of(revision)
        data = found.commits[sha].get(path)
        if data is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        etag = etag_of(path, data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}
        if path.endswith(LARGE):
            linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            return httpx.Response(302, headers={**headers, **linked, "Location": f"{STORAGE}/lfs/{etag}/{path}"})
        return self._content(request, data, headers)

    def _stored(self, request: Request, sha256: str) -> httpx.Response:
        return self._content(request, self._storage[sha256], {"ETag": f'"{sha256}"'})

    def _content(self, request: Request, data: bytes, headers: Mapping[str, str]) -> httpx.Response:
        headers = {**headers, "Content-Length": str(len(data))}
        if request.method == "HEAD":
            return httpx.Response(200, headers=headers)
        if self._fault("corrupt", request):
            data = bytes(byte ^ 0xFF for byte in data)
        if fault := self._fault("drop", request):
            return httpx.Response(200, headers=headers, stream=CutOff(data[: fault.after]))
        return httpx.Response(200, headers=headers, content=data)

    def _exists(self, request: Request, repo: str) -> httpx.Response:
        return httpx.Response(200, json={"id": self._repo(request, repo).repo_id})

    def _create(self, request: Request) -> httpx.Response:
        token = self._writer(request)
        wanted = json.loads(request.body)
        repo_id = f"{wanted.get('organization') or self._tokens[token][0]}/{wanted['name']}"
        url = {"url": f"{constants.ENDPOINT}/{repo_id}"}
        if repo_id in self._repos:
            return httpx.Response(409, json=url)
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        self._repos[repo_id] = Repo(repo_id, private, False, token)
        self._repos[repo_id].commit("main", {".gitattributes": b""})
        return httpx.Response(200, json=url)

    def _validate(self, request: Request) -> httpx.Response:
        has_data = json.loads(request.body)["content"].startswith("---\n")
        # The client makes a Python warning of it, as it does of the Hub's.
        remarks = [] if has_data else [{"message": "empty or missing yaml metadata in repo card"}]
        return httpx.Response(200, json={"errors": [], "warnings": remarks})

    def _preupload(self, request: Request, repo: str, revision: str) -> httpx.Response:
        self._repo(request, repo).sha_of(revision)
        paths = [file["path"] for file in json.loads(request.body)["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        return httpx.Response(200, json={"files": files})

    def _where_to_upload(self, request: Request, repo: str) -> httpx.Response:
        self._repo(request, repo)
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(request.body)["objects"]]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{STORAGE}/lfs/{item['oid']}"}}
        return httpx.Response(200, json={"transfer": "basic", "objects": objects})

    def _store(self, request: Request, sha256: str) -> httpx.Response:
        assert hashlib.sha256(request.body).hexdigest() == sha256
        self._storage[sha256] = request.body
        return httpx.Response(200)

    def _commit(self, request: Request, repo: str, revision: str) -> httpx.Response:
        self._writer(request)
        found = self._repo(request, repo)
        files = dict(found.commits[found.sha_of(revision)])
        for line in request.body.splitlines():
            item = json.loads(line)
            kind, value = item["key"], item["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self._storage[value["oid"]]
            else:
                assert kind == "header", f"no such operation is known: {kind}"
        sha = found.commit(revision, files)
        url = f"{constants.ENDPOINT}/{repo}/commit/{sha}"
        return httpx.Response(200, json={"success": True, "commitOid": sha, "commitUrl": url})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty Hub for the client of this process, whose cache is in `tmp_path / "hf"`; it never waits."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The client copies its settings from the environment when it is imported; the copies are what is changed.
    settings: dict[str, Any] = {
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
        "HF_STORED_TOKENS_PATH": str(tmp_path / "hf" / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # no storage in chunks: files travel as they are
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    for module in (_http, file_download, our_side):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None}))
    server = HubServer()
    hooks = _http.default_client_factory().event_hooks

    def client() -> httpx.Client:
        transport = httpx.MockTransport(server.answer)
        return httpx.Client(transport=transport, event_hooks=hooks, follow_redirects=True, timeout=None)

    monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", client)
    huggingface_hub.close_session()
    with warnings.catch_warnings():
        # The client's own way to send the body of a large file; nothing that a caller could change.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        yield server
    huggingface_hub.close_session()
