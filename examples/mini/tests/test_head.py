"""The head of the image tower that is fitted in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head import fit_head

from grmp_score.errors import ConfigError


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """Correlated features [300, 40] of photos."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(300, 40, generator=generator) @ torch.randn(40, 40, generator=generator) + 3


def test_head_normalises_and_equalises_the_principal_directions(features: torch.Tensor) -> None:
    """ln_post gives mean 0 and deviation 1; the axes are uncorrelated, and less unequal with less shrinkage."""
    heads = [fit_head(features, 12, shrinkage=shrinkage) for shrinkage in (0.1, 10.0)]
    z = heads[0].normalise(features)
    torch.testing.assert_close(z.mean(0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(40), rtol=0, atol=1e-4)
    spreads = []
    for head in heads:
        f = z @ head.proj
        assert f.shape == (300, 12)
        correlation = torch.corrcoef(f.T) - torch.eye(12)
        assert float(correlation.abs().max()) < 1e-3
        assert float(f.square().sum(1).mean()) == pytest.approx(1, abs=1e-3)
        spreads.append(float(f.std(0).max() / f.std(0).min()))
    assert 1 < spreads[0] < spreads[1]


@pytest.mark.parametrize("wrong", [{"embed_dim": 0}, {"embed_dim": 41}, {"shrinkage": 0.0}])
def test_settings_out_of_range(features: torch.Tensor, wrong: dict[str, float]) -> None:
    """Named by the error."""
    settings: dict[str, Any] = {"embed_dim": 12, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        fit_head(features, **settings)
