"""Settings of an adaptation: what makes no sense is refused, and reading the defaults costs nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from grmp_score.errors import ConfigError
from grmp_score.trainer.adapt import FewShotConfig, HistoryRow


@pytest.mark.parametrize(
    "settings",
    [
        {"shots": 1},
        {"seed": -1},
        {"epochs": -1},
        {"epochs": 0, "head_first": False, "train": "blocks"},
        {"train": "prompts", "epochs": 0},
        {"train": "head", "text_first_epochs": 2},
        {"batch_size": 0},
        {"crops_per_image": 0},
        {"crops_per_step": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"text_first_lr": -1.0},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"qgr_lambda": -1.0},
        {"qgr_lambda": float("inf")},
        {"folds": 1},
        {"checkpoint_seconds": 0.0},
        {"crops_per_epoch": 0},
        {"look_every": 0},
        {"qgr_max_kl": 0.0},
        {"prompt_dropout": 1.0},
        {"schedule": "step"},
        {"train": "prompts", "text_first_epochs": 3},
        {"train": "everything"},
        {"optimizer": "adam"},
        {"precision": "float16"},
        {"qgr_form": "local"},
        {"cache_dtype": "int8"},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """With the name of the setting."""
    with pytest.raises(ConfigError, match=next(iter(settings)) if "train" not in settings else "train|text"):
        FewShotConfig(**settings)


def test_presets_are_the_papers() -> None:
    """What METHOD section 3 says of them; settings given besides win."""
    paper, full = FewShotConfig.preset("paper"), FewShotConfig.preset("paper-full")
    assert (paper.train, paper.head_first, paper.text_first_epochs, paper.warm_up_epochs) == ("blocks", False, 0, 0)
    assert (paper.optimizer, paper.learning_rate, paper.momentum, paper.weight_decay) == ("sgd", 1e-3, 0.0, 1e-4)
    assert (paper.batch_size, paper.epochs, paper.schedule, paper.flips) == (192, 210, "plateau", True)
    assert (full.optimizer, full.learning_rate, full.epochs, full.batch_size) == ("adamw", 5e-6, 9, 16)
    assert full.crops_per_epoch * full.crops_per_step == full.crops_per_image == 10
    for config in (paper, full):
        assert (config.qgr_lambda, config.qgr_form, config.folds) == (5.0, "per_parameter", 3)
    assert FewShotConfig.preset("paper", lr=0.5, shots=7) == dataclasses.replace(paper, lr=0.5, shots=7)
    with pytest.raises(ConfigError, match=r"no preset 'authors'; there are \['paper', 'paper-full'\]"):
        FewShotConfig.preset("authors")


def test_history_rows_are_plain_data() -> None:
    """They go through JSON and back, as the checkpoint needs."""
    row = HistoryRow(None, "all", 1, 2, 0.5, 0.1, 90.0, 0.5, 5.0, None, 1e-3, 2.0)
    assert HistoryRow(**json.loads(json.dumps(dataclasses.asdict(row)))) == row


def test_the_defaults_are_known_without_torch() -> None:
    """The command line reads them for its help."""
    code = (
        "import sys; from grmp_score.trainer.adapt import FewShotConfig; print(FewShotConfig().train, *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "grmp_score.trainer.adapt.config" in out and not {"torch", "scipy", "numpy"} & set(out)
