"""The loss of title tokens, and that a new one is an entry of LOSSES and no more."""

import numpy as np
import pytest
import torch
from toy import config

from fedecider import federation, losses, results
from fedecider.engine.cross_entropy import nll
from fedecider.prompts import Targets


def test_the_loss_over_the_vocabulary_is_cross_entropy_at_the_targets():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = Targets(torch.tensor([0, 3, 3, 8]), torch.tensor([1, 39, 0, 7]))
    values = losses.vocabulary(hidden, head, targets)
    logits = hidden[targets.rows] @ head.T
    expected = torch.nn.functional.cross_entropy(logits, targets.tokens, reduction="none")
    assert values.shape == (4,) and torch.allclose(values, expected)
    (got,) = torch.autograd.grad(values.sum(), hidden)
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    assert torch.allclose(got, wanted)
    assert not got[[1, 2, 4, 5, 6, 7]].any()  # what predicts no target has no gradient


def test_a_new_loss_is_one_entry(data, backbone, tmp_path, monkeypatch):
    """Training lowers it, and validation is in its units."""
    calls = []

    def doubled(hidden, head, targets):
        calls.append(len(targets.tokens))
        return 2 * nll(hidden[targets.rows], head, targets.tokens)

    monkeypatch.setitem(losses.LOSSES, "doubled", doubled)
    tables = {}
    for loss in losses.LOSSES:
        settings = config(data, tmp_path / loss, "local", loss=loss, lr=1e-9, rankers=[])
        tables[loss] = results.rounds(federation.run(settings, backbone))
    assert calls
    for column in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(
            tables["doubled"][column], 2 * tables["vocabulary"][column], rtol=1e-4
        )


def test_training_follows_the_loss_that_is_named(data, backbone, tmp_path, monkeypatch):
    """Its opposite makes titles less likely."""

    def opposite(hidden, head, targets):
        return -nll(hidden[targets.rows], head, targets.tokens)

    monkeypatch.setitem(losses.LOSSES, "opposite", opposite)
    final = {}
    for loss in losses.LOSSES:
        settings = config(data, tmp_path / loss, "local", loss=loss, rankers=[])
        rounds = results.rounds(federation.run(settings, backbone))
        final[loss] = rounds[rounds["round"] == 2]["valid_loss"].mean()
    assert -final["opposite"] > final["vocabulary"] + 0.05
    assert final["vocabulary"] > 0


def test_a_loss_that_nobody_has_is_refused_before_anything_begins(data, tmp_path):
    with pytest.raises(ValueError, match="loss must be one of vocabulary, got 'doubled'"):
        federation.run(config(data, tmp_path / "x", loss="doubled"))
    assert not (tmp_path / "x").exists()
