"""The paper's statements, checked numerically on a trained model (method, section 4).

Of the lemmas and propositions of FeDecider (arXiv 2602.16034) only the names are public; what they
say here is our reconstruction. F is a client's mean -log p of the target tokens of some of its
training rows, W0 the frozen base, D_j client j's direction, and W the client's trained model: W0,
its own LoRA, and the foreign directions with its weights alpha.

Gradients with respect to the adapted weights are formed densely here, and here alone: they are the
second, independent way to what the method computes from factors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fedecider.backbone import Backbone, load
from fedecider.sequences import TrainingSet, make_form, pack
from fedecider.trunk import Trunk
from torch import Tensor
from tqdm import tqdm

from fedecider import saved
from fedecider.adapter import Adapter, Factors
from fedecider.client import ClientData, token_losses
from fedecider.direction import LowRank, combine, direction, inner
from fedecider.mixture import Mixture, Scope, group_index

COLUMNS = ["dataset", "method", "seed", "client", "statement", "measured", "deviation"]
COLUMNS += ["tolerance", "holds", "cases", "run"]
STATEMENTS = ("lemma 1", "lemma 2", "proposition 1", "lemma 3", "proposition 2", "planted")

# Largest deviation with which a statement still holds; 0 for the others, which round nothing.
TOLERANCES = {"lemma 1": 0.1, "lemma 2": 1e-8, "lemma 3": 1e-5}

# Lemma 1's m: small, but with a remainder far above rounding. The model's norms compute in float32
# whatever its precision, so that a loss has no more than eight digits.
_MAGNITUDES = (1 / 8, 1 / 16, 1 / 32)
_BUDGET = 2048  # tokens a forward

Found = tuple[float, float, int]  # measured, deviation, cases


class Objective:
    """F of one client on the first `examples` of its training rows, at what the adapter holds."""

    def __init__(self, adapter: Adapter, data: ClientData, examples: int):
        self.adapter = adapter
        self.part = TrainingSet(data.training.examples[:examples])
        label = f"{data.name} examples"
        self.trunk = Trunk(adapter.backbone, self.part.rows, adapter.first, label)
        self.packs = pack([tree.size for tree in self.trunk.trees], _BUDGET)
        self.tokens = sum(len(example.targets) for example in self.part.examples)

    def _parts(self) -> Iterator[Tensor]:
        for indices in self.packs:
            losses = token_losses(self.adapter, self.trunk, self.part, indices)
            yield losses.sum() / self.tokens

    @torch.no_grad()
    def value(self) -> float:
        """F."""
        return sum(part.item() for part in self._parts())

    def backward(self) -> float:
        """F; its gradient is added to that of every tensor that asks for one."""
        total = 0.0
        for part in self._parts():
            part.backward()
            total += part.item()
        return total

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """F, and dF / dW (d_out, d_in) of every adapted module."""
        weights = {name: module.base_layer.weight for name, module in self.adapter.modules.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        value = self.backward()
        found = {name: weight.grad for name, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
        return value, found


def _along(gradient: Tensor, pair: LowRank) -> Tensor:
    """<gradient, B A>_F of a dense gradient (d_out, d_in), ()."""
    B, A = pair.to(gradient.device, gradient.dtype)
    return (gradient @ A.T * B).sum()


def lemma_1(objective: Objective, directions: dict[str, Factors]) -> Found:
    """F(W0 + m D) - F(W0) - m <grad F(W0), D> falls as the square of m.

    Measured: the slope of the logarithm of the remainder against that of m. The remainder is the
    root of the sum of squares over m D and -m D of all `directions`: along a single line the second
    derivative may happen to be 0. The deviation is that from 2. Cases: the number of remainders.
    """
    adapter = objective.adapter
    adapter.load(adapter.initial)
    start, gradients = objective.gradients()
    squares = np.zeros(len(_MAGNITUDES))
    for factors in directions.values():
        linear = sum(_along(gradients[name], pair).item() for name, pair in factors.items())
        for place, size in enumerate(_MAGNITUDES):
            for m in (size, -size):
                with Mixture(adapter, {"one": factors}, torch.full((1, 1), m)):
                    squares[place] += (objective.value() - start - m * linear) ** 2
    slope = float(np.polyfit(np.log(_MAGNITUDES), np.log(squares) / 2, 1)[0])
    return slope, abs(slope - 2), 2 * len(_MAGNITUDES) * len(directions)


@torch.no_grad()
def lemma_2(mixture: Mixture, directions: dict[str, Factors], generator: torch.Generator) -> Found:
    """What a mixture adds to a layer, and any fixed aggregate of the directions, is in their span.

    Measured: the largest relative residual of X after projection on the span of the module's D_j,
    X being what the layer adds to its output for the rows of the identity, the uniform mean, and
    two sums with random weights. Measured and deviation are the same.
    """
    residuals = []
    for name, module in mixture.adapter.modules.items():
        weight = module.base_layer.weight
        pairs = [factors[name] for factors in directions.values() if name in factors]
        if not pairs:
            continue
        rows = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        plain = module(rows)
        with mixture:
            points = [(module(rows) - plain).T]
        dense = [B @ A for B, A in (pair.to(weight.device, weight.dtype) for pair in pairs)]
        for weights in (torch.ones(len(pairs)), *torch.randn(2, len(pairs), generator=generator)):
            aggregate = sum(w * D for w, D in zip(weights.tolist(), dense, strict=True))
            points.append(aggregate / len(pairs))
        residuals += [residual(point, pairs) for point in points if point.any()]
    worst = max(residuals)
    return worst, worst, len(residuals)


def residual(point: Tensor, directions: Sequence[LowRank]) -> float:
    """||X - P X||_F / ||X||_F of X (d_out, d_in), P the projection on span{D_j}.

    The coefficients solve the normal equations with the Gram matrix <D_j, D_k>_F, in the least
    squares sense where directions depend on each other.
    """
    gram = torch.stack([torch.stack([inner(one, two) for two in directions]) for one in directions])
    along = torch.stack([_along(point, pair) for pair in directions]).double().cpu()
    coefficients = torch.linalg.pinv(gram, hermitian=True) @ along
    exact = [pair.to(torch.float64) for pair in directions]
    nearest = combine(exact, coefficients.tolist()).to(point.device, point.dtype)
    rest = point - nearest.B @ nearest.A
    return (torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(point)).item()


def proposition_1(
    objective: Objective, directions: dict[str, Factors], scope: Scope, iterations: int
) -> Found:
    """The minimum of F over W0 + span{D_1, ..., D_n} is no higher than F at the uniform average.

    Measured: F at the average less F at the weights that L-BFGS finds from there; the deviation is
    by how much the latter is higher, if it is. Cases: the number of weights.
    """
    adapter = objective.adapter
    adapter.load(adapter.initial)
    count = len(directions)
    average = {}
    for name in adapter.names:
        present = [factors[name] for factors in directions.values() if name in factors]
        if present:
            average[name] = combine(present, [1 / count] * len(present))
    with Mixture(adapter, {"average": average}, torch.ones(1, 1)):
        fixed = objective.value()
    groups = max(group_index(adapter, scope).values()) + 1
    mixture = Mixture(adapter, directions, torch.full((groups, count), 1 / count), scope)
    optimizer = torch.optim.LBFGS(
        [mixture.alpha], max_iter=iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        return objective.backward()

    with mixture:
        optimizer.step(closure)
        learned = objective.value()
    return fixed - learned, max(0.0, learned - fixed), mixture.alpha.numel()


def slopes(
    objective: Objective, mixture: Mixture, directions: dict[str, Factors]
) -> tuple[Tensor, dict[str, Tensor]]:
    """<grad F(W), D_j>_F summed over the modules that share alpha_j, (groups, sources), and grad F.

    W is what the adapter holds plus the mixture. The gradient of `mixture.alpha` is left in place.
    """
    with mixture:
        _, gradients = objective.gradients()
    products = torch.zeros_like(mixture.alpha)
    for name, row in mixture.groups.items():
        for place, source in enumerate(mixture.sources):
            if name in directions[source]:
                products[row, place] += _along(gradients[name], directions[source][name])
    return products.detach(), gradients


def lemma_3(mixture: Mixture, products: Tensor) -> Found:
    """dF / d alpha_j = <grad F(W), D_j>_F: autograd against the dense gradient (`slopes`).

    Measured and deviation: the largest difference as a share of the largest product.
    """
    worst = ((mixture.alpha.grad - products).abs().max() / products.abs().max()).item()
    return worst, worst, products.numel()


def proposition_2(mixture: Mixture, products: Tensor, rate: float = 0.01) -> Found:
    """A gradient step on alpha lowers the weight of a harmful direction, raises a beneficial one's.

    Harmful (definition 1): <grad F(W), D_j>_F > 0. Measured: how many weights move as stated; the
    deviation is how many do not. Takes the step.
    """
    before = mixture.alpha.detach().clone()
    torch.optim.SGD([mixture.alpha], lr=rate).step()
    moved = (mixture.alpha.detach() - before).sign()
    counted = products != 0
    agree = int((moved == -products.sign())[counted].sum())
    return float(agree), float(counted.sum() - agree), int(counted.sum())


def planted(gradients: dict[str, Tensor], rank: int, generator: torch.Generator) -> Factors:
    """A harmful direction: the gradient's own, projected on `rank` random columns of its range."""
    found = {}
    for name, gradient in gradients.items():
        drawn = torch.randn(gradient.shape[1], rank, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(gradient.double().cpu() @ drawn)
        pair = direction(LowRank(basis, basis.T @ gradient.double().cpu()))
        if pair is not None:
            found[name] = pair
    return found


def check(
    folder: Path | str,
    data: Path | str,
    backbone: Backbone | str,
    examples: int = 16,
    iterations: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Every statement on every client of a finished run of fedecider, a row apiece, COLUMNS.

    `measured` and `deviation` are those of the function of the statement's name ("planted" is
    proposition 2 for a planted harmful direction); it holds if the deviation is at most
    `tolerance`; `cases` is how many comparisons it is over. `examples` training rows of a client
    make its F, `iterations` of L-BFGS look for proposition 1's minimum, `seed` is that of the
    aggregates and of the planted direction. A name stands for that backbone in float64 on the CPU.
    A client whose chosen model is that of round 1 has the others' directions at weight 0. Raises
    as `saved.read` does, and ValueError for a single client or another precision.
    """
    run = saved.read(folder, data)
    if isinstance(backbone, str):
        backbone = load(backbone, "cpu", "float64")
    if backbone.dtype != torch.float64:
        raise ValueError(f"statements are checked in float64, not in {backbone.dtype}")
    if len(run.domains) < 2:
        raise ValueError(f"{run.name} has one client: there is no mixture of directions")
    config = run.config
    about = {"dataset": config.dataset, "method": config.method, "seed": config.seed}
    form = make_form(config.form, backbone.tokenizer, backbone.start)
    rows = []
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        everyone = {domain.name: run.sent(domain.name, adapter) for domain in run.domains}
        for domain in tqdm(run.domains, desc=f"statements on {run.name}", unit="client"):
            # Twice as many users as rows: some have no row.
            few = {**domain.users, "train": domain.users["train"][: 2 * examples]}
            client = ClientData(replace(domain, users=few), adapter, form, config)
            objective = Objective(adapter, client, examples)
            generator = torch.Generator().manual_seed(seed)
            for statement, found in _of_client(
                run, objective, domain.name, everyone, iterations, generator
            ):
                measured, deviation, cases = found
                tolerance = TOLERANCES.get(statement, 0.0)
                row = {"client": domain.name, "statement": statement, "measured": measured}
                row |= {"deviation": deviation, "tolerance": tolerance, "cases": cases}
                rows.append({**about, **row, "holds": deviation <= tolerance, "run": run.name})
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_client(
    run: saved.SavedRun, objective: Objective, client: str, everyone, iterations, generator
) -> Iterator[tuple[str, Found]]:
    adapter, config = objective.adapter, run.config
    other = next(name for name in everyone if name != client)
    yield "lemma 1", lemma_1(objective, {name: everyone[name] for name in (client, other)})
    yield "proposition 1", proposition_1(objective, everyone, config.alpha_scope, iterations)
    foreign, alpha = run.foreign(client)
    if alpha is None:  # the first round's model was the best, which has none
        foreign = {name: factors for name, factors in everyone.items() if name != client}
        rows = max(group_index(adapter, config.alpha_scope).values()) + 1
        alpha = torch.zeros(rows, len(foreign))
    adapter.load(run.own(client))
    mixture = Mixture(adapter, foreign, alpha, config.alpha_scope)
    yield "lemma 2", lemma_2(mixture, foreign, generator)
    products, gradients = slopes(objective, mixture, foreign)
    yield "lemma 3", lemma_3(mixture, products)
    yield "proposition 2", proposition_2(mixture, products)
    foreign = {**foreign, "planted": planted(gradients, config.rank, generator)}
    place = sorted(foreign).index("planted")
    weights = torch.cat([alpha[:, :place], torch.zeros(len(alpha), 1), alpha[:, place:]], dim=1)
    mixture = Mixture(adapter, foreign, weights, config.alpha_scope)
    products, _ = slopes(objective, mixture, foreign)
    harmful = torch.zeros_like(products)
    harmful[:, place] = products[:, place].abs()  # it is to fall, whatever its product
    yield "planted", proposition_2(mixture, harmful)
