"""flora: the exact weighted sum, folded in, and a fresh LoRA each round."""

import pytest
import torch
from toy import Rounds, config, dense, write_domains

from fedecider import federation, results
from fedecider.mixture import ClientModel
from fedecider.training import validation_loss


def test_flora_folds_the_exact_weighted_sum(unlike, backbone, tmp_path):
    """... of all rounds, to 1e-6 of a dense server's; and every client starts a fresh LoRA."""
    with Rounds(unlike, tmp_path, backbone, "flora", rank=6, rounds=8) as run:
        share = run.shares
        sums = {name: 0.0 for name in run.adapter.names}
        starts = []
        for _, _, trained, after in run.play(8):
            for name in run.adapter.names:
                gamma = run.adapter.gamma
                sums[name] += sum(share[c] * gamma * dense(trained[c].factors[name]) for c in share)
                for client in share:
                    folded = after[client].peer_directions["folded"][name]
                    error = (dense(folded) - sums[name]).abs().max()
                    assert error < 1e-6 * max(1.0, sums[name].abs().max())
                    assert folded.rank <= min(folded.B.shape[0], folded.A.shape[1])
                    assert not after[client].factors[name].B.any()
            assert all((model.alpha == 1).all() for model in after.values())
            starts += [model.factors[run.adapter.names[0]].A for model in after.values()]
        assert all(not torch.equal(a, b) for i, a in enumerate(starts) for b in starts[:i])


def test_flora_is_validated_with_the_folded_sum(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "flora") as run:
        run.round(1)
        client = run.clients[0]

        def loss(model):
            served = client.method.models_for(client.data, model, run.adapter, "valid")
            return validation_loss(client.data, served, run.adapter)

        assert loss(client.model) == run.rows[0]["valid_loss"]
        assert loss(ClientModel(client.model.factors)) != run.rows[0]["valid_loss"]


def test_flora_with_one_client_is_local_for_a_round(backbone, tmp_path):
    """Then it starts a fresh LoRA on top, which local does not."""
    alone, losses = write_domains(tmp_path / "alone", ["books"]), {}
    for name in ("local", "flora"):
        folder = federation.run(config(alone, tmp_path / name, name, rankers=[]), backbone)
        losses[name] = results.rounds(folder).set_index("round")["valid_loss"]
    assert losses["flora"][1] == pytest.approx(losses["local"][1], rel=1e-5)
    assert losses["flora"][2] != pytest.approx(losses["local"][2], rel=1e-5)
