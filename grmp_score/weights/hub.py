"""The Hub: fetching weights and sending them, with errors that say what to do."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from grmp_score import __version__
from grmp_score.errors import HubError
from grmp_score.weights.checksum import check_sha256, compare_sha256, sha256_of

_COMMIT = re.compile(r"[0-9a-f]{40}")


def looks_like_repo(source: str) -> bool:
    """Whether a text has the form of a Hub repository id, ``name`` or ``owner/name``."""
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", source) is not None


def fetch_file(
    repo: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    sha256: str | None = None,
) -> Path:
    """One file of a Hub repository, from the local cache or the network, with a progress bar on stderr.

    The client checks a file's length only.  The Hub's entity tag is a checksum of the file; it is verified
    here, and a file that fails is fetched again once.  For a file that is not in the cache the Hub is first asked
    whether it is there: that takes `HF_HUB_ETAG_TIMEOUT` seconds at most (10, where this environment variable is
    not set), while the client would go on for half a minute and more.  The download itself has all its patience.

    Args:
        repo: ``owner/name``.
        filename: file in it.
        revision: branch, tag or commit.
        token: Hub token, or True for the stored one.
        cache_dir: cache folder instead of the client's own.
        local_files_only: never use the network.
        sha256: checksum that the file must have besides; the file is read once for both.

    Raises:
        WeightsError: the file is undamaged, but not the one of ``sha256``.
        HubError: no such repository, revision or file; no permission; not cached while offline; interrupted;
            or damaged twice.
    """
    import huggingface_hub

    def fetch(force: bool) -> Path:
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo,
                    filename,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    force_download=force,
                    library_name="grmp_score",
                    library_version=__version__,
                )
            )
        except Exception as error:
            # huggingface_hub's HTTP client has changed between versions and its network errors share no base
            # class, so everything is caught here and told apart by what it means.
            _explain(error, f"{repo}/{filename}", revision, local_files_only)

    if not (local_files_only or _is_offline()):
        try:
            cached = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir=cache_dir, revision=revision)
            if cached is not None and not isinstance(cached, str) and _COMMIT.fullmatch(revision or ""):
                raise huggingface_hub.errors.EntryNotFoundError("known not to be in this commit")
            if not isinstance(cached, str):
                _reach(huggingface_hub.hf_hub_url(repo, filename, revision=revision), token)
        except Exception as error:
            _explain(error, f"{repo}/{filename}", revision, local_files_only)
    path = fetch(force=False)
    damaged = _is_damaged(path, sha256)
    if damaged and not (local_files_only or _is_offline()):
        path = fetch(force=True)
        damaged = _is_damaged(path, sha256)
    if damaged:
        raise HubError(
            "the downloaded file is damaged: its checksum differs from the Hub's",
            path=path.resolve(),
            hint="Delete this file and try again",
        )
    return path


def _reach(url: str, token: str | bool | None) -> None:
    """Returns when the Hub answers, whatever it says; one that fails at once is tried thrice in three seconds.

    Raises:
        LocalEntryNotFoundError: no answer.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    began, seconds = time.monotonic(), 0.0
    for pause in (1, 2, None):
        try:
            timeout = max(1.0, constants.HF_HUB_ETAG_TIMEOUT - seconds)
            huggingface_hub.get_hf_file_metadata(url, token=token, timeout=timeout)
            return
        except errors.HfHubHTTPError:
            return  # what it says the client will be told again
        except Exception as error:  # the client's network errors have changed between versions
            seconds = time.monotonic() - began
            if pause is None or seconds > 3:
                raise errors.LocalEntryNotFoundError(f"no answer from {url}") from error
            time.sleep(pause)


def commit_of(path: Path) -> str | None:
    """The commit that a file from the top of a repository was fetched at; None where its place does not say."""
    # The cache is models--owner--name/snapshots/COMMIT/file.
    folder = path.parent
    known = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if known else None


def _is_damaged(path: Path, sha256: str | None) -> bool:
    """Whether a file is another than the Hub's; the file is hashed once.

    Raises:
        WeightsError: it is the Hub's, but not the one of ``sha256``.
    """
    # In the cache the file is a link to a blob that is named by the entity tag: the SHA-256 of large files,
    # git's blob id of small ones.
    tag = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", tag):
        got = sha256_of(path)
        if got != tag:
            return True
        if sha256 is not None:
            compare_sha256(path, got, sha256)
        return False
    if _COMMIT.fullmatch(tag):
        data = path.read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != tag:
            return True
    check_sha256(path, sha256)
    return False


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool,
    token: str | bool | None,
    revision: str | None,
    files: Sequence[str],
) -> str:
    """Uploads files of a weights folder as one commit, creating the repository if needed; returns its URL."""
    import huggingface_hub

    api = huggingface_hub.HfApi(token=token, library_name="grmp_score", library_version=__version__)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            allow_patterns=list(files),
            commit_message="Upload grmp_score weights",
        )
    except Exception as error:
        _explain(error, repo, revision, False)
    return str(commit.commit_url)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)  # the client reads the environment once, when it is imported


def _explain(error: Exception, what: str, revision: str | None, local_only: bool) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        reason, hint = "access to this repository must be requested on the Hub", "Then log in: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "no such repository on the Hub, or it is private"
        hint = "Check the name; for a private repository log in with: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason, hint = f"the repository has no revision {revision!r}", "Check the branch, tag or commit"
    elif isinstance(error, errors.LocalEntryNotFoundError) or type(error).__name__ == "OfflineModeIsEnabled":
        if local_only or _is_offline():
            reason = "not in the local cache, and offline mode is on"
            hint = "Fetch it once while online (without HF_HUB_OFFLINE and local_files_only), or give a folder"
        else:
            reason = "not in the local cache, and the Hub cannot be reached"
            hint = "Check the network and try again, or give a local folder; the bundled model needs no network"
    elif isinstance(error, errors.EntryNotFoundError):
        reason, hint = "the repository has no such file", "Is it a grmp_score repository?"
    elif isinstance(error, errors.HFValidationError):
        reason, hint = f"not a valid repository name: {error}", "Expected 'owner/name' or a local folder"
    elif getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        reason, hint = "the Hub refuses the token, or needs one", "Log in with: hf auth login"
    else:
        reason = f"the transfer failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        hint = "Try again: a download continues where it stopped"
    raise HubError(reason, path=what, hint=hint) from error
