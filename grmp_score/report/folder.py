"""The folder of an adapted model: weights, card, figures, history and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grmp_score.errors import MissingExtraError
from grmp_score.report.adaptation import publishable, write_history, write_results
from grmp_score.report.card import adapter_sha256, model_card
from grmp_score.report.plots import plot_scatter, plot_training

if TYPE_CHECKING:  # these take seconds to import
    from grmp_score.trainer.adapt.config import HistoryRow
    from grmp_score.trainer.adapt.measure import Predictions
    from grmp_score.trainer.adapt.run import Adapted
    from grmp_score.weights.folder import Weights

RESULTS, HISTORY, TRAINING, SCATTER = "results.json", "training.csv", "training.png", "scatter.png"


def publish(
    adapted: Adapted,
    start: Weights,
    *,
    folder: str,
    name: str | None = None,
    model: str | None = None,
    test: Path | None = None,
) -> Weights:
    """The adapted weights with their provenance, published figures and card.

    Args:
        adapted: what was learned.
        start: from which weights.
        folder: name of the folder to be written.
        name: of the new weights; None takes the folder's.
        model: how the user named the start; None for the bundled model.
        test: file of the test labels, if they have one of their own.
    """
    from grmp_score.trainer.adapt.config import FewShotConfig

    old = adapted.scorer.config
    stage = old.training["stage_2"]
    settings = FewShotConfig(**stage["settings"])
    in_effect = {
        "lr": settings.learning_rate,
        "crops_per_image": settings.crops_per_image or old.preprocess.patches,
    }
    stage = {
        **stage,
        "start_adapter_sha256": adapter_sha256(start),
        "test": None if test is None else test.name,
        "settings": {**stage["settings"], **in_effect},
    }
    config = dataclasses.replace(
        old,
        name=name or folder,
        results=publishable(adapted.results, adapted.test_predictions),
        training={**old.training, "stage_2": stage},
    )
    card = model_card(config, start, folder=folder, repo=_repository(model))
    return dataclasses.replace(adapted.scorer.weights, config=config, card=card)


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


def _repository(model: str | None) -> str | None:
    """The Hub repository that ``--model`` names, if it does."""
    from grmp_score.weights.folder import BUNDLED, CONFIG

    local = model is None or Path(model).exists() or (BUNDLED / model / CONFIG).is_file()
    return None if local else model
