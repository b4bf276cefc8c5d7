"""Gradient descent that was stopped ends in the same bits as one that never was."""

from __future__ import annotations

import dataclasses
import signal
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grmp_score.config import ModelConfig
from grmp_score.errors import ConfigError, TrainingDivergedError
from grmp_score.scorer import Scorer
from grmp_score.trainer.adapt import Progress, adapt, gradient_descent, train
from grmp_score.trainer.adapt.checkpoint import CHECKPOINT
from grmp_score.trainer.adapt.features import Activations, CropReader, compute_activations, teacher_of
from grmp_score.trainer.data.labels import Labels, read_labels
from grmp_score.weights.folder import Weights

from .conftest import random_weights
from .fewshot_data import FAST, PLAIN, checksum, make_labels, make_scorer
from .warm import Warm

QUICK = dataclasses.replace(FAST, text_first_epochs=1)
#: Steps and looks on the two folds of `QUICK`: the first stage, then both.
FOLDS = 2 * (2 + 2) + 2 * ((2 + 2) + (4 + 3))


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


@pytest.fixture
def kept(scorer: Scorer, labels: Labels) -> Activations:
    """Of all pictures, so that no run of a test need read them."""
    model, teacher = scorer.weights.build().requires_grad_(False), teacher_of(scorer.weights)[0]
    return compute_activations(
        model, labels, CropReader.of(scorer), teacher=teacher, keep_pooled=True, dtype=torch.float32
    )


class Stop(Exception):
    """Raised by a progress callback."""


def stopping_at(step: int, kind: type[BaseException] = Stop) -> Callable[[Progress], None]:
    """A progress callback that raises at its n-th report of a step or look."""
    seen = 0

    def report(progress: Progress) -> None:
        nonlocal seen
        seen += progress.row is not None
        if seen == step and progress.row is not None:
            raise kind

    return report


#: What is remembered from earlier steps, drawn in a step, or skipped between looks.
OTHERWISE = {"schedule": "plateau", "prompt_dropout": 0.3, "crops_per_epoch": 2, "look_every": 2, "epochs": 3}


@pytest.mark.usefixtures("all_epochs")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    scorer: Scorer, labels: Labels, kept: Activations, tmp_path: Path, optimizer: Any
) -> None:
    """Stopped in either stage of any fold or of the final run, also several times, it ends in the same bits."""
    config = dataclasses.replace(QUICK, optimizer=optimizer)
    whole = adapt(scorer, labels, config, activations=kept)
    for stops in ((1, 9, 4), (FOLDS - 3,), (FOLDS + 2, 5)):
        work = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(Stop):
                report = stopping_at(stop)
                adapt(scorer, labels, config, activations=kept, work=work, resume=True, progress=report)
        resumed = adapt(scorer, labels, config, activations=kept, work=work, resume=True)
        assert checksum(resumed.scorer) == checksum(whole.scorer)
        assert resumed.results == whole.results
        assert [dataclasses.replace(r, seconds=0) for r in resumed.history] == [
            dataclasses.replace(r, seconds=0) for r in whole.history
        ]
        assert [p.name for p in work.iterdir()] == [CHECKPOINT]


@pytest.mark.usefixtures("all_epochs")
def test_plateaus_dropout_and_skipped_looks_resume_too(
    scorer: Scorer, labels: Labels, kept: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside an epoch that is not looked at, and after the learning rate has fallen."""
    monkeypatch.setattr("grmp_score.trainer.adapt.optimizer.PLATEAU_SHARE", 0.5)
    monkeypatch.setattr("grmp_score.trainer.adapt.optimizer.PLATEAU_EPOCHS", 1)
    config = dataclasses.replace(QUICK, text_first_epochs=0, **OTHERWISE)
    whole = adapt(scorer, labels, config, activations=kept)
    assert whole.results["cross_validation"]["looked_at"] == {"all": [0, 2, 3]}
    rates = [row.learning_rate for row in whole.history if row.fold is None]
    assert rates[0] != rates[-1]
    for stop in (4, 25, len(whole.history) - 2):
        with pytest.raises(Stop):
            adapt(scorer, labels, config, activations=kept, work=tmp_path, resume=True, progress=stopping_at(stop))
        resumed = adapt(scorer, labels, config, activations=kept, work=tmp_path, resume=True)
        assert checksum(resumed.scorer) == checksum(whole.scorer) and resumed.results == whole.results
        (tmp_path / CHECKPOINT).unlink()


@pytest.mark.usefixtures("all_epochs")
def test_a_kill_between_checkpoints_costs_only_time(
    scorer: Scorer, labels: Labels, kept: Activations, tmp_path: Path
) -> None:
    """From a checkpoint older than the moment of the stop the same bits come out."""
    whole = adapt(scorer, labels, QUICK, activations=kept)
    copies: list[bytes] = []

    def keep(progress: Progress) -> None:
        if progress.row is not None and (tmp_path / CHECKPOINT).is_file():
            copies.append((tmp_path / CHECKPOINT).read_bytes())

    config = dataclasses.replace(QUICK, checkpoint_seconds=1e-9)
    adapt(scorer, labels, config, activations=kept, work=tmp_path, progress=keep)
    distinct = list(dict.fromkeys(copies))
    assert len(distinct) > 20
    for content in distinct[:: len(distinct) // 3]:
        (tmp_path / CHECKPOINT).write_bytes(content)
        again = adapt(scorer, labels, config, activations=kept, work=tmp_path, resume=True)
        assert checksum(again.scorer) == checksum(whole.scorer)


@pytest.mark.usefixtures("all_epochs")
def test_ctrl_c_leaves_a_checkpoint(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """The interrupt reaches the caller; what was done is kept, and a finished run resumes to the same."""
    with pytest.raises(KeyboardInterrupt):
        adapt(scorer, labels, QUICK, work=tmp_path, progress=stopping_at(20, KeyboardInterrupt))
    assert (tmp_path / CHECKPOINT).is_file()
    rows: list[Progress] = []
    resumed = adapt(scorer, labels, QUICK, work=tmp_path, resume=True, progress=rows.append)
    steps = [p for p in rows if p.row is not None]
    whole: list[Progress] = []
    once_more = adapt(scorer, labels, QUICK, work=tmp_path, resume=True, progress=whole.append)
    assert len(steps) > 0 and not [p for p in whole if p.row is not None]
    assert checksum(once_more.scorer) == checksum(resumed.scorer) and once_more.results == resumed.results


def test_a_step_that_was_cut_in_two_is_not_saved(
    scorer: Scorer, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while parameters are being changed leaves the checkpoint before."""
    whole = adapt(scorer, labels, PLAIN)
    step, calls = torch.optim.AdamW.step, 0

    def interrupted(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(7.0)
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapt(scorer, labels, dataclasses.replace(PLAIN, checkpoint_seconds=1e-9), work=tmp_path)
    resumed = adapt(scorer, labels, PLAIN, work=tmp_path, resume=True)
    assert checksum(resumed.scorer) == checksum(whole.scorer)


SCRIPT_CONFIG = dataclasses.replace(QUICK, checkpoint_seconds=1e-9)
SCRIPT = """
    import os, signal, sys, torch
    from pathlib import Path
    torch.set_num_threads(1)
    from grmp_score.scorer import Scorer
    from grmp_score.trainer.adapt import FewShotConfig, adapt, train
    from grmp_score.trainer.data.labels import read_labels

    original = train.best_epoch
    train.best_epoch = lambda looks, folds: (len(looks[0]) - 1, original(looks, folds)[1])
    folder, stop = Path(sys.argv[1]), int(sys.argv[2])
    seen = 0

    def report(progress):
        global seen
        seen += progress.row is not None
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    scorer = Scorer.from_pretrained(folder / "start", device="cpu")
    labels = read_labels(folder / "pictures" / "labels.csv")
    config = FewShotConfig(%s)
    adapted = adapt(scorer, labels, config, work=folder / "work", resume=True, progress=report)
    adapted.scorer.save_pretrained(folder / "work" / "out")
""" % ", ".join(f"{k}={v!r}" for k, v in dataclasses.asdict(SCRIPT_CONFIG).items())  # noqa: UP031


@pytest.mark.usefixtures("all_epochs")
def test_kill_9_and_resume(scorer: Scorer, labels: Labels, tmp_path: Path, warm: Warm) -> None:
    """A process killed three times without warning ends with the same weights as a run left alone."""
    scorer.save_pretrained(tmp_path / "start")
    lines = [f"{p.name},{s!r}" for p, s in zip(labels.paths, labels.scores.tolist(), strict=True)]
    labels.source.write_text("\n".join(["image,mos", *lines]) + "\n")
    for stop in [*np.random.default_rng(0).integers(4, 12, size=3).tolist(), -1]:
        done = warm.run(textwrap.dedent(SCRIPT), tmp_path, str(stop))
        assert done.returncode == (0 if stop < 0 else -signal.SIGKILL)
    killed = Scorer.from_pretrained(tmp_path / "work" / "out", device="cpu")
    start = Scorer.from_pretrained(tmp_path / "start", device="cpu")
    quiet = adapt(start, read_labels(labels.source), SCRIPT_CONFIG)
    assert checksum(killed) == checksum(quiet.scorer) != checksum(start)
    assert killed.config.results == quiet.results


@pytest.mark.parametrize("what", ["settings", "labels", "weights", "precision", "background"])
def test_a_checkpoint_of_another_run_is_refused(
    scorer: Scorer, labels: Labels, tiny_config: ModelConfig, tmp_path: Path, what: str
) -> None:
    """The error names what differs; settings that do not matter may differ."""
    with pytest.raises(Stop):
        adapt(scorer, labels, FAST, work=tmp_path, progress=stopping_at(3))
    config, words = FAST, what
    if what == "settings":
        config, words = dataclasses.replace(FAST, lr=2e-3, batch_size=6), "batch_size, lr"
    elif what == "labels":
        labels = dataclasses.replace(labels, scores=labels.scores * 2)
    elif what == "weights":
        scorer = make_scorer(random_weights(tiny_config, seed=3))
    elif what == "background":
        scorer = Scorer(scorer.weights, scorer.options, background="black")
    else:
        config = dataclasses.replace(FAST, precision="bfloat16")
    with pytest.raises(ConfigError, match=f"other {words}") as caught:
        adapt(scorer, labels, config, work=tmp_path, resume=True)
    assert caught.value.path == str(tmp_path / CHECKPOINT)


def test_settings_without_effect_may_differ(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """Where the cache lies and how often is saved do not matter to a checkpoint; without resume it is replaced."""
    with pytest.raises(Stop):
        adapt(scorer, labels, PLAIN, work=tmp_path, progress=stopping_at(3))
    other = dataclasses.replace(PLAIN, cache_bytes=0, checkpoint_seconds=5)
    resumed = adapt(scorer, labels, other, work=tmp_path, resume=True)
    anew = adapt(scorer, labels, dataclasses.replace(PLAIN, lr=2e-3), work=tmp_path)
    assert checksum(resumed.scorer) == checksum(adapt(scorer, labels, PLAIN).scorer) != checksum(anew.scorer)


def test_a_spoilt_checkpoint_is_an_error(scorer: Scorer, labels: Labels, tmp_path: Path) -> None:
    """One line with the file."""
    for content in (b"", b"no checkpoint", b"PK\x03\x04 half a zip", {"weights": 1}, [1, 2], torch.zeros(3)):
        if isinstance(content, bytes):
            (tmp_path / CHECKPOINT).write_bytes(content)
        else:
            torch.save(content, tmp_path / CHECKPOINT)
        with pytest.raises(ConfigError, match="not a readable checkpoint"):
            adapt(scorer, labels, PLAIN, work=tmp_path, resume=True)


def test_after_nan_the_last_good_checkpoint_stays(
    scorer: Scorer, labels: Labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is not saved over it."""
    config = dataclasses.replace(PLAIN, checkpoint_seconds=1e-9)
    with pytest.raises(Stop):
        adapt(scorer, labels, config, work=tmp_path, progress=stopping_at(4))
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(gradient_descent, "quality_loss", lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(TrainingDivergedError, match="not finite in the final run, phase 'text', step 5"):
        adapt(scorer, labels, config, work=tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_resume_needs_a_folder(scorer: Scorer, labels: Labels) -> None:
    """There is nothing to continue from."""
    with pytest.raises(ConfigError, match="no checkpoint"):
        adapt(scorer, labels, FAST, resume=True)
