"""The paper's statements, checked numerically on a trained model (method, section 4).

Of the lemmas and propositions of FeDecider (arXiv 2602.16034) only the names are public; what they
say here is our reconstruction. F is a client's loss on some of its training rows (`objective`), W0
the frozen base, D_j client j's direction, and W the client's trained model: W0, its own LoRA, and
the peers' directions with its weights alpha.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fedecider.adapter import Factors
from fedecider.analysis.objective import Objective, base_weights
from fedecider.analysis.saved_run import SavedRun, read_run
from fedecider.config import Scope
from fedecider.direction import LowRank, combine, direction, inner
from fedecider.engine.backbone import Backbone, load
from fedecider.mixture import Mixture, group_index
from fedecider.prompts import make_template
from fedecider.results import name_of
from fedecider.training import ClientData

COLUMNS = ["dataset", "method", "seed", "client", "statement", "measured", "deviation"]
COLUMNS += ["tolerance", "holds", "cases", "run"]
STATEMENTS = ("lemma 1", "lemma 2", "proposition 1", "lemma 3", "proposition 2", "planted")

# Largest deviation with which a statement still holds; 0 for the others, which round nothing.
TOLERANCES = {"lemma 1": 0.1, "lemma 2": 1e-8, "lemma 3": 1e-5}

# Lemma 1's m: small, but with a remainder far above rounding. The model's norms compute in float32
# whatever its precision, so that a loss has no more than eight digits.
_MAGNITUDES = (1 / 8, 1 / 16, 1 / 32)


class Measurement(NamedTuple):
    """What is measured of a statement, how far that is from it, and over how many comparisons."""

    measured: float
    deviation: float
    cases: int


def _along(gradient: Tensor, pair: LowRank) -> Tensor:
    """<gradient, B A>_F of a dense gradient (d_out, d_in), ()."""
    B, A = pair.to(gradient.device, gradient.dtype)
    return (gradient @ A.T * B).sum()


def lemma_1(objective: Objective, directions: dict[str, Factors]) -> Measurement:
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
        for index, size in enumerate(_MAGNITUDES):
            for m in (size, -size):
                with Mixture(adapter, {"direction": factors}, torch.full((1, 1), m)):
                    squares[index] += (objective.value() - start - m * linear) ** 2
    slope = float(np.polyfit(np.log(_MAGNITUDES), np.log(squares) / 2, 1)[0])
    return Measurement(slope, abs(slope - 2), 2 * len(_MAGNITUDES) * len(directions))


@torch.no_grad()
def lemma_2(
    mixture: Mixture, directions: dict[str, Factors], generator: torch.Generator
) -> Measurement:
    """What a mixture adds to a layer, and any fixed aggregate of the directions, is in their span.

    Measured: the largest relative residual of X after projection on the span of the module's D_j,
    X being what the layer adds to its output for the rows of the identity, the uniform mean, and
    two sums with random weights. Measured and deviation are the same.
    """
    residuals = []
    weights = base_weights(mixture.adapter)
    for name, module in mixture.adapter.modules.items():
        weight = weights[name]
        pairs = [factors[name] for factors in directions.values() if name in factors]
        if not pairs:
            continue
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        without = module(identity)
        with mixture:
            points = [(module(identity) - without).T]
        dense = [B @ A for B, A in (pair.to(weight.device, weight.dtype) for pair in pairs)]
        random = torch.randn(2, len(pairs), generator=generator)
        for coefficients in (torch.ones(len(pairs)), *random):
            terms = zip(coefficients.tolist(), dense, strict=True)
            aggregate = sum((c * D for c, D in terms), torch.zeros_like(dense[0]))
            points.append(aggregate / len(pairs))
        residuals += [residual(point, pairs) for point in points if point.any()]
    largest = max(residuals)
    return Measurement(largest, largest, len(residuals))


def residual(point: Tensor, directions: Sequence[LowRank]) -> float:
    """||X - P X||_F / ||X||_F of X (d_out, d_in), P the projection on span{D_j}.

    The coefficients solve the normal equations with the Gram matrix <D_j, D_k>_F, in the least
    squares sense where directions depend on each other.
    """
    gram = torch.stack([torch.stack([inner(j, k) for k in directions]) for j in directions])
    along = torch.stack([_along(point, pair) for pair in directions]).double().cpu()
    coefficients = torch.linalg.pinv(gram, hermitian=True) @ along
    exact = [pair.to(torch.float64) for pair in directions]
    nearest = combine(exact, coefficients.tolist()).to(point.device, point.dtype)
    rest = point - nearest.B @ nearest.A
    return (torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(point)).item()


def proposition_1(
    objective: Objective, directions: dict[str, Factors], scope: Scope, iterations: int
) -> Measurement:
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
    return Measurement(fixed - learned, max(0.0, learned - fixed), mixture.alpha.numel())


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
        for column, source in enumerate(mixture.sources):
            if name in directions[source]:
                products[row, column] += _along(gradients[name], directions[source][name])
    return products.detach(), gradients


def lemma_3(mixture: Mixture, products: Tensor) -> Measurement:
    """dF / d alpha_j = <grad F(W), D_j>_F: autograd against the dense gradient (`slopes`).

    Measured and deviation: the largest difference as a share of the largest product.
    """
    gradient = mixture.alpha.grad
    assert gradient is not None, "slopes leaves a gradient"
    largest = ((gradient - products).abs().max() / products.abs().max()).item()
    return Measurement(largest, largest, products.numel())


def proposition_2(mixture: Mixture, products: Tensor, rate: float = 0.01) -> Measurement:
    """A gradient step on alpha lowers the weight of a harmful direction, raises a beneficial one's.

    Harmful (definition 1): <grad F(W), D_j>_F > 0. Measured: how many weights move as stated; the
    deviation is how many do not. Takes the step.
    """
    before = mixture.alpha.detach().clone()
    torch.optim.SGD([mixture.alpha], lr=rate).step()
    moved = (mixture.alpha.detach() - before).sign()
    counted = products != 0
    agree = int((moved == -products.sign())[counted].sum())
    return Measurement(float(agree), float(counted.sum() - agree), int(counted.sum()))


def planted(gradients: dict[str, Tensor], rank: int, generator: torch.Generator) -> Factors:
    """A harmful direction: the gradient's own, projected on `rank` random columns of its range.

    Float64 factors of norm 1 per module; a module with a zero gradient is absent.
    """
    factors = {}
    for name, gradient in gradients.items():
        random = torch.randn(gradient.shape[1], rank, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(gradient.double().cpu() @ random)
        pair = direction(LowRank(basis, basis.T @ gradient.double().cpu()))
        if pair is not None:
            factors[name] = pair
    return factors


def check(
    folder: Path | str,
    data: Path | str,
    backbone: Backbone | str,
    examples: int = 16,
    iterations: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Every statement on every client of a finished run of fedecider, one row each, COLUMNS.

    `measured` and `deviation` are those of the function of the statement's name ("planted" is
    proposition 2 for a planted harmful direction); it holds if the deviation is at most
    `tolerance`; `cases` is how many comparisons it is over. `examples` training rows of a client
    make its F, `iterations` of L-BFGS look for proposition 1's minimum, `seed` is that of the
    aggregates and of the planted direction. A name stands for that backbone in float64 on the CPU.
    A client whose chosen model is that of round 1 has the others' directions at weight 0. Raises
    as `saved_run.read_run` does, and ValueError for a single client, another backbone than the
    run's or another precision.
    """
    run = read_run(folder, data)
    if isinstance(backbone, str):
        backbone = load(backbone, "cpu", "float64")
    if backbone.dtype != torch.float64:
        raise ValueError(f"statements are checked in float64, not in {backbone.dtype}")
    path = Path(os.path.abspath(run.folder))
    name = name_of(path, path.parents[1])  # as frames of the folder above the data set's name it
    if len(run.domains) < 2:
        raise ValueError(f"{name} has one client: there is no mixture of directions")
    config = run.config
    keys = {"dataset": config.data.dataset, "method": config.method, "seed": config.seed}
    template = make_template(config.data.prompt_template, backbone.tokenizer, backbone.start)
    rows: list[dict[str, Any]] = []
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        directions = {domain.name: run.sent(domain.name, adapter) for domain in run.domains}
        for domain in tqdm(run.domains, desc=f"statements on {name}", unit="client"):
            # Twice as many users as rows: some users have no row.
            users = {**domain.users, "train": domain.users["train"][: 2 * examples]}
            client = ClientData(replace(domain, users=users), adapter, template, config)
            objective = Objective(adapter, client, examples)
            generator = torch.Generator().manual_seed(seed)
            for statement, (measured, deviation, cases) in _of_client(
                run, objective, domain.name, directions, iterations, generator
            ):
                tolerance = TOLERANCES.get(statement, 0.0)
                row = {"client": domain.name, "statement": statement, "measured": measured}
                row |= {"deviation": deviation, "tolerance": tolerance, "cases": cases}
                rows.append({**keys, **row, "holds": deviation <= tolerance, "run": name})
    return pd.DataFrame(rows, columns=COLUMNS)


def _of_client(
    run: SavedRun,
    objective: Objective,
    client: str,
    directions: dict[str, Factors],
    iterations: int,
    generator: torch.Generator,
) -> Iterator[tuple[str, Measurement]]:
    """Each statement's name and measurement; `directions` are those of all clients."""
    adapter, scope = objective.adapter, run.config.direction.alpha_scope
    other = next(name for name in directions if name != client)
    yield "lemma 1", lemma_1(objective, {name: directions[name] for name in (client, other)})
    yield "proposition 1", proposition_1(objective, directions, scope, iterations)
    model = run.model(client)
    peers, alpha = model.peer_directions, model.alpha
    if alpha is None:  # the first round's model was the best, which has none
        peers = {name: factors for name, factors in directions.items() if name != client}
        groups = max(group_index(adapter, scope).values()) + 1
        alpha = torch.zeros(groups, len(peers))
    adapter.load(model.factors)
    mixture = Mixture(adapter, peers, alpha, scope)
    yield "lemma 2", lemma_2(mixture, peers, generator)
    products, gradients = slopes(objective, mixture, peers)
    yield "lemma 3", lemma_3(mixture, products)
    yield "proposition 2", proposition_2(mixture, products)
    peers = {**peers, "planted": planted(gradients, run.config.lora.rank, generator)}
    column = sorted(peers).index("planted")
    alpha = torch.cat([alpha[:, :column], torch.zeros(len(alpha), 1), alpha[:, column:]], dim=1)
    mixture = Mixture(adapter, peers, alpha, scope)
    products, _ = slopes(objective, mixture, peers)
    harmful = torch.zeros_like(products)
    harmful[:, column] = products[:, column].abs()  # it is to fall, whatever its product
    yield "planted", proposition_2(mixture, harmful)
