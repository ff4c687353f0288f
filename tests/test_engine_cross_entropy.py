"""Losses, log-probabilities and gradients against a plain cross-entropy over stored logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedecider.engine.cross_entropy import log_normaliser, log_probs, nll


def test_nll_and_its_gradient_equal_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(90, 16, generator=generator, dtype=torch.float64)
    token = torch.randint(90, (700,), generator=generator)
    weight = torch.rand(700, generator=generator, dtype=torch.float64)
    (nll(hidden, head, token) * weight).sum().backward()
    ours, hidden.grad = hidden.grad, None
    plain = cross_entropy(hidden @ head.T, token, reduction="none")
    (plain * weight).sum().backward()
    assert (nll(hidden, head, token) - plain).abs().max() < 1e-12
    assert (ours - hidden.grad).abs().max() < 1e-12


def test_log_probs_share_rows():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    head = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    source = torch.tensor([0, 0, 0, 3, 1])
    token = torch.tensor([5, 6, 7, 5, 19])
    expected = (hidden @ head.T).log_softmax(-1)[source, token]
    assert (log_probs(hidden, head, source, token) - expected).abs().max() < 1e-12


def test_an_unfrozen_head_is_refused():
    with pytest.raises(RuntimeError, match="frozen"):
        nll(torch.zeros(1, 2), torch.zeros(3, 2, requires_grad=True), torch.zeros(1).long())


@pytest.mark.parametrize("vocabulary", [2048, 5003])
def test_normaliser_and_gradient_over_several_blocks_of_columns(vocabulary):
    """The running maximum moves from block to block; rows are split, too."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64)
    head *= torch.linspace(1, 9, vocabulary)[:, None]  # later blocks hold larger logits
    hidden = torch.randn(700, 6, generator=generator, dtype=torch.float64).requires_grad_()
    token = torch.randint(vocabulary, (700,), generator=generator)
    ours, expected = (
        nll(hidden, head, token),
        cross_entropy(hidden @ head.T, token, reduction="none"),
    )
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn(700, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad(ours, hidden, weight)
    (plain,) = torch.autograd.grad(expected, hidden, weight)
    torch.testing.assert_close(grad, plain, rtol=1e-10, atol=1e-10)
    flipped = nll(hidden, head.flip(0), vocabulary - 1 - token)  # earlier blocks hold the larger
    torch.testing.assert_close(flipped, expected, rtol=1e-12, atol=1e-12)


def test_the_normaliser_of_no_rows_is_empty():
    head = torch.randn(5, 3)
    assert log_normaliser(torch.zeros(0, 3), head).shape == (0,)
    empty = torch.zeros(0, dtype=torch.long)
    assert log_probs(torch.zeros(2, 3), head, empty, empty).shape == (0,)
