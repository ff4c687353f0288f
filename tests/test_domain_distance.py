"""Distances between domains: the statistic, and tables of items and of users."""

import numpy as np
import pytest
import torch
from toy import write_domains

from fedecider.analysis import domain_distance


def test_energy_distance():
    generator = np.random.default_rng(0)
    cloud = torch.tensor(generator.normal(size=(200, 3)))
    assert domain_distance.energy_distance(cloud, cloud) == 0
    near, far = cloud + 0.1, cloud + 3
    measured = [domain_distance.energy_distance(cloud, other) for other in (near, far)]
    assert 0 < measured[0] < measured[1]
    single = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    assert domain_distance.energy_distance(*single) == pytest.approx(2.0)  # sqrt(2 * 2)


def test_domain_distances(tmp_path):
    data = write_domains(tmp_path / "data")
    for measure in (domain_distance.item_distances, domain_distance.user_distances):
        table = measure(data, "tiny")
        assert list(table.index) == list(table.columns) == ["books", "comics", "games"]
        assert (np.diag(table) == 0).all() and np.allclose(table, table.T)
        assert (table.to_numpy()[~np.eye(3, dtype=bool)] > 0).all()
