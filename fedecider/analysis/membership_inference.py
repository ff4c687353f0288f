"""Membership inference by an observer of the server (our reconstruction).

The observer is honest but curious: it knows the frozen base W0 and sees what one client sends, and
guesses whether a user's history was among those that the client trained on. Per user it has one
score, larger for a member; F_u is the mean loss of the user's target tokens, nats per token, in the
very rows that training would make of the history.

    update       F_u(W0) - F_u(W0 + dW)                  the raw update is known
    first-order  -<grad F_u(W0), D> = -d/dt F_u(W0 + t D) at t = 0    only the unit direction is
    step         F_u(W0) - F_u(W0 + c D)                 the same, with a guess c of the magnitude

The gradient is never formed: by lemmas 1 and 3 the second score is the gradient of a mixture weight
at 0. c is the Frobenius norm that every module is guessed to have; the observer does not know it.
With noise the direction is what `direction_noise.noised` makes of it, drawn once, and the attack is
the second. No shadow models are trained, so a stronger attack may exist.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from fedecider.adapter import Adapter, Factors
from fedecider.analysis.saved_run import SavedRun, read_run
from fedecider.config import RunConfig
from fedecider.direction_noise import noised
from fedecider.domains import Domain, read_domain
from fedecider.engine.backbone import Backbone, load
from fedecider.engine.hidden_states import HiddenStateCache
from fedecider.engine.packing import pack
from fedecider.losses import LOSSES
from fedecider.mixture import Mixture
from fedecider.prompts import Catalogue, Example, ExampleSet, PromptTemplate, make_template
from fedecider.results import configs, folder_of
from fedecider.training import token_losses

COLUMNS = ["dataset", "method", "seed", "client", "attack", "c", "sigma", "auc", "low", "high"]
COLUMNS += ["members", "nonmembers", "run"]
MEAN = "mean"  # the client of the rows that hold the mean over clients

_BUDGET = 4096  # tokens per forward
_DRAWS = 2000  # of the bootstrap

Key = tuple[str, float | None, float]  # attack, c, sigma


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member scores above a non-member, ties half: Mann and Whitney's U / (m n).

    `members` are m scores, `others` n scores of non-members.
    """
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def bootstrap(
    members: np.ndarray, others: np.ndarray, seed: int, draws: int = _DRAWS
) -> np.ndarray:
    """The AUC of bootstrap samples, (draws,): members and non-members are each drawn anew."""
    generator = np.random.default_rng(seed)
    above = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    m, n = above.shape
    member_counts = generator.multinomial(m, np.full(m, 1 / m), draws)
    other_counts = generator.multinomial(n, np.full(n, 1 / n), draws)
    return ((member_counts @ above) * other_counts).sum(1) / (m * n)


class Records:
    """Users' histories as the rows that training makes of them.

    `histories` are item ids, oldest first, one list per user; each must give at least one row.
    `rows` holds the indices of each user's rows among `examples`.
    """

    def __init__(
        self,
        adapter: Adapter,
        template: PromptTemplate,
        domain: Domain,
        histories: Sequence[Sequence[str]],
        config: RunConfig,
    ):
        self.adapter, self.loss = adapter, LOSSES[config.training.loss]
        tokens = Catalogue(domain, template).tokens
        examples: list[Example] = []
        self.rows: list[list[int]] = []
        for items in histories:
            titles = [tokens[item] for item in items]
            own = template.examples(titles, config.data.history)[: config.data.windows_per_user]
            self.rows.append(list(range(len(examples), len(examples) + len(own))))
            examples += own
        self.examples = ExampleSet(examples)
        label = f"{domain.name} records"
        trees = self.examples.trees
        self.states = HiddenStateCache(adapter.backbone, trees, adapter.first, label)

    @torch.no_grad()
    def losses(self) -> np.ndarray:
        """F_u of every user under what the adapter (and an entered mixture) holds, (users,)."""
        owner = np.concatenate([np.full(len(rows), user) for user, rows in enumerate(self.rows)])
        total, count = np.zeros(len(self.rows)), np.zeros(len(self.rows))
        for indices in pack(self.states.sizes, _BUDGET):
            losses = token_losses(self.adapter, self.states, self.examples, indices, self.loss)
            num_tokens = [len(self.examples.examples[index].targets) for index in indices]
            users = np.repeat(owner[indices], num_tokens)
            np.add.at(total, users, losses.double().cpu().numpy())
            np.add.at(count, users, 1)
        return total / count

    def slopes(self, directions: Sequence[Factors]) -> np.ndarray:
        """<grad F_u, D> at what the adapter holds, of every user and direction, (users, n)."""
        sources = {f"{index:03d}": factors for index, factors in enumerate(directions)}
        mixture = Mixture(self.adapter, sources, torch.zeros(1, len(sources)), "client")
        slopes = []
        with mixture:
            for rows in self.rows:
                losses = token_losses(self.adapter, self.states, self.examples, rows, self.loss)
                (slope,) = torch.autograd.grad(losses.mean(), mixture.alpha)
                slopes.append(slope[0].double().cpu().numpy())
        return np.stack(slopes)

    def stepped(self, factors: Factors, c: float) -> np.ndarray:
        """F_u at what the adapter holds plus c D, (users,)."""
        with Mixture(self.adapter, {"sent": factors}, torch.full((1, 1), c), "client"):
            return self.losses()


def attacks(
    folder: Path | str,
    data: Path | str,
    dataset: str,
    backbone: Backbone | str,
    methods: Sequence[str] = ("local", "fedecider"),
    seeds: Sequence[int] | None = None,
    users: int = 60,
    steps: Sequence[float] = (1.0, 2.0, 4.0),
    sigmas: Sequence[float] = (0.1, 0.3, 1.0, 3.0),
    seed: int = 0,
) -> pd.DataFrame:
    """Every attack on every client of the finished runs of a data set below `folder`, COLUMNS.

    A row is one AUC (chance: 0.5) with the 95 % percentile bootstrap interval over users, of
    `members` users that the client trained on against as many that no client did, at most `users`
    of each; the client MEAN is the mean over clients. `c` is NaN but for the attack "step"; `sigma`
    is the noise on the direction. A client that trained on everyone has no non-members: one row
    without an AUC. `local` sends nothing; its rows tell what its update would give away.

    `seeds` are those of the runs (None: all), `seed` is that of samples, noise and bootstrap;
    `steps` are the guesses c, `sigmas` the noise under which the direction is attacked again. A
    name stands for that backbone in float32 on the CPU; in bf16 rounding is a tenth of the spread
    of scores over users. Raises FileNotFoundError if there is no such folder, ValueError if `data`
    are not those of the runs, if a run is of another backbone, or if a client has not trained.
    """
    runs = configs(folder)
    runs = runs[(runs["dataset"] == dataset) & runs["finished"] & runs["method"].isin(methods)]
    if seeds is not None:
        runs = runs[runs["seed"].isin(seeds)]
    names = list(runs["run"])
    if not names:
        return pd.DataFrame(columns=COLUMNS)
    if isinstance(backbone, str):
        backbone = load(backbone, "cpu", "float32")
    rows: list[dict[str, Any]] = []
    for name in names:
        run = read_run(folder_of(name, folder), data)
        attacked = _attacked(run, name, backbone, users, steps, sigmas, seed)
        rows += [row | {"run": name} for row in attacked]
    return pd.DataFrame(rows, columns=COLUMNS)


def sample_histories(
    run: SavedRun, domain: Domain, limit: int, generator: np.random.Generator
) -> tuple[list[list[str]], list[list[str]]]:
    """Training histories of members and of as many non-members, item ids, at most `limit` each.

    Members are drawn from the run's training users, non-members from the users of the same domain
    that are in neither its training nor its validation sample (validation chose the model), each
    from sorted ids; users without a training row are left out.
    """
    data = run.config.data
    members = domain.users["train"]
    # A larger limit adds users at random (`some_users`): enough even if half of them were unfit.
    more = len(members) + len(domain.users["valid"]) + 2 * limit
    limits = {"train": more, "valid": data.valid_users, "test": data.test_users}
    wider = read_domain(data.prepared / domain.name, **limits)
    known = {*members, *domain.users["valid"]}
    others = [user for user in wider.users["train"] if user not in known]
    members, others = (
        [user for user in group if len(wider.train[user]) > 1] for group in (members, others)
    )
    count = min(limit, len(members), len(others))

    def drawn(group: list[str]) -> list[list[str]]:
        order = generator.permutation(len(group))[:count]
        return [wider.train[group[index]] for index in sorted(order)]

    return drawn(members), drawn(others)


def _attacked(
    run: SavedRun,
    name: str,
    backbone: Backbone,
    users: int,
    steps: Sequence[float],
    sigmas: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of one run, without its name."""
    config = run.config
    keys = {"dataset": config.data.dataset, "method": config.method, "seed": config.seed}
    template = make_template(config.data.prompt_template, backbone.tokenizer, backbone.start)
    rows: list[dict[str, Any]] = []
    by_key: dict[Key, list[tuple[dict[str, Any], np.ndarray]]] = {}
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        for domain in tqdm(run.domains, desc=f"attacks on {name}", unit="client"):
            # Of its own for each client: their intervals are independent.
            words = np.random.SeedSequence([seed, *domain.name.encode()])
            generator = np.random.default_rng(words)
            noise = torch.Generator().manual_seed(int(generator.integers(2**62)))
            bootstrap_seed = int(generator.integers(2**62))
            members, others = sample_histories(run, domain, users, generator)
            client = {**keys, "client": domain.name}
            client |= {"members": len(members), "nonmembers": len(others)}
            if not others:
                rows.append(client | {"attack": "update", "sigma": 0.0})
                continue
            records = Records(adapter, template, domain, [*members, *others], config)
            scores = _scores(records, run, domain.name, steps, sigmas, noise)
            for key, values in scores.items():
                inside, outside = np.split(values, [len(members)])
                draws = bootstrap(inside, outside, bootstrap_seed)
                rows.append(client | _row(key, auc(inside, outside), draws))
                by_key.setdefault(key, []).append((rows[-1], draws))
    for key, parts in by_key.items():
        if len(parts) == len(run.domains):
            sums = {n: sum(row[n] for row, _ in parts) for n in ("members", "nonmembers")}
            mean = float(np.mean([row["auc"] for row, _ in parts]))
            draws = np.mean([draws for _, draws in parts], axis=0)
            rows.append({**keys, "client": MEAN, **sums} | _row(key, mean, draws))
    return rows


def _row(key: Key, value: float, draws: np.ndarray) -> dict[str, Any]:
    """The columns of one AUC, with the interval of its bootstrap draws."""
    attack, c, sigma = key
    low, high = np.quantile(draws, [0.025, 0.975])
    row = {"attack": attack, "c": c, "sigma": sigma, "auc": value}
    return row | {"low": float(low), "high": float(high)}


def _scores(
    records: Records,
    run: SavedRun,
    client: str,
    steps: Sequence[float],
    sigmas: Sequence[float],
    noise: torch.Generator,
) -> dict[Key, np.ndarray]:
    """(attack, c, sigma) -> score of every user, (users,)."""
    adapter, norm = records.adapter, run.config.direction.norm
    sent = run.sent(client, adapter)
    if not sent:
        raise ValueError(f"{client} of {run.folder} has not trained: there is no update to attack")
    variants = {0.0: sent} | {
        sigma: {module: noised(pair, sigma, noise, norm) for module, pair in sent.items()}
        for sigma in sigmas
    }
    adapter.load(run.model(client).factors)
    after = records.losses()
    adapter.load(adapter.initial)  # B = 0: W0
    base = records.losses()
    scores: dict[Key, np.ndarray] = {("update", None, 0.0): base - after}
    for sigma, slope in zip(variants, records.slopes(list(variants.values())).T, strict=True):
        scores["first-order", None, sigma] = -slope
    for c in steps:
        scores["step", c, 0.0] = base - records.stepped(sent, c)
    return scores
