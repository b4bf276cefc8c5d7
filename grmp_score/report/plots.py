"""Plots of a training: how it went, and what the model predicts.  matplotlib is optional and imported here only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grmp_score.display import printable
from grmp_score.errors import MissingExtraError
from grmp_score.report.adaptation import measured_on
from grmp_score.report.text import direction, interval, number
from grmp_score.trainer.metrics import Fit

if TYPE_CHECKING:
    from grmp_score.report.protocol import Row
    from grmp_score.trainer.adapt.config import HistoryRow
    from grmp_score.trainer.adapt.measure import Predictions

_PHASES = {"head": "in closed form", "text": "text side first", "all": "everything that is trained"}
_FINAL, _FOLD, _MEAN, _MARK = "tab:blue", "0.7", "tab:orange", "tab:red"


def plot_training(history: Sequence[HistoryRow], results: dict[str, Any], path: Path) -> None:
    """Loss, SRCC on the held-out folds, L_kl, the angle between G_qua and G_sem (the paper's figure 4) and the
    share of tensors that eq. (8) projects, by step.

    One column per phase, one row per quantity that there is: no SRCC without folds, the last three with QGR alone.
    The final run is drawn step by step, folds by their mean over every epoch.

    Args:
        history: `Adapted.history`; not empty.
        results: `Adapted.results`.
        path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure()
    phases = [phase for phase in _PHASES if any(row.phase == phase for row in history)]
    quantities: dict[str, Callable[[HistoryRow], float | None]] = {
        "loss (eq. 3)": lambda row: row.loss,
        "SRCC on held-out fold": lambda row: row.validation_srcc,
        "L_kl (eq. 7), nats": lambda row: row.semantic_loss,
        "angle (degrees)\nof G_qua to G_sem": lambda row: row.angle,
        "share of tensors\nprojected (eq. 8)": lambda row: row.projected,
    }
    rows = [(name, value) for name, value in quantities.items() if any(value(row) is not None for row in history)]
    figure.set_size_inches(1.5 + 4.5 * len(phases), 0.9 + 2.3 * len(rows))
    grid = figure.subplots(len(rows), len(phases), squeeze=False, sharex="col", sharey="row")
    folds = results["cross_validation"]
    for column, phase in enumerate(phases):
        own = [row for row in history if row.phase == phase]
        steps = _steps_per_epoch([row for row in own if row.fold is None] or own)
        chosen = results["chosen"][phase]
        for (name, value), axes in zip(rows, grid[:, column], strict=True):
            for fold in sorted({row.fold for row in own if row.fold is not None}):
                curve = _epoch_means([row for row in own if row.fold == fold], value)
                _line(axes, [(epoch * steps, y) for epoch, y in curve], _FOLD, "held-out folds", width=0.8)
            points = [(row.step, y) for row in own if row.fold is None and (y := value(row)) is not None]
            _line(axes, points, _FINAL, "final run, all shots")
            if name.startswith("SRCC"):
                looks = zip(folds["looked_at"][phase], folds["curves"][phase], strict=True)
                means = [(epoch * steps, y) for epoch, y in looks]
                _line(axes, means, _MEAN, "mean over folds")
            if name.startswith("angle"):
                axes.axhline(90, color="black", linewidth=0.8, linestyle="--", label="90°")
                half = max(5.0, 1.1 * max(abs(y - 90) for row in history if (y := value(row)) is not None))
                axes.set_ylim(90 - half, 90 + half)
            if folds is not None:
                axes.axvline(
                    steps * chosen, color=_MARK, linewidth=1, linestyle=":", label="end of the chosen epoch"
                )
            axes.grid(alpha=0.25)
            if column == 0:
                axes.set_ylabel(name)
        count = f"{chosen} epoch{'' if chosen == 1 else 's'}{'' if folds is None else ' chosen'}"
        if phase == "head":  # nothing is chosen there
            count = "one step"
        grid[0, column].set_title(f"{_PHASES[phase]}: {count}", fontsize=10)
        _step_axis(grid[-1, column], steps)
    legend = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = 5 if len(phases) > 1 else 3
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=120)


def plot_scatter(predictions: Predictions, results: dict[str, Any], path: Path, *, unit: str) -> None:
    """Label against prediction before and after, with the fitted 4-parameter logistic.

    Args:
        predictions: `Adapted.test_predictions`.
        results: `Adapted.results`.
        path: PNG to write.
        unit: name of the labels' column.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import numpy as np

    figure = _figure()
    figure.set_size_inches(9, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    labels = predictions.labels
    for axes, name, values in ((left, "before", predictions.before), (right, "after", predictions.after)):
        figures = results[name]
        axes.plot(values, labels.scores, ".", color=_FINAL, alpha=0.55, markersize=8, markeredgewidth=0)
        fit = Fit(figures["fit"]["kind"], tuple(_or_nan(figures["fit"]["parameters"])))
        if np.isfinite(fit.parameters).all() and len(values):
            curve = np.linspace(values.min(), values.max(), 400)
            kind = {"logistic": "logistic fit", "linear": "linear fit", "mean": "mean"}[fit.kind]
            axes.plot(curve, fit(curve), color=_MARK, linewidth=1.5, label=kind)
            axes.legend(loc="best", fontsize=8)
        srcc, ends = number(figures["srcc"]), interval(figures["srcc_interval"])
        axes.set_title(f"{name}: SRCC {srcc} (95 %: {ends})", fontsize=10)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("p(high quality)")
        axes.grid(alpha=0.25)
    left.set_ylabel(f"{_plain(unit)} ({direction(labels.higher_is_better)})")
    figure.suptitle(measured_on(results).split(";")[0].rstrip("."), fontsize=9)
    figure.savefig(path, dpi=120)


def plot_pretraining(log: Path, path: Path) -> None:
    """Support and query loss of stage 1 against outer steps.

    Args:
        log: ``log.csv`` of the run.
        path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    import numpy as np

    figure = _figure()
    figure.set_size_inches(7, 4)
    rows = np.atleast_1d(np.genfromtxt(log, delimiter=",", names=True, encoding="utf-8"))
    axes = figure.add_subplot()
    axes.plot(rows["step"], rows["support_loss"], label="support (before the inner step)", linewidth=1)
    axes.plot(rows["step"], rows["query_loss"], label="query (at the adapted parameters)", linewidth=1)
    axes.set(xlabel="outer step", ylabel="binary cross-entropy (eq. 3)", title="Stage 1")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_protocol(rows: Sequence[Row], title: str, path: Path) -> None:
    """SRCC against shots: a line per method through the medians, bars from the least to the largest.

    Args:
        rows: of `protocol.rows_of`.
        title: above it.
        path: PNG to write.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure()
    figure.set_size_inches(7, 4.5)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(row.method for row in rows))
    for i, method in enumerate(methods):
        own = [row for row in rows if row.method == method]
        shift = 1 + 0.02 * (i - (len(methods) - 1) / 2)  # so that bars do not cover each other
        below = [row.srcc.median - row.srcc.least for row in own]
        above = [row.srcc.largest - row.srcc.median for row in own]
        x, y = [row.shots * shift for row in own], [row.srcc.median for row in own]
        axes.errorbar(x, y, yerr=(below, above), marker="o", markersize=4, capsize=3, linewidth=1.2, label=method)
    shots = sorted({row.shots for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel="SRCC: median, least .. largest")
    axes.set_title(_plain(title), fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("the plot of the run", "matplotlib", "train") from error
    return Figure(layout="constrained")


def _line(axes: Any, points: Sequence[tuple[float, float]], colour: str, label: str, width: float = 1.5) -> None:
    if points:
        marker = "." if len(points) <= 12 else None
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker=marker, label=label)


def _epoch_means(
    rows: Iterable[HistoryRow], value: Callable[[HistoryRow], float | None]
) -> list[tuple[float, float]]:
    values: dict[int, list[float]] = {}
    for row in rows:
        if (y := value(row)) is not None:
            values.setdefault(row.epoch, []).append(y)
    return [(epoch, math.fsum(ys) / len(ys)) for epoch, ys in sorted(values.items())]


def _steps_per_epoch(rows: Iterable[HistoryRow]) -> int:
    return max(1, *(row.step for row in rows if row.epoch <= 1), 1)


def _step_axis(axes: Any, steps: int) -> None:
    """Steps from 0, at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    high = max(axes.get_xlim()[1], steps)
    axes.set_xlim(-0.03 * high, high)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_xlabel(f"step ({steps} per epoch)")


def _or_nan(values: Iterable[float | None]) -> Iterable[float]:
    return (math.nan if v is None else v for v in values)


def _plain(text: str) -> str:
    """Text that matplotlib takes literally: a pair of dollar signs would be mathematics."""
    return printable(text).replace("$", r"\$")
