"""rolora: B in odd rounds, A in even ones."""

import torch
from toy import Rounds


def test_rolora_alternates(unlike, backbone, tmp_path):
    with Rounds(unlike, tmp_path, backbone, "rolora") as run:
        share = run.shares
        for number, before, trained, after in run.play(4):
            moving, still = ("B", "A") if number % 2 else ("A", "B")
            for name in run.adapter.names:
                mean = sum(share[c] * getattr(trained[c].factors[name], moving) for c in share)
                for client in share:
                    was, now = before[client].factors[name], after[client].factors[name]
                    assert torch.equal(getattr(was, still), getattr(now, still))
                    assert torch.allclose(getattr(now, moving), mean, atol=1e-7)
                    assert not torch.allclose(getattr(was, moving), getattr(now, moving))
        assert [row["round"] for row in run.rows if row["client"] == "books"] == [1, 2, 3, 4]
