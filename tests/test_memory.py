"""Memory of one large photo, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import grmp_score

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "large_image_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak differs elsewhere")
@pytest.mark.skipif(not BENCHMARK.is_file(), reason="the benchmarks are not in this tree")
def test_one_hundred_megapixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 100-megapixel JPEG, also a turned one, takes its decoded size and at most 300 MB more to read and cut."""
    monkeypatch.setenv("PYTHONPATH", str(Path(grmp_score.__file__).parents[1]))
    ended = subprocess.run([sys.executable, BENCHMARK], capture_output=True, text=True, timeout=900, check=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("orientation")]
    grown = [float(line.split(":")[1].split()[0]) for line in lines]
    assert len(grown) == 6 and all(300 < mb < 600 for mb in grown), ended.stdout
