"""lora-sim: averages by the softmax of cosines, layer by layer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy import Rounds, config

from fedecider.direction import LowRank, cosine
from fedecider.methods import METHODS, Upload


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_lora_sim_is_the_softmax_of_layerwise_cosines(temperature, unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "lora-sim", temperature=temperature) as run:
        for _, _, trained, after in run.play(2):
            clients = sorted(trained)
            for name in run.adapter.names:
                for receiver in clients:
                    own = trained[receiver].factors[name]
                    similar = torch.stack([cosine(own, trained[c].factors[name]) for c in clients])
                    weights = torch.softmax(similar / temperature, 0)
                    assert weights.argmax() == clients.index(receiver)
                    for part in ("A", "B"):
                        mean = sum(
                            w * getattr(trained[c].factors[name], part).double()
                            for w, c in zip(weights, clients, strict=True)
                        )
                        got = getattr(after[receiver].factors[name], part).double()
                        assert torch.allclose(got, mean, atol=1e-5)
            first = run.adapter.names[0]
            assert not torch.allclose(*(after[c].factors[first].A for c in clients[:2]))


def test_a_zero_update_counts_as_orthogonal():
    zero = {"m": LowRank(torch.zeros(3, 1), torch.ones(1, 2))}
    ones = {"m": LowRank(torch.ones(3, 1), torch.ones(1, 2))}
    method = METHODS["lora-sim"](config(Path("d"), Path("f"), "lora-sim"))
    down = method.aggregate({"a": Upload(zero), "b": Upload(ones)}, 1)
    share = np.exp(1) / (1 + np.exp(1))
    assert down["b"]["personal"]["m"].B.unique().item() == pytest.approx(share)
    assert down["a"]["personal"]["m"].B.unique().item() == pytest.approx(0.5)
