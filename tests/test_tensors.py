"""Files of tensors: read late, without torch where NumPy has the type, and never something else than was opened."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from grmp_score.config import ModelConfig
from grmp_score.errors import WeightsError
from grmp_score.weights.checksum import model_checksum
from grmp_score.weights.folder import ADAPTER, BACKBONE, Weights, load
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
    expected = model_checksum(tiny_config, tensors)
    assert model_checksum(tiny_config, file.stored()) == expected and not file.kept
    assert model_checksum(tiny_config, dict(file)) == expected and file.kept
    name = next(n for n in tensors if tensors[n].numel())
    other = {**tensors, name: torch.zeros_like(tensors[name])}
    save_file(other, tmp_path / "y.safetensors")
    assert model_checksum(tiny_config, TensorFile(tmp_path / "y.safetensors").stored()) != expected


def test_a_checksum_is_what_it_has_always_been(tiny_config: ModelConfig) -> None:
    """Recorded: it changes with the entries of the configuration alone; caches of earlier versions stay valid."""
    tensors = {
        "b": torch.arange(6, dtype=torch.float16).reshape(2, 3) / 7,
        "a": torch.tensor(2.5),
        "c": torch.zeros(0, 3),
    }
    assert model_checksum(tiny_config, tensors) == "e1d43596122a1fa5"


def test_a_mapping_of_tensors(tmp_path: Path) -> None:
    """Names are known without reading; the tensors are those of the file, and are read once."""
    tensors = examples(torch.float16)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    file = TensorFile(str(path))
    assert set(file) == set(tensors) and len(file) == len(tensors) and not file.kept
    assert file["many"] is file["many"] and torch.equal(file["many"], tensors["many"])
    with pytest.raises(KeyError):
        _ = file["none"]
    assert file.load()["many"] is not file["many"]
    copied = pickle.loads(pickle.dumps(file))
    assert torch.equal(copied["many"], tensors["many"])
    array = file.stored()["many"].read()
    assert isinstance(array, np.ndarray) and array.dtype == np.float16


@pytest.mark.parametrize("how", ["replaced", "rewritten", "removed"])
def test_a_file_that_changes_is_refused(tmp_path: Path, how: str) -> None:
    """What was opened as one set of tensors is never read as another; what has been kept stays."""
    path = tmp_path / "x.safetensors"
    save_file(examples(torch.float16), path)
    os.utime(path, (1, 1))
    kept, file = TensorFile(path), TensorFile(path)
    before = kept["many"].clone()
    if how == "replaced":
        save_file({"many": torch.zeros(6, 4, dtype=torch.float16)}, tmp_path / "new")
        os.utime(tmp_path / "new", (1, 1))
        os.replace(tmp_path / "new", path)
    elif how == "rewritten":
        path.write_bytes(path.read_bytes())
    else:
        path.unlink()
    message = "the file is missing" if how == "removed" else "has been replaced since it was opened"
    for use in (
        file.load,
        lambda: file["many"],
        lambda: file.read("many"),
        lambda: file.copy_to(tmp_path / "copy"),
        file.check,
    ):
        with pytest.raises(WeightsError, match=message) as caught:
            use()
        assert caught.value.path == str(path)
    assert not (tmp_path / "copy").exists()
    assert torch.equal(kept["many"], before)


def test_weights_saved_where_they_came_from(tiny_weights: Weights, tmp_path: Path) -> None:
    """The folder stays what it is, and the weights can still be used: checksum, model, another copy."""
    folder = tiny_weights.save(tmp_path / "w")
    weights, expected = load(folder), tiny_weights.checksum()
    weights.save(folder)
    weights.save(folder)
    weights.save(tmp_path / "copy")
    weights.build()
    assert {weights.checksum(), load(folder).checksum(), load(tmp_path / "copy").checksum()} == {expected}


@pytest.mark.parametrize("name", [ADAPTER, BACKBONE])
def test_weights_replaced_by_others(tiny_weights: Weights, tmp_path: Path, name: str) -> None:
    """The checksum of files that were replaced is not given, nor are they mixed into a model or a copy."""
    folder = tiny_weights.save(tmp_path / "w")
    weights = load(folder)
    shutil.copyfile(folder / name, tmp_path / "copy")
    os.replace(tmp_path / "copy", folder / name)
    for use in (
        weights.checksum,
        weights.build,
        lambda: weights.save(tmp_path / "copy"),
        lambda: weights.save(folder),
    ):
        with pytest.raises(WeightsError, match="has been replaced"):
            use()
