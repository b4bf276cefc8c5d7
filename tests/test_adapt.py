"""A whole adaptation: it learns, leaves its start alone, and its figures are what they say."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from grmp_score.config import LabelScale, ModelConfig
from grmp_score.errors import DataError
from grmp_score.images.read import read_image
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import Adapted, Progress, adapt, measure, train
from grmp_score.trainer.adapt.features import CropReader, compute_activations, teacher_of
from grmp_score.trainer.adapt.folds import Fold, make_folds
from grmp_score.trainer.adapt.gradient_descent import GradientDescent
from grmp_score.trainer.adapt.optimizer import stages_of
from grmp_score.trainer.adapt.parameters import trained_names, values_of
from grmp_score.trainer.adapt.ridge import fit_ridge
from grmp_score.trainer.adapt.train import best_epoch, steps_to_come
from grmp_score.trainer.data.labels import Labels
from grmp_score.trainer.data.splits import draw_shots
from grmp_score.trainer.evaluation import evaluate
from grmp_score.weights.folder import Weights

from .conftest import patch_tensor, random_weights
from .fewshot_data import FAST, PLAIN, checksum, farthest, make_labels, make_scorer


@pytest.fixture
def labels(tmp_path: Path) -> Labels:
    """Eighteen pictures."""
    return make_labels(tmp_path / "pictures", 18)


@pytest.fixture
def scorer(tiny_weights: Weights) -> Scorer:
    """The tiny model."""
    return make_scorer(tiny_weights)


@pytest.fixture
def all_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cross-validation always chooses the last epoch, so that the final run has something to do."""
    original = train.best_epoch
    monkeypatch.setattr(train, "best_epoch", lambda looks, folds: (len(looks[0]) - 1, original(looks, folds)[1]))


def changed(adapted: Adapted, scorer: Scorer) -> set[str]:
    """Names of the tensors that differ from the start model's."""
    new, old = adapted.scorer.model.state_dict(), scorer.model.state_dict()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_a_run_learns_what_the_labels_say(scorer: Scorer, tmp_path: Path) -> None:
    """Brightness is learned from 30 pictures and found again in 10 others; loss and figures say so."""
    labels = make_labels(tmp_path / "more", 40)
    adapted = adapt(scorer, labels, dataclasses.replace(FAST, shots=30, epochs=14, lr=1e-2, crops_per_step=4))
    results = adapted.results
    assert results["measured_on"] == "test" and results["n_test"] == 10 and results["chosen"]["all"] > 0
    assert results["after"]["srcc"] > max(0.6, results["before"]["srcc"] + 0.3)
    assert results["cross_validation"]["srcc_mean"] > results["cross_validation"]["before"]["srcc_mean"]
    losses = [r.loss for r in adapted.history if r.fold is None and r.loss is not None]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.usefixtures("all_epochs")
def test_the_figures_are_what_scorers_give(scorer: Scorer, labels: Labels) -> None:
    """Before and after equal `evaluate` on the test rows, ridge a regression on the features of the shots."""
    adapted = adapt(scorer, labels, FAST)
    drawn, rest = draw_shots(labels.scores, 12, FAST.seed)
    test, shots = labels.take(rest), labels.take(drawn)
    for name, made in (("before", scorer), ("after", adapted.scorer)):
        overall = evaluate(made, test).overall.as_dict()
        for figure, tolerance in (("n", 0), ("srcc", 0), ("krcc", 0), ("plcc", 1e-5), ("rmse", 1e-4)):
            assert adapted.results[name][figure] == pytest.approx(overall[figure], abs=tolerance), (name, figure)
    predictions = adapted.test_predictions
    assert predictions is not None and predictions.labels.paths == test.paths
    values = [s.value for s in adapted.scorer.score_many(test.paths)]
    np.testing.assert_allclose(predictions.after, np.array(values, dtype=np.float64), atol=1e-6)

    def features(part: Labels) -> np.ndarray:
        cuts = [patch_tensor(read_image(p), scorer.preprocess) for p in part.paths]
        with torch.no_grad():
            return np.stack([scorer.model.image(c).mean(0).double().numpy() for c in cuts])

    scale = shots.scale
    ridge = fit_ridge(features(shots), scale.to_unit(shots.scores))
    np.testing.assert_allclose(predictions.ridge, ridge(features(test)), atol=1e-4)
    assert json.loads(json.dumps(adapted.results, allow_nan=False)) == adapted.results
    assert adapted.results["ridge"]["rmse"] > 0 and adapted.results["checked"] is None


def test_the_history_of_an_adapted_model_stays(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Adapted again and again, the weights keep how every step was made, oldest first, on the disk too."""
    quick = dataclasses.replace(PLAIN, epochs=1, text_first_epochs=0, train="prompts")
    stages, current = [], scorer
    for seed in range(3):
        current = adapt(current, labels, dataclasses.replace(quick, seed=seed)).scorer
        assert current.config.training.get("stage_2_earlier", []) == stages
        stages.append(current.config.training["stage_2"])
    assert [stage["seed"] for stage in stages] == [0, 1, 2]
    assert [stage["start"] for stage in stages] == ["tiny", "tiny-adapted", "tiny-adapted-adapted"]
    again = Scorer.from_pretrained(current.save_pretrained(tmp_path / "out"), device="cpu")
    assert again.config.training == current.config.training and "stage_2" not in scorer.config.training


@pytest.mark.usefixtures("all_epochs")
def test_the_new_weights_say_how_they_came_about(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Label scale of the training rows, provenance, results; saved and loaded they score the same."""
    adapted = adapt(scorer, labels, FAST)
    config = adapted.scorer.config
    shots = labels.take(draw_shots(labels.scores, 12, 0)[0])
    assert config.label_scale == shots.scale != labels.scale
    stage = config.training["stage_2"]
    assert stage["start"] == "tiny" and stage["shots"] == 12 and stage["seed"] == 0
    assert stage["settings"] == dataclasses.asdict(FAST) and stage["method"] == "fine-tuning with QGR"
    assert stage["teacher"] == "start model without visual prompts"
    assert config.results == adapted.results and config.name == "tiny-adapted"
    assert config.reference_percentiles == {}
    again = Scorer.from_pretrained(adapted.scorer.save_pretrained(tmp_path / "out"), device="cpu")
    assert again.config.results == adapted.results
    for path in labels.paths[:3]:
        assert again.score(path).patch_values == adapted.scorer.score(path).patch_values


def test_the_start_scorer_stays_as_it_was(scorer: Scorer, labels: Labels) -> None:
    """Tensors, configuration and scores."""
    state, config = copy.deepcopy(scorer.model.state_dict()), scorer.config
    score = scorer.score(labels.paths[0])
    adapted = adapt(scorer, labels, PLAIN)
    assert all(torch.equal(state[k], v) for k, v in scorer.model.state_dict().items())
    assert scorer.config == config and scorer.score(labels.paths[0]) == score
    assert not any(p.requires_grad for p in scorer.model.parameters())
    assert not any(p.requires_grad for p in adapted.scorer.model.parameters())
    assert changed(adapted, scorer) >= {"text_prompt.ctx", "text_features", "clip.visual.ln_post.weight"}
    assert not any("resblocks.0." in name for name in changed(adapted, scorer) if "visual" in name)


@pytest.mark.usefixtures("all_epochs")
def test_a_seed_fixes_everything(scorer: Scorer, labels: Labels) -> None:
    """The same seed gives the same bits, figures and history; another seed another draw."""
    one, two = adapt(scorer, labels, FAST), adapt(scorer, labels, FAST)
    assert checksum(one.scorer) == checksum(two.scorer) and one.results == two.results
    assert [dataclasses.replace(r, seconds=0) for r in one.history] == [
        dataclasses.replace(r, seconds=0) for r in two.history
    ]
    other = adapt(scorer, labels, dataclasses.replace(PLAIN, seed=1))
    assert checksum(other.scorer) != checksum(adapt(scorer, labels, PLAIN).scorer)


@pytest.mark.usefixtures("all_epochs")
def test_the_test_part_changes_nothing_but_figures(scorer: Scorer, labels: Labels) -> None:
    """With other test labels, other test images, or none, the weights and the cross-validation are the same."""
    drawn, rest = draw_shots(labels.scores, 12, 0)
    shots, test = labels.take(drawn), labels.take(rest)
    config = dataclasses.replace(FAST, shots=None)
    runs = [
        adapt(scorer, shots, config, test=part)
        for part in (test, dataclasses.replace(test, scores=test.scores[::-1].copy()), shots, None)
    ]
    assert len({checksum(run.scorer) for run in runs}) == 1
    assert all(run.results["cross_validation"] == runs[0].results["cross_validation"] for run in runs)
    assert runs[0].results["after"]["srcc"] != runs[1].results["after"]["srcc"]
    whole = adapt(scorer, labels, FAST)
    assert checksum(whole.scorer) == checksum(runs[0].scorer) and whole.results["after"] == runs[0].results["after"]


@pytest.mark.usefixtures("all_epochs")
def test_the_test_part_is_read_at_the_end(scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test image is opened before the last step, and each is opened once."""
    events: list[str] = []
    read = CropReader.read

    def watched(reader: CropReader, paths: Any) -> Any:
        events.extend(path.name for path in paths)
        return read(reader, paths)

    monkeypatch.setattr(CropReader, "read", watched)
    adapt(scorer, labels, FAST, progress=lambda p: events.append(p.stage))
    end = len(events) - events[::-1].index("training")
    assert sorted(events[end:]) == sorted(
        [labels.paths[i].name for i in draw_shots(labels.scores, 12, 0)[1]] + ["testing"] * 6
    )
    assert not {"testing", *events[end:]} & set(events[:end])


@pytest.mark.usefixtures("all_epochs")
def test_progress_counts_to_its_end(scorer: Scorer, labels: Labels) -> None:
    """Every stage rises by ones to its total; rows come with the stages that take steps."""
    seen: dict[str, list[Progress]] = {}
    config = dataclasses.replace(FAST, checkpoint_seconds=1e-9)
    adapted = adapt(scorer, labels, config, progress=lambda p: seen.setdefault(p.stage, []).append(p))
    assert list(seen) == ["reading", "cross-validation", "training", "testing"]
    for stage, reports in seen.items():
        done = [p.done for p in reports if p.row is None or p.row.loss is not None]
        assert done == list(range(1, len(done) + 1))
        assert reports[-1].done == reports[-1].total
        assert all((p.row is not None) == (stage in ("cross-validation", "training")) for p in reports)
    chosen = adapted.results["chosen"]
    assert seen["training"][-1].total == 3 * (chosen["text"] + chosen["all"])


def test_the_history_tells_every_step_once(scorer: Scorer, labels: Labels) -> None:
    """Per fold and phase: steps in order, a look before the first and after every epoch; the final run at last."""
    rows = adapt(scorer, labels, FAST).history
    for fold in (0, 1):
        for phase in ("text", "all"):
            part = [r for r in rows if r.fold == fold and r.phase == phase]
            assert [r.step for r in part if r.loss is not None] == [1, 2, 3, 4]
            assert [(r.epoch, r.step) for r in part if r.validation_srcc is not None] == [(0, 0), (1, 2), (2, 4)]
    assert all(r.validation_srcc is None for r in rows if r.fold is None)
    seconds = [r.seconds for r in rows if r.fold == 0]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert len({(r.fold, r.phase, r.step, r.loss is None) for r in rows}) == len(rows)


def test_epochs_are_chosen_by_the_folds(scorer: Scorer, labels: Labels) -> None:
    """The mean curve's best epoch is trained, as the history of the folds says."""
    adapted = adapt(scorer, labels, FAST)
    curves, chosen = adapted.results["cross_validation"]["curves"], adapted.results["chosen"]
    for phase in ("text", "all"):
        looks = [
            [r.validation_srcc for r in adapted.history if r.fold == f and r.phase == phase and r.loss is None]
            for f in (0, 1)
        ]
        np.testing.assert_allclose(curves[phase], np.mean(np.array(looks, dtype=float), axis=0))
        assert chosen[phase] == int(np.argmax(curves[phase]))
        final = [r for r in adapted.history if r.fold is None and r.phase == phase]
        assert len(final) == chosen[phase] * 3
    assert curves["all"][0] == pytest.approx(curves["text"][chosen["text"]])
    assert adapted.results["cross_validation"]["srcc_mean"] == pytest.approx(max(curves["all"]))


def test_without_test_rows_the_folds_are_measured(scorer: Scorer, labels: Labels) -> None:
    """Out-of-fold predictions for all shots, each by a training that did not see it."""
    config = dataclasses.replace(FAST, shots=None)
    adapted = adapt(scorer, labels, config)
    results, predictions = adapted.results, adapted.test_predictions
    assert results["measured_on"] == "cross-validation" and results["n_test"] == 0 and predictions is not None
    assert predictions.labels.paths == labels.paths and results["after"]["n"] == len(labels)
    assert results["before"]["srcc"] == pytest.approx(evaluate(scorer, labels).overall.srcc, abs=1e-6)
    model, (first, _) = scorer.weights.build().requires_grad_(False), make_folds(labels, 2, config.seed)
    teacher, _ = teacher_of(scorer.weights)
    kept = compute_activations(model, labels, CropReader.of(scorer), teacher=teacher, dtype=torch.float32)
    start = values_of(model, trained_names(model, config))
    stages = [dataclasses.replace(s, stop=results["chosen"][s.name]) for s in stages_of(model, config)]
    training = GradientDescent(model, start, kept, first, stages, config, precision="float32")
    list(training.run())
    expected = first.scale.to_label(np.array(training.looks["all"][-1]))
    np.testing.assert_allclose(labels.scale.to_label(predictions.after[first.held_out]), expected, atol=1e-5)


def test_without_folds_and_test_rows_nothing_is_claimed(scorer: Scorer, labels: Labels) -> None:
    """All epochs are trained, and there are no figures."""
    adapted = adapt(scorer, labels, dataclasses.replace(PLAIN, shots=None))
    results = adapted.results
    assert results["measured_on"] is None and adapted.test_predictions is None
    assert results["before"] is results["ridge"] is results["after"] is results["cross_validation"] is None
    assert results["chosen"] == {"text": 2, "all": 2}


def test_rows_too_few_for_figures_are_not_a_test_part(scorer: Scorer, labels: Labels) -> None:
    """Four rows left: the cross-validation is measured instead."""
    assert adapt(scorer, labels, dataclasses.replace(FAST, shots=14)).results["measured_on"] == "cross-validation"
    assert adapt(scorer, labels, dataclasses.replace(FAST, shots=13)).results["n_test"] == 5


def test_lower_may_be_better(scorer: Scorer, labels: Labels) -> None:
    """Mirrored labels give the same weights and correlations, and a scale that says so."""
    mirrored = dataclasses.replace(labels, scores=20 - labels.scores, higher_is_better=False)
    drawn = draw_shots(labels.scores, 12, 0)[0]
    rest = np.setdiff1d(np.arange(18), drawn)
    config = dataclasses.replace(PLAIN, shots=None)
    one, other = (adapt(scorer, part.take(drawn), config, test=part.take(rest)) for part in (labels, mirrored))
    assert farthest(dict(one.scorer.weights.adapter), dict(other.scorer.weights.adapter)) < 1e-4
    for name in ("before", "ridge", "after"):
        assert one.results[name]["srcc"] == pytest.approx(other.results[name]["srcc"], abs=1e-6)
    scale = other.scorer.config.label_scale
    assert isinstance(scale, LabelScale) and not scale.higher_is_better


def test_a_test_image_that_cannot_be_read_is_left_out(scorer: Scorer, labels: Labels) -> None:
    """It is named in the results; the others are measured."""
    rest = draw_shots(labels.scores, 12, 0)[1]
    labels.paths[rest[2]].write_bytes(b"no image")
    adapted = adapt(scorer, labels, PLAIN)
    assert adapted.results["n_test"] == adapted.results["after"]["n"] == 5
    (unscored,) = adapted.results["unscored"]
    assert unscored["path"] == labels.paths[rest[2]].name and unscored["row"] == labels.rows[rest[2]]
    assert adapted.test_predictions is not None and len(adapted.test_predictions.labels) == 5


@pytest.mark.parametrize("tolerance", [1.0, 1e-9])
def test_bfloat16_figures_are_checked(
    scorer: Scorer, labels: Labels, monkeypatch: pytest.MonkeyPatch, tolerance: float
) -> None:
    """Scores off float32's by more than the tolerance are all computed in float32 instead."""
    monkeypatch.setattr(measure, "TOLERANCE", tolerance)
    monkeypatch.setattr(measure, "CHECKED", 3)
    config = dataclasses.replace(PLAIN, precision="bfloat16")
    adapted = adapt(scorer, labels, config)
    assert adapted.results["precision"] == "bfloat16" and adapted.test_predictions is not None
    values = [s.value for s in adapted.scorer.score_many(adapted.test_predictions.labels.paths)]
    difference = float(np.abs(adapted.test_predictions.after - np.array(values, dtype=np.float64)).max())
    if tolerance < 1e-6:
        assert adapted.results["measured_in"] == "float32" and adapted.results["checked"] is None
        assert difference < 1e-6
    else:
        assert adapted.results["measured_in"] == "bfloat16"
        assert 1e-6 < difference < 0.02 and 0 < adapted.results["checked"] < 0.02


def test_a_prompts_adapter_is_small(tiny_config: ModelConfig, labels: Labels) -> None:
    """Only the context and the stored text features change; with a pristine start it is all there is."""
    tuned = random_weights(tiny_config)
    base = {**dict(tuned.backbone), **{k[5:]: v for k, v in tuned.adapter.items() if k.startswith("clip.")}}  # type: ignore[arg-type]
    small = {k: v for k, v in tuned.adapter.items() if not k.startswith("clip.")}
    start = make_scorer(dataclasses.replace(tuned, backbone=base, adapter=small))
    config = dataclasses.replace(PLAIN, train="prompts", text_first_epochs=0, lr=1e-2)
    adapted = adapt(start, labels, config)
    assert changed(adapted, start) == {"text_prompt.ctx", "text_features"}
    assert set(adapted.scorer.weights.adapter) == set(small)
    assert adapted.scorer.config.training["stage_2"]["trained_parameters"] == 4 * 32
    assert adapted.scorer.config.training["stage_2"]["teacher"] is None
    bigger = adapt(make_scorer(tuned), labels, config)  # big tensors of the start's own adapter stay in it
    assert set(bigger.scorer.weights.adapter) == set(tuned.adapter)


def test_crops_and_precision_of_the_cache_are_settings(scorer: Scorer, labels: Labels) -> None:
    """More crops in training do not change how the new scorer cuts images."""
    config = dataclasses.replace(PLAIN, crops_per_image=6, cache_dtype="float16", cache_bytes=0, flips=True)
    adapted = adapt(scorer, labels, config)
    assert adapted.scorer.preprocess == scorer.preprocess
    in_memory = adapt(scorer, labels, dataclasses.replace(config, cache_bytes=2**30))
    assert checksum(adapted.scorer) == checksum(in_memory.scorer)


def test_the_scorers_own_number_of_patches_is_kept(tiny_weights: Weights, labels: Labels) -> None:
    """A scorer made with another number trains, measures and saves with that."""
    start = Scorer(tiny_weights, device="cpu", patches=2)
    adapted = adapt(start, labels, PLAIN)
    assert adapted.scorer.preprocess == start.preprocess == adapted.scorer.config.preprocess
    assert adapted.results["before"]["srcc"] == pytest.approx(
        evaluate(start, labels.take(draw_shots(labels.scores, 12, 0)[1])).overall.srcc
    )


def test_too_few_labels_are_said(scorer: Scorer, labels: Labels) -> None:
    """For the draw, for the folds, and scores that are all equal."""
    with pytest.raises(DataError, match="cannot draw 40 training rows from 18"):
        adapt(scorer, labels, dataclasses.replace(FAST, shots=40))
    with pytest.raises(DataError, match="3 training rows are too few for cross-validation"):
        adapt(scorer, labels, dataclasses.replace(FAST, shots=3))
    same = dataclasses.replace(labels, scores=np.full(18, 2.5))
    with pytest.raises(DataError, match=r"12 of 12 images have the score 2\.5"):
        adapt(scorer, same, PLAIN)
    ties = dataclasses.replace(labels, scores=np.where(np.arange(18) == 5, 4.0, 2.5))
    with pytest.raises(DataError, match=r"17 of 18 images have the score 2\.5.*other scores, or use no folds"):
        adapt(scorer, ties, dataclasses.replace(FAST, shots=None))


def test_the_best_epoch_is_the_earliest_of_equals(labels: Labels) -> None:
    """Means over folds; constant predictions count as uncorrelated."""
    three = dataclasses.replace(labels.take(range(3)), scores=np.array([1.0, 2.0, 3.0]))
    folds = [Fold(i, np.arange(3), np.arange(3), three) for i in range(2)]
    up, down, flat = (np.array(p) for p in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.5, 0.5, 0.5]))
    assert best_epoch([[down, up, up], [down, up, up]], folds) == (1, [-1.0, 1.0, 1.0])
    assert best_epoch([[flat, up], [flat, down]], folds) == (0, [0.0, 0.0])
    assert best_epoch([[up, flat], [flat, up]], folds)[1] == [0.5, 0.5]


def test_steps_to_come_count_repeated_stages(scorer: Scorer, labels: Labels) -> None:
    """Folds of 6 and batches of 5: two steps an epoch; the second stage repeats the first as settled."""
    folds = make_folds(labels.take(range(12)), 2, 0)
    text, everything = stages_of(scorer.model, dataclasses.replace(FAST, text_first_epochs=3, epochs=4))
    assert steps_to_come(folds, [text, everything], FAST) == 4 * (3 + 3 + 4)
    assert steps_to_come(folds, [dataclasses.replace(text, stop=1), everything], FAST) == 4 * (3 + 1 + 4)


@pytest.mark.parametrize("train", ["head", "blocks"])
def test_images_are_read_as_the_scorer_reads_them(tiny_weights: Weights, tmp_path: Path, train: Any) -> None:
    """Its background lies under transparent training and test images, and under those of the adapted scorer."""
    labels = make_labels(tmp_path / "pictures", 18)
    for i, path in enumerate(labels.paths):
        image = Image.open(path).convert("RGBA")
        image.putalpha(Image.new("L", image.size, 40 + 10 * i))
        image.save(path)
    config = dataclasses.replace(PLAIN, train=train, text_first_epochs=0)
    scorers = [Scorer(tiny_weights, device="cpu", background=colour) for colour in ("white", "#102030")]
    on_white, on_dark = (adapt(scorer, labels, config) for scorer in scorers)
    assert checksum(on_white.scorer) != checksum(on_dark.scorer)
    assert on_dark.scorer.background == "#102030" and on_dark.test_predictions is not None
    paths = on_dark.test_predictions.labels.paths
    for scorer, predictions in (
        (scorers[1], on_dark.test_predictions.before),
        (on_dark.scorer, on_dark.test_predictions.after),
    ):
        values = [score.value for score in scorer.score_many(paths)]
        np.testing.assert_allclose(predictions, np.array(values, dtype=np.float64), atol=1e-5)


def test_the_scorers_limit_of_pixels_holds(tiny_weights: Weights, labels: Labels) -> None:
    """A smaller one than usual refuses a training image, and the adapted scorer keeps it."""
    tight = Scorer(tiny_weights, device="cpu", max_pixels=56 * 44 - 1)
    with pytest.raises(DataError, match=r"cannot be read: the image has .* megapixels"):
        adapt(tight, labels, PLAIN)
    exact = Scorer(tiny_weights, device="cpu", max_pixels=56 * 44)
    assert (
        adapt(exact, labels, dataclasses.replace(PLAIN, train="head", text_first_epochs=0)).scorer.max_pixels
        == 56 * 44
    )
