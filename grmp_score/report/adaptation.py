"""What an adaptation gave, as text and files: figures with intervals, in words, as a table, as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any

from grmp_score.display import printable
from grmp_score.files import finite_or_none
from grmp_score.report.text import console_on, interval, number, plain_table

if TYPE_CHECKING:  # neither is needed to show --help
    from grmp_score.trainer.adapt.config import HistoryRow
    from grmp_score.trainer.adapt.measure import Predictions

#: Entry of the results -> the model that it measures.
MEASURED_MODELS = {"before": "un-adapted model", "ridge": "ridge regression", "after": "adapted model"}

#: L_kl in nats beyond which little is left of what the teacher knows; with nine scenes, answering at random costs
#: at most 2.2 on average.
MAX_KL = 1.0

#: What the adapted model is compared with, as sentences name it.
_BASELINES = {"before": "the un-adapted model", "ridge": "the ridge regression on the un-adapted features"}


def publishable(results: dict[str, Any], predictions: Predictions | None) -> dict[str, Any]:
    """Results as they are published: with all intervals, and without folder names.

    Args:
        results: `Adapted.results`.
        predictions: `Adapted.test_predictions`.

    Returns:
        A copy.  The three models gain ``krcc_interval`` and ``rmse_interval`` (on the fitted curve); ``gain``
        says by how much the adapted model's SRCC is above ``before`` and ``ridge`` (``srcc``, ``srcc_interval``:
        bootstrap 95 %, the same resampled rows for both sides).
    """
    import numpy as np

    from grmp_score.trainer.metrics import Fit, bootstrap_interval, krcc, srcc_rows

    unscored = [{**image, "path": printable(image["path"])} for image in results["unscored"]]
    left_out = [printable(name) for name in results["left_out"]]
    published = {**results, "unscored": unscored, "left_out": left_out, "gain": None}
    if predictions is None or None in results["after"]["fit"]["parameters"]:  # nothing, or too few rows
        return published
    labels, seed = predictions.labels, results["seed"]
    good = labels.scores if labels.higher_is_better else -labels.scores
    columns = {name: np.asarray(getattr(predictions, name)) for name in MEASURED_MODELS}
    krcc_rows = np.vectorize(krcc, signature="(n),(n)->()")
    for name, column in columns.items():
        fit = Fit(results[name]["fit"]["kind"], tuple(results[name]["fit"]["parameters"]))
        squares = (fit(column) - labels.scores) ** 2
        ends = {
            "krcc": bootstrap_interval(krcc_rows, column, good, seed=seed),
            "rmse": bootstrap_interval(lambda s, _: np.sqrt(s.mean(-1)), squares, good, seed=seed),
        }
        published[name] = {**results[name], **{f"{key}_interval": _finite(pair) for key, pair in ends.items()}}
    rows = np.arange(len(good), dtype=np.float64)  # resampled in place of predictions, to be used on both sides
    published["gain"] = gains = {}
    for name in _BASELINES:
        after, baseline = columns["after"], columns[name]

        def difference(drawn: Any, y: Any, after: Any = after, baseline: Any = baseline) -> Any:
            at = drawn.astype(np.int64)
            return srcc_rows(after[at], y) - srcc_rows(baseline[at], y)

        gains[f"over_{name}"] = {
            "srcc": finite_or_none(float(difference(rows, good))),
            "srcc_interval": _finite(bootstrap_interval(difference, rows, good, seed=seed)),
        }
    return published


def _finite(ends: tuple[float, float]) -> list[float | None]:
    return [finite_or_none(end) for end in ends]


def conclusion(results: dict[str, Any]) -> str:
    """In words, whether the adapted model is the best of the three; says so plainly when it is not.

    Args:
        results: of `publishable`.
    """
    if results["gain"] is None:
        return "Nothing was measured: too few images were left to test on, and there was no cross-validation."
    if not any(results["chosen"].values()):
        return (
            "Training did not help: on the held-out folds no epoch did better than the start, so the adapted model "
            f"is the un-adapted one.{_ridge_won(results)}"
        )
    if results["after"]["srcc"] is None:
        return "No agreement can be stated: all predictions of the adapted model, or all labels, are equal."
    gains = {name: results["gain"][f"over_{name}"] for name in _BASELINES}
    ahead = [name for name, gain in gains.items() if gain["srcc"] is not None and gain["srcc"] > 0]
    behind = [name for name, gain in gains.items() if gain["srcc"] is not None and gain["srcc"] <= 0]
    sentences = [_baseline_won(results, name) for name in behind]
    if ahead:
        parts = [f"{_BASELINES[name]} by {_with_interval(gains[name])}" for name in ahead]
        sentences.append(f"The adapted model did better than {' and than '.join(parts)} in SRCC.")
        unsure = sum(_within_chance(gains[name]) for name in ahead)
        if unsure:
            which = "This" if len(ahead) == 1 else "One of these" if unsure == 1 else "Both"
            sentences.append(f"{which} may be chance: 0 lies in the interval.")
    return " ".join(sentences)


def measured_on(results: dict[str, Any]) -> str:
    """Which rows the figures are about, as a sentence."""
    count = results["shots"] if results["measured_on"] == "cross-validation" else results["n_test"]
    if results["measured_on"] == "cross-validation":
        return (
            f"Measured on the {count} training images themselves, each predicted by a model that had not seen it; "
            "the number of epochs was chosen on the same folds, so the adapted model looks a little too good."
        )
    return f"Measured on {count} images that were not trained on."


def write_summary(stream: IO[str], results: dict[str, Any], *, unit: str, span: float) -> None:
    """Writes the table of the three models, the cross-validation, and the conclusion.

    Args:
        stream: where to.
        results: of `publishable`.
        unit: name of the labels' column.
        span: range of the labels.
    """
    from rich.markup import escape

    console = console_on(stream, highlight=False)
    if results["gain"] is not None:
        table = plain_table("", "SRCC", "95 % interval", "PLCC", "KRCC", "RMSE")
        for key, who in MEASURED_MODELS.items():
            figures = results[key]
            table.add_row(
                f"{key}: {who}" if key != "ridge" else who,
                number(figures["srcc"]),
                interval(figures["srcc_interval"]),
                number(figures["plcc"]),
                number(figures["krcc"]),
                number(figures["rmse"], span),
            )
        console.print(table)
        console.print(
            f"[dim]{measured_on(results)}  RMSE in units of {escape(printable(unit))}, after a fitted curve.[/]"
        )
    folds, qgr = results["cross_validation"], results["qgr"]
    if folds is not None:
        console.print(f"\n{cross_validation(folds)}")
    if qgr is not None:
        console.print(f"\n{regularisation(qgr)}")
    console.print(f"\n{conclusion(results)}{_advice(results)}")


def cross_validation(folds: dict[str, Any]) -> str:
    """Mean and spread over the folds, as a sentence."""
    return (
        f"Cross-validation ({folds['folds']} folds): SRCC {_mean(folds, 'srcc')}, PLCC {_mean(folds, 'plcc')}; "
        f"un-adapted {_mean(folds['before'], 'srcc')}, ridge {_mean(folds['ridge'], 'srcc')} (mean ± spread)."
    )


def regularisation(qgr: dict[str, Any]) -> str:
    """How the gradient regularisation went, as sentences; says so plainly when L_kl ran away.

    Args:
        qgr: of `trainer.adapt.run.qgr_figures`.
    """
    kl = qgr["semantic_loss"]
    angle = "" if qgr["angle"] is None else f"mean angle of G_qua to G_sem {qgr['angle']:.0f}°, "
    lowered = f", lambda lowered in {qgr['lowered']:.0%} of the steps" if qgr["lowered"] else ""
    said = (
        f"Gradient regularisation: L_kl from {kl['first']:.2g} to {kl['last']:.2g} nats (at most "
        f"{kl['greatest']:.2g}), {angle}{qgr['projected']:.0%} of the tensors projected{lowered}."
    )
    if kl["greatest"] > MAX_KL:
        said += (
            f"  L_kl above {MAX_KL:g} nat: the model no longer knows the scenes that its teacher sees.  A bound on "
            "L_kl, or a lambda of 1, keeps them."
        )
    return said


def write_results(stream: IO[str], results: dict[str, Any]) -> None:
    """Writes ``results.json``."""
    stream.write(json.dumps(results, indent=2, allow_nan=False) + "\n")


def write_history(stream: IO[str], history: Iterable[HistoryRow]) -> None:
    """Writes ``training.csv``: one row per step or measurement on held-out images; what does not apply is empty."""
    rows = [dataclasses.asdict(row) for row in history]
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _advice(results: dict[str, Any]) -> str:
    """What to do where the adapted model is not the best."""
    gains = [gain["srcc"] for gain in (results["gain"] or {}).values()]
    if any(gain is not None and gain <= 0 for gain in gains):
        return "\nUse more labels, another start model, or other settings (epochs, learning rate, what is trained)."
    return ""


def _mean(figures: dict[str, Any], key: str) -> str:
    return f"{number(figures[f'{key}_mean'])} ± {number(figures[f'{key}_std'])}"


def _with_interval(gain: dict[str, Any]) -> str:
    return f"{gain['srcc']:.3f} ({interval(gain['srcc_interval'])})"


def _within_chance(gain: dict[str, Any]) -> bool:
    low, high = gain["srcc_interval"]
    return low is None or high is None or low <= 0 <= high


def _baseline_won(results: dict[str, Any], name: str) -> str:
    baseline, after = results[name]["srcc"], results["after"]["srcc"]
    subject = _BASELINES[name][0].upper() + _BASELINES[name][1:]
    if baseline == after:
        return f"{subject} did as well (SRCC {number(baseline)})."
    chance = ", which may be chance" if _within_chance(results["gain"][f"over_{name}"]) else ""
    return f"{subject} did better (SRCC {number(baseline)} against {number(after)}{chance})."


def _ridge_won(results: dict[str, Any]) -> str:
    gain = results["gain"]["over_ridge"]["srcc"]
    return f" {_baseline_won(results, 'ridge')}" if gain is not None and gain < 0 else ""
