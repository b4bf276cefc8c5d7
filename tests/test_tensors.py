"""Files of tensors: read late, without torch where NumPy has the type, and read again when it is asked for."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from grmp_score.config import ModelConfig
from grmp_score.errors import WeightsError
from grmp_score.weights import Weights, load
from grmp_score.weights.checksum import model_checksum
from grmp_score.weights.tensors import TensorFile

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
]


def examples(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of several shapes: scalar, empty, transposed; and the smallest and largest numbers of the type."""
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    tensors = {"many": values, "scalar": values[0, 0], "empty": values[:0], "turned": values.T.contiguous()}
    if dtype.is_floating_point and dtype.itemsize > 1:
        limits = torch.finfo(dtype)
        tensors["edge"] = torch.tensor([limits.max, -limits.max, limits.tiny, limits.tiny / 2, 0.0, -0.0])
    elif dtype == torch.int64:  # beyond what float32 holds exactly, so that rounding shows
        return {"edge": torch.tensor([2**24 + 1, 2**24 + 3, -(2**53) - 1, 2**62 + 2**37 + 1])}
    return {
        name: (v.abs() if dtype in (torch.uint8, torch.uint16) else v).to(dtype, copy=True)
        for name, v in tensors.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_file_has_the_checksum_of_its_tensors(
    tiny_config: ModelConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    """For every type, in memory or in a file; and one changed number changes it."""
    tensors = examples(dtype)
    save_file(tensors, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    expected = model_checksum(tiny_config, {}, tensors)
    assert model_checksum(tiny_config, {}, file) == expected
    assert model_checksum(tiny_config, {}, dict(file)) == expected
    name = next(n for n in tensors if tensors[n].numel())
    other = {**tensors, name: torch.zeros_like(tensors[name])}
    save_file(other, tmp_path / "y.safetensors")
    assert model_checksum(tiny_config, {}, TensorFile(tmp_path / "y.safetensors")) != expected


def test_a_checksum_is_what_it_has_always_been(tiny_config: ModelConfig) -> None:
    """Recorded: it changes with the entries of the configuration alone; caches of earlier versions stay valid."""
    tensors = {
        "b": torch.arange(6, dtype=torch.float16).reshape(2, 3) / 7,
        "a": torch.tensor(2.5),
        "c": torch.zeros(0, 3),
    }
    assert model_checksum(tiny_config, {}, tensors) == "e1d43596122a1fa5"


def test_a_mapping_of_tensors(tmp_path: Path) -> None:
    """Names are known without reading; the tensors are those of the file."""
    tensors = examples(torch.float16)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    file = TensorFile(str(path))
    assert set(file) == set(tensors) and len(file) == len(tensors)
    assert torch.equal(file["many"], tensors["many"])
    with pytest.raises(KeyError):
        _ = file["none"]
    assert {name: value.tolist() for name, value in file.load().items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    copied = pickle.loads(pickle.dumps(file))
    assert torch.equal(copied["many"], tensors["many"])
    assert np.array_equal(file.as_float32("many"), tensors["many"].float().numpy())


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    """Tensors are read when they are asked for, and then the file must be there."""
    path = tmp_path / "x.safetensors"
    save_file(examples(torch.float16), path)
    file = TensorFile(path)
    path.unlink()
    for use in (file.load, lambda: file["many"], lambda: file.as_float32("many")):
        with pytest.raises(WeightsError, match="the file is missing") as caught:
            use()
        assert caught.value.path == str(path)


def test_weights_saved_where_they_came_from(tiny_weights: Weights, tmp_path: Path) -> None:
    """The folder stays what it is, and the weights can still be used: checksum, model, another copy."""
    folder = tiny_weights.save(tmp_path / "w")
    weights, expected = load(folder), tiny_weights.checksum()
    weights.save(folder)
    weights.save(folder)
    weights.save(tmp_path / "copy")
    weights.build()
    assert {weights.checksum(), load(folder).checksum(), load(tmp_path / "copy").checksum()} == {expected}


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path: Path) -> None:
    """A clone without Git LFS has these in the place of large files."""
    path = tmp_path / "adapter.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(WeightsError, match=r"a Git LFS pointer.*git lfs pull"):
        TensorFile(path)
