"""What ``import grmp_score`` offers: everything by its name, at no cost, and the old names for one release more."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import grmp_score
from grmp_score._moved import _NAMES

HEAVY = {"torch", "open_clip", "numpy", "PIL", "scipy"}


def test_every_public_name_is_there() -> None:
    """And is what its own module has under that name."""
    for name in grmp_score.__all__:
        assert getattr(grmp_score, name) is not None
    assert set(grmp_score.__all__) <= set(dir(grmp_score))
    with pytest.raises(AttributeError, match="no attribute 'Score2'"):
        _ = grmp_score.Score2


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Each name brings what it needs when it is used: errors nothing, a `Scorer` no torch."""
    code = (
        "import sys, grmp_score\n"
        f"heavy = lambda: sorted({HEAVY!r} & set(sys.modules))\n"
        "print(heavy())\n"
        "from grmp_score import ConfigError, FewShotConfig\n"
        "print(heavy())\n"
        "from grmp_score import Scorer, Score\n"
        "Scorer().checksum\n"
        "print(heavy())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "['PIL', 'numpy']"]


@pytest.mark.parametrize("old", [f"{module}.{name}" for module, names in _NAMES.items() for name in names])
def test_documented_names_of_version_0_1_still_work(old: str) -> None:
    """With a warning that says where the name is now."""
    module, _, name = f"grmp_score.{old}".rpartition(".")
    moved = _NAMES[old.rpartition(".")[0]][name]
    with pytest.warns(DeprecationWarning, match=f"is now {moved}".replace(".", r"\.")):
        found = getattr(importlib.import_module(module), name)
    new_module, _, new_name = moved.rpartition(".")
    assert found is getattr(importlib.import_module(new_module), new_name)


def test_other_names_of_a_moved_module_are_missing() -> None:
    """They were never documented."""
    with pytest.raises(ImportError):
        from grmp_score.cache import RACY_NS  # noqa: F401
