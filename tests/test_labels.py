"""Labels from CSV files: what is understood, what is refused in one line, and how they are divided."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grmp_score.config import LabelScale
from grmp_score.errors import DataError
from grmp_score.trainer.data.labels import Labels, read_labels
from grmp_score.trainer.data.raters import MIN_COMMON, rater_agreement

from .conftest import make_photo

Write = Callable[[str | bytes], Path]

ROWS = "a.png,1\nb.png,2\nc.png,3\nd.png,4\ne.png,5\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(text)` makes mine.csv, next to the images a.png to f.png and a folder below/."""
    (tmp_path / "below").mkdir()
    for name in "abcdef":
        make_photo(8, 8).save(tmp_path / f"{name}.png")
    make_photo(8, 8).save(tmp_path / "below" / "g.png")

    def write_file(content: str | bytes) -> Path:
        path = tmp_path / "mine.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


# --------------------------------------------------------------- what is understood


@pytest.mark.parametrize("image", ["image", "path", "file", "filename", " Image ", "FILE"])
@pytest.mark.parametrize("score", ["mos", "score", "rating", "quality", "label", "MOS", " Score"])
def test_columns_are_found_by_name(write: Write, image: str, score: str) -> None:
    """Any of the usual names, in any case, with spaces around."""
    path = write(f"{image},{score}\n{ROWS}")
    labels = read_labels(path)
    assert labels.paths == tuple(path.parent / f"{name}.png" for name in "abcde")
    assert labels.scores.tolist() == [1, 2, 3, 4, 5] and labels.scores.dtype == np.float64
    assert labels.rows == (2, 3, 4, 5, 6) and len(labels) == 5
    assert labels.score_column == score.strip() and labels.scale == LabelScale(1.0, 5.0, True)
    assert labels.columns == {} and labels.ratings is None


def test_lower_is_better_for_dmos_unless_said_otherwise(write: Write) -> None:
    """A column named dmos turns the scale round; arguments overrule it."""
    path = write(f"image,DMOS\n{ROWS}")
    assert not read_labels(path).higher_is_better
    assert read_labels(path, lower_is_better=False).higher_is_better
    assert read_labels(path).scale.to_unit(1.0) == 1.0
    path = write(f"image,mos\n{ROWS}")
    assert read_labels(path).higher_is_better and not read_labels(path, lower_is_better=True).higher_is_better


def test_columns_can_be_named(write: Write) -> None:
    """Named columns win over the usual names, and the others stay for grouping."""
    text = "photo,image,Stars,mos\n" + "".join(f"{n}.png,x,{i},0\n" for i, n in enumerate("abcde"))
    labels = read_labels(write(text), image_column="photo", score_column=" stars")
    assert labels.scores.tolist() == [0, 1, 2, 3, 4] and labels.score_column == "Stars"
    assert labels.columns == {"image": ("x",) * 5, "mos": ("0",) * 5}
    assert labels.column("MOS") == ("0",) * 5
    with pytest.raises(DataError, match=r"no column 'camera' to group by; there are: image, mos"):
        labels.column("camera")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encode", [str.encode, lambda text: codecs.BOM_UTF8 + text.encode()])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dialects(write: Write, delimiter: str, encode: Callable[[str], bytes], newline: str) -> None:
    """Comma, semicolon or tab; UTF-8 with or without BOM; any line end, empty lines, quotes, no last line end."""
    text = f"image,mos,camera\n{ROWS.replace('.png,', '.png, ')}".rstrip()
    text = "\n".join(line + ',"Größe: ""5"""' if i else line for i, line in enumerate(text.splitlines()))
    text = text.replace("\nc.png", "\n\nc.png").replace(",", delimiter).replace("\n", newline)
    labels = read_labels(write(encode(text)))
    assert labels.scores.tolist() == [1, 2, 3, 4, 5]
    assert labels.columns == {"camera": ('Größe: "5"',) * 5}
    assert labels.rows == (2, 3, 5, 6, 7)  # as an editor counts, the empty line included


def test_a_header_with_several_delimiters(write: Write) -> None:
    """The one that gives the columns is taken."""
    labels = read_labels(write("image;mos;left,right\n" + ROWS.replace(",", ";").replace("\n", ";x\n")))
    assert labels.columns == {"left,right": ("x",) * 5}


def test_rows_are_counted_by_line(write: Write) -> None:
    """A cell with a line break does not shift the numbers of the rows below it."""
    rows = ROWS.replace("\n", ",\n").replace("b.png,2,", 'b.png,2,"two\nlines"')
    assert read_labels(write("image,mos,note\n" + rows)).rows == (2, 3, 5, 6, 7)


def test_paths_start_from_a_folder(write: Write, tmp_path: Path) -> None:
    """Relative paths start from the CSV's folder or from the one named; absolute ones stay."""
    path = write("image,mos\n" + ROWS.replace("a.png", str(tmp_path / "a.png")))
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in "bcde":
        make_photo(8, 8).save(other / f"{name}.png")
    assert read_labels(path, images=other).paths == (tmp_path / "a.png", *(other / f"{n}.png" for n in "bcde"))


def test_numbers_in_usual_notations(write: Write) -> None:
    """Signs, exponents, missing digits before or after the point."""
    rows = zip("abcde", ("-1.5", "+2", ".5", "3.", "1e-3"), strict=True)
    labels = read_labels(write("image,mos\n" + "".join(f"{n}.png,{s}\n" for n, s in rows)))
    assert labels.scores.tolist() == [-1.5, 2, 0.5, 3, 0.001]


def test_a_part_keeps_its_rows_and_its_scale(write: Write) -> None:
    """`take` selects everything, and the scale is that of the part."""
    text = "image,mos,camera\n" + ROWS.replace("\n", ",x\n").replace("b.png,2,x", "b.png,2,y")
    part = read_labels(write(text)).take([3, 1])
    assert [p.name for p in part.paths] == ["d.png", "b.png"] and part.rows == (5, 3)
    assert part.scale == LabelScale(2.0, 4.0) and part.columns == {"camera": ("x", "y")}


# ---------------------------------------------------------------- what is refused

BAD: dict[str, tuple[str | bytes, str]] = {
    "no header": (ROWS, r"no header, row 1 is data: \['a.png', '1'\]\. Add a first row"),
    "no image column": (f"photo,mos\n{ROWS}", r"no image column: expected one of image, path, .*'photo', 'mos'"),
    "no score column": (f"image,stars\n{ROWS}", r"no score column: .*\(score_column=\.\.\.\)"),
    "two image columns": ("image,path,mos\na.png,a.png,1\n", "2 columns could be the image: 'image' and 'path'"),
    "two score columns": ("mos,image,DMOS\n1,a.png,1\n", "2 columns could be the score: 'mos' and 'DMOS'"),
    "column twice": ("image,mos,Mos\n", "the column 'mos' appears twice"),
    "one column": ("image mos\na.png 1\n", "one column only: 'image mos', expected columns separated by commas"),
    "pipes": ("image|mos\na.png|1\n", r"one column only: 'image\|mos'"),
    "two delimiters": ("image,x;mos\n", "can be split by comma and semicolon"),
    "not a number": (f"image,mos\n{ROWS}f.png,good\n", "row 7: the score 'good' is not a number"),
    "underscore": (f"image,mos\n{ROWS}f.png,1_0\n", "row 7: the score '1_0' is not a number"),
    "per cent": (f"image,mos\n{ROWS}f.png,85%\n", "row 7: the score '85%' is not a number"),
    "nan": (f"image,mos\nf.png,NaN\n{ROWS}", "row 2: the score is NaN, expected a finite number"),
    "infinite": (f"image,mos\n{ROWS}f.png,-inf\n", "row 7: the score is -inf, expected a finite number"),
    "huge": (f"image,mos\n{ROWS}f.png,1e999\n", "row 7: the score '1e999' is too large"),
    "empty score": (f"image,mos\n{ROWS}f.png, \n", "row 7: the score is empty"),
    "empty image": (f"image,mos\n{ROWS},3\n", "row 7: the image is empty"),
    "missing image": (f"image,mos\n{ROWS}z.png,3\n", r"row 7: no such image file 'z.png' in .*\(images=\.\.\.\)"),
    "missing images": (f"image,mos\n{ROWS}y.png,3\nz.png,3\n", r"row 7: .* 'y.png' in .* \(2 of 7 rows have no im"),
    "impossible path": (f"image,mos\n{ROWS}{'z' * 5000},3\n", r"row 7: no such image file 'zzz+\.\.\.zzz+' in"),
    "folder as image": (f"image,mos\n{ROWS}below,3\n", "row 7: 'below' is a folder"),
    "duplicate": (f"image,mos\n{ROWS}a.png,3\n", r"row 7: the image 'a.png' is already in row 2 as 'a.png'"),
    "two spellings": (f"image,mos\n{ROWS}below/../b.png,3\n", r"'below/../b.png' is already in row 3 as 'b.png'"),
    "few rows": ("image,mos\na.png,1\nb.png,2\n", "2 rows of labels, expected at least 5"),
    "header only": ("image,mos\n", "0 rows of labels"),
    "constant": ("image,mos\n" + re.sub(r"\d", "3", ROWS), r"all scores are 3, expected scores that differ"),
    "UTF-16": (f"image,mos\n{ROWS}".encode("utf-16"), "is UTF-16 text, expected CSV in UTF-8"),
    "UTF-16 without BOM": (f"image,mos\n{ROWS}".encode("utf-16-le"), "is a binary file or UTF-16"),
    "latin-1": (f"image,mos\n{ROWS}größe.png,3\n".encode("latin-1"), "row 7 is not UTF-8: byte 0xf6"),
    "Excel": (b"PK\x03\x04\x14\x00\x06\x00", "is an Excel, Numbers or zip file"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "is a binary file"),
    "long row": (f"image,mos\n{ROWS}f.png,3,4\n", r"row 7 has 3 cells, expected 2 .*'f.png', '3', '4'.*decimal"),
    "short row": (f"image,mos,camera\n{ROWS}", "row 2 has 2 cells, expected 3"),
    "empty": ("", "the file is empty"),
    "only spaces": (" \n\n", "the file is empty"),
    "quoted decimal comma": (f'image,mos\n{ROWS}f.png,"3,5"\n', "row 7: the score '3,5' has a decimal comma"),
    "open quote": (f'image,mos\n{ROWS}"f.png,3\n', "row 7 is not valid CSV: .*quotes"),
    "empty rater": ("image,rater,mos\na.png,,3\n" + "a.png,ann,3\n" * 5, "row 2: the rater is empty"),
    "rater twice": (
        "image,rater,mos\na.png,ann,3\n" + ROWS.replace(",", ",ann,"),
        "row 3: rater 'ann' already rated 'a.png' in row 2",
    ),
    "few images of many raters": (
        "image,rater,mos\n" + "".join(f"a.png,r{i},{i}\n" for i in range(9)),
        "labels of 1 images, expected at least 5",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_in_one_line(write: Write, kind: str) -> None:
    """Every kind of bad CSV: one line with the file, the row and the value."""
    content, pattern = BAD[kind]
    path = write(content)
    with pytest.raises(DataError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert re.search(pattern, message), message
    assert len(message) < 500


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, and a folder without images."""
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        read_labels(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="no images in this folder, expected rated ones or a CSV"):
        read_labels(tmp_path)


def test_links_to_one_file_are_duplicates(write: Write, tmp_path: Path) -> None:
    """The same file is the same image, whatever leads to it."""
    try:
        (tmp_path / "link.png").symlink_to(tmp_path / "c.png")
    except OSError:
        pytest.skip("no links on this system")
    with pytest.raises(DataError, match=r"row 7: the image 'link.png' is already in row 4 as 'c.png'"):
        read_labels(write(f"image,mos\n{ROWS}link.png,3\n"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_permission_is_refused(write: Write) -> None:
    """The system's reason in one line."""
    path = write(f"image,mos\n{ROWS}")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_labels(path)


def test_a_named_column_that_is_not_there(write: Write) -> None:
    """The header is shown."""
    path = write(f"image,mos\n{ROWS}")
    with pytest.raises(DataError, match=r"no column 'stars', the header has \['image', 'mos'\]"):
        read_labels(path, score_column="stars")


def test_fewest_rows_can_be_set(write: Write) -> None:
    """Who needs more says so."""
    with pytest.raises(DataError, match="5 rows of labels, expected at least 6"):
        read_labels(write(f"image,mos\n{ROWS}"), minimum=6)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda t: f"image,mos\n{t}".encode("utf-8", "replace")))
def test_any_bytes_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds that is no table of labels: a `DataError` of one line, no other exception."""
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_labels(path)
    assert len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------------- raters


def test_mean_opinions_of_several_raters(write: Write) -> None:
    """One label per image: the mean of all its ratings; columns that differ within an image are left out."""
    rows = "".join(
        f"{n}.png,{r},{i + (r == 'bob')},cam{i},{r}!\n" for i, n in enumerate("abcde") for r in ("ann", "bob")
    )
    labels = read_labels(write("image,rater,score,camera,note\n" + rows + "./a.png,eve,9,cam0,z\n"))
    assert labels.raters == ("ann", "bob", "eve")
    assert labels.scores.tolist() == pytest.approx([10 / 3, 1.5, 2.5, 3.5, 4.5])
    assert labels.columns == {"camera": tuple(f"cam{i}" for i in range(5))}
    assert labels.rows == (2, 4, 6, 8, 10)
    assert labels.ratings is not None
    np.testing.assert_array_equal(labels.ratings[:2], [[0, 1, 9], [1, 2, np.nan]])
    part = labels.take([1, 0])
    assert part.ratings is not None and part.ratings[1, 2] == 9


def panel(n: int, raters: int, noise: float, *, seed: int = 0, missing: float = 0.0) -> np.ndarray:
    """Ratings with a true opinion of variance 1 and independent noise."""
    rng = np.random.default_rng(seed)
    ratings = rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, raters))
    ratings[:, 1:][rng.random((n, raters - 1)) < missing] = np.nan
    return ratings


def test_agreement_of_raters_by_definition() -> None:
    """Each against the mean of the others, averaged."""
    ratings = panel(40, 5, 0.8, missing=0.3)
    result = rater_agreement(ratings)
    ranks, lines = [], []
    for r in range(5):
        others = np.delete(ratings, r, axis=1)
        common = ~np.isnan(ratings[:, r]) & ~np.isnan(others).all(axis=1)
        mean = np.nanmean(others[common], axis=1)
        ranks.append(stats.spearmanr(ratings[common, r], mean).statistic)
        lines.append(stats.pearsonr(ratings[common, r], mean).statistic)
    assert result.srcc == pytest.approx(np.mean(ranks)) and result.plcc == pytest.approx(np.mean(lines))
    counts = (~np.isnan(ratings)).sum(axis=1)
    assert (result.raters, result.compared) == (5, 5)
    assert (result.fewest, result.most) == (counts.min(), counts.max())


def test_reliability_and_ceiling_are_those_of_theory() -> None:
    """With true variance 1 and noise variance s^2 the mean of k raters has reliability 1 / (1 + s^2 / k), and the
    truth correlates with it by the root of that."""
    k, noise = 8, 2.0
    ratings = panel(4000, k, noise, seed=1)
    truth = np.random.default_rng(1).normal(size=4000)
    result = rater_agreement(ratings)
    assert result.reliability == pytest.approx(1 / (1 + noise**2 / k), abs=0.02)
    assert result.ceiling == pytest.approx(stats.pearsonr(truth, ratings.mean(axis=1)).statistic, abs=0.02)


def test_raters_who_agree_perfectly_or_not_at_all() -> None:
    """Full agreement is 1, opposite opinions have no reliability, one rater or few images say nothing."""
    same = np.tile(np.arange(20.0)[:, None], 4)
    result = rater_agreement(same)
    assert (result.srcc, result.plcc, result.reliability, result.ceiling) == pytest.approx((1, 1, 1, 1))
    against = np.stack([np.arange(20.0), -np.arange(20.0)], axis=1)
    assert rater_agreement(against).reliability == 0
    for few in (same[:, :1], same[: MIN_COMMON - 1], np.ones((20, 3))):
        result = rater_agreement(few)
        assert result.compared == 0 and np.isnan([result.srcc, result.plcc, result.ceiling]).all()


def test_equal_means_stay_equal() -> None:
    """Ties of the others' means are not broken by rounding."""
    ratings = np.tile([[0.1, 0.2, 0.3], [0.3, 0.3, 0.0], [0.1, 0.4, 0.1]], (10, 1))
    others = np.round((ratings[:, 1] + ratings[:, 2]) / 2, 9)
    expected = stats.spearmanr(ratings[:, 0], others).statistic
    rest = [stats.spearmanr(ratings[:, r], np.round(np.delete(ratings, r, 1).mean(1), 9)).statistic for r in (1, 2)]
    assert rater_agreement(ratings).srcc == pytest.approx(np.mean([expected, *rest]))


def test_labels_can_be_made_without_a_file() -> None:
    """Whoever has them in memory needs no CSV."""
    labels = Labels(Path("memory"), (Path("a"), Path("b")), (0, 1), np.array([1.0, 2.0]))
    assert len(labels) == 2 and labels.scale == LabelScale(1, 2)


# ----------------------------------------------------------------------- spreadsheets


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nimage;mos\n{}",
        '"sep=;"\r\nimage;mos\r\n{}',
        "# made by hand\n#\n\nimage;mos\n{}",
        "#\nsep=;\nimage;mos\n{}",
    ],
)
def test_lines_above_the_header(write: Write, text: str) -> None:
    """A separator as spreadsheets write it, and comments; rows keep the numbers that an editor shows."""
    labels = read_labels(write(text.format(ROWS.replace(",", ";"))))
    assert labels.scores.tolist() == [1, 2, 3, 4, 5]
    assert labels.rows[0] == text.split("{")[0].count("\n") + 1


def test_decimal_commas_and_percent_where_they_are_certain(write: Write) -> None:
    """Commas where something else separates cells; the sign of percent where all scores have it."""
    wanted = [1.5, 2.5, 3.5, 4.5, 5.5]
    rows = [line.split(",")[0] for line in ROWS.split()]
    text = "image;mos\n" + "".join(f"{n};{v:g}\n".replace(".5", ",5") for n, v in zip(rows, wanted, strict=True))
    assert read_labels(write(text)).scores.tolist() == wanted
    text = "image,mos\n" + "".join(f"{n},{v:g}%\n" for n, v in zip(rows, wanted, strict=True))
    assert read_labels(write(text)).scores.tolist() == wanted
    with pytest.raises(DataError, match=r"row 2: the score '1\.5%' is not a number"):
        read_labels(write(text.replace("5.5%", "5.5")))


@pytest.mark.parametrize(("file", "cell"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_normal_form(write: Write, file: str, cell: str) -> None:
    """A name typed on one system and a file copied from another are the same letters."""
    import unicodedata

    path = write(f"image,mos\n{ROWS}")
    made = path.parent / unicodedata.normalize(file, "caf\u00e9.png")
    made.touch()
    name = unicodedata.normalize(cell, "caf\u00e9.png")
    path = write(f"image,mos\n{ROWS}{name},6\n")
    assert read_labels(path).paths[-1].samefile(made)


# ------------------------------------------------------------------------- direction


def test_kadid10k_is_known_by_its_header(write: Write) -> None:
    """In its "dmos" 5 is best; images and references are found by its own names."""
    names = [line.split(",")[0] for line in ROWS.split()]
    path = write("dist_img,ref_img,dmos,var\n" + "".join(f"{n},r{i},{i},0.5\n" for i, n in enumerate(names)))
    labels = read_labels(path)
    assert labels.higher_is_better and labels.direction_given
    assert labels.references == tuple(f"r{i}" for i in range(len(names)))


@pytest.mark.parametrize(("column", "sign"), [("mos", -1), ("dmos", 1)])
def test_labels_that_go_against_the_model_are_doubted(write: Write, column: str, sign: int) -> None:
    """The message names best and worst file, the agreement and both ways on; a direction that was said stands."""
    path = write(f"image,{column}\n{ROWS}")
    labels = read_labels(path)
    many = labels.take(list(range(len(labels))) * 10)
    predicted = sign * many.scores
    with pytest.raises(DataError) as error:
        many.check_direction(predicted)
    best, worst = (many.paths[i].name for i in many.ends)
    text = str(error.value)
    assert "SRCC -1.00 on 50 images" in text and "--lower-is-better or --higher-is-better" in text
    assert text.index(f"the best being {best!r}") < text.index(f"the worst {worst!r}")
    many.check_direction(-predicted)
    many.check_direction(np.random.default_rng(0).random(len(many)))
    for lower in (True, False):
        said = read_labels(path, lower_is_better=lower)
        said.take(list(range(len(labels))) * 10).check_direction(predicted)


def test_a_few_images_prove_nothing(write: Write) -> None:
    """Five in the wrong order may be chance, unless all of them are."""
    labels = read_labels(write(f"image,mos\n{ROWS}"))
    labels.check_direction([5, 3, 4, 1, 2])
    with pytest.raises(DataError, match=r"SRCC -1\.00"):
        labels.check_direction(-labels.scores)
