"""A local model Hub for tests: an HTTP server that the real `huggingface_hub` client talks to.

Everything lives in memory and answers on 127.0.0.1 at a free port. The client is the installed one; only its
settings are changed. What the server speaks: repository info, tree and paths listing, refs, commits, branches
and tags, HEAD and GET of files (ETag, X-Repo-Commit, X-Linked-Etag and X-Linked-Size, Range), redirects of
large files to a separate storage server, repository creation and deletion, and uploads (preupload, LFS batch,
PUT, commit as NDJSON). Chunk-deduplicated storage ("xet") is switched off: all bytes travel as plain HTTP.

In a test, use the fixture, which points the client of this process at the server. A conftest makes it known
everywhere by `from .hub_server import hub`.

    def test_download(hub):
        hub.add_repo("org/name", {"config.json": b"{}"})
        path = hf_hub_download("org/name", "config.json")
        assert hub.count("GET", "config.json") == 1

For a command in a process of its own, pass `env=hub.environment(tmp_path)`: the client reads its settings
when it is imported, so changing `os.environ` of a process that has imported it does nothing.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import huggingface_hub
import pytest

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.npz")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs -text\n" for pattern in LFS_PATTERNS).encode()


@dataclass
class Request:
    """One request as it arrived.

    Attributes:
        method: HTTP method.
        path: Path without the query.
        host: "hub" or "storage".
        headers: Header to value, names in lower case.
        status: Status answered; 0 where the answer was cut off.
    """

    method: str
    path: str
    host: str
    headers: Mapping[str, str]
    status: int


@dataclass
class _Commit:
    sha: str
    title: str
    message: str
    date: str
    files: dict[str, bytes]


@dataclass
class _Repo:
    repo_id: str
    private: bool
    gated: bool
    members: set[str]
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, _Commit] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], title: str, message: str = "") -> str:
        parent = self.branches.get(branch, "")
        listing = "".join(f"{path} {hashlib.sha1(files[path]).hexdigest()}\n" for path in sorted(files))
        number = len(self.history)
        sha = hashlib.sha1(f"{self.repo_id}\n{parent}\n{number}\n{title}\n{listing}".encode()).hexdigest()
        date = f"2024-01-01T{number // 60 % 24:02d}:{number % 60:02d}:00.000Z"  # no clock: repeatable
        self.commits[sha] = _Commit(sha, title, message, date, files)
        self.history.append(sha)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> _Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise _HttpError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]


@dataclass
class _Fault:
    kind: str  # "drop", "corrupt" or "status"
    match: str
    methods: frozenset[str]
    left: int | None  # None: for ever
    status: int = 0
    after: int = 0
    reset: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class _HttpError(Exception):
    """An answer other than success; the client tells the kinds apart by status and code."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


def git_blob_sha1(data: bytes) -> str:
    """Return the id git gives to a file of these bytes, the ETag of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    """Return whether the server keeps a file of this name in large file storage."""
    return any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS)


def file_etag(path: str, data: bytes) -> str:
    """Return a file's ETag: SHA-256 of its bytes in large file storage, git's blob id otherwise."""
    return hashlib.sha256(data).hexdigest() if is_lfs(path) else git_blob_sha1(data)


def _file_info(path: str, data: bytes) -> dict[str, object]:
    info: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_blob_sha1(data)}
    if is_lfs(path):
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        pointer += f"oid sha256:{sha256}\nsize {len(data)}\n".encode()
        info["oid"] = git_blob_sha1(pointer)
        info["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": len(pointer)}
    return info


class HubServer:
    """The server; a context manager that serves from entry to exit.

    Attributes:
        endpoint: Base address, for the client's `endpoint=` and `HF_ENDPOINT`.
        storage: Base address of the storage server, a different origin, to which large files are redirected.
        requests: Every request so far, in the order of arrival.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._repos: dict[str, _Repo] = {}
        self._lfs: dict[str, bytes] = {}
        self._tokens: dict[str, tuple[str, bool]] = {}
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()
        self._connections: set[socket.socket] = set()
        self._servers = [_Listener(self, "hub"), _Listener(self, "storage")]
        self.endpoint, self.storage = (f"http://127.0.0.1:{s.server_address[1]}" for s in self._servers)

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving; from then on connections are refused, as without a network. May be called twice."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # closed by the other side already
                    connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the next request

    # Content

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        gated: bool = False,
        token: str | None = None,
    ) -> str:
        """Create a repository with one commit on `main` and return the commit's sha.

        Args:
            repo_id: `"org/name"`.
            files: Path in the repository to content.
            private: Answer "not found" to everybody but `token`.
            gated: Show the listing to everybody but the files only to `token`.
            token: The token that may read and write this repository; it becomes a valid token.
        """
        with self._lock:
            if token is not None:
                self.add_token(token, user=repo_id.split("/")[0])
            repo = _Repo(repo_id, private, gated, {token} if token is not None else set())
            self._repos[repo_id] = repo
            return self.commit(repo_id, files, title="initial commit")

    def add_token(self, token: str, *, user: str = "someone", write: bool = True) -> None:
        """Make a token valid; any other token is answered 401."""
        with self._lock:
            self._tokens[token] = (user, write)

    def commit(
        self, repo_id: str, files: Mapping[str, bytes], *, branch: str = "main", title: str = "update"
    ) -> str:
        """Add or replace files as somebody else's commit would and return the new sha."""
        with self._lock:
            repo = self._repos[repo_id]
            before = repo.commits[repo.branches[branch]].files if branch in repo.branches else {}
            self._lfs.update({file_etag(p, data): data for p, data in files.items() if is_lfs(p)})
            return repo.commit(branch, {**before, **files}, title)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return path to content at a revision."""
        with self._lock:
            return dict(self._repos[repo_id].resolve(revision).files)

    def head(self, repo_id: str, branch: str = "main") -> str:
        """Return the sha at the tip of a branch."""
        with self._lock:
            return self._repos[repo_id].branches[branch]

    def has_repo(self, repo_id: str) -> bool:
        """Return whether the repository exists."""
        with self._lock:
            return repo_id in self._repos

    def is_private(self, repo_id: str) -> bool:
        """Return whether the repository is private."""
        with self._lock:
            return self._repos[repo_id].private

    # Requests

    def count(self, method: str | None = None, match: str = "") -> int:
        """Return how many requests used `method` (None: any) on a path containing `match`."""
        with self._lock:
            return sum((method is None or r.method == method) and match in r.path for r in self.requests)

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self.requests.clear()

    # Failures

    def drop(self, match: str = "", *, times: int | None = 1, after: int = 0, reset: bool = False) -> None:
        """Cut the next `times` GETs of a path containing `match` off after `after` bytes of the body.

        With `reset=True` the connection is torn down (RST), otherwise it is closed in order (FIN); the client
        tells the two apart. `times=None` means for ever.
        """
        self._add_fault(_Fault("drop", match, frozenset({"GET"}), times, after=after, reset=reset))

    def corrupt(self, match: str, *, times: int | None = None) -> None:
        """Answer GETs of a path containing `match` with wrong bytes of the right length, ETag unchanged."""
        self._add_fault(_Fault("corrupt", match, frozenset({"GET"}), times))

    def fail(
        self,
        status: int = 503,
        match: str = "",
        *,
        times: int | None = 1,
        methods: Iterable[str] = ("HEAD", "GET", "POST", "PUT", "DELETE"),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer `status` to the next `times` requests of a path containing `match`."""
        fault = _Fault("status", match, frozenset(methods), times, status=status, headers=headers or {})
        self._add_fault(fault)

    def heal(self) -> None:
        """Forget every failure asked for."""
        with self._lock:
            self._faults.clear()

    def _add_fault(self, fault: _Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def _take_fault(self, kind: str, method: str, path: str) -> _Fault | None:
        with self._lock:
            for fault in self._faults:
                fits = fault.kind == kind and method in fault.methods and fault.match in path
                if fits and fault.left != 0:
                    if fault.left is not None:
                        fault.left -= 1
                    return fault
        return None

    # The client's settings

    def environment(self, home: Path, **extra: str) -> dict[str, str]:
        """Return the environment for a process whose client uses this server, with its files in `home`."""
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
        }
        return {
            **environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **extra,
        }

    def point_client_here(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Set the client of this process to this server, with its cache and token file in `home`.

        The client copies its settings from the environment once, at import; these copies are what is changed.
        Waits between the client's attempts are skipped, and a request to any other address is refused.
        """
        from huggingface_hub import constants, file_download, hf_api
        from huggingface_hub.utils import _http

        from grmp_score.weights import hub as our_side

        for name in list(os.environ):
            if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        # `huggingface_hub.upload_folder` and its like are methods of one object made at import.
        monkeypatch.setattr(hf_api.api, "endpoint", self.endpoint)
        for module in (_http, file_download, our_side):
            no_wait = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
            monkeypatch.setattr(module, "time", no_wait)

        allowed = {urlsplit(self.endpoint).netloc, urlsplit(self.storage).netloc}

        def refuse_other_hosts(request: object) -> None:
            host = request.url.netloc.decode()  # type: ignore[attr-defined]
            if host not in allowed:
                raise AssertionError(f"a test tried to reach {host}")

        def client_factory() -> object:
            client = _http.default_client_factory()
            hooks = client.event_hooks
            client.event_hooks = {**hooks, "request": [*hooks["request"], refuse_other_hosts]}
            return client

        huggingface_hub.close_session()  # a client made before would keep its own settings
        monkeypatch.setattr(_http, "_GLOBAL_CLIENT_FACTORY", client_factory)

    # Answers. Each takes (handler, match of the path, query) and returns what to send as JSON, None if sent.

    def _user(self, handler: _Handler) -> str | None:
        """Return the valid token of a request, None without one."""
        header = handler.headers.get("Authorization")
        if header is None:
            return None
        token = header.removeprefix("Bearer ")
        if token not in self._tokens:
            raise _HttpError(401, "", "Invalid credentials in Authorization header")
        return token

    def _repo(self, handler: _Handler, repo_id: str, *, write: bool = False, content: bool = False) -> _Repo:
        token = self._user(handler)
        repo = self._repos.get(repo_id)
        if repo is None or (repo.private and token not in repo.members):
            # A private repository looks like a missing one, and strangers get 401 for both. The client takes
            # a bare 401 for a missing repository only on an https address: plain http needs the code.
            if token is None:
                raise _HttpError(401, "RepoNotFound", "Invalid username or password.")
            raise _HttpError(404, "RepoNotFound", "Repository not found")
        if content and repo.gated and token not in repo.members:
            status = 401 if token is None else 403
            raise _HttpError(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if write:
            if token is None:
                raise _HttpError(401, "", "Invalid username or password.")
            if not self._tokens[token][1] or (repo.members and token not in repo.members):
                raise _HttpError(403, "", "You don't have the rights to write to this repository.")
        return repo

    def _model_info(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"])
        commit = repo.resolve(unquote(match["rev"] or "main"))
        siblings = []
        for path, data in sorted(commit.files.items()):
            sibling: dict[str, object] = {"rfilename": path}
            if "blobs" in query:
                info = _file_info(path, data)
                sibling.update({"size": info["size"], "blobId": info["oid"]})
                if "lfs" in info:
                    sibling["lfs"] = info["lfs"]
            siblings.append(sibling)
        return {
            "id": repo.repo_id,
            "modelId": repo.repo_id,
            "author": repo.repo_id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }

    def _tree(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        commit = self._repo(handler, match["repo"]).resolve(unquote(match["rev"]))
        prefix = unquote(match["path"] or "").strip("/")
        inside = {p: d for p, d in commit.files.items() if not prefix or p.startswith(prefix + "/")}
        if not inside:
            raise _HttpError(404, "EntryNotFound", f"{prefix} does not exist")
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = len(prefix) + 1 if prefix else 0
        entries: dict[str, object] = {}
        for path, data in sorted(inside.items()):
            parts = path[start:].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = path[:start] + "/".join(parts[:depth])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": oid})
            if recursive or len(parts) == 1:
                entries[path] = _file_info(path, data)
        return list(entries.values())

    def _paths_info(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        commit = self._repo(handler, match["repo"]).resolve(unquote(match["rev"]))
        wanted = parse_qs(handler.body.decode()).get("paths", [])
        return [_file_info(path, commit.files[path]) for path in wanted if path in commit.files]

    def _refs(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"])

        def refs(kind: str, named: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in named.items()]

        heads, tags = refs("heads", repo.branches), refs("tags", repo.tags)
        return {"branches": heads, "tags": tags, "converts": [], "pullRequests": []}

    def _commits(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"])
        last = repo.history.index(repo.resolve(unquote(match["rev"])).sha)
        authors = [{"user": repo.repo_id.split("/")[0]}]
        commits = [repo.commits[sha] for sha in reversed(repo.history[: last + 1])]
        return [
            {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": authors}
            for c in commits
        ]

    def _resolve_file(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> None:
        repo = self._repo(handler, match["repo"], content=True)
        commit = repo.resolve(unquote(match["rev"]))
        path = unquote(match["path"])
        if path not in commit.files:
            headers = {"X-Repo-Commit": commit.sha}
            raise _HttpError(404, "EntryNotFound", "Entry not found", headers)
        data = commit.files[path]
        etag = file_etag(path, data)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"{self.storage}/lfs/{etag}/{quote(path)}"
            handler.send_body(302, b"", headers)
        else:
            handler.send_file(data, headers)

    def _storage_file(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> None:
        data = self._lfs.get(match["oid"])
        if data is None:
            raise _HttpError(404, "", "No such object")
        handler.send_file(data, {"ETag": f'"{match["oid"]}"', "Accept-Ranges": "bytes"})

    def _whoami(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        token = self._user(handler)
        if token is None:
            raise _HttpError(401, "", "Invalid username or password.")
        user, write = self._tokens[token]
        role = "write" if write else "read"
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def _auth_check(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        self._repo(handler, match["repo"], content=True)
        return {}

    def _validate_yaml(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        content = str(json.loads(handler.body)["content"])
        if not content.startswith("---\n"):
            # The client turns this into a Python warning, as it does for the real Hub.
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        return {"errors": [], "warnings": []}

    def _create_repo(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        token = self._user(handler)
        if token is None:
            raise _HttpError(401, "", "Invalid username or password.")
        user, write = self._tokens[token]
        if not write:
            raise _HttpError(403, "", "You don't have the rights to create a model.")
        payload = json.loads(handler.body)
        repo_id = f"{payload.get('organization') or user}/{payload['name']}"
        url = f"{self.endpoint}/{repo_id}"
        if repo_id in self._repos:
            handler.send_json(409, {"error": "You already created this model repo", "url": url})
            return None
        private = payload.get("private") is True or payload.get("visibility") == "private"
        repo = self._repos[repo_id] = _Repo(repo_id, private, False, {token})
        repo.commit("main", {".gitattributes": GITATTRIBUTES}, "initial commit")
        return {"url": url, "name": repo_id, "id": repo_id}

    def _delete_repo(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        payload = json.loads(handler.body)
        repo = self._repo(handler, f"{payload['organization']}/{payload['name']}", write=True)
        del self._repos[repo.repo_id]
        return {}

    def _add_ref(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"], write=True)
        payload = json.loads(handler.body or b"{}")
        if match["kind"] == "branch":
            named, name, start = repo.branches, unquote(match["name"]), payload.get("startingPoint", "main")
        else:
            named, name, start = repo.tags, payload["tag"], unquote(match["name"])
        if name in named:
            raise _HttpError(409, "", f"Reference {name} already exists")
        named[name] = repo.resolve(start).sha
        return {}

    def _delete_ref(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"], write=True)
        named = repo.branches if match["kind"] == "branch" else repo.tags
        if named.pop(unquote(match["name"]), None) is None:
            raise _HttpError(404, "RevisionNotFound", f"Invalid rev id: {match['name']}")
        return {}

    def _preupload(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        files = self._repo(handler, match["repo"], write=True).resolve(unquote(match["rev"])).files
        answers = []
        for item in json.loads(handler.body)["files"]:
            path = item["path"]
            mode = "lfs" if is_lfs(path) else "regular"
            oid = file_etag(path, files[path]) if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def _lfs_batch(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        self._repo(handler, match["repo"], write=True)
        objects = []
        for item in json.loads(handler.body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self._lfs:
                answer["actions"] = {"upload": {"href": f"{self.storage}/upload/{item['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _storage_upload(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        if hashlib.sha256(handler.body).hexdigest() != match["oid"]:
            raise _HttpError(400, "", "The bytes do not match the announced SHA-256")
        self._lfs[match["oid"]] = handler.body
        return {}

    def _commit(self, handler: _Handler, match: re.Match[str], query: dict[str, list[str]]) -> object:
        repo = self._repo(handler, match["repo"], write=True)
        branch = unquote(match["rev"])
        if branch not in repo.branches:
            raise _HttpError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(repo.resolve(branch).files)
        title, message = "", ""
        for line in handler.body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                title, message = value["summary"], value.get("description", "")
                if value.get("parentCommit") not in (None, repo.branches[branch]):
                    raise _HttpError(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self._lfs:
                    raise _HttpError(400, "", f"LFS pointer to a missing file: {value['path']}")
                files[value["path"]] = self._lfs[value["oid"]]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise _HttpError(404, "EntryNotFound", "A file with this name doesn't exist")
            elif key == "deletedFolder":
                files = {p: d for p, d in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
            else:
                raise _HttpError(400, "", f"Unknown operation {key}")
        sha = repo.commit(branch, files, title, message)
        url = f"{self.endpoint}/{repo.repo_id}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    def answer(self, handler: _Handler) -> None:
        """Route one request: the first route whose method, host and pattern fit answers it."""
        url = urlsplit(handler.path)
        method = "GET" if handler.command == "HEAD" else handler.command
        for host, route_method, pattern, function in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match is not None and (host, route_method) == (handler.host, method):
                result = function(self, handler, match, parse_qs(url.query))
                if result is not None:
                    handler.send_json(200, result)
                return
        raise _HttpError(404, "", f"No such page: {handler.command} {url.path}")


def _route(
    host: str, method: str, pattern: str, function: Callable[..., object]
) -> tuple[str, str, re.Pattern[str], Callable[..., object]]:
    for name, expression in {"repo": "(?P<repo>[^/]+/[^/]+)", "rev": "(?P<rev>[^/]+)"}.items():
        pattern = pattern.replace(f"<{name}>", expression)
    return host, method, re.compile(pattern), function


_ROUTES = [
    _route("hub", "GET", "/<repo>/resolve/<rev>/(?P<path>.+)", HubServer._resolve_file),
    _route("hub", "GET", "/api/whoami-v2", HubServer._whoami),
    _route("hub", "GET", "/api/models/<repo>(?:/revision/<rev>)?", HubServer._model_info),
    _route("hub", "GET", "/api/models/<repo>/tree/<rev>(?P<path>/.+)?", HubServer._tree),
    _route("hub", "POST", "/api/models/<repo>/paths-info/<rev>", HubServer._paths_info),
    _route("hub", "GET", "/api/models/<repo>/refs", HubServer._refs),
    _route("hub", "GET", "/api/models/<repo>/commits/<rev>", HubServer._commits),
    _route("hub", "GET", "/api/models/<repo>/auth-check", HubServer._auth_check),
    _route("hub", "POST", "/api/models/<repo>/(?P<kind>branch|tag)/(?P<name>.+)", HubServer._add_ref),
    _route("hub", "DELETE", "/api/models/<repo>/(?P<kind>branch|tag)/(?P<name>.+)", HubServer._delete_ref),
    _route("hub", "POST", "/api/validate-yaml", HubServer._validate_yaml),
    _route("hub", "POST", "/api/repos/create", HubServer._create_repo),
    _route("hub", "DELETE", "/api/repos/delete", HubServer._delete_repo),
    _route("hub", "POST", "/api/models/<repo>/preupload/<rev>", HubServer._preupload),
    _route("hub", "POST", r"/<repo>\.git/info/lfs/objects/batch", HubServer._lfs_batch),
    _route("hub", "POST", "/api/models/<repo>/commit/<rev>", HubServer._commit),
    _route("storage", "GET", "/lfs/(?P<oid>[0-9a-f]{64})/.+", HubServer._storage_file),
    _route("storage", "PUT", "/upload/(?P<oid>[0-9a-f]{64})", HubServer._storage_upload),
]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a client may keep its connection for ever; `HubServer.stop` ends them

    def __init__(self, hub: HubServer, host: str) -> None:
        self.hub, self.host = hub, host
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over connections that end early, which here is the point; show any fault of the server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub, self.host, self.body = self.server.hub, self.server.host, b""
        with self.hub._lock:
            self.hub._connections.add(self.connection)

    def finish(self) -> None:
        with self.hub._lock:
            self.hub._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def _serve(self) -> None:
        self.body = self._read_body()
        path = urlsplit(self.path).path
        fault = self.hub._take_fault("status", self.command, path)
        # A request is recorded before it is answered: a test may look as soon as the client has its answer.
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_record = Request(self.command, path, self.host, headers, 0)
        with self.hub._lock:
            self.hub.requests.append(self.request_record)
        try:
            if fault is not None:
                raise _HttpError(fault.status, "", "The server is not well", fault.headers)
            self.hub.answer(self)
        except _HttpError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.send_json(error.status, {"error": error.message}, headers)

    do_HEAD = do_GET = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send_json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_body(status, body, {"Content-Type": "application/json", **(headers or {})})

    def send_file(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Send a file or the range of it that was asked for."""
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Content-Type": "application/octet-stream", **headers}
        if self.hub._take_fault("corrupt", self.command, urlsplit(self.path).path) is not None:
            data = bytes(byte ^ 0xFF for byte in data)
        if requested is None:
            self.send_body(200, data, headers)
            return
        start = int(requested[1])
        end = min(int(requested[2] or len(data) - 1), len(data) - 1)
        if start > end:
            raise _HttpError(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self.send_body(206, data[start : end + 1], headers)

    def send_body(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        drop = self.hub._take_fault("drop", self.command, urlsplit(self.path).path) if body else None
        self.request_record.status = 0 if drop else status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if drop is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: drop.after])
        self.close_connection = True
        if drop.reset:
            # A linger time of zero makes the close a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.wfile.flush()
            self.connection.close()


@pytest.fixture(name="hub")
def hub_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serve an empty Hub and point the client of this process at it, with its cache in `tmp_path / "hf"`."""
    if int(huggingface_hub.__version__.split(".")[0]) < 1:
        pytest.skip("the fixture sets up the client of huggingface_hub 1.0 and newer")
    with HubServer() as server, warnings.catch_warnings():
        # The client's own way to send the body of a large file; nothing a caller could change.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        server.point_client_here(monkeypatch, tmp_path / "hf")
        try:
            yield server
        finally:
            huggingface_hub.close_session()


hub = hub_fixture  # so that a conftest can import it by the name that tests use
