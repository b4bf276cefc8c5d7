"""The head of the image tower that is fitted in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head import fit_head

from grmp_score.errors import ConfigError


@pytest.fixture(scope="module")
def crops() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of photos, features of crops, and labels that two of the features tell."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=generator)
    photos = torch.randn(300, 40, generator=generator) @ mixing + 3
    quality = torch.randn(500, 40, generator=generator) @ mixing + 3
    labels = torch.sigmoid((quality[:, 0] - quality[:, 1]) / 8)
    return photos, quality, labels


def test_head_normalises_and_keeps_quality_on_its_first_axis(
    crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """ln_post gives mean 0 and deviation 1; axis 0 follows the labels and no other axis goes with it."""
    photos, quality, labels = crops
    head = fit_head(photos, quality, labels, 12, ridge=0.1, quality_share=0.3)
    z = head.normalise(torch.cat([photos, quality]))
    torch.testing.assert_close(z.mean(0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(40), rtol=0, atol=1e-4)
    f = z @ head.proj
    assert f.shape == (800, 12)
    correlation = torch.corrcoef(f.T)
    assert float(correlation[0, 1:].abs().max()) < 1e-3
    assert float(torch.corrcoef(torch.stack([f[300:, 0], labels]))[0, 1]) > 0.9
    lengths = f.square().mean(0)
    assert float(lengths[0] / lengths.sum()) == pytest.approx(0.3, abs=0.01)


def test_more_ridge_is_a_simpler_direction(crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """The direction of an endless penalty is the plain correlation of each feature with the labels."""
    photos, quality, labels = crops
    head = fit_head(photos, quality, labels, 12, ridge=1e6)
    z = head.normalise(quality)
    plain = (z - z.mean(0)).T @ (labels - labels.mean())
    assert float(torch.cosine_similarity(head.proj[:, 0], plain, dim=0)) > 0.9999


@pytest.mark.parametrize("wrong", [{"embed_dim": 1}, {"embed_dim": 41}, {"ridge": 0.0}, {"quality_share": 1.0}])
def test_settings_out_of_range(
    crops: tuple[torch.Tensor, torch.Tensor, torch.Tensor], wrong: dict[str, float]
) -> None:
    """Named by the error."""
    settings: dict[str, Any] = {"embed_dim": 12, **wrong}
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        fit_head(*crops, **settings)
