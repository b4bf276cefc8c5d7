"""Training crops of stage 1: what is cut and labelled, and that a stopped run continues to the same result."""

from __future__ import annotations

import csv
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grmp_score.errors import DataError, GrmpScoreError, ImageReadError, MissingExtraError
from grmp_score.trainer.data import sources
from grmp_score.trainer.data.distortions import LEVELS
from grmp_score.trainer.data.sources import CLEAN, Item, references_items
from grmp_score.trainer.pretrain import crops
from grmp_score.trainer.pretrain.crops import SCALES, TrainingCrops, cut_crops, load_crops

from .conftest import make_photo
from .test_quality_labels import photo as photo_like
from .test_sources import make_kadid10k, make_tid2013

SIZE = 32
TYPES = ("references/gaussian_blur", "references/white_noise", "references/jpeg")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clean photo-like pictures of 96x96."""
    folder = tmp_path_factory.mktemp("clean")
    for i in range(5):
        Image.fromarray(photo_like(i, 96)).save(folder / f"{i}.png")
    return folder


def three_types(folder: Path) -> list[Item]:
    """The items of a folder of photos, of `TYPES` and clean ones only."""
    return [i for i in references_items(folder) if i.task in (*TYPES, f"references/{CLEAN}")]


@pytest.fixture
def items(photos: Path) -> list[Item]:
    """5 x (1 + 3 x 5) items."""
    return three_types(photos)


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingCrops:
    """Those items, prepared once in one go."""
    return cut_crops(three_types(photos), tmp_path_factory.mktemp("prepared"), patch_size=SIZE)


def assert_same(one: TrainingCrops, other: TrainingCrops) -> None:
    """Both hold the same items, labels and crops, bit for bit."""
    assert one.items == other.items
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.pixels, other.pixels)


# ---------------------------------------------------------------- content


def test_every_item_gets_a_crop_per_scale_and_a_label(data: TrainingCrops, items: list[Item]) -> None:
    """Shapes and types are as documented; items keep their order and carry their label."""
    assert data.pixels.shape == (80, len(SCALES), SIZE, SIZE, 3) and data.pixels.dtype == np.uint8
    assert data.labels.shape == (80,) and data.labels.dtype == np.float64
    keys = [(i.task, i.group, i.level, i.reference, i.path) for i in data.items]
    assert keys == [(i.task, i.group, i.level, i.reference, i.path) for i in items]
    assert [i.label for i in data.items] == data.labels.tolist()


def test_labels_lie_in_0_to_1_and_only_clean_photos_have_1(data: TrainingCrops) -> None:
    """The reference is the best of its versions, by definition."""
    clean = np.array([i.group == CLEAN for i in data.items])
    assert (data.labels[clean] == 1.0).all()
    assert (data.labels[~clean] >= 0).all() and (data.labels[~clean] < 1).all()


@pytest.mark.parametrize("task", TYPES)
def test_labels_fall_with_the_level(data: TrainingCrops, task: str) -> None:
    """More blur, noise or compression of one photo is worse."""
    for reference in {i.reference for i in data.items}:
        by_level = {i.level: i.label for i in data.items if (i.task, i.reference) == (task, reference)}
        assert sorted(by_level) == list(LEVELS)
        assert np.all(np.diff([by_level[level] for level in LEVELS]) < 0), (reference, by_level)


def test_crops_show_their_photo(data: TrainingCrops) -> None:
    """The full-size crop of a clean photo is a part of it, pixel by pixel, and crops of versions differ from it."""
    clean = next(i for i, item in enumerate(data.items) if item.group == CLEAN)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(Image.open(data.items[clean].path)), (SIZE, SIZE, 3)
    )[:, :, 0]
    assert (windows == data.pixels[clean, 0]).all(axis=(2, 3, 4)).sum() == 1
    assert not np.array_equal(data.pixels[clean, 0], data.pixels[clean, 1])
    assert not np.array_equal(data.pixels[clean], data.pixels[clean + 1])


def test_small_photos_are_enlarged_to_one_patch(tmp_path: Path) -> None:
    """A photo with a side below the patch size still gives full crops."""
    for i in range(5):
        make_photo(60, 40, seed=i).save(tmp_path / f"{i}.png")
    items = [i for i in three_types(tmp_path) if i.task in (TYPES[0], "references/clean")]
    assert cut_crops(items, tmp_path / "out", patch_size=48).pixels.shape == (30, 3, 48, 48, 3)


def test_tasks_references_and_indices(data: TrainingCrops) -> None:
    """A task's images of some references are its own five levels and the clean ones."""
    assert data.tasks() == [t for t in dict.fromkeys(i.task for i in data.items) if not t.endswith(CLEAN)]
    assert set(data.tasks()) == set(TYPES)
    for group in {i.group for i in data.items} - {CLEAN}:
        assert data.tasks([group]) == [
            t for t in data.tasks() if group in {i.group for i in data.items if i.task == t}
        ]
    with pytest.raises(DataError, match="no images of the groups"):
        data.tasks(["blurs", "smells"])
    assert data.references() == [f"references/{i}.png" for i in range(5)]
    chosen = data.indices(["references/3.png", "references/1.png"], TYPES[1])
    assert len(chosen) == 2 * 6 and chosen.dtype == np.int64
    assert {data.items[i].reference for i in chosen} == {"1.png", "3.png"}
    assert {data.items[i].task for i in chosen} == {TYPES[1], "references/clean"}


def test_rated_data_sets_keep_their_labels(tmp_path: Path) -> None:
    """Images of both data sets keep people's labels, and their tasks stay apart."""
    make_tid2013(tmp_path / "t", tasks=2, levels=(1, 5))
    make_kadid10k(tmp_path / "k", tasks=2)
    items = [*sources.tid2013_items(tmp_path / "t"), *sources.kadid10k_items(tmp_path / "k")]
    data = cut_crops(items, tmp_path / "out", patch_size=16)
    assert data.items == items and data.labels.tolist() == [i.label for i in items]
    assert len(data.references()) == 6 and len(data.tasks()) == 4
    chosen = data.indices(data.references(), "kadid10k/gaussian_blur")
    assert {data.items[i].task for i in chosen} == {"kadid10k/gaussian_blur", "kadid10k/clean"}
    assert len(chosen) == 3 * 3


# --------------------------------------------------- the same, however it is run


def test_two_runs_are_equal(data: TrainingCrops, items: list[Item], tmp_path: Path) -> None:
    """Nothing depends on anything but the items."""
    assert_same(cut_crops(items, tmp_path, patch_size=SIZE), data)


def test_a_crop_depends_on_its_item_alone(data: TrainingCrops, items: list[Item], tmp_path: Path) -> None:
    """Preparing fewer types gives the same crops for those that remain."""
    kept = [n for n, i in enumerate(items) if i.task in (TYPES[2], "references/clean")]
    part = cut_crops([items[n] for n in kept], tmp_path, patch_size=SIZE)
    np.testing.assert_array_equal(part.pixels, data.pixels[kept])


def test_two_processes_give_the_same_as_one(items: list[Item], tmp_path: Path) -> None:
    """Work spread over processes ends in the same folder, and is reported as it is done.

    One clean photo, whose versions are labelled, and two references of a rated data set.
    """
    make_kadid10k(tmp_path / "k", references=2, tasks=2)
    mixed = items[:16] + sources.kadid10k_items(tmp_path / "k")
    seen: list[tuple[int, int]] = []
    two = cut_crops(mixed, tmp_path / "two", patch_size=SIZE, jobs=2, progress=lambda *n: seen.append(n))
    assert_same(two, cut_crops(mixed, tmp_path / "one", patch_size=SIZE))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    "error",
    [ImageReadError("no such file", path="a.png"), DataError("odd", hint="Do"), MissingExtraError("f", "p", "e")],
)
def test_errors_survive_pickling(error: GrmpScoreError) -> None:
    """Worker processes send their errors as pickles: type, text and attributes stay."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


# ------------------------------------------------------------------- resuming


def test_an_interrupted_run_continues_to_the_same_result(
    data: TrainingCrops, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before the interruption is not done again."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_crops(items, tmp_path, patch_size=SIZE, progress=stop)
    assert np.isfinite(np.load(tmp_path / "labels.npy")).sum() == 16  # one reference
    with pytest.raises(DataError, match="has not finished"):
        load_crops(tmp_path)

    worked = []
    original = crops._cut_reference

    def counting(work: crops._Work) -> tuple[list[int], np.ndarray]:  # type: ignore[type-arg]
        worked.append(work)
        return original(work)

    monkeypatch.setattr(crops, "_cut_reference", counting)
    seen: list[tuple[int, int]] = []
    assert_same(cut_crops(items, tmp_path, patch_size=SIZE, progress=lambda *n: seen.append(n)), data)
    assert len(worked) == 4 and seen == [(n, 5) for n in range(2, 6)]


def test_a_reference_with_an_unknown_label_is_done_again(
    data: TrainingCrops, items: list[Item], tmp_path: Path
) -> None:
    """Labels are the mark of what is done; crops of an open reference are cut again."""
    cut_crops(items, tmp_path, patch_size=SIZE)
    labels = np.load(tmp_path / "labels.npy", mmap_mode="r+")
    pixels = np.load(tmp_path / "crops.npy", mmap_mode="r+")
    labels[[5, 40]] = np.nan
    pixels[[5, 40]] = 0
    labels.flush()
    pixels.flush()
    assert_same(cut_crops(items, tmp_path, patch_size=SIZE), data)


def test_a_finished_folder_is_not_prepared_again(
    data: TrainingCrops, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running again only opens it."""
    cut_crops(items, tmp_path, patch_size=SIZE)
    monkeypatch.setattr(crops, "_cut_reference", None)
    assert_same(cut_crops(items, tmp_path, patch_size=SIZE), data)
    assert_same(load_crops(tmp_path), data)


def test_another_data_set_in_the_same_folder_is_refused(items: list[Item], tmp_path: Path) -> None:
    """Other items or another patch size do not mix with what is there, which stays as it is."""
    first = cut_crops(items[:16], tmp_path, patch_size=SIZE)
    for other, size in ((items[:32], SIZE), (items[16:32], SIZE), (items[:16], SIZE + 8)):
        with pytest.raises(DataError, match="holds other prepared data") as caught:
            cut_crops(other, tmp_path, patch_size=size)
        assert caught.value.path == str(tmp_path) and caught.value.hint
    assert_same(load_crops(tmp_path), first)


def test_a_folder_of_something_else_is_no_prepared_data(tmp_path: Path) -> None:
    """Missing and damaged files are told as such."""
    with pytest.raises(DataError, match="not a folder of prepared data"):
        load_crops(tmp_path)
    for name in ("labels.npy", "crops.npy", "items.csv"):
        (tmp_path / name).write_text("something else")
    with pytest.raises(DataError, match="not a folder of prepared data"):
        load_crops(tmp_path)


def test_a_listing_that_lost_rows_is_refused(items: list[Item], tmp_path: Path) -> None:
    """Items and labels must be as many."""
    cut_crops(items[:16], tmp_path, patch_size=SIZE)
    with open(tmp_path / "items.csv", newline="") as file:
        rows = list(csv.reader(file))
    with open(tmp_path / "items.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows[:-1])
    with pytest.raises(DataError, match="has not finished"):
        load_crops(tmp_path)


# ------------------------------------------------------------------- mistakes


def test_photos_too_small_to_be_compared_are_named(tmp_path: Path) -> None:
    """The metrics need 32 pixels."""
    for i in range(5):
        make_photo(40, 31, seed=i).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="at least 32x32") as caught:
        cut_crops(three_types(tmp_path), tmp_path / "out", patch_size=SIZE)
    assert caught.value.path == str(tmp_path / "0.png")


def test_without_piq_the_extra_is_named(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labelling says what to install."""
    monkeypatch.setitem(sys.modules, "piq", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'grmp_score\[train\]'"):
        cut_crops(items, tmp_path, patch_size=SIZE)
