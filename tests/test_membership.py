"""Membership inference: the statistics, the scores, and who counts as a member."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu
from toy import config, write_domain

from fedecider import federation, membership, saved
from fedecider.backbone import load
from fedecider.client import token_losses
from fedecider.direction import LowRank, direction
from fedecider.domains import read_domain
from fedecider.sequences import make_form

DOMAINS = ("books", "comics")


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory, backbone):
    """Runs that know 10 of 30 users by heart, one of each method."""
    folder = tmp_path_factory.mktemp("membership")
    for seed, name in enumerate(DOMAINS):
        write_domain(folder / "data" / name, seed, users=30)
    for method in ("local", "fedecider"):
        run = folder / f"runs/toy/{method}-seed0"
        learnt = {"rounds": 1, "local_epochs": 20, "lr": 1e-2, "rank": 8}
        settings = config(folder / "data", run, method, train_users=10, rankers=[], **learnt)
        federation.run(settings, backbone)
    return folder


@pytest.fixture(scope="module")
def found(place, backbone):
    return membership.attacks(place / "runs", place / "data", "toy", backbone, users=8)


def brute_force(members, others):
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    return sum(pairs) / len(pairs)


def test_auc_counts_pairs_and_ties_half():
    generator = np.random.default_rng(0)
    for m, n in ((1, 1), (5, 9), (30, 20)):
        for spread in (2, 1000):  # many ties, hardly any
            members, others = generator.integers(0, spread, m), generator.integers(0, spread, n)
            value = membership.auc(members, others)
            assert value == pytest.approx(brute_force(members, others))
            assert value == pytest.approx(mannwhitneyu(members, others).statistic / (m * n))
            assert membership.auc(others, members) == pytest.approx(1 - value)
    assert membership.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert membership.auc(np.ones(3), np.ones(4)) == 0.5


def test_the_bootstrap_draws_users_of_both_groups():
    generator = np.random.default_rng(1)
    members, others = generator.normal(0.5, 1, 40), generator.normal(0, 1, 60)
    draws = membership.resampled(members, others, seed=0)
    value = membership.auc(members, others)
    assert draws.mean() == pytest.approx(value, abs=0.005)
    assert np.array_equal(draws, membership.resampled(members, others, seed=0))
    # Hanley and McNeil (1982), another way to the same standard error
    first, second = value / (2 - value), 2 * value**2 / (1 + value)
    square = value * (1 - value) + 39 * (first - value**2) + 59 * (second - value**2)
    assert draws.std() == pytest.approx((square / (40 * 60)) ** 0.5, rel=0.1)
    plain = [
        brute_force(generator.choice(members, 40), generator.choice(others, 60)) for _ in range(300)
    ]
    assert draws.std() == pytest.approx(np.std(plain), rel=0.15)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator, hits = np.random.default_rng(2), 0
    for trial in range(400):
        draws = membership.resampled(*generator.normal(0, 1, (2, 50)), seed=trial, draws=1000)
        low, high = np.quantile(draws, [0.025, 0.975])
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_who_knows_the_training_users_by_heart_gives_them_away(found):
    rows = found[found["client"] == membership.MEAN].set_index(["method", "attack", "sigma"])
    for method in ("local", "fedecider"):
        assert rows.loc[(method, "update", 0.0), "auc"].item() > 0.9
        assert rows.loc[(method, "update", 0.0), "low"].item() > 0.5


def test_a_direction_of_the_members_gradients_gives_them_away(place, backbone):
    """The first step of training in its purest form: D = minus their mean gradient, at W0."""
    run = saved.read(place / "runs/toy/local-seed0", place / "data")
    form = make_form(run.config.form, backbone.tokenizer, backbone.start)
    values = []
    with run.adapter(backbone) as adapter:
        for domain in run.domains:
            groups = membership.people(run, domain, 8, np.random.default_rng(0))
            records = membership.Records(
                adapter, form, domain, [*groups[0], *groups[1]], run.config
            )
            members = [index for mine in records.rows[:8] for index in mine]
            weights = {name: module.base_layer.weight for name, module in adapter.modules.items()}
            for weight in weights.values():
                weight.requires_grad_(True)
            token_losses(adapter, records.trunk, records.part, members).mean().backward()
            made = {}
            for name, weight in weights.items():
                made[name] = direction(LowRank(-weight.grad, torch.eye(weight.shape[1])))
                weight.requires_grad_(False)
                weight.grad = None
            scores = -records.slopes([made])[:, 0]
            values.append(membership.auc(scores[:8], scores[8:]))
            assert scores[:8].mean() > 0
    assert np.mean(values) > 0.8


def test_users_that_nobody_trained_on_are_not_told_apart(place, backbone, monkeypatch):
    """Both groups are non-members: chance, or there is a leak in the attack itself."""
    right = membership.people

    def outsiders(run, domain, limit, generator):
        _, others = right(run, domain, 2 * limit, generator)
        return others[::2], others[1::2]

    monkeypatch.setattr(membership, "people", outsiders)
    rows = membership.attacks(place / "runs", place / "data", "toy", backbone, users=8)
    rows = rows[rows["client"] == membership.MEAN]
    assert ((rows["low"] < 0.5) & (rows["high"] > 0.5)).mean() > 0.8


def test_rows_are_tidy_and_name_their_run(found):
    assert list(found.columns) == membership.COLUMNS
    keys = ["method", "seed", "client", "attack", "c", "sigma"]
    assert not found.duplicated(keys).any()
    # update; the slope with and without noise; three guesses of the magnitude
    assert len(found) == 2 * (len(DOMAINS) + 1) * (1 + 5 + 3)
    assert set(found["run"]) == {"runs/toy/local-seed0", "runs/toy/fedecider-seed0"}
    assert (found["run"] == "runs/toy/" + found["method"] + "-seed0").all()
    assert found["auc"].between(0, 1).all()
    assert ((found["low"] <= found["auc"]) & (found["auc"] <= found["high"])).all()
    single = found[found["client"] != membership.MEAN]
    assert set(single["members"]) == set(single["nonmembers"]) == {8}
    assert set(found[found["client"] == membership.MEAN]["members"]) == {16}
    assert found[found["attack"] == "step"]["c"].notna().all()
    assert found[found["attack"] != "step"]["c"].isna().all()
    mean = single.groupby(keys[:2] + keys[3:], dropna=False)["auc"].mean().sort_index()
    pooled = found[found["client"] == membership.MEAN].set_index(keys[:2] + keys[3:])["auc"]
    np.testing.assert_allclose(mean, pooled.sort_index())


def test_the_same_call_gives_the_same_numbers(found, place, backbone):
    arguments = (place / "runs", place / "data", "toy", backbone)
    again = membership.attacks(*arguments, methods=["fedecider"], users=8)
    expected = found[found["method"] == "fedecider"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, check_exact=True)
    other = membership.attacks(*arguments, methods=["fedecider"], users=8, seed=1)
    assert not np.array_equal(other["auc"], expected["auc"])


def test_members_were_trained_on_and_the_others_were_not(place):
    run = saved.read(place / "runs/toy/local-seed0", place / "data")
    for domain in run.domains:
        whole = read_domain(place / "data" / domain.name)
        owner = {tuple(items): user for user, items in whole.train.items()}
        groups = membership.people(run, domain, 8, np.random.default_rng(0))
        inside, outside = ([owner[tuple(items)] for items in group] for group in groups)
        assert len(inside) == len(outside) == 8
        assert set(inside) <= set(domain.users["train"])
        assert not set(outside) & {*domain.users["train"], *domain.users["valid"]}
        assert len({*inside, *outside}) == 16 and inside == sorted(inside)
        again = membership.people(run, domain, 8, np.random.default_rng(0))
        assert groups == again
        # no more of one kind than there are of the other
        groups = membership.people(run, domain, 1000, np.random.default_rng(0))
        assert [len(group) for group in groups] == [10, 10]


@pytest.fixture
def records(place, backbone):
    run = saved.read(place / "runs/toy/local-seed0", place / "data")
    form = make_form(run.config.form, backbone.tokenizer, backbone.start)
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        adapter.load(run.own("books"))
        domain = run.domains[0]
        histories = [domain.train[user] for user in domain.users["train"][:4]]
        short = run.config.model_copy(update={"history": 2})  # several rows a user
        records = membership.Records(adapter, form, domain, histories, short)
        sent = {n: direction(pair) for n, pair in adapter.updates(run.own("books")).items()}
        yield records, sent


def test_losses_are_means_over_each_users_own_target_tokens(records, backbone):
    records, _ = records
    assert all(len(mine) > 1 for mine in records.rows)
    expected = []
    for mine in records.rows:
        values = []
        for example in (records.part.examples[index] for index in mine):
            with torch.no_grad():
                logits = records.adapter.peft(torch.tensor([example.ids])).logits[0]
            chances = logits.log_softmax(-1)
            values += [-chances[t - 1, example.ids[t]].item() for t in example.targets]
        expected.append(np.mean(values))
    np.testing.assert_allclose(records.losses(), expected, rtol=1e-5)


def test_slopes_are_derivatives_along_the_directions(records):
    records, sent = records
    against = {name: pair.scaled(-2.0) for name, pair in sent.items()}
    slopes = records.slopes([sent, against])
    step = 0.05
    centred = (records.stepped(sent, step) - records.stepped(sent, -step)) / (2 * step)
    np.testing.assert_allclose(slopes[:, 0], centred, atol=1e-3 * np.abs(centred).max())
    np.testing.assert_allclose(slopes[:, 1], -2 * slopes[:, 0], rtol=1e-4)


def test_a_client_that_trained_on_everyone_has_no_non_members(place, backbone, tmp_path):
    settings = config(place / "data", tmp_path / "toy/local-seed0", "local", rounds=1, rankers=[])
    federation.run(settings, backbone)
    rows = membership.attacks(tmp_path, place / "data", "toy", backbone)
    assert list(rows["client"]) == list(DOMAINS)
    assert rows["auc"].isna().all() and (rows["nonmembers"] == 0).all()


def test_without_a_finished_run_there_are_no_rows(place, tmp_path):
    none = membership.attacks(tmp_path, place / "data", "toy", "no such model is loaded")
    assert none.empty and list(none.columns) == membership.COLUMNS
    other = membership.attacks(place / "runs", place / "data", "toy", "tiny", seeds=[7])
    assert other.empty
