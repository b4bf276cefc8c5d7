"""Tensors in safetensors files, read when somebody looks at them, and without torch where that is enough."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from grmp_score.errors import WeightsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

#: Types that NumPy has too; others are read by torch.
_NUMPY_TYPES = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")


class _State(NamedTuple):
    """What tells a file from another one of that name."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _State:
        status = path.stat()
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class TensorFile(Mapping[str, "Tensor"]):
    """The tensors of a safetensors file.

    As a mapping it reads the file on first use and keeps the tensors; `load` does not keep them.  What it gives is
    always what the file held when it was opened: one that was replaced since is refused.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a file and checks its header; no tensor is read, and torch is not imported.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        self.path = Path(path)
        with _as_weights_error(self.path):
            self._state = _State.of(self.path)
            with _open(self.path, "np") as file:
                self._names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def load(self) -> dict[str, Tensor]:
        """All tensors, read anew.

        Raises:
            WeightsError: the file has been replaced, removed or damaged.
        """
        from safetensors.torch import load_file

        self.check()
        with _as_weights_error(self.path):
            return load_file(self.path)

    def stored(self) -> dict[str, Stored]:
        """All tensors, left in the file."""
        return {name: Stored(self, name) for name in self._names}

    def check(self) -> None:
        """Whether the file is still the one that was opened.

        Raises:
            WeightsError: it has been replaced or removed.
        """
        with _as_weights_error(self.path):
            same = _State.of(self.path) == self._state
        if not same:
            raise WeightsError(
                "the file has been replaced since it was opened",
                path=self.path,
                hint="Open the weights again",
            )

    def copy_to(self, target: Path) -> None:
        """Copies the file.

        Raises:
            OSError: the copy cannot be written.
            WeightsError: the file has been replaced or removed.
        """
        self.check()
        shutil.copyfile(self.path, target)

    @property
    def kept(self) -> bool:
        """Whether the tensors have been read and kept."""
        return "_kept" in self.__dict__

    def read(self, name: str) -> NDArray[Any] | Tensor:
        """One tensor: an array, or a tensor of a type that NumPy lacks.

        Raises:
            WeightsError: the file has been replaced, removed or damaged.
        """
        self.check()
        with _as_weights_error(self.path):
            with _open(self.path, "np") as file:
                if file.get_slice(name).get_dtype() in _NUMPY_TYPES:
                    return file.get_tensor(name)  # type: ignore[no-any-return]
            with _open(self.path, "pt") as file:
                return file.get_tensor(name)  # type: ignore[no-any-return]

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        return self.load()


@dataclass(frozen=True)
class Stored:
    """One tensor that stays in its file until it is looked at."""

    file: TensorFile
    name: str

    def read(self) -> NDArray[Any] | Tensor:
        """Its values, as `TensorFile.read` gives them."""
        return self.file.read(self.name)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    from safetensors.torch import save_file

    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        path,
        metadata={"format": "pt"},
    )


def _open(path: Path, framework: str) -> Any:
    return safe_open(os.fspath(path), framework=framework)


@contextlib.contextmanager
def _as_weights_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise WeightsError("the file is missing", path=path) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"not a readable safetensors file: {error}", path=path) from error
