"""Where stage 1's images come from: both data sets as distributed, folders of clean photos, mixtures."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grmp_score.errors import DataError
from grmp_score.trainer.data import mixtures, sources
from grmp_score.trainer.data.distortions import DISTORTIONS, LEVELS
from grmp_score.trainer.data.sources import (
    KADID10K_TASKS,
    TID2013_TASKS,
    by_reference,
    distorted_version,
    kadid10k_items,
    references_items,
    tid2013_items,
)

from .conftest import Photo, make_photo
from .test_quality_labels import photo as photo_like


def save(path: Path, seed: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    """One tiny picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_photo(*size, seed=seed).save(path)


def make_tid2013(
    folder: Path, *, references: int = 3, tasks: int = 24, levels: tuple[int, ...] = (1, 3, 5)
) -> dict[tuple[int, int, int], float]:
    """A small TID2013 in its original layout; returns the MOS of (reference, type, level)."""
    rng = np.random.default_rng(0)
    mos, lines = {}, []
    for r in range(1, references + 1):
        save(folder / "reference_images" / (f"I{r:02}.BMP" if r % 2 else f"i{r:02}.bmp"), r)
        for t in range(1, tasks + 1):
            for level in levels:
                mos[r, t, level] = round(float(rng.uniform(0.3, 7.2)), 5)
                # The list and the disk disagree about case, as copies of the data set do.
                save(folder / "distorted_images" / f"i{r:02}_{t:02}_{level}.BMP", r)
                lines.append(f"{mos[r, t, level]:.5f} I{r:02}_{t:02}_{level}.bmp")
    (folder / "mos_with_names.txt").write_text("\n".join(lines) + "\n\n")
    return mos


def make_kadid10k(
    folder: Path, *, references: int = 3, tasks: int = 25, levels: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """A small KADID-10k in its original layout; returns the "dmos" by file name."""
    rng = np.random.default_rng(1)
    dmos = {}
    (folder / "images").mkdir(parents=True)
    with open(folder / "dmos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dist_img", "ref_img", "dmos", "var"])
        for r in range(1, references + 1):
            save(folder / "images" / f"I{r:02}.png", r)
            for t in range(1, tasks + 1):
                for level in levels:
                    name = f"I{r:02}_{t:02}_{level:02}.png"
                    save(folder / "images" / name, r)
                    dmos[name] = round(float(rng.uniform(1, 5)), 2)
                    writer.writerow([name, f"I{r:02}.png", dmos[name], 0.5])
    return dmos


# ---------------------------------------------------------------- TID2013


def test_tid2013_is_read_as_distributed(tmp_path: Path) -> None:
    """All 24 types, levels, references and min-max scaled MOS come from the original files, whatever their case."""
    mos = make_tid2013(tmp_path)
    items = tid2013_items(tmp_path)
    clean = [i for i in items if i.group == sources.CLEAN]
    distorted = [i for i in items if i.group != sources.CLEAN]
    assert len(distorted) == len(mos) == 3 * 24 * 3
    assert list(dict.fromkeys(i.task for i in distorted)) == [f"tid2013/{t}" for t in TID2013_TASKS]
    low, high = min(mos.values()), max(mos.values())
    for item in distorted:
        reference, kind, level = item.path.stem.lower().split("_")
        assert (item.task, item.level) == (f"tid2013/{TID2013_TASKS[int(kind) - 1]}", int(level))
        expected = (mos[int(reference[1:]), int(kind), int(level)] - low) / (high - low)
        assert item.label == pytest.approx(expected, abs=1e-12)
        assert item.reference == reference and item.group == "tid2013" and item.path.is_file()
    assert (min(i.label for i in distorted), max(i.label for i in distorted)) == (0.0, 1.0)
    assert [(i.task, i.level, i.reference, i.label) for i in clean] == [
        ("tid2013/clean", 0, f"i{r:02}", 1.0) for r in (1, 2, 3)
    ]
    assert all(i.path.parent.name == "reference_images" and i.path.is_file() for i in clean)


def test_tid2013_has_24_different_types() -> None:
    """No name stands for two types."""
    assert len(TID2013_TASKS) == len(set(TID2013_TASKS)) == 24


# -------------------------------------------------------------- KADID-10k


def test_kadid10k_is_read_as_distributed(tmp_path: Path) -> None:
    """All 25 types, the last one included, with levels, groups and references from the original files."""
    dmos = make_kadid10k(tmp_path)
    items = kadid10k_items(tmp_path)
    distorted = [i for i in items if i.group != sources.CLEAN]
    assert len(distorted) == len(dmos) == 3 * 25 * 2
    assert list(dict.fromkeys(i.task for i in distorted)) == [f"kadid10k/{t}" for t in KADID10K_TASKS]
    assert distorted[-1].task == "kadid10k/contrast_change" and distorted[-1].path.name == "I03_25_05.png"
    for item in distorted:
        assert item.group == DISTORTIONS[item.task.removeprefix("kadid10k/")].group
        assert item.level in (1, 5) and item.reference == item.path.name[:3] + ".png" and item.path.is_file()
    clean = [i for i in items if i.group == sources.CLEAN]
    assert [(i.reference, i.label, i.level) for i in clean] == [(f"I{r:02}.png", 1.0, 0) for r in (1, 2, 3)]


def test_kadid10k_dmos_grows_with_quality(tmp_path: Path) -> None:
    """The column called dmos is kept in its direction and min-max scaled."""
    dmos = make_kadid10k(tmp_path, tasks=3)
    low, high = min(dmos.values()), max(dmos.values())
    for item in kadid10k_items(tmp_path):
        if item.group != sources.CLEAN:
            assert item.label == pytest.approx((dmos[item.path.name] - low) / (high - low), abs=1e-12)


def test_kadid10k_types_are_our_distortions() -> None:
    """Its 25 names are the distortions of this package that do not come from a newer codec."""
    assert len(set(KADID10K_TASKS)) == 25
    assert set(DISTORTIONS) - set(KADID10K_TASKS) == {"webp", "avif"}


def test_missing_clean_references_are_left_out(tmp_path: Path) -> None:
    """Copies without the reference images can still be read."""
    make_tid2013(tmp_path / "tid", tasks=2)
    for path in (tmp_path / "tid" / "reference_images").iterdir():
        path.unlink()
    make_kadid10k(tmp_path / "kadid", tasks=2)
    (tmp_path / "kadid" / "images" / "I02.png").unlink()
    assert not [i for i in tid2013_items(tmp_path / "tid") if i.group == sources.CLEAN]
    clean = [i.reference for i in kadid10k_items(tmp_path / "kadid") if i.group == sources.CLEAN]
    assert clean == ["I01.png", "I03.png"]


# ---------------------------------------------------------- broken layouts


@pytest.mark.parametrize(
    "line",
    [
        "4.5 I01_01.bmp",
        "4.5",
        "good I01_01_1.bmp",
        "nan I01_01_1.bmp",
        "4.5 I01_00_1.bmp",
        "4.5 I01_25_1.bmp",
        "4.5 I01_01_0.bmp",
        "4.5 I01_01_6.bmp",
        "4.5 I01_xx_1.bmp",
        "4.5 I07_01_1.bmp",
    ],
)
def test_tid2013_errors_name_the_file_and_the_line(tmp_path: Path, line: str) -> None:
    """A line of another form, of an unknown type or level, or without its image is named."""
    make_tid2013(tmp_path, tasks=1)
    for kind, level in (("00", 1), ("25", 1), ("01", 0), ("01", 6), ("xx", 1)):
        save(tmp_path / "distorted_images" / f"i01_{kind}_{level}.bmp")
    index = tmp_path / "mos_with_names.txt"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:1], line, *lines[1:]]))
    with pytest.raises(DataError, match="line 2 ") as caught:
        tid2013_items(tmp_path)
    assert caught.value.path == str(index)


@pytest.mark.parametrize(
    "row",
    [
        "I01_01.png,I01.png,3.1,0.5",
        "I01_01_01.png,I01.png,good,0.5",
        "I01_01_01.png,I01.png,nan,0.5",
        "I01_00_01.png,I01.png,3.1,0.5",
        "I01_26_01.png,I01.png,3.1,0.5",
        "I01_01_00.png,I01.png,3.1,0.5",
        "I01_01_06.png,I01.png,3.1,0.5",
        "I01_01_01.png",
    ],
)
def test_kadid10k_errors_name_the_file_and_the_row(tmp_path: Path, row: str) -> None:
    """A row of another form, or of an unknown type or level, is named as a spreadsheet counts it."""
    make_kadid10k(tmp_path, tasks=1)
    index = tmp_path / "dmos.csv"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([*lines[:2], row, *lines[2:]]))
    with pytest.raises(DataError, match="row 3 ") as caught:
        kadid10k_items(tmp_path)
    assert caught.value.path == str(index)


def test_kadid10k_with_other_columns_is_refused(tmp_path: Path) -> None:
    """Another CSV under that name is told apart at its first row."""
    make_kadid10k(tmp_path, tasks=1)
    (tmp_path / "dmos.csv").write_text("image,score\na.png,3\n")
    with pytest.raises(DataError, match=r"row 2 is not of KADID-10k's form"):
        kadid10k_items(tmp_path)


def test_an_index_that_is_not_text_is_a_data_error(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 give an error of the data, not of the decoder."""
    make_kadid10k(tmp_path / "k", tasks=1)
    (tmp_path / "k" / "dmos.csv").write_bytes(b"\xff\xfe\x00\x01\nx,y\n")
    make_tid2013(tmp_path / "t", tasks=1)
    (tmp_path / "t" / "mos_with_names.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError):
        kadid10k_items(tmp_path / "k")
    with pytest.raises(DataError):
        tid2013_items(tmp_path / "t")


@pytest.mark.parametrize(("read", "index"), [(tid2013_items, "mos_with_names.txt"), (kadid10k_items, "dmos.csv")])
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, read: Callable[[Path], list[sources.Item]], index: str
) -> None:
    """Without its index a folder is not the data set; the missing file is named."""
    with pytest.raises(DataError, match=f"{index} is missing") as caught:
        read(tmp_path)
    assert caught.value.path == str(tmp_path)


def test_missing_images_are_counted_and_one_is_named(tmp_path: Path) -> None:
    """An incomplete copy is refused before anything is trained on it."""
    make_kadid10k(tmp_path, tasks=2)
    for name in ("I02_01_01.png", "I02_01_05.png"):
        (tmp_path / "images" / name).unlink()
    with pytest.raises(DataError, match=r"2 images are missing, first I02_01_01\.png"):
        kadid10k_items(tmp_path)


def test_missing_tid2013_folders_are_named(tmp_path: Path) -> None:
    """The list alone is not the data set."""
    (tmp_path / "mos_with_names.txt").write_text("4.5 I01_01_1.bmp\n")
    with pytest.raises(DataError, match="the folder is missing") as caught:
        tid2013_items(tmp_path)
    assert caught.value.path == str(tmp_path / "distorted_images")


@pytest.mark.parametrize("rows", ["", "I01_01_01.png,I01.png,3,0\nI01_01_05.png,I01.png,3,0\n"])
def test_labels_that_do_not_differ_are_refused(tmp_path: Path, rows: str) -> None:
    """No images, or one label for all, cannot be scaled to 0..1."""
    make_kadid10k(tmp_path, tasks=1)
    (tmp_path / "dmos.csv").write_text("dist_img,ref_img,dmos,var\n" + rows)
    with pytest.raises(DataError, match="differing labels"):
        kadid10k_items(tmp_path)


# ------------------------------------------------------ folders of clean photos


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Five clean photos, one of them in a folder below, next to files that are none."""
    folder = tmp_path / "clean"
    for i in range(4):
        save(folder / f"photo {i}.png", i)
    save(folder / "below" / "PHOTO.JPG", 4)
    save(folder / ".hidden.png", 5)
    save(folder / ".thumbnails" / "photo.png", 6)
    (folder / "notes.txt").write_text("no photo")
    (folder / "album.png").mkdir()
    return folder


def test_every_photo_gets_every_distortion_at_every_level(clean: Path) -> None:
    """References x (1 + 30 types x 5 levels), hidden files and folders left out, labels not yet known."""
    items = references_items(clean)
    types = [*DISTORTIONS, *mixtures.MIXTURES]
    assert len(types) == 30
    assert len(items) == 5 * (1 + 30 * 5)
    expected = ["below/PHOTO.JPG", *(f"photo {i}.png" for i in range(4))]
    assert sorted({i.reference for i in items}) == expected
    distorted = Counter((i.task, i.level) for i in items if i.group != sources.CLEAN)
    assert distorted == {(f"references/{t}", level): 5 for t in types for level in LEVELS}
    assert all(math.isnan(i.label) == (i.group != sources.CLEAN) for i in items)
    assert all(i.label == 1.0 and i.level == 0 for i in items if i.group == sources.CLEAN)
    assert all(i.path == clean / i.reference for i in items)


def test_too_few_photos_are_refused(tmp_path: Path) -> None:
    """Fewer than five cannot be split by reference; a missing folder is told apart."""
    for i in range(4):
        save(tmp_path / "few" / f"{i}.png", i)
    with pytest.raises(DataError, match=r"at least 5 clean photos.* found 4"):
        references_items(tmp_path / "few")
    with pytest.raises(DataError, match="no such folder"):
        references_items(tmp_path / "none")


def test_items_are_grouped_by_data_set_and_reference(tmp_path: Path, clean: Path) -> None:
    """References of one name in two data sets stay apart."""
    make_kadid10k(tmp_path / "k", tasks=1)
    items = [*kadid10k_items(tmp_path / "k"), *references_items(clean)]
    groups = by_reference(items)
    assert sorted(i for index in groups.values() for i in index) == list(range(len(items)))
    assert {name: len(index) for name, index in groups.items()} == {
        **{f"kadid10k/I{r:02}.png": 3 for r in (1, 2, 3)},
        **{f"references/{i.reference}": 151 for i in items if i.task == "references/clean"},
    }


# --------------------------------------------------------------- pixels


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_mixtures_get_worse_with_every_level(name: str) -> None:
    """The squared error against a clean photo-like picture grows strictly from level to level."""
    clean = photo_like(0, 128)
    mse = [np.mean((mixtures.mix(clean, name, level).astype(float) - clean) ** 2) for level in LEVELS]
    assert mse[0] > 0 and np.all(np.diff(mse) > 0), mse


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_mixtures_are_deterministic_and_leave_their_input_alone(photo: Photo, name: str) -> None:
    """The same photo and level give the same pixels, of the same size and type."""
    clean = np.asarray(photo(64, 48)).copy()
    kept = clean.copy()
    first, second = (mixtures.mix(clean, name, 3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(clean, kept)
    assert first.shape == clean.shape and first.dtype == np.uint8


def test_mixture_steps_never_weaken() -> None:
    """Each step of a mixture has five levels that do not fall."""
    for steps in mixtures.MIXTURES.values():
        for kind, levels in steps:
            assert kind in DISTORTIONS and len(levels) == 5 and list(levels) == sorted(levels)


def test_distorted_versions_are_made_by_task_and_level(clean: Path) -> None:
    """A clean item is the photo itself; others are its distortion or mixture."""
    items = {(i.task, i.level): i for i in references_items(clean) if i.reference == "photo 0.png"}
    pixels = np.asarray(make_photo(48, 40))
    np.testing.assert_array_equal(distorted_version(pixels, items["references/clean", 0]), pixels)
    np.testing.assert_array_equal(
        distorted_version(pixels, items["references/gaussian_blur", 4]),
        sources.distort(pixels, "gaussian_blur", 4),
    )
    np.testing.assert_array_equal(
        distorted_version(pixels, items["references/mixed_focus", 2]), mixtures.mix(pixels, "mixed_focus", 2)
    )
