"""The pictures of an adaptation: every panel has something in it, and nothing overlaps."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from grmp_score.errors import MissingExtraError
from grmp_score.report.plots import plot_pretraining, plot_scatter, plot_training
from grmp_score.trainer.adapt.config import HistoryRow
from grmp_score.trainer.adapt.measure import Predictions
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.evaluation import agreement
from grmp_score.trainer.pretrain.meta import LogRow
from grmp_score.trainer.pretrain.run import write_log


def make_history(
    epochs: dict[str, int], chosen: dict[str, int], *, folds: int = 3, qgr: bool = True, steps: int = 4
) -> tuple[list[HistoryRow], dict[str, Any]]:
    """A made-up run: every phase tries `epochs`, the final run takes `chosen` of them."""
    rng = np.random.default_rng(0)
    rows: list[HistoryRow] = []
    runs = [(fold, epochs) for fold in range(folds)] + [(None, chosen)]  # type: ignore[list-item]
    for fold, phases in runs:
        for phase, count in phases.items():
            if fold is not None:
                rows.append(HistoryRow(fold, phase, 0, 0, validation_srcc=rng.uniform(0, 1)))  # type: ignore[arg-type]
            for step in range(1, count * steps + 1):
                epoch, angle = math.ceil(step / steps), rng.uniform(80, 110) if qgr else None
                rows.append(HistoryRow(fold, phase, epoch, step, loss=rng.uniform(0.5, 1), angle=angle))  # type: ignore[arg-type]
                if fold is not None and step % steps == 0:
                    measured = HistoryRow(fold, phase, epoch, step, validation_srcc=rng.uniform(0, 1))  # type: ignore[arg-type]
                    rows.append(measured)
    curves = {phase: [0.5] * (count + 1) for phase, count in epochs.items()}
    looked_at = {phase: list(range(count + 1)) for phase, count in epochs.items()}
    return rows, {
        "chosen": chosen,
        "cross_validation": {"curves": curves, "looked_at": looked_at} if folds else None,
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    original = Figure.savefig

    def save(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


def assert_tidy(figure: Figure) -> None:
    """No panel is empty, no texts overlap, and none leaves the picture."""
    figure.dpi = 120
    FigureCanvasAgg(figure).draw()
    texts = []
    for axes in figure.axes:
        assert any(len(line.get_xdata()) for line in axes.lines)
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label]
        if axes.xaxis.get_tick_params()["labelbottom"]:
            low, high = axes.get_xlim()
            texts += [t.label1 for t in axes.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
    for legend in figure.legends:
        texts += legend.get_texts()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
    frame = figure.bbox
    for text, box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} and {other!r}"


@pytest.mark.parametrize(
    ("epochs", "chosen", "options", "panels"),
    [
        ({"text": 20, "all": 6}, {"text": 11, "all": 3}, {}, 6),
        ({"text": 20, "all": 6}, {"text": 0, "all": 6}, {}, 6),
        ({"text": 20, "all": 6}, {"text": 3, "all": 0}, {"qgr": False}, 4),
        ({"all": 60}, {"all": 42}, {"steps": 13}, 3),
        ({"all": 1}, {"all": 1}, {"steps": 1}, 3),
        ({"all": 1}, {"all": 0}, {"steps": 1, "qgr": False}, 2),
        ({"all": 1}, {"all": 1}, {"folds": 0, "steps": 1}, 2),
        ({"text": 2, "all": 2}, {"text": 2, "all": 2}, {"folds": 0, "qgr": False}, 2),
    ],
)
def test_training(
    tmp_path: Path,
    drawn: list[Figure],
    epochs: dict[str, int],
    chosen: dict[str, int],
    options: dict[str, Any],
    panels: int,
) -> None:
    """One column per phase; rows only for what there is: no angle without QGR, no SRCC without folds."""
    history, results = make_history(epochs, chosen, **options)
    plot_training(history, results, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.format == "PNG" and picture.width <= 1400
    assert len(drawn[0].axes) == panels
    assert_tidy(drawn[0])
    labels = {t.get_text() for t in drawn[0].legends[0].get_texts()}
    assert ("90°" in labels) == options.get("qgr", True)
    assert ("mean over folds" in labels) == (options.get("folds", 3) > 0)


def test_the_final_run_is_drawn_step_by_step(tmp_path: Path, drawn: list[Figure]) -> None:
    """Its line holds the history's own numbers, and the angle's panel the line at 90 degrees in the middle."""
    history, results = make_history({"text": 4, "all": 3}, {"text": 2, "all": 3})
    plot_training(history, results, tmp_path / "training.png")
    final = [row for row in history if row.fold is None and row.phase == "all"]
    loss, _, angle = drawn[0].axes[1::2]
    for axes, values in ((loss, [r.loss for r in final]), (angle, [r.angle for r in final])):
        line = next(line for line in axes.lines if line.get_label() == "final run, all shots")
        assert list(line.get_xdata()) == [row.step for row in final] and list(line.get_ydata()) == values
    assert sum(angle.get_ylim()) / 2 == pytest.approx(90)


def test_a_validation_that_is_not_a_number_is_a_gap(tmp_path: Path) -> None:
    """All predictions equal: the SRCC is NaN."""
    history, results = make_history({"all": 2}, {"all": 1})
    history = [
        HistoryRow(r.fold, r.phase, r.epoch, r.step, validation_srcc=math.nan) if r.validation_srcc else r
        for r in history
    ]
    plot_training(history, results, tmp_path / "training.png")


def make_predictions(n: int, *, constant: bool = False, higher: bool = True) -> tuple[Predictions, dict[str, Any]]:
    """Predictions and the figures of them."""
    rng = np.random.default_rng(1)
    scores = rng.uniform(1, 5, n)
    paths = tuple(Path(f"{i}.png") for i in range(n))
    labels = Labels(Path("mine.csv"), paths, tuple(range(n)), scores, higher_is_better=higher)
    before, after = rng.uniform(0, 1, n), np.clip(scores / 6 + rng.normal(0, 0.05, n), 0, 1)
    predictions = Predictions(labels, np.full(n, 0.5) if constant else before, before, after)
    found = {
        name: agreement(getattr(predictions, name), scores, higher_is_better=higher).as_dict()
        for name in ("before", "ridge", "after")
    }
    return predictions, {**found, "measured_on": "test", "n_test": n, "shots": 50}


@pytest.mark.parametrize(
    ("n", "constant", "unit"),
    [
        (3, False, "mos"),
        (3, True, "mos"),
        (5, False, "my $score$ of $ {x"),
        (5, True, "mos"),
        (300, False, "a\nb"),
        (300, True, "mos"),
    ],
)
def test_scatter(tmp_path: Path, drawn: list[Figure], n: int, constant: bool, unit: str) -> None:
    """Points and curve, whatever can be fitted, and any name of the column."""
    predictions, results = make_predictions(n, constant=constant, higher=unit == "mos")
    plot_scatter(predictions, results, tmp_path / "scatter.png", unit=unit)
    with Image.open(tmp_path / "scatter.png") as picture:
        assert picture.format == "PNG"
    assert_tidy(drawn[0])
    left, right = drawn[0].axes
    assert list(right.lines[0].get_xdata()) == list(predictions.after)
    assert list(left.lines[0].get_ydata()) == list(predictions.labels.scores)
    assert len(right.lines) == (1 if n < 5 else 2)
    assert ("higher" if unit == "mos" else "lower") in left.get_ylabel()


@pytest.mark.parametrize("n", [1, 30])
def test_pretraining(tmp_path: Path, drawn: list[Figure], n: int) -> None:
    """Both losses of every outer step in the log."""
    write_log([LogRow(i, 1, 1 / i, 1.1 / i, float(i)) for i in range(1, n + 1)], tmp_path / "log.csv")
    plot_pretraining(tmp_path / "log.csv", tmp_path / "log.png")
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    assert_tidy(drawn[0])
    support, query = drawn[0].axes[0].lines
    assert list(support.get_ydata()) == pytest.approx([1 / i for i in range(1, n + 1)])
    assert list(query.get_xdata()) == list(range(1, n + 1))


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        plot_pretraining(tmp_path / "log.csv", tmp_path / "log.png")
    assert caught.value.package == "matplotlib"
    with pytest.raises(MissingExtraError, match=r"pip install 'grmp_score\[train\]'"):
        plot_training(*make_history({"all": 1}, {"all": 1}), tmp_path / "training.png")
    with pytest.raises(MissingExtraError):
        predictions, results = make_predictions(9)
        plot_scatter(predictions, results, tmp_path / "scatter.png", unit="mos")
