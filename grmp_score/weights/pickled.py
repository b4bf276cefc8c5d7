"""A pickled PyTorch checkpoint of any form -> its tensors by name; nothing that is in it is executed.

Understood are a ``state_dict``, one inside of a training checkpoint (next to optimizer, epoch, scores ...), and a
whole model saved by ``torch.save(model)``, with the prefixes that wrappers leave on the names.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from grmp_score.errors import WeightsError

#: Entries of a training checkpoint that hold the weights, by how often they are called so.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "module")

#: What wrappers put before all names: `DataParallel` (once for every wrapping) and `torch.compile`.
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")

#: All that a pickle may call, besides torch's dtypes: what torch and NumPy build tensors and numbers with.
#: Everything else becomes a `_Foreign`, which does nothing.
_ALLOWED = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.([A-Z]\w*Storage|Size|device)|torch\.storage\.[A-Z]\w*Storage"
    r"|collections\.OrderedDict"
    r"|numpy\.(_core|core)\.multiarray\.scalar|numpy\.dtype|numpy\.dtypes\.[A-Z]\w*|_codecs\.encode"
)


class _Foreign:
    """Stands for an object of a class that is not known: it keeps its state, and runs nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *_: object, **__: object) -> _Foreign:
        return _Foreign()

    def __setitem__(self, *_: object) -> None:
        """Items of foreign mappings are dropped."""

    def append(self, _: object) -> None:
        """Items of foreign lists are dropped."""

    extend = add = append


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or _ALLOWED.fullmatch(f"{module}.{name}"):
            return super().find_class(module, name)
        return type(name, (_Foreign,), {"__module__": module})


def read_pickled(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint, float32, prefixes taken off; and what form it has, in words.

    Raises:
        WeightsError: the file is missing or damaged, is something else, or holds no tensors by name.
    """
    content = _load(path)
    tensors, form = _tensors_of(content, path)
    prefixes = {match[0] for match in map(_PREFIX.match, tensors) if match}
    names = {_PREFIX.sub("", name): tensor for name, tensor in tensors.items()}
    if prefixes:
        form += f", names with the prefix {' and '.join(map(repr, sorted(prefixes)))}"
    return {name: tensor.detach().to(torch.float32) for name, tensor in names.items()}, form


def _load(path: Path) -> object:
    _refuse_other_files(path)
    # torch asks a "pickle module" for its unpickler.
    module = SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=_load_all)
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=module)
    except Exception as error:
        # torch reports damaged archives as RuntimeError, OSError, EOFError, KeyError, ValueError ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"not a readable checkpoint: {reason}", path=path) from error


def _load_all(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


def _refuse_other_files(path: Path) -> None:
    """Files that are called like checkpoints, or given for one, and are something else."""
    try:
        with open(path, "rb") as file:
            head = file.read(128)
    except FileNotFoundError as error:
        raise WeightsError("no such file", path=path) from error
    except OSError as error:
        raise WeightsError(f"cannot read it: {error.strerror or error}", path=path) from error
    if head.startswith(b"MATLAB") or (head.startswith(b"\x89HDF") and path.suffix.lower() == ".mat"):
        raise WeightsError(
            "a MATLAB file (.mat), which holds data and no weights of a network",
            path=path,
            hint="Give the .pt file of the model",
        )
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        raise WeightsError("a safetensors file, not a pickled checkpoint", path=path)


def _tensors_of(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    if isinstance(content, _Foreign):
        tensors = _parameters(content)
        if tensors:
            return tensors, f"a whole model ({type(content).__module__}.{type(content).__name__})"
        raise _no_tensors(f"an object of the class {type(content).__module__}.{type(content).__name__}", path)
    if not isinstance(content, Mapping):
        raise _no_tensors(f"an object of the type {type(content).__name__}", path)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        rest = [str(name) for name in content if str(name) not in tensors]
        return tensors, "a state_dict" + (f" with other entries ({_some(rest)})" if rest else "")
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, (Mapping, _Foreign)):
            tensors, form = _tensors_of(inner, path)
            return tensors, f"{form} in {wrapper!r}"
    raise _no_tensors(f"a mapping of {_some([str(name) for name in content]) or 'nothing'}", path)


def _parameters(module: _Foreign) -> dict[str, Tensor]:
    """Parameters and buffers of a pickled `torch.nn.Module`, by their names in its ``state_dict``."""
    state = module.state if isinstance(module.state, Mapping) else {}
    tensors: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        entries = state.get(kind)
        if isinstance(entries, Mapping):
            tensors |= {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    children = state.get("_modules")
    if isinstance(children, Mapping):
        for name, child in children.items():
            if isinstance(child, _Foreign):
                tensors |= {f"{name}.{inner}": value for inner, value in _parameters(child).items()}
    return tensors


def _no_tensors(what: str, path: Path) -> WeightsError:
    return WeightsError(
        f"not a state_dict: expected a mapping of names to tensors, found {what}",
        path=path,
        hint="Save it again where it was made: torch.save(model.state_dict(), 'model.pt')",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
