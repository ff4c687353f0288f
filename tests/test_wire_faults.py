"""Payloads that kill nobody: all that no honest client sends is refused, and nothing else is."""

import copy
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from toy import Rounds, config

from fedecider import wire
from fedecider.direction import LowRank, direction
from fedecider.methods import METHODS, make
from fedecider.methods.base import payload_spec
from fedecider.methods.fedavg import most_examples
from fedecider.server import Server
from fedecider.wire import LARGEST_FACTOR, Metric, PayloadError, PayloadSpec, decode, encode

SHAPES = {"m.q": (6, 5), "m.v": (4, 5)}
METRICS = {"examples": Metric("count", 20)}


def factors(seed: int = 0, rank: int = 2, shapes=SHAPES) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(d_out, rank, generator=generator),
            torch.randn(rank, d_in, generator=generator),
        )
        for name, (d_out, d_in) in shapes.items()
    }


def directions(kind="frobenius", **options) -> dict[str, LowRank]:
    return {name: direction(pair, kind, **options) for name, pair in factors().items()}


def refused(payload: bytes, said: str, **expected) -> None:
    with pytest.raises(PayloadError, match=said) as error:
        decode(payload, "mallory", PayloadSpec(SHAPES, **expected))
    assert error.value.sender == "mallory" and "mallory" in str(error.value)


# Values


@pytest.mark.parametrize(("of_a", "of_b"), [(1e38, 1e-39), (1e-39, 1e38), (3e4, 1e-4), (1e5, 1e5)])
def test_unbalanced_factors_are_refused(of_a, of_b):
    for sent, unit in ((directions(), "frobenius"), (factors(), None)):
        bent = {n: LowRank(p.B.double() * of_b, p.A.double() * of_a) for n, p in sent.items()}
        refused(encode(bent), r"m.q.[AB] of mallory (has norm|is not finite)", unit=unit)


def test_a_factor_alone_is_bounded_too():
    large = {n: LowRank(None, p.A * 1e6) for n, p in factors().items()}
    refused(encode(large), "at most 10000 expected", parts="A")


@pytest.mark.parametrize("truncate", [None, 1, 2])
@pytest.mark.parametrize("kind", ["frobenius", "column", "spectral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_zero_and_nearly_zero_directions_are_refused(dtype, kind, truncate):
    for factor in (0.0, 1e-12, 0.1):
        sent = {n: p.scaled(factor) for n, p in directions(kind, k=truncate).items()}
        expected = {"unit": kind, "rank": 2, "truncate": truncate, "dtype": dtype}
        refused(encode(sent, dtype=dtype), f"no direction: its {kind} norm is", **expected)


@pytest.mark.parametrize("kind", ["frobenius", "column", "spectral"])
def test_int8_directions_above_1_01_are_refused(kind):
    tensors = load(encode(directions(kind), dtype="int8", unit=kind))
    for name in list(tensors):
        if name.endswith("scales"):
            tensors[name][0] *= 1.03
    refused(save(tensors), "no direction", dtype="int8", unit=kind)


def test_a_spiky_direction_is_not_rounded_above_1_01():
    long = torch.full((1, 4096), 0.51 / 127)  # just above half a step: all are rounded up
    long[0, 0] = 1.0
    for kind in ("frobenius", "spectral"):
        sent = {"m": direction(LowRank(long.T, long), kind)}
        spec = PayloadSpec({"m": (4096, 4096)}, "int8", unit=kind)
        with pytest.raises(PayloadError, match="no direction"):
            decode(encode(sent, dtype="int8"), "a", spec)
        assert decode(encode(sent, dtype="int8", unit=kind), "a", spec)


def test_short_columns_of_a_column_direction_are_refused():
    sent = directions("column")
    for factor, fits in ((0.0, True), (1.0, True), (0.5, False), (0.01, False)):
        bent = {n: LowRank(p.B, p.A.clone()) for n, p in sent.items()}
        bent["m.q"].A[:, 3] *= factor
        if fits:
            assert decode(encode(bent), "a", PayloadSpec(SHAPES, unit="column"))
        else:
            refused(encode(bent), "column 3 has norm .*, neither 1 nor 0", unit="column")


def test_steps_beyond_127_are_refused():
    tensors = load(encode(directions(), dtype="int8"))
    tensors["m.v.B"][0, 0] = -128
    refused(save(tensors), "m.v.B of mallory has steps beyond", dtype="int8")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_rank_0_is_refused(dtype):
    tensors = {}
    for name, (d_out, d_in) in SHAPES.items():
        kind = getattr(torch, dtype)
        tensors |= {f"{name}.B": torch.zeros(d_out, 0, dtype=kind)}
        tensors |= {f"{name}.A": torch.zeros(0, d_in, dtype=kind)}
        if dtype == "int8":
            tensors[f"{name}.scales"] = torch.zeros(2, 0)
    for unit in (None, "frobenius"):
        refused(save(tensors), "m.q of mallory has rank 0", dtype=dtype, unit=unit)


def test_where_loras_are_averaged_every_module_has_the_rank_of_the_run():
    refused(encode(factors(rank=1)), "rank 1, exactly 2 expected", rank=2, complete=True)
    half = {"m.q": factors()["m.q"]}
    refused(encode(half), "every module, m.v is absent", rank=2, complete=True)
    assert decode(encode(half), "a", PayloadSpec(SHAPES, rank=2))


# Header


def with_header(change, payload: bytes | None = None) -> bytes:
    """A payload whose header's text was changed; its length follows."""
    payload = payload or encode(factors(), {"examples": 7})
    length = int.from_bytes(payload[:8], "little")
    text = change(payload[8 : 8 + length].decode()).encode()
    return len(text).to_bytes(8, "little") + text + payload[8 + length :]


HEADERS = {
    "padded": lambda t: t + " " * 8,
    "padded to many times its size": lambda t: t + " " * 10**6,
    "spaced": lambda t: t.replace(":", ": "),
    "a scalar twice": lambda t: t.replace('{"examples"', '{"examples":"9","examples"'),
    "a tensor twice": lambda t: t.replace('"m.q.A"', '"m.q.A":{},"m.q.A"'),
    "a field twice": lambda t: t.replace('"shape":[2,5]', '"shape":[2,5],"shape":[2,5]', 1),
    "an unknown field": lambda t: t.replace('"dtype"', '"more":1,"dtype"', 1),
    "escaped": lambda t: t.replace("examples", "\\u0065xamples"),
    "deep": lambda t: "[" * 900 + "]" * 900,
    "a list": lambda t: "[]      ",
    "a number": lambda t: "17      ",
    "empty": lambda t: "",
    "a list of scalars": lambda t: t.replace('{"examples":"7"}', '["7"]'),
    "half a character": lambda t: t.replace("examples", "\\ud800"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_another_form_is_refused(name):
    refused(with_header(HEADERS[name]), "header that cannot be read", metrics=METRICS)


def test_deep_headers_are_no_recursion_error():
    shapes = {f"layer {index}": (6, 5) for index in range(400)}
    deep = "[" * 60_000
    payload = len(deep).to_bytes(8, "little") + deep.encode()
    with pytest.raises(PayloadError, match="header that cannot be read"):
        decode(payload, "a", PayloadSpec(shapes))


def test_the_header_is_not_changed_by_reading_and_writing_it():
    assert decode(with_header(lambda text: text), "a", PayloadSpec(SHAPES, metrics=METRICS))


@pytest.mark.parametrize("sent", [{"examples": 7, "more": 1}, {"more": 1, "examples": 7}])
def test_scalars_that_nobody_asked_for_are_refused(sent):
    refused(encode(factors(), sent), "tells more, which nobody asked for", metrics=METRICS)
    refused(encode(factors(), {"examples": 7}), "tells examples, which nobody asked for")
    none = with_header(lambda t: t.replace('{"examples":"7"}', "{}") + " " * 4)
    refused(none, "nothing, which nobody|cannot be read", metrics={})


@pytest.mark.parametrize(
    "text",
    ["1_000", " 5 ", "5 ", "+5", "05", "5.0", "5e0", "0", "-1", "21", "1e308", "nan", "inf", ""]
    + ["٥", "5\n", "0x5", "9" * 5000, "1e12", "five"],
)
def test_counts_are_integers_in_ascii_digits_up_to_their_bound(text):
    refused(
        save(load(encode(factors())), {"examples": text}),
        "tells examples|header that cannot be read",
        metrics=METRICS,
    )


@pytest.mark.parametrize(
    "text",
    ["1_0.5", " 2.5", "2.50", "2", "2.5e0", "+2.5", "0.0", "-2.5", "nan", "inf", "1e308", "51.0"]
    + ["٢.٥", "infinity", "", "1e-400"],
)
def test_numbers_are_written_as_repr_writes_them(text):
    spec = {"metrics": {"loss": Metric("positive", 50.0)}}
    refused(save(load(encode(factors())), {"loss": text}), "tells loss", **spec)
    assert decode(encode(factors(), {"loss": 2.5}), "a", PayloadSpec(SHAPES, **spec))


def test_a_count_is_at_most_what_the_configuration_lets_a_client_have():
    def bound(**changed):
        return most_examples(config(Path("d"), Path("f"), "fedavg", **changed))

    limits = {"train_users": 40, "windows_per_user": 3, "history": 5}
    assert bound(**limits) == 600
    assert bound(**limits, prompt_template="instruction") == 120
    assert bound(train_users=40) == bound() == 10**9
    server = Server(config(Path("d"), Path("f"), "fedavg", **limits), SHAPES)
    fit = encode(factors(), {"examples": 600})
    assert server.aggregate(1, {"books": fit})
    for most in (601, 10**12):
        greedy = encode(factors(), {"examples": most})
        with pytest.raises(PayloadError, match="of comics tells examples .* at most 600"):
            server.aggregate(1, {"books": fit, "comics": greedy})


def test_no_client_trains_on_more_targets_than_the_bound(data, backbone, tmp_path):
    for template in ("history", "instruction"):
        limits = {"train_users": 5, "windows_per_user": 2, "history": 2}
        values = {**limits, "prompt_template": template}
        with Rounds(data, tmp_path / template, backbone, "fedavg", **values) as run:
            for client in run.clients:
                assert client.data.training.num_targets <= most_examples(run.config)


# Honest payloads pass

SHARED = [name for name in METHODS if METHODS[name].trains and name not in ("local", "centralized")]


def honest_client(method, sent: dict[str, LowRank], gamma: float) -> SimpleNamespace:
    """What `Method.upload` reads of a client."""
    updates = lambda own: {name: pair.scaled(gamma) for name, pair in own.items()}  # noqa: E731
    return SimpleNamespace(
        name="books",
        model=SimpleNamespace(factors=sent),
        adapter=SimpleNamespace(updates=updates),
        data=SimpleNamespace(training=SimpleNamespace(num_targets=17)),
        report=SimpleNamespace(train_loss=2.75),
    )


@st.composite
def trained(draw) -> dict[str, LowRank]:
    """LoRA factors of rank 3 as training leaves them, some of them odd."""
    sent = {}
    shapes = {"m.q": draw(st.tuples(st.integers(1, 40), st.integers(1, 40))), "m.v": (7, 3)}
    for seed, (name, pair) in enumerate(factors(draw(st.integers(0, 999)), 3, shapes).items()):
        size = 10.0 ** draw(st.integers(-12, 0))
        spread = torch.logspace(0, -draw(st.integers(0, 9)), 3)
        B, A = pair.B * spread * size, pair.A / draw(st.sampled_from([1.0, 100.0]))
        odd = draw(st.sampled_from(["", "", "zero", "rank 1", "spike", "zero columns"]))
        if odd == "zero":
            B = torch.zeros_like(B)
        elif odd == "rank 1":
            B = B[:, :1].repeat(1, 3)
        elif odd == "spike":
            B[seed % B.shape[0]] *= 50
        elif odd == "zero columns":
            A[:, : A.shape[1] // 2] = 0
        sent[name] = LowRank(B, A)
    return sent


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_honest_payloads_of_every_method_pass(data):
    sent = data.draw(trained())
    name = data.draw(st.sampled_from(SHARED))
    values = {"payload_dtype": data.draw(st.sampled_from(["float32", "bfloat16", "int8"]))}
    if METHODS[name](config(Path("d"), Path("f"), name)).payload_norm(up=False) is not None:
        values["norm"] = data.draw(st.sampled_from(["frobenius", "column", "spectral"]))
        values["truncate"] = data.draw(st.sampled_from([None, 1, 2, 3, 9]))
        values["send"] = data.draw(st.sampled_from(["direction", "update"]))
        if values["send"] == "direction":
            values["direction_noise"] = data.draw(st.sampled_from([0.0, 0.3]))
    chosen = config(Path("d"), Path("f"), name, rank=3, **values)
    method, number = make(chosen), data.draw(st.integers(1, 2))
    shapes = {name: (pair.B.shape[0], pair.A.shape[1]) for name, pair in sent.items()}
    upload = method.upload(honest_client(method, sent, 16 / 3), number)
    payload = encode(
        upload.factors, upload.metrics, values["payload_dtype"], method.payload_norm(up=True)
    )
    down = Server(chosen, shapes).aggregate(number, {"books": payload, "games": payload, "x": b""})
    spec = payload_spec(chosen, method, shapes, number, up=False)
    for sources in down.values():
        for source, received in sources.items():
            decode(received, source, spec)


# Mutations

_FLOATS = [0.0, math.nan, math.inf, 1e38, -3e38, 1e-39, 1e20, 9e3, 1e4, 1.0, 1e-6]


def mutated(draw: random.Random, payload: bytes) -> bytes:
    """The payload with one or two of its bytes, tensors, names or scalars changed."""
    kind = draw.randrange(12)
    length = int.from_bytes(payload[:8], "little")
    if kind < 4:
        changed = bytearray(payload)
        start, stop = ((0, 8), (8, 8 + length), (8 + length, len(payload)))[min(kind, 2)]
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(start, stop)
            changed[at] = draw.choice([draw.randrange(256), changed[at] ^ 1 << draw.randrange(8)])
        if kind == 3:
            at = draw.randrange(len(payload))
            return payload[:at] if draw.random() < 0.5 else payload + bytes(draw.randrange(1, 99))
        return bytes(changed)
    if kind == 4:
        return with_header(draw.choice(list(HEADERS.values())), payload)
    tensors = load(payload)
    header = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    if kind == 5:
        header[draw.choice(["examples", "loss", "size"])] = draw.choice(
            ["1", "20", "1e308", "1000000000000", "2.5", "1_0", "-1", "nan", "0"]
        )
    elif kind == 6:
        module = name.rpartition(".")[0]
        factor = 10.0 ** draw.uniform(-45, 38)
        for part, scale in (("A", factor), ("B", 1 / factor)):
            old = tensors.get(f"{module}.{part}")
            if old is not None:
                tensors[f"{module}.{part}"] = (old.double() * scale).to(old.dtype)
    elif kind == 7:
        tensors[name] = (tensor.double() * draw.choice([*_FLOATS, draw.uniform(0, 2)])).to(
            tensor.dtype
        )
    elif kind == 8:
        flat = tensor.double().flatten()
        for _ in range(draw.randint(1, 4)):
            flat[draw.randrange(len(flat))] = draw.choice(_FLOATS)
        tensors[name] = flat.reshape(tensor.shape).to(tensor.dtype)
    elif kind == 9:
        tensors[draw.choice(["m.k.A", name + "x", name])] = (
            draw.choice(
                [
                    tensor[:0],
                    tensor[:, :0],
                    tensor[:1],
                    tensor.repeat(2, 1),
                    tensor.double(),
                    tensor.T,
                ]
            )
            .clone()
            .contiguous()
        )
    elif kind == 10:
        del tensors[name]
    else:
        # As large as the bound allows: what is let through must be harmless there.
        size = tensor.double().norm().clamp(min=1e-30)
        tensors[name] = (tensor.double() / size * LARGEST_FACTOR * 0.999).to(tensor.dtype)
    return save(tensors, header or None)


EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("fedavg", {}),
        ("fedavg", {"payload_dtype": "int8"}),
        ("fellrec", {"payload_dtype": "bfloat16"}),
        ("lora-sim", {}),
        ("flora", {}),
        ("fedecider", {"alpha_init": 0.3}),
        ("fedecider", {"alpha_init": 0.3, "norm": "column", "truncate": 1}),
        ("fedecider", {"alpha_init": 0.3, "payload_dtype": "int8"}),
        ("fedecider", {"alpha_init": 0.3, "send": "update"}),
        ("fedecider-no-both", {}),
    ],
)
def test_a_mutated_payload_is_refused_or_harmless(method, values, data, backbone, tmp_path):
    draw = random.Random(f"{method} {values}")
    small = {"train_users": 1, "windows_per_user": 1, "batch_tokens": 4096, "history": 4}
    values = {**small, "targets": EVERY_LINEAR, **values}
    with Rounds(data, tmp_path, backbone, method, **values) as run:
        up = {client.name: client.local_update(1) for client in run.clients}
        victim = run.clients[1]
        before, outcomes = copy.copy(victim.model), []
        for _ in range(250):
            bent = mutated(draw, up["books"])
            try:
                down = run.server.aggregate(1, up | {"books": bent})
            except PayloadError as error:
                assert error.sender == "books"
                outcomes.append("refused")
                continue
            outcomes.append("unchanged" if bent == up["books"] else "let through")
            victim.model, victim.pending_directions = copy.copy(before), {}
            victim.receive(1, down["comics"])
            victim.local_update(2)  # FloatingPointError if it is not finite
            assert math.isfinite(victim.report.train_loss)
            assert math.isfinite(victim.validate(2))
    counts = {outcome: outcomes.count(outcome) for outcome in set(outcomes)}
    assert counts["refused"] > 100 and counts["let through"] > 5, counts


@pytest.mark.parametrize("method", ["fedavg", "fellrec", "lora-sim", "flora", "fedecider-no-both"])
def test_the_largest_factors_that_pass_leave_the_others_finite(method, data, backbone, tmp_path):
    with Rounds(data, tmp_path, backbone, method, targets=EVERY_LINEAR, top_layers=None) as run:
        up = {client.name: client.local_update(1) for client in run.clients}
        generator = torch.Generator().manual_seed(0)
        sent = {}
        for name, (B, A) in run.adapter.initial.items():
            pair = (torch.rand(part.shape, generator=generator) for part in (B, A))
            sent[name] = LowRank(*(part / part.norm() * LARGEST_FACTOR * 0.9999 for part in pair))
        metrics = {"examples": 10**9} if "examples" in run.method.metrics else {}
        metrics |= {"loss": 1e6} if "loss" in run.method.metrics else {}
        down = run.server.aggregate(1, up | {"books": encode(sent, metrics)})
        victim = run.clients[1]
        victim.receive(1, down["comics"])
        victim.local_update(2)
        assert math.isfinite(victim.report.train_loss) and math.isfinite(victim.validate(2))


def test_a_wire_spec_asks_for_nothing_that_the_methods_do_not_declare():
    for name in SHARED:
        chosen = config(Path("d"), Path("f"), name)
        method = make(chosen)
        up, down = (payload_spec(chosen, method, SHAPES, 1, up=way) for way in (True, False))
        assert up.metrics == method.metrics and down.metrics == {}
        assert wire.encode({}) and (up.complete == ("fedecider" not in name))
