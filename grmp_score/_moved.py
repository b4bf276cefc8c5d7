"""Documented modules of version 0.1 under their old names, with a `DeprecationWarning`; to go in version 0.3."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType

#: Old module -> name in it -> where it is now.
_NAMES = {
    "cache": {"ScoreCache": "grmp_score.ScoreCache"},
    "frames": {
        "score_frame": "grmp_score.integrations.pandas.score_frame",
        "PatchDataset": "grmp_score.integrations.dataloader.PatchDataset",
        "score_prepared": "grmp_score.integrations.dataloader.score_prepared",
    },
    "ray": {
        "score_dataset": "grmp_score.integrations.ray.score_dataset",
        "score_paths": "grmp_score.integrations.ray.score_paths",
    },
    "trainer.finetune": {"FewShotConfig": "grmp_score.FewShotConfig", "adapt": "grmp_score.adapt"},
    "trainer.labels": {"read_labels": "grmp_score.read_labels"},
    "trainer.protocol": {"evaluate": "grmp_score.evaluate"},
}


class _MovedModule(ModuleType):
    def __getattr__(self, name: str) -> object:
        moved = _NAMES[self.__name__.removeprefix("grmp_score.")].get(name)
        if moved is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        warnings.warn(f"{self.__name__}.{name} is now {moved}", DeprecationWarning, stacklevel=2)
        module, _, attribute = moved.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


for _old in _NAMES:
    # Found by ``import`` before it looks for a file.
    sys.modules[f"grmp_score.{_old}"] = _MovedModule(f"grmp_score.{_old}")
