"""Divisions of labels: evenly over the scores, and no photo on both sides, whatever the sizes of its groups."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grmp_score.errors import DataError
from grmp_score.trainer.adapt.folds import make_folds
from grmp_score.trainer.data.labels import Labels, read_labels
from grmp_score.trainer.data.splits import TEST_SHARE, divide, draw_shots, draw_test, find_references, folds

from .conftest import make_photo

#: Rows that seeds drew before there were groups: of `SCORES`, 8 shots, and the held-out rows of 3 folds.
SCORES = np.random.default_rng(7).integers(0, 10, 24).astype(float)
DRAWN: dict[int, list[int]] = {
    0: [0, 4, 5, 7, 9, 10, 13, 20],
    1: [1, 9, 10, 12, 15, 16, 18, 20],
    20: [1, 6, 11, 13, 15, 18, 19, 22],
}
HELD_OUT: dict[int, list[list[int]]] = {
    0: [[0, 1, 5, 6, 9, 18, 22, 23], [2, 3, 13, 15, 16, 17, 19, 21], [4, 7, 8, 10, 11, 12, 14, 20]],
    1: [[4, 6, 9, 15, 16, 20, 22, 23], [0, 2, 11, 13, 17, 18, 19, 21], [1, 3, 5, 7, 8, 10, 12, 14]],
    20: [[1, 8, 9, 10, 12, 15, 19, 20], [2, 3, 7, 11, 16, 17, 21, 23], [0, 4, 5, 6, 13, 14, 18, 22]],
}

seeds = st.integers(0, 2**32 - 1)
#: Scores and group numbers of as many rows: few large groups, many small ones, all alike.
grouped = st.lists(
    st.tuples(st.integers(0, 8).map(float) | st.floats(-1e3, 1e3), st.integers(0, 12)), min_size=1, max_size=60
).map(lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows])))


@pytest.mark.parametrize("groups", [None, np.arange(24), np.arange(24)[::-1]])
@pytest.mark.parametrize("seed", DRAWN)
def test_without_groups_draws_are_what_they_were(seed: int, groups: np.ndarray | None) -> None:
    """A seed draws the rows that it always drew; groups of one row each change nothing."""
    drawn, rest = draw_shots(SCORES, 8, seed, groups)
    assert drawn.tolist() == DRAWN[seed] and sorted([*drawn, *rest]) == list(range(24))
    if groups is None or groups[0] == 0:  # in another order ties fall otherwise
        assert [held.tolist() for _, held in folds(SCORES, 3, seed, groups)] == HELD_OUT[seed]


@settings(max_examples=200)
@given(grouped, st.data(), seeds)
def test_no_group_is_drawn_and_tested(rows: tuple[np.ndarray, np.ndarray], data: st.DataObject, seed: int) -> None:
    """Shots: as many as asked for, and not one test row of their groups."""
    scores, groups = rows
    shots = data.draw(st.integers(1, len(scores)))
    drawn, rest = draw_shots(scores, shots, seed, groups)
    assert len(drawn) == shots == len(set(drawn)) and (np.diff(rest) > 0).all()
    assert not set(groups[drawn]) & set(groups[rest])
    again = draw_shots(scores, shots, seed, groups)
    assert np.array_equal(drawn, again[0]) and np.array_equal(rest, again[1])


@settings(max_examples=200)
@given(grouped, st.data(), seeds)
def test_no_group_is_on_both_sides_of_a_test_part(
    rows: tuple[np.ndarray, np.ndarray], data: st.DataObject, seed: int
) -> None:
    """A test part holds whole groups, never more rows than asked for, and as many as these groups can make up."""
    scores, groups = rows
    count = data.draw(st.integers(0, len(scores)))
    train, test = draw_test(scores, count, seed, groups)
    assert sorted([*train, *test]) == list(range(len(scores)))
    assert not set(groups[train]) & set(groups[test])
    assert len(test) <= count
    assert all((groups == g).sum() > count - len(test) for g in set(groups[train]))


@settings(max_examples=200)
@given(grouped, st.data(), seeds)
def test_no_group_is_in_two_folds(rows: tuple[np.ndarray, np.ndarray], data: st.DataObject, seed: int) -> None:
    """Every row is held out once, with all of its group; no fold is empty."""
    scores, groups = rows
    found = len(set(groups))
    if found < 2:
        with pytest.raises(DataError, match="cannot make 2 folds of 1 references"):
            folds(scores, 2, seed, groups)
        return
    k = data.draw(st.integers(2, found))
    parts = folds(scores, k, seed, groups)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(len(scores)))
    for train, held in parts:
        assert len(held) and not set(groups[train]) & set(groups[held])
        assert sorted([*train, *held]) == list(range(len(scores)))


@pytest.mark.parametrize("shots", [50, 100, 200, 600])
def test_a_set_of_the_shape_of_live(shots: int) -> None:
    """29 references of 27 versions: a fifth of the rows stays for testing (600 shots: all others), and shots and
    test part cover the scores."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(29), 27)
    scores = rng.normal(size=29)[groups] * 0.3 + rng.uniform(0, 5, len(groups))
    for seed in range(5):
        drawn, rest = draw_shots(scores, shots, seed, groups)
        assert len(drawn) == shots and not set(groups[drawn]) & set(groups[rest])
        assert 0.9 * TEST_SHARE * len(groups) - 27 < len(rest)
        for rows in (drawn, rest):
            assert abs(np.median(scores[rows]) - np.median(scores)) < 0.5
            assert np.ptp(scores[rows]) > 0.8 * np.ptp(scores)


def test_folds_of_unequal_groups_are_of_like_size() -> None:
    """The largest of a batch goes to the smallest fold."""
    sizes = np.array([20, 1, 1, 1, 1, 1, 18, 2, 2, 1, 1, 1, 17, 3])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.random.default_rng(1).normal(size=len(groups))
    for seed in range(10):
        held = [len(h) for _, h in folds(scores, 3, seed, groups)]
        assert max(held) <= 41


# -------------------------------------------------------------- rows without groups

scores = st.lists(st.integers(0, 8).map(float) | st.floats(-1e3, 1e3), min_size=1, max_size=60)


@given(scores, st.data(), st.integers(0, 2**32 - 1))
def test_shots_cover_the_score_range(values: list[float], data: st.DataObject, seed: int) -> None:
    """As many as asked for, one of each bin of sorted scores, the rest untouched, the same by seed."""
    shots = data.draw(st.integers(1, len(values)))
    train, rest = draw_shots(values, shots, seed)
    assert len(train) == shots and sorted([*train, *rest]) == list(range(len(values)))
    assert (np.diff(train) > 0).all() and (np.diff(rest) > 0).all()
    drawn = np.sort(np.array(values)[train])
    for value, part in zip(drawn, np.array_split(np.sort(values), shots), strict=True):
        assert part[0] <= value <= part[-1]
    again = draw_shots(np.array(values), shots, seed)
    assert np.array_equal(train, again[0]) and np.array_equal(rest, again[1])


def test_shots_differ_by_seed_even_among_ties() -> None:
    """Different seeds draw different rows, also when all scores are equal."""
    for values in (np.arange(100.0), np.ones(100)):
        draws = {tuple(draw_shots(values, 10, seed)[0]) for seed in range(20)}
        assert len(draws) == 20
    counts = np.bincount(np.concatenate([draw_shots(np.ones(10), 3, seed)[0] for seed in range(3000)]))
    assert counts.min() > 700 and counts.max() < 1100  # of 900 each


@pytest.mark.parametrize("shots", [0, -1, 6])
def test_impossible_shots_are_refused_with_counts(shots: int) -> None:
    """More than there are, or none."""
    with pytest.raises(DataError, match=f"cannot draw {shots} training rows from 5 labels"):
        draw_shots([1, 2, 3, 4, 5], shots, 0)


@given(scores.filter(lambda v: len(v) > 1), st.data(), st.integers(0, 2**32 - 1))
def test_folds_divide_evenly(values: list[float], data: st.DataObject, seed: int) -> None:
    """Every row is held out once, sizes differ by one at most, every fold has one of each k neighbours by score."""
    k = data.draw(st.integers(2, len(values)))
    parts = folds(values, k, seed)
    assert len(parts) == k
    held_out = np.concatenate([held for _, held in parts])
    assert sorted(held_out) == list(range(len(values)))
    sizes = [len(held) for _, held in parts]
    assert max(sizes) - min(sizes) <= 1
    ordered = np.sort(values)
    for train, held in parts:
        assert sorted([*train, *held]) == list(range(len(values)))
        for i, value in enumerate(np.sort(np.array(values)[held])[: len(values) // k]):
            assert ordered[i * k] <= value <= ordered[(i + 1) * k - 1]
    again = folds(values, k, seed)
    assert all(
        np.array_equal(a, b) for one, two in zip(parts, again, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("k", [0, 1, 6])
def test_impossible_folds_are_refused(k: int) -> None:
    """At least two, at most as many as rows."""
    with pytest.raises(DataError, match=f"cannot make {k} folds of 5 labels"):
        folds([1, 2, 3, 4, 5], k, 0)


# ------------------------------------------------------------------ from files


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """set.csv: ten photos in three versions each, named in a column, on a scale of 0 to 29."""
    rows = ["image,mos,Ref"]
    for photo in range(10):
        picture = make_photo(128, 128, seed=photo)
        for version, quality in enumerate((90, 60, 30)):
            picture.save(tmp_path / f"{photo}-{version}.jpg", quality=quality)
            rows.append(f"{photo}-{version}.jpg,{3 * photo + 2 - version},photo {photo}")
    (tmp_path / "set.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "set.csv"


def test_references_are_read_from_their_column(versions: Path) -> None:
    """By any of three names or the one given; an empty cell is a photo of its own; `take` keeps them."""
    labels = read_labels(versions)
    assert labels.references[:4] == ("photo 0",) * 3 + ("photo 1",)
    assert labels.groups is not None and labels.groups.tolist() == [i // 3 for i in range(30)]
    assert labels.take([4, 0]).references == ("photo 1", "photo 0")
    text = versions.read_text()
    for name in ("ref", "reference", "GROUP", "scene"):
        versions.write_text(text.replace("Ref", name).replace("photo 0", ""))
        labels = read_labels(versions, reference_column="scene" if name == "scene" else None)
        assert labels.groups is not None and labels.groups.tolist() == [
            *range(3),
            *[i // 3 + 2 for i in range(3, 30)],
        ]
    assert read_labels(versions).references == () and read_labels(versions).groups is None
    with pytest.raises(DataError, match="no column 'lens', the header has"):
        read_labels(versions, reference_column="lens")


def test_a_reference_that_differs_within_an_image(tmp_path: Path) -> None:
    """Rows of several raters must agree on it."""
    make_photo(8, 8).save(tmp_path / "a.png")
    make_photo(8, 8).save(tmp_path / "b.png")
    text = "image,rater,mos,ref\na.png,ann,1,x\na.png,bob,2,y\nb.png,ann,3,z\n"
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(DataError, match="the column 'ref' differs among the rows of one image"):
        read_labels(tmp_path / "set.csv", minimum=2)


def test_near_duplicates_take_the_place_of_a_column(versions: Path) -> None:
    """The same photos go together without being named; an image that cannot be read goes alone."""
    named = read_labels(versions)
    (versions.parent / "9-2.jpg").write_bytes(b"no image")
    ticks: list[int] = []
    found = find_references([dataclasses.replace(named, references=())], progress=lambda: ticks.append(1))[0]
    assert found.groups is not None and found.groups.tolist() == [*[i // 3 for i in range(29)], 10]
    assert found.references[5] == str(named.paths[3]) and len(ticks) == 30
    division = divide(found, 8, 0)
    assert len(division.drawn) == 8 and len(division.tested) >= 3
    assert not set(found.groups[division.drawn]) & set(found.groups[division.tested])
    assert sorted(np.concatenate(dataclasses.astuple(division))) == list(range(30))


def test_names_and_likeness_count_together(versions: Path, tmp_path: Path) -> None:
    """Of two files one of which has the column: what is named and what looks alike is one photo."""
    named = read_labels(versions)
    copy = tmp_path / "copy.jpg"
    shutil.copy(named.paths[4], copy)
    make_photo(40, 40, seed=77).save(tmp_path / "new.jpg")
    test = Labels(tmp_path / "test.csv", (copy, tmp_path / "new.jpg"), (2, 3), np.array([1.0, 2.0]))
    known, tested = find_references([named, test])
    assert tested.references == (str(named.paths[3]), str(tmp_path / "new.jpg"))
    division = divide(known, None, 0, tested)
    assert len(division.drawn) == 30 and division.tested.tolist() == [1] and division.left_out.tolist() == [0]


def test_copies_under_other_names_go_together_whatever_the_column_says(versions: Path, tmp_path: Path) -> None:
    """The same bytes trained on and tested on are no test; no image is decoded for it."""
    named = read_labels(versions)
    copy, other = tmp_path / "copy.jpg", tmp_path / "other.jpg"
    shutil.copy(named.paths[4], copy)
    other.write_bytes(named.paths[5].read_bytes()[:-1] + b"x")  # as long, but not the same
    test = Labels(tmp_path / "t.csv", (copy, other), (2, 3), np.array([1.0, 2.0]), references=("new", "other"))
    known, tested = find_references([named, test], max_pixels=1)
    assert divide(known, None, 0, tested).left_out.tolist() == [0]
    assert known.groups is not None and known.groups.tolist() == [i // 3 for i in range(30)]


def test_folds_of_shots_keep_versions_together(versions: Path) -> None:
    """As many folds as there are photos at most; one photo alone has none."""
    labels = read_labels(versions)
    for fold in make_folds(labels, 5, 0):
        sides = [{labels.references[i] for i in rows} for rows in (fold.rows, fold.held_out)]
        assert not sides[0] & sides[1]
    assert len(make_folds(labels.take(range(6)), 3, 0)) == 2
    with pytest.raises(DataError, match="6 training rows are versions of one photo"):
        make_folds(labels.take([0, 1, 2, 0, 1, 2]), 3, 0)
