"""The folder of an adapted model: weights, card, figures, history and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grmp_score.errors import MissingExtraError
from grmp_score.report.adaptation import write_history, write_results
from grmp_score.report.plots import plot_scatter, plot_training

if TYPE_CHECKING:  # these take seconds to import
    from grmp_score.trainer.adapt.config import HistoryRow
    from grmp_score.trainer.adapt.measure import Predictions
    from grmp_score.weights.folder import Weights

RESULTS, HISTORY, TRAINING, SCATTER = "results.json", "training.csv", "training.png", "scatter.png"


def write_folder(
    folder: Path,
    weights: Weights,
    history: Sequence[HistoryRow],
    predictions: Predictions | None,
    *,
    unit: str,
) -> MissingExtraError | None:
    """Writes everything; an interruption leaves some of it.

    Args:
        folder: to write to.
        weights: the adapted model, its card, and in its configuration the results of `adaptation.publishable`.
        history: `Adapted.history`.
        predictions: `Adapted.test_predictions`; None leaves out the scatter.
        unit: name of the labels' column.

    Returns:
        Why there are no pictures, if so: they are the only thing that needs a further package.
    """
    results = weights.config.results
    weights.save(folder)
    with open(folder / RESULTS, "w", encoding="utf-8") as file:
        write_results(file, results)
    with open(folder / HISTORY, "w", encoding="utf-8", newline="") as file:
        write_history(file, history)
    try:
        plot_training(history, results, folder / TRAINING)
        if predictions is not None:
            plot_scatter(predictions, results, folder / SCATTER, unit=unit)
    except MissingExtraError as error:
        return error
    return None
