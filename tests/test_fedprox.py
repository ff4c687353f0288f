"""fedprox: fedavg, and its proximal term."""

import pandas as pd
import pytest
from toy import Rounds, config

from fedecider import federation, results
from fedecider.direction import LowRank


def test_fedprox_without_weight_is_fedavg_and_with_it_stays_nearer(data, backbone, tmp_path):
    rows = {}
    for label, method, own in (
        ("avg", "fedavg", {}),
        ("zero", "fedprox", {"mu": 0}),
        ("far", "fedprox", {"mu": 50}),
    ):
        settings = config(data, tmp_path / label, method, rankers=[], **own)
        rows[label] = results.rounds(federation.run(settings, backbone))
    other = ("method", "label", "color", "order", "run", "seconds", "memory")
    same = [column for column in rows["avg"] if column not in other]
    pd.testing.assert_frame_equal(rows["avg"][same], rows["zero"][same], check_exact=True)
    assert (rows["far"]["update_norm"] < rows["avg"]["update_norm"]).all()


def test_fedprox_penalty_is_its_formula(data, backbone, tmp_path, monkeypatch):
    with Rounds(data, tmp_path, backbone, "fedprox", mu=0.3) as run:
        client = run.clients[0]
        monkeypatch.setattr(client, "fit", lambda round, penalty: penalty)
        penalty = run.method.fit(client, 1)
        run.adapter.load(client.model.factors)
        assert penalty().item() == 0
        moved = {n: LowRank(p.B + 0.5, p.A - 0.25) for n, p in client.model.factors.items()}
        run.adapter.load(moved)
        count = [(p.B.numel(), p.A.numel()) for p in moved.values()]
        expected = 0.15 * sum(b * 0.25 + a * 0.0625 for b, a in count)
        assert penalty().item() == pytest.approx(expected, rel=1e-5)
