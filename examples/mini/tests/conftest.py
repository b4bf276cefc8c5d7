"""The recipe's tests run on one thread, as the recipe does."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are fastest on one thread."""
    torch.set_num_threads(1)
