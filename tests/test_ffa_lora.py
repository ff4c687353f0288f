"""ffa-lora: A frozen, B averaged."""

import torch
from toy import Rounds, dense


def test_ffa_lora_never_changes_A_and_averages_B(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "ffa-lora") as run:
        share = run.shares
        for _, before, trained, after in run.play(2):
            for name in run.adapter.names:
                mean = sum(share[c] * trained[c].factors[name].B for c in share)
                updates = sum(share[c] * dense(trained[c].factors[name]) for c in share)
                for client in share:
                    assert torch.equal(after[client].factors[name].A, run.adapter.initial[name].A)
                    assert torch.allclose(after[client].factors[name].B, mean, atol=1e-7)
                    # with one A the average of B is the average of the updates
                    assert torch.allclose(dense(after[client].factors[name]), updates, atol=1e-6)
                    same = torch.equal(
                        trained[client].factors[name].B, before[client].factors[name].B
                    )
                    assert not same
