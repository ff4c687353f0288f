"""fedsa-lora: A averaged, B at home."""

import torch
from toy import Rounds


def test_fedsa_lora_keeps_B_at_home_and_averages_A(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "fedsa-lora") as run:
        share = run.shares
        for _, _, trained, after in run.play(2):
            for name in run.adapter.names:
                mean = sum(share[c] * trained[c].factors[name].A for c in share)
                for client in share:
                    own = trained[client].factors[name].B
                    assert torch.equal(after[client].factors[name].B, own)
                    assert torch.allclose(after[client].factors[name].A, mean, atol=1e-7)
                others = [trained[c].factors[name].B for c in share]
                assert not torch.allclose(others[0], others[1])
