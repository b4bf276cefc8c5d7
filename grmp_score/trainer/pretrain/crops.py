"""Training crops: fixed crops of every labelled image, cut once, in one memory-mapped file.

Distorting, labelling and decoding cost more than a training step, so they are done once per data set.  The folder
holds ``crops.npy`` (uint8 [N, K, S, S, 3]), ``labels.npy`` (float64 [N]; NaN: not done yet) and ``items.csv``; and,
where whole images are squeezed into a square, ``larger.npy`` (uint8 [N, S', S', 3]), from which crops are taken in
training. Cutting is resumable: a reference is done when all its labels are known.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grmp_score.errors import DataError
from grmp_score.images.read import read_image
from grmp_score.trainer.data.quality_labels import MIN_SIDE, full_reference_scores, rank_labels
from grmp_score.trainer.data.sources import CLEAN, Item, by_reference, distorted_version

#: Ranges of the scale at which each crop of an image is cut: full size, three quarters, half.  Quality shows at
#: all of them, and a model that has seen all three can look at an image at any.
SCALES = ((1.0, 1.0), (0.65, 0.85), (0.45, 0.6))

#: How images are cut: see `PretrainConfig.views`.
Views = Literal["scales", "squeezed"]


@dataclass(frozen=True)
class TrainingCrops:
    """Labelled crops of a data set.

    Attributes:
        items: N labelled items.
        labels: [N] float64 in 0..1, higher is better.
        pixels: [N, K, S, S, 3] uint8, K crops of every item, or K = 1 and the whole image squeezed; memory-mapped.
        larger: [N, S', S', 3] uint8, the whole image squeezed to S' = 8/7 S; None where there are crops.
    """

    items: list[Item]
    labels: NDArray[np.float64]
    pixels: NDArray[np.uint8]
    larger: NDArray[np.uint8] | None = None

    @property
    def views(self) -> Views:
        """How they were cut."""
        return "scales" if self.larger is None else "squeezed"

    def random_views(self, indices: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
        """A random view [B, S, S, 3] of each of B items: one of the K crops, or a crop of the larger image."""
        if self.larger is None:
            return np.array(self.pixels[indices, rng.integers(0, self.pixels.shape[1], size=len(indices))])
        size = self.pixels.shape[2]
        places = rng.integers(0, self.larger.shape[1] - size + 1, size=(len(indices), 2))  # [B, 2]
        return np.stack(
            [self.larger[i, y : y + size, x : x + size] for i, (y, x) in zip(indices, places, strict=True)]
        )

    def tasks(self, groups: Sequence[str] = ()) -> list[str]:
        """Names of the distortion tasks, in order of appearance, without the clean references.

        Args:
            groups: families to choose from; all when empty.

        Raises:
            DataError: a family is not in the data.
        """
        known = {i.group for i in self.items if i.group != CLEAN}
        unknown = sorted(set(groups) - known)
        if unknown:
            raise DataError(f"no images of the groups {unknown}; there are {sorted(known)}")
        wanted = set(groups) or known
        return list(dict.fromkeys(i.task for i in self.items if i.group in wanted))

    def references(self) -> list[str]:
        """Names of the references, data set first."""
        return list(by_reference(self.items))

    def indices(self, references: Sequence[str], task: str | None = None) -> NDArray[np.int64]:
        """Indices of the items of some references: of all tasks, or of one task and the clean references."""
        names = set(references)
        tasks = None if task is None else {task, f"{task.split('/')[0]}/{CLEAN}"}
        chosen = [
            i
            for i, item in enumerate(self.items)
            if item.full_reference in names and (tasks is None or item.task in tasks)
        ]
        return np.array(chosen, dtype=np.int64)


def cut_crops(
    items: Sequence[Item],
    folder: str | Path,
    *,
    patch_size: int = 224,
    views: Views = "scales",
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingCrops:
    """Cuts and labels all items into a folder, or continues an earlier run.

    Args:
        items: from one or several of the functions in `grmp_score.trainer.data.sources`.
        folder: where to keep the result (about 150 KB per crop of 224).
        patch_size: side of the crops.
        views: how images are cut: see `PretrainConfig.views`.
        jobs: processes.
        progress: called with (references done, references in all).

    Raises:
        DataError: the folder holds another data set, or a clean photo is too small.
        ImageReadError: an image cannot be read.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[i.task, i.group, str(i.level), i.reference, str(i.path)] for i in items]
    description = {
        "patch_size": patch_size,
        "scales": [list(s) for s in SCALES] if views == "scales" else views,
        "items": zlib.crc32(json.dumps(rows).encode()),
    }
    described = folder / "prepared.json"
    if described.is_file():
        if json.loads(described.read_text(encoding="utf-8")) != description:
            raise DataError("holds other prepared data", path=folder, hint="Choose another folder or delete it")
    else:
        shape = (len(items), len(SCALES) if views == "scales" else 1, patch_size, patch_size, 3)
        np.lib.format.open_memmap(folder / "crops.npy", mode="w+", dtype=np.uint8, shape=shape)
        if views == "squeezed":
            square = (len(items), _larger(patch_size), _larger(patch_size), 3)
            np.lib.format.open_memmap(folder / "larger.npy", mode="w+", dtype=np.uint8, shape=square)
        np.save(folder / "labels.npy", np.full(len(items), np.nan))
        with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["task", "group", "level", "reference", "path"], *rows])
        described.write_text(json.dumps(description), encoding="utf-8")
    labels = np.load(folder / "labels.npy", mmap_mode="r+")
    groups = by_reference(items)
    unfinished = [index for index in groups.values() if np.isnan(labels[index]).any()]
    done = len(groups) - len(unfinished)
    work = [(folder, index, [items[i] for i in index], patch_size, views) for index in unfinished]
    for index, values in _run(work, jobs):
        labels[index] = values
        labels.flush()
        done += 1
        if progress is not None:
            progress(done, len(groups))
    return load_crops(folder)


def load_crops(folder: str | Path) -> TrainingCrops:
    """Opens a folder that `cut_crops` has made; `DataError` when it is missing or unfinished."""
    folder = Path(folder)
    try:
        labels = np.load(folder / "labels.npy")
        pixels = np.load(folder / "crops.npy", mmap_mode="r")
        squeezed = (folder / "larger.npy").is_file()
        larger = np.load(folder / "larger.npy", mmap_mode="r") if squeezed else None
        with open(folder / "items.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise DataError(f"not a folder of prepared data: {error}", path=folder) from error
    if np.isnan(labels).any() or len(rows) != len(labels):
        raise DataError("preparing has not finished", path=folder, hint="Run it again: it continues")
    items = [
        Item(r["task"], r["group"], int(r["level"]), r["reference"], float(label), Path(r["path"]))
        for r, label in zip(rows, labels, strict=True)
    ]
    return TrainingCrops(items, labels, pixels, larger)


#: Folder, indices of one reference's items, these items, patch size, how to cut.
_Work = tuple[Path, list[int], list[Item], int, Views]


def _run(work: list[_Work], jobs: int) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    if jobs == 1:
        yield from map(_cut_reference, work)
        return
    # Spawned, not forked: torch's thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in as_completed([pool.submit(_cut_in_process, w) for w in work]):
            yield future.result()


def _cut_in_process(work: _Work) -> tuple[list[int], NDArray[np.float64]]:
    if _needs_labels(work[2]):
        import torch

        torch.set_num_threads(1)  # the other processes use the other cores
    return _cut_reference(work)


def _needs_labels(items: list[Item]) -> bool:
    """Whether versions of a clean photo are to be made and labelled; others are files of their own with a label."""
    return items[0].data_set == "references"


def _cut_reference(work: _Work) -> tuple[list[int], NDArray[np.float64]]:
    """Writes the crops of all versions of one reference; returns their indices and labels."""
    folder, index, items, patch_size, views = work
    crops = np.lib.format.open_memmap(folder / "crops.npy", mode="r+")
    larger = None if views == "scales" else np.lib.format.open_memmap(folder / "larger.npy", mode="r+")

    def write(row: int, item: Item, pixels: NDArray[np.uint8]) -> None:
        if larger is None:
            crops[row] = _crops_of(pixels, item, patch_size)
        else:
            crops[row, 0] = _squeezed(pixels, patch_size)
            larger[row] = _squeezed(pixels, _larger(patch_size))

    if not _needs_labels(items):
        for row, item in zip(index, items, strict=True):
            write(row, item, np.asarray(read_image(item.path)))
        return index, np.array([item.label for item in items])
    clean = np.asarray(read_image(items[0].path))  # [H, W, 3]
    if min(clean.shape[:2]) < MIN_SIDE:
        raise DataError(f"expected a clean photo of at least {MIN_SIDE}x{MIN_SIDE} pixels", path=items[0].path)
    labels = np.ones(len(items))
    versions, distorted = [], []
    for number, (row, item) in enumerate(zip(index, items, strict=True)):
        pixels = distorted_version(clean, item)
        write(row, item, pixels)
        if item.group != CLEAN:
            versions.append(pixels)
            distorted.append(number)
    labels[distorted] = rank_labels(full_reference_scores(clean, versions))
    return index, labels


def _larger(patch_size: int) -> int:
    """Side of the square that crops are taken from in training (authors' code: 256 for 224)."""
    return round(patch_size * 8 / 7)


def _squeezed(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image [H, W, 3] -> [side, side, 3], without regard to its shape."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def _crops_of(pixels: NDArray[np.uint8], item: Item, patch_size: int) -> NDArray[np.uint8]:
    """Crops [K, S, S, 3] of an image [H, W, 3], one per entry of `SCALES`, placed by the item's name alone."""
    rng = np.random.default_rng(zlib.crc32(f"{item.task} {item.level} {item.reference}".encode()))
    image = Image.fromarray(pixels)
    crops = []
    for low, high in SCALES:
        scale = max(rng.uniform(low, high), patch_size / min(image.size))
        size = (max(patch_size, round(image.width * scale)), max(patch_size, round(image.height * scale)))
        scaled = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
        x, y = (int(rng.integers(0, side - patch_size + 1)) for side in size)
        crops.append(np.asarray(scaled.crop((x, y, x + patch_size, y + patch_size))))
    return np.stack(crops)
