"""Ranks of a client's chosen model: by which model, on which users, in which frame."""

import numpy as np
import pandas as pd
import plain_ranks
import pytest
from toy import config, write_domains

from fedecider import federation
from fedecider.adapter import Adapter
from fedecider.client import Best, Client
from fedecider.domains import read_domain
from fedecider.engine.backbone import load
from fedecider.methods import METHODS, make
from fedecider.mixture import ClientModel
from fedecider.rankers import RANKERS, grounding, likelihood
from fedecider.rankers.evaluate import rank_client, rank_domain

WEIGHTS = [0.0, 0.7]


@pytest.fixture(scope="module")
def adapter():
    with Adapter(load("tiny", "cpu", "float64"), 2, 4, ["q_proj", "v_proj"], 1) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = write_domains(tmp_path_factory.mktemp("data"), ["books"])
    return read_domain(folder / "books")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Catalogue embeddings are computed here, not found where another run has left them."""
    monkeypatch.setenv("FEDECIDER_CACHE", str(tmp_path / "cache"))


def ranked_by(client, model):
    client.best = Best(model, 1.0, 3)
    return rank_client(client)


def of(frame, ranker):
    return frame[frame["ranker"] == ranker].set_index("user_id")["rank"]


@pytest.fixture
def seen(monkeypatch):
    """Arguments and results of the rankers' steps, call by call."""
    calls = {}

    def spied(module, name):
        plain, calls[name] = getattr(module, name), []

        def spy(*args, **kwargs):
            calls[name].append((args, plain(*args, **kwargs)))
            return calls[name][-1][1]

        monkeypatch.setattr(module, name, spy)

    spied(likelihood, "continuation_scores")
    spied(grounding, "generate_titles")
    spied(grounding, "grounding_ranks")
    return calls


@pytest.mark.parametrize("scope", ["client", "module"])
def test_ranking_is_that_of_the_dense_sum(scope, adapter, domain, tmp_path, seen):
    """Own LoRA and peers' directions rank as W0 + gamma B A + sum_j alpha_j D_j does."""
    settings = {"prompt_weights": WEIGHTS, "alpha_scope": scope}
    client = Client(config(tmp_path, tmp_path, **settings), adapter, domain)
    data, model = client.data, plain_ranks.mixed_model(adapter, scope)
    adapter.load(plain_ranks.random_factors(adapter, 9))  # what another client has left in it

    frame, chosen = ranked_by(client, model)
    dense = plain_ranks.dense_model(adapter, model, scope)
    weight, scores, expected = plain_ranks.likelihood_ranks(data, dense, WEIGHTS)
    assert chosen == {"prompt_weight": weight, "best_round": 3}
    computed = seen["continuation_scores"][-1][1]  # the last lists scored are those of test
    for one, other in zip(computed, scores, strict=True):
        assert np.abs(one - other).max() < 1e-9
    assert of(frame, "likelihood").loc[data.test_users].tolist() == expected

    start = adapter.backbone.start
    titles, embedded, catalogue, expected = plain_ranks.grounding_ranks(data, dense, start)
    assert seen["generate_titles"][0][1] == titles
    (generated, items, *_), _ = seen["grounding_ranks"][0]
    # By the untuned base, both: neither the own LoRA nor the directions are in the embeddings.
    assert (generated - embedded).abs().max() < 1e-5
    assert (items - catalogue).abs().max() < 1e-5
    assert of(frame, "grounding").loc[data.test_users].tolist() == expected

    alone, _ = ranked_by(client, ClientModel(model.factors))
    for ranker in ("likelihood", "grounding"):
        assert (of(frame, ranker) != of(alone, ranker)).any()
    assert all(
        np.abs(one - other).max() > 1e-2
        for one, other in zip(seen["continuation_scores"][-1][1], scores, strict=True)
    )


def test_trie_ranking_is_that_of_the_dense_sum(adapter, domain, tmp_path):
    """With as many beams as items, ranks are those of log p(title) over the whole catalogue."""
    settings = {"rankers": ["trie"], "beams": len(domain.items)}
    client = Client(config(tmp_path, tmp_path, **settings), adapter, domain)
    model = plain_ranks.mixed_model(adapter, "module")
    frame, _ = ranked_by(client, model)
    dense = plain_ranks.dense_model(adapter, model, "module")
    expected = plain_ranks.catalogue_ranks(client.data, dense)
    assert of(frame, "trie").loc[client.data.test_users].tolist() == expected
    alone, _ = ranked_by(client, ClientModel(model.factors))
    assert (of(frame, "trie") != of(alone, "trie")).any()


@pytest.mark.parametrize("name", RANKERS)
def test_groups_of_users_are_ranked_each_by_its_own_model(name, adapter, domain, tmp_path):
    """A method may serve users with unlike models; the frame keeps every user's own rank."""
    # One weight of the empty prompt is chosen for all users: it is left no choice.
    chosen = config(tmp_path, tmp_path, rankers=[name], prompt_weights=[0.0])
    client = Client(chosen, adapter, domain)
    first = ClientModel(plain_ranks.random_factors(adapter, 1, scale=0.5))
    second = ClientModel(plain_ranks.random_factors(adapter, 2, scale=0.5))
    whole = [of(ranked_by(client, model)[0], name) for model in (first, second)]
    users = client.data.test_users
    assert (whole[0] != whole[1]).any()

    def halves(data, model, adapter, split):
        ids = data.users(split)
        return [(ids[1::2], second), (ids[::2], first)]

    client.method.models_for = halves
    ranks = of(rank_client(client)[0], name)
    assert list(ranks.index) == users
    assert ranks.loc[users[::2]].tolist() == whole[0].loc[users[::2]].tolist()
    assert ranks.loc[users[1::2]].tolist() == whole[1].loc[users[1::2]].tolist()


def test_a_frame_has_a_row_per_ranker_and_user(adapter, domain, tmp_path):
    client = Client(config(tmp_path, tmp_path, "local", rankers=list(RANKERS)), adapter, domain)
    frame, _ = rank_client(client)
    assert list(frame.columns) == ["domain", "method", "protocol", "ranker", "user_id", "rank"]
    assert len(frame) == len(RANKERS) * len(client.data.test_users)
    assert set(frame["domain"]) == {"books"} and set(frame["method"]) == {"local"}
    protocols = frame.groupby("ranker")["protocol"].unique().map(list).to_dict()
    assert protocols == {name: [ranker.protocol] for name, ranker in RANKERS.items()}
    items = {"sampled": 10, "catalogue": 30}
    for protocol, ranks in frame.groupby("protocol")["rank"]:
        assert ranks.between(1, items[protocol]).all()


def test_without_a_ranker_nothing_is_ranked(adapter, domain, tmp_path):
    frame, chosen = rank_client(Client(config(tmp_path, tmp_path, rankers=[]), adapter, domain))
    assert frame.empty and frame["rank"].dtype == int and chosen == {"best_round": 0}
    none = config(tmp_path, tmp_path, "popularity", rankers=[])
    frame, chosen = rank_domain(make(none), domain, none)
    assert frame.empty and chosen == {}


@pytest.mark.parametrize("method", ["popularity", "als"])
@pytest.mark.parametrize("rankers", [["likelihood"], ["grounding", "trie"], ["likelihood", "trie"]])
def test_what_has_no_model_ranks_under_the_protocols_of_the_rankers(
    method, rankers, domain, tmp_path
):
    chosen = config(tmp_path, tmp_path, method, rankers=rankers)
    frame, _ = rank_domain(make(chosen), domain, chosen)
    assert set(frame["ranker"]) == {method}
    assert set(frame["protocol"]) == {RANKERS[name].protocol for name in rankers}
    assert not frame.duplicated(["protocol", "user_id"]).any()
    assert len(frame) == frame["protocol"].nunique() * len(domain.users["test"])


def test_the_test_users_are_read_once_at_the_end(data, backbone, tmp_path, monkeypatch):
    """No round asks for them."""
    asked, plain = [], METHODS["fedavg"].models_for

    def spy(method, client, model, adapter, split):
        asked.append(split)
        return plain(method, client, model, adapter, split)

    monkeypatch.setattr(METHODS["fedavg"], "models_for", spy)
    folder = federation.run(config(data, tmp_path / "run", "fedavg"), backbone)
    assert "test" not in asked[: 3 * 2]  # clients x rounds, all of them validation
    assert asked[6:].count("test") == 3  # once per client, for every ranker
    stored = pd.read_parquet(folder / "ranks.parquet")
    assert stored.groupby(["domain", "ranker"]).size().eq(6).all()
