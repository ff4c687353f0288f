"""What all methods have in common: the table of section 5, what travels, steps, special cases."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load as load_payload
from safetensors.torch import load_file
from toy import Rounds, config, write_domains

from fedecider import federation, results, wire
from fedecider.client import Client
from fedecider.methods import METHODS, Method, methods_of
from fedecider.methods.base import CollaborativeFilter
from fedecider.rankers import RANKERS, rankers_of

ROOT = Path(__file__).resolve().parents[1]

# Section 5's table: parts that go up, and parts that come down from how many sources (n = 3).
UP = {
    "fedavg": "AB",
    "fedprox": "AB",
    "ffa-lora": "B",
    "flora": "AB",
    "fedsa-lora": "A",
    "rolora": "B",
    "lora-sim": "AB",
    "fellrec": "AB",
    "feddpa": "AB",
    "fedecider": "AB",
    "fedecider-no-direction": "AB",
    "fedecider-no-personalization": "AB",
    "fedecider-no-both": "AB",
}
DOWN = {**UP, "flora": "AB" * 3} | {name: UP[name] * 2 for name in UP if "fedecider" in name}
UNTRAINED = ("popularity", "als", "zero-shot")
SILENT = (*UNTRAINED, "local", "centralized")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return write_domains(tmp_path_factory.mktemp("alone"), ["books"])


def test_the_table_of_methods_is_that_of_section_5():
    section_5 = {*UP, *SILENT}  # a method of one's own stands beside them
    assert section_5 <= set(METHODS)
    assert {name for name in section_5 if not METHODS[name].trains} == set(UNTRAINED)


def test_every_method_says_what_it_is_called_and_drawn_with():
    """Methods sort by order, one line per method: no two share a label, colour or place."""
    classes = list(METHODS.values())
    for attribute in ("name", "label", "color", "order"):
        values = [getattr(method, attribute) for method in classes]
        assert len(set(values)) == len(values), attribute
    assert [method.order for method in classes] == sorted(method.order for method in classes)
    for name, method in METHODS.items():
        assert method.name == name
        assert (method.family == "ablation") == method.label.startswith("– ")
        assert len(method.color) == 7 and int(method.color.removeprefix("#"), 16) >= 0
        assert method.family in ("no language model", "reference", "federated", "ablation")


@pytest.mark.parametrize("method", METHODS)
def test_searches_try_settings_that_exist(method, data, tmp_path):
    """Every try makes a run that would not be refused; every trained method has as many."""
    tries = METHODS[method].grid
    assert len(tries) == (3 if METHODS[method].trains else 0)
    assert not any(settings in tries[:at] for at, settings in enumerate(tries))
    for settings in tries:
        federation.check(config(data, tmp_path / "x", method, **settings))


def test_the_grids_are_the_tries_of_the_published_runs():
    preset = yaml.safe_load((ROOT / "notebooks/presets/sample.yaml").read_text())
    grids = {name: method.grid for name, method in METHODS.items() if method.trains}
    assert preset["search"]["tries"] == grids


class Module(ModuleType):
    """A module that holds one class, as a file in the folder of methods would."""

    def __init__(self, module, bases, /, **attributes):
        super().__init__(module)
        self.Class = type("Class", bases, {"__module__": module, **attributes})


GOOD = {"name": "new", "label": "New", "color": "#123456", "order": 99, "family": "federated"}


def rank(self, domain, protocols):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("bases", "changed", "said"),
    [
        ((METHODS["fedavg"],), {"name": None}, "m.two.Class has no name of its own"),
        ((METHODS["fedavg"],), {"label": None}, "m.two.Class has no label of its own"),
        ((METHODS["fedavg"],), {"order": None}, "m.two.Class has no order of its own"),
        ((METHODS["fedavg"],), {"color": None}, "m.two.Class has no color of its own"),
        ((Method,), {"family": "federate"}, "family of m.two.Class must be one of .*'federate'"),
        ((Method,), {"family": None}, "family of m.two.Class must be one of .*None"),
        ((Method,), {"name": "old"}, "two methods are called 'old': m.one.Class and m.two.Class"),
        (
            (Method,),
            {"family": "no language model"},
            "'no language model' and has no method `rank`",
        ),
        ((Method,), {"rank": rank}, "family 'federated' and has a method `rank`"),
    ],
)
def test_a_class_that_is_no_whole_method_is_refused(bases, changed, said):
    attributes = {k: v for k, v in {**GOOD, **changed}.items() if v is not None}
    modules = [Module("m.one", (Method,), **{**GOOD, "name": "old"})]
    assert list(methods_of([*modules, Module("m.three", bases, **GOOD)])) == ["new", "old"]
    with pytest.raises(TypeError, match=said):
        methods_of([*modules, Module("m.two", bases, **attributes)])


def test_what_ranks_by_itself_is_told_by_its_family_as_by_its_class(data, tmp_path):
    for name, method in METHODS.items():
        alone = isinstance(method(config(data, tmp_path / "x", name)), CollaborativeFilter)
        assert alone == (method.family == "no language model")


@pytest.mark.parametrize(
    ("base", "changed", "said"),
    [
        (object, {"protocol": "listed"}, "protocol of m.two.Class must be one of .*'listed'"),
        (object, {"name": "trie"}, "two rankers are called 'trie': m.one.Class and m.two.Class"),
        (type(RANKERS["trie"]), {"name": None}, "m.two.Class has no name of its own"),
        (type(RANKERS["trie"]), {"protocol": None}, "m.two.Class has no protocol of its own"),
    ],
)
def test_a_class_that_is_no_whole_ranker_is_refused(base, changed, said):
    good = {"name": "new", "protocol": "sampled", "rank": rank}
    attributes = {k: v for k, v in {**good, **changed}.items() if v is not None}
    modules = [Module("m.one", (object,), **{**good, "name": "trie"})]
    assert set(rankers_of([*modules, Module("m.three", (base,), **good)])) == {"new", "trie"}
    with pytest.raises(TypeError, match=said):
        rankers_of([*modules, Module("m.two", (base,), **attributes)])


@pytest.mark.parametrize("method", UP)
def test_bytes_are_exactly_those_of_the_table(method, data, backbone, tmp_path, monkeypatch):
    """Every payload holds the parts that the table says and no other tensor."""
    payloads = {"up": [], "down": []}
    plain, phase = wire.decode, {"now": "up"}

    def spy(payload, sender, spec):
        payloads[phase["now"]].append(payload)
        return plain(payload, sender, spec)

    monkeypatch.setattr(wire, "decode", spy)
    with Rounds(data, tmp_path, backbone, method) as run:
        aggregate = run.server.method.aggregate

        def aggregated(*args):
            phase["now"] = "down"
            return aggregate(*args)

        monkeypatch.setattr(run.server.method, "aggregate", aggregated)
        run.round(1)
    clients = len(run.clients)
    shapes = {name: (pair.B, pair.A) for name, pair in run.adapter.initial.items()}
    size = {
        "A": sum(A.numel() * 4 for _, A in shapes.values()),
        "B": sum(B.numel() * 4 for B, _ in shapes.values()),
    }
    assert len(payloads["up"]) == clients
    assert len(payloads["down"]) * len(UP[method]) == clients * len(DOWN[method])
    table = pd.DataFrame(run.rows).set_index("client")
    for way, parts in (("up", UP[method]), ("down", DOWN[method])):
        for payload in payloads[way]:
            names = set(load_payload(payload))
            assert names == {f"{n}.{part}" for n in shapes for part in UP[method]}
        total = sum(sum(t.nbytes for t in load_payload(p).values()) for p in payloads[way])
        assert total == clients * sum(size[part] for part in parts)
        assert table[f"bytes_{way}"].sum() == sum(map(len, payloads[way]))


def test_bytes_are_those_of_the_table(backbone, data, tmp_path):
    """up: fedavg A, B and fedecider D; down: A, B and (n - 1) x D; a direction is as large."""
    size = {}
    for method in ("zero-shot", "local", "fedavg", "fedecider"):
        folder = federation.run(config(data, tmp_path / method, method), backbone)
        rounds = results.rounds(folder)
        size[method] = rounds[["bytes_up", "bytes_down"]].drop_duplicates().to_numpy().tolist()
    assert size["zero-shot"] == [] and size["local"] == [[0, 0]]
    (up, down) = size["fedavg"][0]
    # Up goes the number of examples, too, in the payload's header.
    assert size["fedavg"] == [[up, down]] and 0 < up - down < 64
    assert size["fedecider"] == [[down, 2 * down]]
    # The payload proper: r (d_in + d_out) float32 per module, and safetensors' header.
    pairs = load_file(next((tmp_path / "fedavg").glob("adapters/books/*.safetensors")))
    assert 0 < up - sum(tensor.numel() * 4 for tensor in pairs.values()) < 2000


@pytest.mark.parametrize("method", SILENT)
def test_nothing_travels_where_nothing_is_shared(method, data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", method), backbone)
    table = results.rounds(folder)
    assert not table[["bytes_up", "bytes_down"]].to_numpy().any()
    assert len(table) == (6 if METHODS[method].trains else 0)


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].trains])
def test_all_methods_make_the_same_number_of_local_steps(method, data, backbone, tmp_path):
    folder = federation.run(config(data, tmp_path / "run", method, rankers=[]), backbone)
    steps = results.rounds(folder).groupby("round")["steps"].agg(list).tolist()
    local = federation.run(config(data, tmp_path / "local", "local", rankers=[]), backbone)
    expected = results.rounds(local).groupby("round")["steps"].agg(list).tolist()
    if METHODS[method].fit_all is not Method.fit_all:
        # One model makes the steps of all, up to the last pack's filling.
        assert all(abs(a[0] - sum(b)) <= len(b) for a, b in zip(steps, expected, strict=True))
    else:
        assert steps == expected


def test_steps_are_counted_where_they_are_made(data, backbone, tmp_path, monkeypatch):
    """A method that trained twice as long would show it."""
    plain = Client.fit

    def whole(client, round, **options):
        return plain(client, round, **options | {"share": (0.0, 1.0)})

    monkeypatch.setattr(Client, "fit", whole)
    steps = {}
    for method in ("local", "feddpa"):
        folder = federation.run(config(data, tmp_path / method, method, rankers=[]), backbone)
        steps[method] = results.rounds(folder)["steps"].to_numpy()
    assert (steps["feddpa"] == 2 * steps["local"]).all()


@pytest.mark.parametrize("method", ["fedavg", "fellrec", "flora", "fedecider", "local"])
def test_a_diverged_run_says_so_before_anything_travels(
    method, data, backbone, tmp_path, monkeypatch
):
    def travels(*args, **kwargs):
        raise AssertionError("a client that diverged must send nothing")

    monkeypatch.setattr(wire, "encode", travels)
    settings = config(data, tmp_path / "run", method, lr=1e30, rankers=[])
    said = r"of books is (nan|inf) after round 1: the learning rate 1e\+30 may be too high"
    with pytest.raises(FloatingPointError, match=said):
        federation.run(settings, backbone)


def test_a_diverged_pooled_model_is_told_as_the_clients(data, backbone, tmp_path):
    settings = config(data, tmp_path / "run", "centralized", lr=1e30, rankers=[])
    said = r"of books is (nan|inf) after round 1: the learning rate 1e\+30 may be too high"
    with pytest.raises(FloatingPointError, match=said):
        federation.run(settings, backbone)


def test_settings_of_directions_are_refused_where_none_are_sent(data, tmp_path):
    for method in ("fedavg", "fedecider-no-direction", "fedecider-no-both"):
        for field in ({"truncate": 1}, {"direction_noise": 0.1}):
            with pytest.raises(ValueError, match=f"{method} sends no directions"):
                federation.run(config(data, tmp_path / "x", method, **field))


@pytest.mark.parametrize(
    "method",
    ["fedavg", "lora-sim", "fellrec", "fedsa-lora"]
    + ["fedecider", "fedecider-no-direction", "fedecider-no-personalization", "fedecider-no-both"],
)
def test_with_one_client_it_is_local(method, alone, backbone, tmp_path):
    """By definition: an average over one is that one, and there are no others to learn from."""
    losses = {}
    for name in ("local", method):
        folder = federation.run(config(alone, tmp_path / name, name, rankers=[]), backbone)
        table = results.rounds(folder)
        losses[name] = table[["train_loss", "valid_loss", "update_norm"]].to_numpy()
    np.testing.assert_allclose(losses[method], losses["local"], rtol=2e-6)


def test_a_methods_own_settings_are_checked_in_one_sentence(data, tmp_path):
    for method, own, said in (
        ("fedprox", {"nu": 1}, "fedprox has no setting 'nu'; its own are: mu"),
        ("fedprox", {"rnak": 4}, "no setting 'rnak'; its own are: mu; did you mean rank?"),
        ("local", {"alpha_int": 0.1}, "'alpha_int'; its own are: none; did you mean alpha_init?"),
        ("local", {"momentum": 0.9}, "local has no setting 'momentum'; its own are: none$"),
        ("fedavg", {"mu": 1}, "fedavg has no setting 'mu'; its own are: none"),
        ("fedprox", {"mu": -1}, "mu of fedprox: .* greater than or equal to 0, not -1"),
        ("fedecider-no-both", {"weights": "learned"}, "weights of fedecider-no-both: .*'uniform'"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            federation.check(config(data, tmp_path / "x", method, **own))
        assert "\n" not in str(error.value)


def test_an_aggregate_depends_on_no_order_of_arrival(unlike, backbone, tmp_path):
    for method in UP:
        with Rounds(unlike, tmp_path / method, backbone, method) as run:
            up = run.method.fit_all(run.clients, 1)
            backwards = dict(reversed(up.items()))
            assert list(up) != list(backwards)
            assert run.server.aggregate(1, up) == run.server.aggregate(1, backwards)
