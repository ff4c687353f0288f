"""popularity: the line that every method has to beat."""

import pytest
from toy import config, write_domains

from fedecider import federation, results
from fedecider.domains import read_domain
from fedecider.methods import make


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), ["books"])
    return read_domain(folder / "books")


def test_popularity_counts_training_interactions_alone(domain, tmp_path):
    users = sorted(domain.test)
    counts = {item: 0 for item in domain.items.index}
    for items in domain.train.values():
        for item in items:
            counts[item] += 1
    method = make(config(tmp_path, tmp_path, "popularity"))
    ranks, choices = method.rank(domain, ["catalogue", "sampled"])
    assert domain.users["test"] == users and choices == {}
    for user, whole, listed in zip(users, ranks["catalogue"], ranks["sampled"], strict=True):
        own = counts[domain.test[user]]
        assert whole == sum(count >= own for count in counts.values())
        negatives = domain.negatives["test", user]
        assert listed == 1 + sum(counts[item] >= own for item in negatives)


def test_users_who_are_not_sampled_count_too(domain, tmp_path):
    few = read_domain(domain.folder, train=3, valid=3, test=6)
    assert len(few.users["train"]) == 3
    assert few.popularity.equals(domain.popularity)


def test_popularity_has_a_run_of_its_own_and_stands_in_no_other(data, backbone, tmp_path):
    for method in ("popularity", "fedavg"):
        federation.run(config(data, tmp_path / f"{method}-seed0", method, rounds=1), backbone)
    metrics = results.metrics(tmp_path)
    assert set(metrics["method"]) == {"popularity", "fedavg"}
    popular = metrics[metrics["method"] == "popularity"]
    assert set(popular["ranker"]) == {"popularity"}
    assert set(popular["protocol"]) == {"sampled", "catalogue"}
    assert set(popular["run"].str.split("/").str[-1]) == {"popularity-seed0"}
    assert set(popular["family"]) == {"no language model"}


def test_popularity_depends_on_no_seed(domain, tmp_path):
    first, other = (make(config(tmp_path, tmp_path, "popularity", seed=s)) for s in (0, 1))
    assert first.rank(domain, ["catalogue"]) == other.rank(domain, ["catalogue"])
