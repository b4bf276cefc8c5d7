"""Weights as files: a folder that equals a Hub repository.

``config.json`` (everything that is not a tensor), ``adapter.safetensors`` (only what was trained, any dtype),
``backbone.safetensors`` (stand-alone models; others name a Hub file with its checksum) and ``README.md`` (the
model card).  Loading is strict: every tensor must be expected, present and of the right shape.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError

from grmp_score.config import Backbone, ModelConfig, Preprocess
from grmp_score.errors import HubError, WeightsError
from grmp_score.files import replacing
from grmp_score.weights import hub
from grmp_score.weights.checksum import check_sha256, model_checksum, sha256_of
from grmp_score.weights.tensors import TensorFile, as_float32, write_tensors

if TYPE_CHECKING:  # what is known without a model takes milliseconds; torch takes seconds
    import torch
    from torch import Tensor

    from grmp_score.model.graph import Graph
    from grmp_score.model.quality_clip import QualityCLIP

CONFIG, ADAPTER, BACKBONE, CARD = "config.json", "adapter.safetensors", "backbone.safetensors", "README.md"

#: Where the weights that come with the package lie, one folder per name.
BUNDLED = Path(__file__).parents[1] / "bundled"
DEFAULT_MODEL = "mini"


@dataclass(frozen=True)
class Weights:
    """A configuration with its tensors, not yet a model.

    Attributes:
        config: contents of ``config.json``.
        adapter: trained tensors by their name in `QualityCLIP`.
        backbone: base weights by their name in open_clip.  Like the adapter's, those of a file are a `TensorFile`:
            nothing is read before it is needed.
        card: text of the model card.
        origin: folder, repository or file they came from, for messages.
    """

    config: ModelConfig
    adapter: Mapping[str, Tensor]
    backbone: Mapping[str, Tensor]
    card: str = ""
    origin: str = ""

    def backbone_state(self) -> dict[str, Tensor]:
        """The base weights by their open_clip names."""
        # Not kept: they are large, and a model has a copy of them.
        return self.backbone.load() if isinstance(self.backbone, TensorFile) else dict(self.backbone)

    def checksum(self) -> str:
        """The `model_checksum` of these weights.

        Raises:
            WeightsError: a file has been removed or damaged.
        """
        return model_checksum(self.config, self.backbone, self.adapter)

    def build(self) -> QualityCLIP:
        """Makes the model in float32 on the CPU, in eval mode.

        Raises:
            WeightsError: tensors are unknown, missing or of the wrong shape.
        """
        import torch

        from grmp_score.model.quality_clip import QualityCLIP

        model = QualityCLIP(self.config).float()  # whatever torch's default type is
        expected = model.state_dict()
        state = {f"clip.{name}": tensor for name, tensor in self.backbone_state().items()}
        state.update(self.adapter)
        unknown = sorted(set(state) - set(expected))
        missing = sorted(set(expected) - set(state))
        misshapen = [
            f"{k} (expected {list(expected[k].shape)}, got {list(state[k].shape)})"
            for k in sorted(set(state) & set(expected))
            if state[k].shape != expected[k].shape
        ]
        problems = [
            f"{what} tensors: {_some(names)}"
            for what, names in (("unknown", unknown), ("missing", missing), ("mis-shaped", misshapen))
            if names
        ]
        if problems:
            raise WeightsError("; ".join(problems), path=self.origin or None)
        model.load_state_dict({k: v.to(torch.float32) for k, v in state.items()})
        return model.eval()

    def graph(self, precision: Literal["float32", "int8"] = "float32", *, portable: bool = False) -> Graph:
        """The model as an ONNX graph, made without torch; see `scoring_graph`.

        Raises:
            ConfigError: the configuration is not that of two native transformers.
            WeightsError: tensors of the image tower are unknown, missing or of the wrong shape.
        """
        from grmp_score.model.graph import scoring_graph

        tensors = {f"clip.{name}": partial(as_float32, self.backbone, name) for name in self.backbone}
        tensors |= {name: partial(as_float32, self.adapter, name) for name in self.adapter}
        return scoring_graph(
            self.config, tensors, precision=precision, portable=portable, origin=self.origin or None
        )

    def export(self, path: str | Path) -> None:
        """Writes an ONNX file that needs nothing else: see `grmp-score export`.

        Raises:
            ConfigError, WeightsError: as for `graph`.
            OSError: the file cannot be written.
        """
        from onnx import helper

        model = self.graph(portable=True).self_contained()
        model.doc_string = f"p(high quality) of normalised patches by {self.config.name}, made by grmp_score"
        classes = dict(
            zip(self.config.prompts.classes, as_float32(self.adapter, "text_features").tolist(), strict=True)
        )
        described = {
            "name": self.config.name,
            "checksum": self.checksum(),
            "preprocess": dataclasses.asdict(self.config.preprocess),
            "label_scale": self.config.label_scale and dataclasses.asdict(self.config.label_scale),
            "text_features": classes,
        }
        helper.set_model_props(model, {key: json.dumps(value) for key, value in described.items()})
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(model.SerializeToString())

    def save(self, folder: str | Path) -> Path:
        """Writes the folder; each file appears complete or not at all, ``config.json`` last."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config
            if not isinstance(self.backbone, TensorFile) or config.backbone.repo is None:
                _save(self.backbone, folder / BACKBONE)
                local = dataclasses.replace(
                    config.backbone,
                    repo=None,
                    filename=None,
                    revision=None,
                    sha256=sha256_of(folder / BACKBONE),
                )
                config = dataclasses.replace(config, backbone=local)
            _save(dict(self.adapter), folder / ADAPTER)
            for name, text in ((CARD, self.card), (CONFIG, config.to_json())):
                with replacing(folder / name) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WeightsError(f"cannot write weights: {reason}", path=folder) from error
        return folder

    def push(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Uploads the folder as a Hub repository and returns the URL of the commit."""
        with tempfile.TemporaryDirectory() as name:
            folder = self.save(name)
            # An empty model card would only make the Hub complain.
            files = sorted(path.name for path in folder.iterdir() if path.stat().st_size)
            return hub.push_folder(folder, repo, private=private, token=token, revision=revision, files=files)


def _save(tensors: Mapping[str, Tensor], target: Path) -> None:
    if not isinstance(tensors, TensorFile):
        with replacing(target) as temporary:
            write_tensors(tensors, temporary)
    elif not (target.exists() and target.samefile(tensors.path)):
        with replacing(target) as temporary:
            shutil.copyfile(tensors.path, temporary)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Weights:
    """Finds and opens weights.

    Configuration, checksums and the headers of the files are checked.  The tensors are read when they are needed;
    whether they are those that the configuration asks for is known when the model is built.

    Args:
        source: a folder, the name of a bundled model, a Hub repository id, or None for the bundled default.
            An existing folder wins over a bundled name, which wins over a repository.  Or ``NAME:TAG`` of
            open_clip, with the texts of CLIP-IQA (see `zero_shot.with_prompts`).
        filename: an official ``*.pt`` checkpoint in that folder or repository; it is converted in memory.
        revision: branch, tag or commit of the repository.  All files are of the commit that it stands for when
            the first is asked for, whatever is pushed meanwhile.
        token: Hub token, or True for the stored one.
        cache_dir: cache folder instead of the Hub client's own.
        local_files_only: never use the network.

    Raises:
        HubError: the repository or a file of it cannot be had.
        WeightsError: the folder is incomplete or damaged.
        ConfigError: ``config.json`` is not as expected.
    """
    name = os.fspath(source) if source is not None else DEFAULT_MODEL
    fetch = partial(hub.fetch_file, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    if filename is not None:
        from grmp_score.weights.official import load_official

        return load_official(
            _checkpoint(name, filename, partial(fetch, revision=revision)), name=f"{name}/{filename}"
        )
    if _is_open_clip(name):
        from grmp_score.weights.zero_shot import with_prompts

        return with_prompts(_open_clip_base(name, partial(fetch, revision=revision)))
    folder = _local_folder(source)
    if folder is None:
        config_file = fetch(name, CONFIG, revision=revision)
        # The other files are those of the same commit.
        file = partial(fetch, name, revision=hub.commit_of(config_file) or revision)
    else:
        file = partial(_file_in, folder)
        config_file = file(CONFIG)
    config = ModelConfig.from_json(_read_text(config_file), path=str(config_file))
    base = config.backbone
    if base.repo is None:
        backbone_file = file(BACKBONE, sha256=base.sha256)
    else:
        backbone_file = fetch(
            base.repo, base.filename or OPEN_CLIP_FILE, revision=base.revision, sha256=base.sha256
        )
    try:
        card = _read_text(file(CARD))
    except (WeightsError, HubError):
        card = ""  # a card is for people; weights work without one
    return Weights(config, TensorFile(file(ADAPTER)), TensorFile(backbone_file), card, origin=name)


def _local_folder(source: str | os.PathLike[str] | None) -> Path | None:
    """The folder on this disk that a source names; None for a Hub repository."""
    if source is None:
        folder = BUNDLED / DEFAULT_MODEL
        if not folder.is_dir():
            raise WeightsError("the bundled model is missing", path=folder, hint="Install grmp_score again")
        return folder
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise WeightsError(
            "is a file, not a weights folder",
            path=folder,
            hint="An official .pt checkpoint must be converted first",
        )
    if (BUNDLED / folder / CONFIG).is_file():
        return BUNDLED / folder
    if not hub.looks_like_repo(os.fspath(source)):
        raise WeightsError("no such folder, and not the form of a Hub repository id (owner/name)", path=folder)
    return None


def _file_in(folder: Path, filename: str, *, sha256: str | None = None) -> Path:
    """A file of a weights folder, with the checksum that it must have."""
    path = folder / filename
    if not path.is_file():
        raise WeightsError(f"not a weights folder: {filename} is missing", path=folder)
    check_sha256(path, sha256)
    return path


def _checkpoint(source: str, filename: str, fetch: Callable[[str, str], Path]) -> Path:
    """An official checkpoint in a folder or a Hub repository."""
    if Path(source).is_dir():
        return Path(source) / filename
    if hub.looks_like_repo(source):
        return fetch(source, filename)
    raise WeightsError("no such folder, and not the form of a Hub repository id", path=source)


#: File with the base weights in open_clip's own Hub repositories.
OPEN_CLIP_FILE = "open_clip_model.safetensors"


def load_base(source: str | None = None) -> Weights:
    """A backbone to train on: that of any weights (see `load`; None for the bundled default), or ``NAME:TAG`` of
    open_clip, e.g. ``"ViT-B-16-quickgelu:openai"``, fetched from the Hub with its checksum recorded.

    Raises:
        HubError, WeightsError, ConfigError: as for `load`.
    """
    if source is None or not _is_open_clip(source):
        return load(source)
    return _open_clip_base(source, hub.fetch_file)


def _is_open_clip(source: str) -> bool:
    """Whether a text has the form ``NAME:TAG`` and names nothing on this disk."""
    return re.fullmatch(r"[\w.-]{2,}:[\w.-]+", source) is not None and not Path(source).exists()


def _open_clip_base(source: str, fetch: Callable[[str, str], Path]) -> Weights:
    """Weights without prompts; patches are as large as the images that the tower was trained on."""
    from grmp_score.model.clip import architecture, pretrained_repo

    name, _, tag = source.partition(":")
    repo, model_cfg = pretrained_repo(name, tag), architecture(name)
    file = fetch(repo, OPEN_CLIP_FILE)
    base = Backbone(model_cfg=model_cfg, name=source, repo=repo, filename=OPEN_CLIP_FILE, sha256=sha256_of(file))
    size = model_cfg["vision_cfg"].get("image_size", 224)
    config = ModelConfig(name=source, backbone=base, preprocess=Preprocess(patch_size=size))
    return Weights(config, {}, TensorFile(file), origin=source)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"cannot read it: {error}", path=path) from error


def adapter_of(model: QualityCLIP, names: list[str], *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of ``adapter.safetensors``: prompts, stored text features, and the named parameters.

    Args:
        model: its `refresh_text` must have been called after the last change.
        names: further parameters of `QualityCLIP` that were trained.
        dtype: of the large tensors, None for float16; text features and prompts stay float32.
    """
    import torch

    dtype = torch.float16 if dtype is None else dtype
    state = model.state_dict()
    small = [k for k in state if not k.startswith("clip.")]
    return {k: state[k].float() for k in small} | {k: state[k].to(dtype) for k in names}
