"""Membership inference: the statistics, the scores, and who counts as a member."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu
from toy import config, write_domain

from fedecider import federation
from fedecider.analysis import membership_inference
from fedecider.analysis.saved_run import read_run
from fedecider.direction import LowRank, direction
from fedecider.domains import read_domain
from fedecider.engine.backbone import load
from fedecider.losses import LOSSES
from fedecider.prompts import make_template
from fedecider.training import token_losses

DOMAINS = ("books", "comics")


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float32")


@pytest.fixture(scope="module")
def results(tmp_path_factory, backbone):
    """Runs that know 10 of 30 users by heart, one of each method."""
    results = tmp_path_factory.mktemp("membership")
    for seed, name in enumerate(DOMAINS):
        write_domain(results / "data" / name, seed, users=30)
    for method in ("local", "fedecider"):
        run = results / f"runs/toy/{method}-seed0"
        learnt = {"rounds": 1, "local_epochs": 20, "lr": 1e-2, "rank": 8}
        settings = config(results / "data", run, method, train_users=10, rankers=[], **learnt)
        federation.run(settings, backbone)
    return results


@pytest.fixture(scope="module")
def attacked(results, backbone):
    return membership_inference.attacks(
        results / "runs", results / "data", "toy", backbone, users=8
    )


def brute_force(members, others):
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    return sum(pairs) / len(pairs)


def test_auc_counts_pairs_and_ties_half():
    generator = np.random.default_rng(0)
    for m, n in ((1, 1), (5, 9), (30, 20)):
        for spread in (2, 1000):  # many ties, hardly any
            members, others = generator.integers(0, spread, m), generator.integers(0, spread, n)
            value = membership_inference.auc(members, others)
            assert value == pytest.approx(brute_force(members, others))
            assert value == pytest.approx(mannwhitneyu(members, others).statistic / (m * n))
            assert membership_inference.auc(others, members) == pytest.approx(1 - value)
    assert membership_inference.auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert membership_inference.auc(np.ones(3), np.ones(4)) == 0.5


def test_the_bootstrap_draws_users_of_both_groups():
    generator = np.random.default_rng(1)
    members, others = generator.normal(0.5, 1, 40), generator.normal(0, 1, 60)
    draws = membership_inference.bootstrap(members, others, seed=0)
    value = membership_inference.auc(members, others)
    assert draws.mean() == pytest.approx(value, abs=0.005)
    assert np.array_equal(draws, membership_inference.bootstrap(members, others, seed=0))
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
        draws = membership_inference.bootstrap(
            *generator.normal(0, 1, (2, 50)), seed=trial, draws=1000
        )
        low, high = np.quantile(draws, [0.025, 0.975])
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_who_knows_the_training_users_by_heart_gives_them_away(attacked):
    rows = attacked[attacked["client"] == membership_inference.MEAN].set_index(
        ["method", "attack", "sigma"]
    )
    for method in ("local", "fedecider"):
        assert rows.loc[(method, "update", 0.0), "auc"].item() > 0.9
        assert rows.loc[(method, "update", 0.0), "low"].item() > 0.5


def test_a_direction_of_the_members_gradients_gives_them_away(results, backbone):
    """The first step of training in its purest form: D = minus their mean gradient, at W0."""
    run = read_run(results / "runs/toy/local-seed0", results / "data")
    template = make_template(run.config.data.prompt_template, backbone.tokenizer, backbone.start)
    values = []
    with run.adapter(backbone) as adapter:
        for domain in run.domains:
            groups = membership_inference.sample_histories(run, domain, 8, np.random.default_rng(0))
            records = membership_inference.Records(
                adapter, template, domain, [*groups[0], *groups[1]], run.config
            )
            members = [index for rows in records.rows[:8] for index in rows]
            weights = {name: module.base_layer.weight for name, module in adapter.modules.items()}
            for weight in weights.values():
                weight.requires_grad_(True)
            loss = LOSSES[run.config.training.loss]
            losses = token_losses(adapter, records.states, records.examples, members, loss)
            losses.mean().backward()
            downhill = {}
            for name, weight in weights.items():
                downhill[name] = direction(LowRank(-weight.grad, torch.eye(weight.shape[1])))
                weight.requires_grad_(False)
                weight.grad = None
            scores = -records.slopes([downhill])[:, 0]
            values.append(membership_inference.auc(scores[:8], scores[8:]))
            assert scores[:8].mean() > 0
    assert np.mean(values) > 0.8


def test_users_that_nobody_trained_on_are_not_told_apart(results, backbone, monkeypatch):
    """Both groups are non-members: chance, or there is a leak in the attack itself."""
    right = membership_inference.sample_histories

    def outsiders(run, domain, limit, generator):
        _, others = right(run, domain, 2 * limit, generator)
        return others[::2], others[1::2]

    monkeypatch.setattr(membership_inference, "sample_histories", outsiders)
    rows = membership_inference.attacks(
        results / "runs", results / "data", "toy", backbone, users=8
    )
    rows = rows[rows["client"] == membership_inference.MEAN]
    assert ((rows["low"] < 0.5) & (rows["high"] > 0.5)).mean() > 0.8


def test_rows_are_tidy_and_name_their_run(attacked):
    assert list(attacked.columns) == membership_inference.COLUMNS
    keys = ["method", "seed", "client", "attack", "c", "sigma"]
    assert not attacked.duplicated(keys).any()
    # update; the slope with and without noise; three guesses of the magnitude
    assert len(attacked) == 2 * (len(DOMAINS) + 1) * (1 + 5 + 3)
    assert set(attacked["run"]) == {"runs/toy/local-seed0", "runs/toy/fedecider-seed0"}
    assert (attacked["run"] == "runs/toy/" + attacked["method"] + "-seed0").all()
    assert attacked["auc"].between(0, 1).all()
    assert ((attacked["low"] <= attacked["auc"]) & (attacked["auc"] <= attacked["high"])).all()
    single = attacked[attacked["client"] != membership_inference.MEAN]
    assert set(single["members"]) == set(single["nonmembers"]) == {8}
    assert set(attacked[attacked["client"] == membership_inference.MEAN]["members"]) == {16}
    assert attacked[attacked["attack"] == "step"]["c"].notna().all()
    assert attacked[attacked["attack"] != "step"]["c"].isna().all()
    mean = single.groupby(keys[:2] + keys[3:], dropna=False)["auc"].mean().sort_index()
    pooled = attacked[attacked["client"] == membership_inference.MEAN].set_index(
        keys[:2] + keys[3:]
    )["auc"]
    np.testing.assert_allclose(mean, pooled.sort_index())


def test_the_same_call_gives_the_same_numbers(attacked, results, backbone):
    arguments = (results / "runs", results / "data", "toy", backbone)
    again = membership_inference.attacks(*arguments, methods=["fedecider"], users=8)
    expected = attacked[attacked["method"] == "fedecider"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, check_exact=True)
    other = membership_inference.attacks(*arguments, methods=["fedecider"], users=8, seed=1)
    assert not np.array_equal(other["auc"], expected["auc"])


def test_members_were_trained_on_and_the_others_were_not(results):
    run = read_run(results / "runs/toy/local-seed0", results / "data")
    for domain in run.domains:
        whole = read_domain(results / "data" / domain.name)
        owner = {tuple(items): user for user, items in whole.train.items()}
        groups = membership_inference.sample_histories(run, domain, 8, np.random.default_rng(0))
        inside, outside = ([owner[tuple(items)] for items in group] for group in groups)
        assert len(inside) == len(outside) == 8
        assert set(inside) <= set(domain.users["train"])
        assert not set(outside) & {*domain.users["train"], *domain.users["valid"]}
        assert len({*inside, *outside}) == 16 and inside == sorted(inside)
        again = membership_inference.sample_histories(run, domain, 8, np.random.default_rng(0))
        assert groups == again
        # no more of one kind than there are of the other
        groups = membership_inference.sample_histories(run, domain, 1000, np.random.default_rng(0))
        assert [len(group) for group in groups] == [10, 10]


@pytest.fixture
def records(results, backbone):
    run = read_run(results / "runs/toy/local-seed0", results / "data")
    template = make_template(run.config.data.prompt_template, backbone.tokenizer, backbone.start)
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        adapter.load(run.model("books").factors)
        domain = run.domains[0]
        histories = [domain.train[user] for user in domain.users["train"][:4]]
        short = run.config.data.model_copy(update={"history": 2})  # several rows per user
        short = run.config.model_copy(update={"data": short})
        records = membership_inference.Records(adapter, template, domain, histories, short)
        sent = {
            n: direction(pair) for n, pair in adapter.updates(run.model("books").factors).items()
        }
        yield records, sent


def test_losses_are_means_over_each_users_own_target_tokens(records, backbone):
    records, _ = records
    assert all(len(rows) > 1 for rows in records.rows)
    expected = []
    for rows in records.rows:
        values = []
        for example in (records.examples.examples[index] for index in rows):
            with torch.no_grad():
                logits = records.adapter.peft(torch.tensor([example.ids])).logits[0]
            log_probs = logits.log_softmax(-1)
            values += [-log_probs[t - 1, example.ids[t]].item() for t in example.targets]
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


def test_a_client_that_trained_on_everyone_has_no_non_members(results, backbone, tmp_path):
    settings = config(results / "data", tmp_path / "toy/local-seed0", "local", rounds=1, rankers=[])
    federation.run(settings, backbone)
    rows = membership_inference.attacks(tmp_path, results / "data", "toy", backbone)
    assert list(rows["client"]) == list(DOMAINS)
    assert rows["auc"].isna().all() and (rows["nonmembers"] == 0).all()


def test_without_a_finished_run_there_are_no_rows(results, tmp_path):
    none = membership_inference.attacks(
        tmp_path, results / "data", "toy", "no such model is loaded"
    )
    assert none.empty and list(none.columns) == membership_inference.COLUMNS
    other = membership_inference.attacks(
        results / "runs", results / "data", "toy", "tiny", seeds=[7]
    )
    assert other.empty
