"""QuickGELU against its formula."""

import pytest
import torch

from grmp_score.model.quick_gelu import QuickGELU


def formula(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def test_values_are_those_of_the_formula() -> None:
    x = torch.linspace(-30, 30, 4001)
    torch.testing.assert_close(QuickGELU()(x), formula(x), rtol=1e-6, atol=1e-7)


def test_gradient_is_that_of_the_formula() -> None:
    x, upstream = torch.linspace(-30, 30, 4001, dtype=torch.float64, requires_grad=True), torch.randn(4001).double()
    (ours,) = torch.autograd.grad(QuickGELU()(x), x, upstream)
    (theirs,) = torch.autograd.grad(formula(x), x, upstream)
    torch.testing.assert_close(ours, theirs)


def test_a_second_derivative_is_an_error_not_a_wrong_number() -> None:
    x = torch.randn(3, requires_grad=True)
    (once,) = torch.autograd.grad(QuickGELU()(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        once.sum().backward()


def test_input_is_left_as_it_is() -> None:
    x = torch.randn(7)
    before = x.clone()
    QuickGELU()(x)
    assert torch.equal(x, before)
