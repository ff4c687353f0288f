"""The paper's statements on a trained model: they hold, and what is wrong is found."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toy import config, write_domains

from fedecider import federation
from fedecider.adapter import Adapter
from fedecider.analysis import theory
from fedecider.analysis.saved_run import read_run
from fedecider.direction import LowRank, cosine, direction, norm
from fedecider.engine.backbone import load

CLIENTS = ("books", "comics", "games")


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A finished run of fedecider and its data."""
    folder = tmp_path_factory.mktemp("theory")
    data = write_domains(folder / "data", CLIENTS)
    settings = config(data, folder / "runs/toy/fedecider-seed0", train_users=6, rankers=[])
    federation.run(settings, load("tiny", "cpu", "float32"))
    return folder


@pytest.fixture(scope="module")
def run(results):
    return read_run(results / "runs/toy/fedecider-seed0", results / "data")


@pytest.fixture(scope="module")
def rows(results, backbone):
    folder = results / "runs/toy/fedecider-seed0"
    return theory.check(folder, results / "data", backbone, examples=4, iterations=8)


def test_every_statement_holds_on_every_client(rows):
    assert list(rows.columns) == theory.COLUMNS
    pairs = rows[["client", "statement"]].apply(tuple, axis=1)
    assert sorted(pairs) == sorted((c, s) for c in CLIENTS for s in theory.STATEMENTS)
    assert rows["holds"].all(), rows.to_string()
    assert set(rows["run"]) == {"runs/toy/fedecider-seed0"}
    by = rows.set_index(["statement", "client"])
    assert by.loc["lemma 1", "measured"].between(1.9, 2.1).all()
    assert by.loc["lemma 3", "deviation"].max() < 1e-9
    # two modules, one weight per module and source: of three clients, of two peers, of one
    assert set(by.loc["proposition 1", "cases"]) == {6}
    assert set(by.loc["lemma 3", "cases"]) == {4}
    assert set(by.loc["proposition 2", "cases"]) == {4}
    assert set(by.loc["planted", "cases"]) == {2}
    # the learned mixture, the uniform mean and two random sums, in two modules
    assert set(by.loc["lemma 2", "cases"]) == {8}
    # not only "no worse": there is something to gain
    assert (by.loc["proposition 1", "measured"] > 1e-4).all()
    assert (by.loc["planted", "measured"] == 2).all()


def test_the_same_call_gives_the_same_numbers(rows, results, backbone):
    folder = results / "runs/toy/fedecider-seed0"
    again = theory.check(folder, results / "data", backbone, examples=4, iterations=8)
    assert again.equals(rows)


def test_a_wrong_inner_product_is_found(results, backbone, monkeypatch):
    """A tenth too much, and lemmas 1 and 3 fail; the wrong sign, and proposition 2 does."""
    right = theory._along
    folder = results / "runs/toy/fedecider-seed0"

    def held(factor):
        monkeypatch.setattr(theory, "_along", lambda *pair: factor * right(*pair))
        rows = theory.check(folder, results / "data", backbone, examples=2, iterations=2)
        return rows.groupby("statement")["holds"].any()

    assert not held(1.1)[["lemma 1", "lemma 3"]].any()
    assert not held(-1.0)[["lemma 1", "lemma 3", "proposition 2"]].any()


def random_directions(count=3, shape=(12, 10), rank=2):
    generator = torch.Generator().manual_seed(0)
    sides = [[torch.randn(side, rank, generator=generator) for side in shape] for _ in range(count)]
    return [direction(LowRank(B, A.T)) for B, A in sides]


def test_the_residual_tells_what_is_in_the_span():
    pairs = random_directions()
    dense = [pair.B @ pair.A for pair in pairs]
    inside = 0.3 * dense[0] - 2 * dense[1] + dense[2]
    assert theory.residual(inside, pairs) < 1e-12
    # the average of factors, as FedAvg makes it, is no aggregate of directions
    factors = sum(pair.B for pair in pairs) @ sum(pair.A for pair in pairs) / 9
    assert theory.residual(factors, pairs) > 0.1
    assert theory.residual(inside, pairs[:2]) > 0.1
    # a direction twice: the Gram matrix is singular, the span is the same
    assert theory.residual(inside, [*pairs, pairs[0]]) < 1e-7
    apart = torch.zeros(12, 10, dtype=torch.float64)
    apart[0, 0] = 1.0
    along = [direction(LowRank(torch.eye(12)[:, 1:2], torch.eye(10)[:1]))]
    assert theory.residual(apart, along) == 1.0


def test_what_is_planted_must_fall(results, backbone, monkeypatch):
    """A beneficial direction instead is told apart."""
    right = theory.planted

    def turned(*arguments):
        return {name: pair.scaled(-1.0) for name, pair in right(*arguments).items()}

    monkeypatch.setattr(theory, "planted", turned)
    folder = results / "runs/toy/fedecider-seed0"
    rows = theory.check(folder, results / "data", backbone, examples=2, iterations=2)
    holds = rows.groupby("statement")["holds"]
    assert not holds.any()["planted"] and holds.all().drop("planted").all()


def test_the_planted_direction_is_harmful_and_a_direction():
    generator = torch.Generator().manual_seed(1)
    gradients = {"a": torch.randn(12, 10, generator=generator), "b": torch.zeros(4, 4)}
    factors = theory.planted(gradients, 3, generator)
    assert list(factors) == ["a"]  # without a gradient there is no harm
    assert factors["a"].rank == 3
    assert norm(factors["a"]).item() == pytest.approx(1)
    assert theory._along(gradients["a"], factors["a"]) > 0
    whole = theory.planted(gradients, 10, generator)["a"]
    gradient = LowRank(gradients["a"], torch.eye(10))
    assert cosine(whole, gradient).item() == pytest.approx(1)


def test_a_model_of_round_one_has_the_others_directions_at_weight_zero(results, backbone):
    folder = results / "runs/toy/fedecider-seed1"
    settings = config(results / "data", folder, seed=1, rounds=1, train_users=6, rankers=[])
    federation.run(settings, load("tiny", "cpu", "float32"))
    model = read_run(folder, results / "data").model("books")
    assert (model.peer_directions, model.alpha) == ({}, None)
    rows = theory.check(folder, results / "data", backbone, examples=2, iterations=2)
    assert rows["holds"].all()
    cases = rows.set_index("statement")["cases"]
    assert set(cases["lemma 3"]) == {4} and set(cases["lemma 2"]) == {6}  # no learned mixture


@pytest.mark.parametrize("scope", ["client", "layer"])
def test_weights_may_be_shared_by_modules(results, backbone, scope):
    folder = results / f"runs/toy/fedecider-{scope}"
    settings = config(results / "data", folder, alpha_scope=scope, train_users=6, rankers=[])
    federation.run(settings, load("tiny", "cpu", "float32"))
    rows = theory.check(folder, results / "data", backbone, examples=2, iterations=2)
    assert rows["holds"].all(), rows.to_string()
    assert set(rows.set_index("statement").loc["lemma 3", "cases"]) == {2}


def test_what_cannot_be_checked_is_refused(results, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        theory.check(tmp_path, results / "data", "tiny")
    with pytest.raises(ValueError, match="in float64, not in torch.float32"):
        folder = results / "runs/toy/fedecider-seed0"
        theory.check(folder, results / "data", load("tiny", "cpu", "float32"))
    folder = results / "runs/toy/alone"
    settings = config(results / "data", folder, domains=["books"], train_users=6, rankers=[])
    federation.run(settings, load("tiny", "cpu", "float32"))
    with pytest.raises(ValueError, match="toy/alone has one client"):
        theory.check(folder, results / "data", "tiny")


def test_a_saved_run_is_read_back_as_it_was_saved(run, backbone):
    with run.adapter(backbone) as adapter:
        assert isinstance(adapter, Adapter)
        model = run.model("comics")
        own = model.factors
        assert list(own) == adapter.names
        adapter.load(own)
    tensors = load_file(run.folder / "checkpoint" / checkpoint(run.folder))
    best = {key: value for key, value in tensors.items() if key.startswith("comics/best/")}
    peers, alpha = model.peer_directions, model.alpha
    assert sorted(peers) == ["books", "games"]
    assert torch.equal(alpha, best["comics/best/alpha"])
    for name, pair in own.items():
        assert torch.equal(pair.A, best[f"comics/best/own/{name}/A"])
        assert torch.equal(pair.B, best[f"comics/best/own/{name}/B"])
        for source in peers:
            stored = best[f"comics/best/from {source}/{name}/B"]
            assert torch.equal(peers[source][name].B, stored)


def checkpoint(folder):
    (name,) = [path.name for path in (folder / "checkpoint").glob("round-*.safetensors")]
    return name


def test_other_data_and_other_models_are_refused(results, run, backbone, tmp_path):
    other = write_domains(tmp_path / "data", ("books", "comics"))
    with pytest.raises(ValueError, match="trained on other data"):
        read_run(results / "runs/toy/fedecider-seed0", other)
    # By the digest of the weights, and by name where there is none.
    for weights in ("another", ""):
        unlike = replace(backbone, name="larger", weights=weights)
        with pytest.raises(ValueError, match="fedecider-seed0 was trained on tiny, not on larger"):
            run.adapter(unlike)
