"""Where stage 1's labelled images come from: TID2013, KADID-10k, or any folder of clean photos.

Every source gives the same thing: for each reference image its distorted versions, with task (distortion
type), level and a quality label in 0..1, higher is better.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grmp_score.errors import DataError
from grmp_score.trainer.data import mixtures
from grmp_score.trainer.data.distortions import DISTORTIONS, LEVELS, distort

#: Task name of the clean references themselves; they take part in every task.
CLEAN = "clean"

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".avif"}

#: TID2013's 24 types in the order of its file names (Ponomarenko et al. 2015, table 1).
TID2013_TASKS = (
    "additive_gaussian_noise",
    "noise_in_color_components",
    "spatially_correlated_noise",
    "masked_noise",
    "high_frequency_noise",
    "impulse_noise",
    "quantization_noise",
    "gaussian_blur",
    "image_denoising",
    "jpeg",
    "jpeg2000",
    "jpeg_transmission_errors",
    "jpeg2000_transmission_errors",
    "non_eccentricity_pattern",
    "block_wise_distortions",
    "mean_shift",
    "contrast_change",
    "color_saturation",
    "multiplicative_noise",
    "comfort_noise",
    "lossy_noisy_compression",
    "color_quantization_with_dither",
    "chromatic_aberrations",
    "sparse_sampling",
)

#: KADID-10k's 25 types in the order of its file names (Lin et al. 2019).
KADID10K_TASKS = (
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "color_diffusion",
    "color_shift",
    "color_quantization",
    "color_saturation_1",
    "color_saturation_2",
    "jpeg2000",
    "jpeg",
    "white_noise",
    "white_noise_color_component",
    "impulse_noise",
    "multiplicative_noise",
    "denoise",
    "brighten",
    "darken",
    "mean_shift",
    "jitter",
    "non_eccentricity_patch",
    "pixelate",
    "quantization",
    "color_block",
    "high_sharpen",
    "contrast_change",
)


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Attributes:
        task: distortion type, prefixed by its data set, e.g. ``"kadid10k/jpeg"``; ends in `CLEAN` for the
            reference itself.
        group: family of the type.
        level: 1 to 5 (5 worst); 0 for the reference.
        reference: name of the clean image it was made from.
        label: quality in 0..1, higher is better; NaN until known.
        path: image file; for ``references`` the clean image that is distorted on reading.
    """

    task: str
    group: str
    level: int
    reference: str
    label: float
    path: Path

    @property
    def data_set(self) -> str:
        """First part of the task's name."""
        return self.task.split("/")[0]

    @property
    def full_reference(self) -> str:
        """Data set and reference: names of references may occur in several data sets."""
        return f"{self.data_set}/{self.reference}"


def references_items(folder: str | Path) -> list[Item]:
    """All distorted versions of all clean photos in a folder (recursive), labels not yet known.

    Every photo gets all single distortions and all `mixtures` at all levels.

    Raises:
        DataError: the folder is missing or has fewer than five images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such folder of clean photos", path=folder)
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _SUFFIXES
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and p.is_file()
    )
    if len(files) < 5:
        raise DataError(f"expected at least 5 clean photos to split by reference, found {len(files)}", path=folder)
    types = [(d.name, d.group) for d in DISTORTIONS.values()]
    types += [(name, mixtures.GROUP) for name in mixtures.MIXTURES]
    items = []
    for file in files:
        name = file.relative_to(folder).as_posix()
        items.append(Item(f"references/{CLEAN}", CLEAN, 0, name, 1.0, file))
        items += [
            Item(f"references/{task}", group, level, name, float("nan"), file)
            for task, group in types
            for level in LEVELS
        ]
    return items


def distorted_version(clean: NDArray[np.uint8], item: Item) -> NDArray[np.uint8]:
    """The picture of a ``references`` item, from its clean image [H, W, 3] uint8."""
    task = item.task.removeprefix("references/")
    if task == CLEAN:
        return clean
    make = mixtures.mix if item.group == mixtures.GROUP else distort
    return make(clean, task, item.level)


def kadid10k_items(folder: str | Path) -> list[Item]:
    """KADID-10k as its authors distribute it: ``dmos.csv`` (dist_img, ref_img, dmos, var) and ``images/``.

    Despite its name its "dmos" column (1..5) grows with quality; it is min-max scaled to 0..1.
    """
    folder = _folder(folder, "KADID-10k", "dmos.csv")
    items = []
    with open(folder / "dmos.csv", newline="", encoding="utf-8", errors="replace") as file:
        for row_number, row in enumerate(csv.DictReader(file), start=2):
            try:
                name, reference, dmos = row["dist_img"], row["ref_img"], float(row["dmos"])
                task, level = (int(part) for part in Path(name).stem.split("_")[1:3])
                task_name = _task_name(KADID10K_TASKS, task, level, dmos)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise DataError(
                    f"row {row_number} is not of KADID-10k's form: {row}", path=folder / "dmos.csv"
                ) from error
            group = DISTORTIONS[task_name].group
            items.append(Item(f"kadid10k/{task_name}", group, level, reference, dmos, folder / "images" / name))
    return _scaled(items, folder) + [
        Item(f"kadid10k/{CLEAN}", CLEAN, 0, r, 1.0, folder / "images" / r)
        for r in sorted({i.reference for i in items})
        if (folder / "images" / r).is_file()
    ]


def tid2013_items(folder: str | Path) -> list[Item]:
    """TID2013 as its authors distribute it: ``mos_with_names.txt``, ``distorted_images/`` and
    ``reference_images/``; MOS 0..9, higher is better, min-max scaled to 0..1.  File names are matched without
    regard to case, which differs between copies."""
    folder = _folder(folder, "TID2013", "mos_with_names.txt")
    distorted, references = (
        _by_lower_name(folder / "distorted_images"),
        _by_lower_name(folder / "reference_images"),
    )
    items = []
    lines = (folder / "mos_with_names.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            mos, name = line.split()
            reference, task, level = Path(name.lower()).stem.split("_")
            task_name = _task_name(TID2013_TASKS, int(task), int(level), float(mos))
            path = distorted[name.lower()]
            items.append(Item(f"tid2013/{task_name}", "tid2013", int(level), reference, float(mos), path))
        except (KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"line {number} is not of TID2013's form, or its image is missing: {line!r}",
                path=folder / "mos_with_names.txt",
            ) from error
    clean = {Path(name).stem: path for name, path in references.items()}
    return _scaled(items, folder) + [
        Item(f"tid2013/{CLEAN}", CLEAN, 0, r, 1.0, clean[r])
        for r in sorted({i.reference for i in items})
        if r in clean
    ]


def _folder(folder: str | Path, data_set: str, index: str) -> Path:
    folder = Path(folder)
    if not (folder / index).is_file():
        raise DataError(f"not a {data_set} folder: {index} is missing", path=folder)
    return folder


def _task_name(tasks: tuple[str, ...], task: int, level: int, label: float) -> str:
    if not (1 <= task <= len(tasks) and level in LEVELS and math.isfinite(label)):
        raise ValueError("no such type or level, or no label")
    return tasks[task - 1]


def _by_lower_name(folder: Path) -> Mapping[str, Path]:
    if not folder.is_dir():
        raise DataError("the folder is missing", path=folder)
    return {p.name.lower(): p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES}


def _scaled(items: list[Item], folder: Path) -> list[Item]:
    missing = [i.path for i in items if not i.path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} images are missing, first {missing[0].name}", path=folder)
    labels = [i.label for i in items]
    if not labels or min(labels) == max(labels):
        raise DataError("expected images with differing labels", path=folder)
    low, span = min(labels), max(labels) - min(labels)
    return [replace(i, label=(i.label - low) / span) for i in items]


def by_reference(items: Sequence[Item]) -> dict[str, list[int]]:
    """Indices of the items of each `Item.full_reference`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.full_reference].append(index)
    return dict(groups)
