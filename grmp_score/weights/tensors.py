"""Tensors in safetensors files, read when somebody looks at them, and without torch where that is enough."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from grmp_score.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

#: Types that NumPy has too; others are read by torch.
_NUMPY_TYPES = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")


class TensorFile(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file by their names; each is read when it is asked for, and not kept.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a file and checks its header; no tensor is read, and torch is not imported.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        self.path = Path(path)
        with self._opened("np") as file:
            self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with self._opened("pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def load(self) -> dict[str, Tensor]:
        """All tensors.

        Raises:
            WeightsError: the file has been removed or damaged.
        """
        with self._opened("pt") as file:
            return {name: file.get_tensor(name) for name in self._names}

    def as_float32(self, name: str) -> NDArray[np.float32]:
        """One tensor as an array; torch is imported for types alone that NumPy lacks (bfloat16).

        Raises:
            WeightsError: the file has been removed or damaged.
        """
        with self._opened("np") as file:
            if file.get_slice(name).get_dtype() in _NUMPY_TYPES:
                return np.asarray(file.get_tensor(name), dtype=np.float32, order="C")
        return float32_array(self[name])

    @contextlib.contextmanager
    def _opened(self, framework: str) -> Iterator[Any]:
        try:
            with safe_open(os.fspath(self.path), framework=framework) as file:
                yield file
        except FileNotFoundError as error:
            raise WeightsError("the file is missing", path=self.path) from error
        except (SafetensorError, OSError, ValueError) as error:
            if _is_git_lfs_pointer(self.path):
                hint = "Fetch the file itself with: git lfs pull"
                raise WeightsError("a Git LFS pointer and not the weights", path=self.path, hint=hint) from error
            raise WeightsError(f"not a readable safetensors file: {error}", path=self.path) from error


def _is_git_lfs_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(32).startswith(b"version https://git-lfs")
    return False


def float32_array(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor of any dtype on any device as an array: exact for narrower types, rounded for wider ones."""
    return np.asarray(tensor.detach().float().cpu().numpy(), dtype=np.float32, order="C")


def as_float32(tensors: Mapping[str, Tensor], name: str) -> NDArray[np.float32]:
    """One of some tensors, in a file or in memory, as an array.

    Raises:
        WeightsError: the file has been removed or damaged.
    """
    return tensors.as_float32(name) if isinstance(tensors, TensorFile) else float32_array(tensors[name])


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    from safetensors.torch import save_file

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(copies, path, metadata={"format": "pt"})
