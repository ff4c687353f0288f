"""The adapted layer, and the paper's lemmas and propositions on a float64 model."""

import pytest
import torch

from fedecider.adapter import Adapter
from fedecider.direction import LowRank, combine, direction, inner
from fedecider.engine.backbone import load
from fedecider.engine.cross_entropy import nll
from fedecider.engine.packing import PackedBatch, PromptTree
from fedecider.mixture import Mixture, group_index, initial_alpha

IDS = [0, *range(20, 60)]


@pytest.fixture(scope="module")
def backbone():
    return load("tiny", "cpu", "float64")


@pytest.fixture
def adapter(backbone):
    with Adapter(backbone, 2, 4, ["q_proj", "v_proj", "down_proj"], seed=1) as adapter:
        yield adapter


def some_factors(adapter, seed, rank=2, scale=0.1, only=None):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(pair.B.shape[0], rank, generator=generator, dtype=torch.float64) * scale,
            torch.randn(rank, pair.A.shape[1], generator=generator, dtype=torch.float64) * scale,
        )
        for name, pair in adapter.initial.items()
        if only is None or only in name
    }


def as_directions(factors):
    return {name: direction(update) for name, update in factors.items()}


def embedded(backbone, ids):
    """One sequence with its states below the first block."""
    return PackedBatch([PromptTree(ids)], backbone.embed(torch.tensor(ids))[0])


def loss(adapter, ids=IDS):
    hidden = adapter.hidden(embedded(adapter.backbone, ids[:-1]))
    return nll(hidden, adapter.backbone.head, torch.tensor(ids[1:])).mean()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_alpha_zero_is_bit_equal_to_plain_lora(dtype):
    plain = load("tiny", "cpu", dtype)
    with Adapter(plain, 2, 4, ["q_proj", "v_proj"]) as adapter:
        adapter.load(some_factors(adapter, 3))
        peers = {"a": as_directions(some_factors(adapter, 4)), "b": some_factors(adapter, 5)}
        batch = embedded(plain, IDS)
        with torch.no_grad():
            own = adapter.hidden(batch)
            with Mixture(adapter, peers, torch.zeros(1, 2)):
                mixed = adapter.hidden(batch)
            with Mixture(adapter, peers, torch.ones(1, 2)):
                moved = adapter.hidden(batch)
            after = adapter.hidden(batch)
        assert torch.equal(own, mixed) and torch.equal(own, after)
        assert not torch.equal(own, moved)


@pytest.mark.parametrize("scope", ["client", "layer", "module"])
def test_mixture_equals_the_dense_sum(adapter, scope):
    """y = W0 x + gamma B A x + sum_j alpha_j D_j x, with other ranks and absent modules."""
    own = some_factors(adapter, 6)
    peers = {
        "x": as_directions(some_factors(adapter, 7, rank=3)),
        "y": as_directions(some_factors(adapter, 8, rank=1, only="v_proj")),
    }
    rows = max(group_index(adapter, scope).values()) + 1
    alpha = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    adapter.load(own)
    with torch.no_grad(), Mixture(adapter, peers, alpha, scope):
        mixed = loss(adapter)
    adapter.load(adapter.initial)  # B = 0: what is left is W0
    before = {}
    with torch.no_grad():
        for name, module in adapter.modules.items():
            weight = module.base_layer.weight
            before[name] = weight.clone()
            weights = alpha[group_index(adapter, scope)[name]]
            parts = [own[name].scaled(adapter.gamma)]
            parts += [
                peers[source][name].scaled(weights[place])
                for place, source in enumerate(sorted(peers))
                if name in peers[source]
            ]
            total = combine(parts, [1.0] * len(parts))
            weight += total.B @ total.A
        dense = loss(adapter)
        for name, module in adapter.modules.items():
            module.base_layer.weight.copy_(before[name])
    assert abs(mixed - dense) < 1e-10
    assert abs(mixed - loss(adapter)) > 1e-6


@pytest.mark.parametrize("scope", ["client", "layer", "module"])
def test_lemma_3_alpha_gradient_is_the_inner_product(adapter, scope):
    """dF / d alpha_ij = <grad F(W), D_j>_F, summed over the layers that share alpha_ij."""
    adapter.load(some_factors(adapter, 9))
    peers = {
        name: as_directions(some_factors(adapter, seed)) for name, seed in (("p", 1), ("q", 2))
    }
    groups = group_index(adapter, scope)
    alpha = torch.full((max(groups.values()) + 1, 2), 0.3, dtype=torch.float64)
    weights = [module.base_layer.weight.requires_grad_(True) for module in adapter.modules.values()]
    mixture = Mixture(adapter, peers, alpha, scope)
    with mixture:
        loss(adapter).backward()
    expected = torch.zeros_like(alpha)
    for (name, row), weight in zip(groups.items(), weights, strict=True):
        for place, source in enumerate(sorted(peers)):
            pair = peers[source][name]
            expected[row, place] += (weight.grad * (pair.B @ pair.A)).sum()
        weight.requires_grad_(False)
        weight.grad = None
    assert expected.abs().max() > 1e-4
    assert (mixture.alpha.grad - expected).abs().max() <= 1e-5 * expected.abs().max()


def dense_gradient(adapter, name):
    weight = adapter.modules[name].base_layer.weight.requires_grad_(True)
    loss(adapter).backward()
    gradient = weight.grad.clone()
    weight.requires_grad_(False)
    weight.grad = None
    for parameter in adapter.parameters():
        parameter.grad = None
    return gradient


def low_rank(matrix, rank=2):
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    return LowRank(U[:, :rank] * S[:rank], Vt[:rank])


def test_proposition_2_harmful_directions_lose_weight(adapter):
    """The direction along the gradient is harmful, against it beneficial (definition 1)."""
    adapter.load(some_factors(adapter, 10))
    name = next(name for name in adapter.names if "v_proj" in name)
    slope = low_rank(dense_gradient(adapter, name))
    harmful, beneficial = direction(slope), direction(slope.scaled(-1.0))
    peers = {"bad": {name: harmful}, "good": {name: beneficial}}
    mixture = Mixture(adapter, peers, torch.full((1, 2), 0.1))
    optimizer = torch.optim.SGD([mixture.alpha], lr=0.01)
    with mixture:
        before = loss(adapter)
        before.backward()
        optimizer.step()
        after = loss(adapter)
    bad, good = mixture.alpha.detach()[0].tolist()
    assert bad < 0.1 < good
    assert after < before


def test_lemma_1_the_remainder_falls_as_the_square(adapter):
    adapter.load(some_factors(adapter, 11))
    gradients = {name: low_rank(dense_gradient(adapter, name), 64) for name in adapter.names}
    step = as_directions(some_factors(adapter, 12))
    slope = sum(inner(gradients[name], step[name]) for name in adapter.names)
    remainders = []
    with torch.no_grad():
        start = loss(adapter)
        for size in (1e-2, 5e-3, 2.5e-3):
            with Mixture(adapter, {"d": step}, torch.full((1, 1), size)):
                remainders.append((loss(adapter) - start - size * slope).abs().item())
    ratios = [first / second for first, second in zip(remainders, remainders[1:], strict=False)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios


@pytest.mark.parametrize("seed", range(3))
def test_proposition_1_learned_weights_are_no_worse_than_fixed_ones(adapter, seed):
    """The minimum over alpha on span{D_j} is at most the loss of any fixed aggregate in it."""
    adapter.load(adapter.initial)
    generator = torch.Generator().manual_seed(seed)
    data = [[0, *torch.randint(20, 60, (40,), generator=generator).tolist()] for _ in range(3)]
    peers = {str(j): as_directions(some_factors(adapter, 10 * seed + j)) for j in range(3)}
    fixed = torch.cat(
        [
            torch.full((1, 3), 1 / 3),  # uniform
            torch.tensor([[0.6, 0.3, 0.1]]),  # by the number of examples, say
            torch.eye(3),  # one client only
            torch.zeros(1, 3),  # none
            torch.rand(4, 3, generator=generator) * 2 - 1,  # anywhere in the span
        ]
    )

    def objective():
        return torch.stack([loss(adapter, ids) for ids in data]).mean()

    values = []
    for weights in fixed:
        aggregate = {
            name: combine([peers[source][name] for source in sorted(peers)], weights.tolist())
            for name in adapter.names
        }
        with torch.no_grad(), Mixture(adapter, {"all": aggregate}, torch.ones(1, 1)):
            values.append(objective().item())
    mixture = Mixture(adapter, peers, fixed[:1])
    optimizer = torch.optim.LBFGS([mixture.alpha], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    with mixture:
        optimizer.step(closure)
        learned = closure().item()
    assert mixture.alpha.grad.abs().max() < 1e-4  # a minimum, not just a few steps
    assert learned < min(values) - 1e-6


def test_nonnegative_alpha_is_projected(adapter):
    peers = {"a": as_directions(some_factors(adapter, 1))}
    mixture = Mixture(adapter, peers, torch.full((1, 1), -0.5), sign="nonnegative")
    mixture.project()
    assert mixture.alpha.item() == 0
    free = Mixture(adapter, peers, torch.full((1, 1), -0.5))
    free.project()
    assert free.alpha.item() == -0.5


def test_initial_alpha_is_a_share_of_the_own_norm(adapter):
    own = adapter.updates(some_factors(adapter, 2))
    sources = ["a", "b"]
    assert (initial_alpha(adapter, sources, "module", 0.0, own) == 0).all()
    alpha = initial_alpha(adapter, sources, "module", 0.25, own)
    for row, name in enumerate(adapter.names):
        expected = 0.25 * torch.linalg.matrix_norm(own[name].B @ own[name].A)
        assert alpha[row] == pytest.approx(expected.item(), rel=1e-6)
    shared = initial_alpha(adapter, sources, "client", 0.25, own)
    assert shared.shape == (1, 2) and shared[0, 0] == pytest.approx(alpha[:, 0].mean().item())


def test_bad_settings_are_named(adapter):
    with pytest.raises(ValueError, match=r"alpha must have shape \(1, 1\)"):
        Mixture(adapter, {"a": {}}, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="client, layer or module, got 'all'"):
        group_index(adapter, "all")
