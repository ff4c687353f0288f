"""fellrec: similarity-attention with a warm-up."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import Rounds, config

from fedecider.methods import METHODS
from fedecider.methods.fellrec import attention


def test_fellrec_is_its_formula(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "fellrec", alpha=0.2, beta=2.0) as run:
        for number, _, trained, after in run.play(2):
            clients = sorted(trained)
            losses = [row["train_loss"] for row in run.rows if row["round"] == number]
            p = np.exp(np.array(losses) / 0.05 - max(losses) / 0.05)
            p /= p.sum()
            warm = np.tanh(0.2 / p ** (number / 2.0))
            flat = {
                c: torch.cat(
                    [part.flatten() for n in run.adapter.names for part in model.factors[n]]
                )
                for c, model in trained.items()
            }
            for i, receiver in enumerate(clients):
                raw = []
                for j, other in enumerate(clients):
                    similar = torch.cosine_similarity(flat[receiver], flat[other], dim=0).item()
                    raw.append((similar + 1) / 2 * (1 if i == j else warm[i]))
                for name in run.adapter.names:
                    for part in ("A", "B"):
                        mean = sum(
                            w / sum(raw) * getattr(trained[c].factors[name], part)
                            for w, c in zip(raw, clients, strict=True)
                        )
                        got = getattr(after[receiver].factors[name], part)
                        assert torch.allclose(got, mean, atol=1e-5)


def test_the_warm_up_grows_with_the_round_and_is_least_for_the_largest_loss():
    method = METHODS["fellrec"](config(Path("d"), Path("f"), "fellrec", alpha=0.1))
    steps = np.array([method.warm_up([2.0, 2.1, 2.3], number) for number in range(1, 30)])
    assert (np.diff(steps, axis=0) >= 0).all() and steps[-1].min() > 1.5 * steps[0].min()
    assert (np.diff(steps, axis=1) <= 0).all() and (steps <= 1).all() and (steps > 0).all()
    assert attention([torch.ones(3), -torch.ones(3)])[0] == pytest.approx([1.0, 0.0])
