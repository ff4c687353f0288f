"""Membership inference by an observer of the server (our reconstruction).

The observer is honest but curious: it knows the frozen base W0 and sees what one client sends, and
guesses whether a user's history was among those that the client trained on. Per user it has one
score, larger for a member; F_u is the mean -log p of the user's target tokens, in the very rows
that training would make of the history.

    update       F_u(W0) - F_u(W0 + dW)                  the raw update is known
    first-order  -<grad F_u(W0), D> = -d/dt F_u(W0 + t D) at t = 0    only the unit direction is
    step         F_u(W0) - F_u(W0 + c D)                 the same, with a guess c of the magnitude

The gradient is never formed: by lemmas 1 and 3 the second score is the gradient of a mixture weight
at 0. c is the Frobenius norm that every module is guessed to have; the observer does not know it.
With noise the direction is what `privacy.noised` makes of it, drawn once, and the attack is the
second. No shadow models are trained, so a stronger attack may exist.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fedecider.backbone import Backbone, load
from fedecider.privacy import noised
from fedecider.ranking import Catalogue
from fedecider.sequences import Example, TrainingSet, make_form, pack
from fedecider.trunk import Trunk
from scipy.stats import rankdata
from tqdm import tqdm

from fedecider import runs, saved
from fedecider.adapter import Adapter, Factors
from fedecider.client import token_losses
from fedecider.domains import Domain, read_domain
from fedecider.mixture import Mixture

COLUMNS = ["dataset", "method", "seed", "client", "attack", "c", "sigma", "auc", "low", "high"]
COLUMNS += ["members", "nonmembers", "run"]
MEAN = "mean"  # the client of the rows that hold the mean over clients

_BUDGET = 4096  # tokens a forward
_DRAWS = 2000  # of the bootstrap


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member scores above a non-member, ties half: Mann and Whitney's U / (m n)."""
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def resampled(members: np.ndarray, others: np.ndarray, seed: int, draws: int = _DRAWS):
    """The AUC of bootstrap samples, (draws,): members and non-members are each drawn anew."""
    generator = np.random.default_rng(seed)
    above = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    m, n = above.shape
    taken_m = generator.multinomial(m, np.full(m, 1 / m), draws)
    taken_n = generator.multinomial(n, np.full(n, 1 / n), draws)
    return ((taken_m @ above) * taken_n).sum(1) / (m * n)


class Records:
    """Users' histories as the rows that training makes of them.

    `histories` are item ids, oldest first, one list a user; each must give at least one row.
    """

    def __init__(self, adapter: Adapter, form, domain: Domain, histories, config):
        self.adapter = adapter
        tokens = Catalogue(domain, form).tokens
        examples: list[Example] = []
        self.rows: list[list[int]] = []  # of each user
        for items in histories:
            mine = form.examples([tokens[item] for item in items], config.history)
            mine = mine[: config.windows]
            self.rows.append(list(range(len(examples), len(examples) + len(mine))))
            examples += mine
        self.part = TrainingSet(examples)
        label = f"{domain.name} records"
        self.trunk = Trunk(adapter.backbone, self.part.rows, adapter.first, label)

    @torch.no_grad()
    def losses(self) -> np.ndarray:
        """F_u of every user under what the adapter (and an entered mixture) holds, (users,)."""
        owner = np.concatenate([np.full(len(mine), u) for u, mine in enumerate(self.rows)])
        total, count = np.zeros(len(self.rows)), np.zeros(len(self.rows))
        for indices in pack([tree.size for tree in self.trunk.trees], _BUDGET):
            losses = token_losses(self.adapter, self.trunk, self.part, indices)
            tokens = [len(self.part.examples[index].targets) for index in indices]
            users = np.repeat(owner[indices], tokens)
            np.add.at(total, users, losses.double().cpu().numpy())
            np.add.at(count, users, 1)
        return total / count

    def slopes(self, directions: Sequence[Factors]) -> np.ndarray:
        """<grad F_u, D> at what the adapter holds, of every user and direction, (users, n)."""
        foreign = {f"{place:03d}": factors for place, factors in enumerate(directions)}
        mixture = Mixture(self.adapter, foreign, torch.zeros(1, len(foreign)), "client")
        found = []
        with mixture:
            for mine in self.rows:
                loss = token_losses(self.adapter, self.trunk, self.part, mine).mean()
                (slope,) = torch.autograd.grad(loss, mixture.alpha)
                found.append(slope[0].double().cpu().numpy())
        return np.stack(found)

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
    of scores over users. Raises ValueError if `data` are not those of the runs.
    """
    found = runs.configs(folder)
    found = found[(found["dataset"] == dataset) & found["finished"] & found["method"].isin(methods)]
    if seeds is not None:
        found = found[found["seed"].isin(seeds)]
    if len(found) and isinstance(backbone, str):
        backbone = load(backbone, "cpu", "float32")
    rows = []
    for name in found["run"]:
        run = saved.read(runs.folder_of(name, folder), data)
        rows += [row | {"run": name} for row in _of_run(run, backbone, users, steps, sigmas, seed)]
    return pd.DataFrame(rows, columns=COLUMNS)


def people(run: saved.SavedRun, domain: Domain, limit: int, generator: np.random.Generator):
    """Training histories of members and of as many non-members: two lists of lists of item ids.

    Members are drawn from the run's training users, non-members from the users of the same domain
    that are in neither its training nor its validation sample (validation chose the model), each
    from sorted ids; users without a training row are left out.
    """
    config = run.config
    members = domain.users["train"]
    # A larger limit adds users at random (`some_users`): enough even if half of them were unfit.
    more = len(members) + len(domain.users["valid"]) + 2 * limit
    limits = {"train": more, "valid": config.valid_users, "test": config.test_users}
    wider = read_domain(Path(config.data) / domain.name, **limits)
    known = {*members, *domain.users["valid"]}
    others = [user for user in wider.users["train"] if user not in known]
    groups = [[user for user in group if len(wider.train[user]) > 1] for group in (members, others)]
    number = min(limit, *map(len, groups))
    return [
        [wider.train[group[index]] for index in sorted(generator.permutation(len(group))[:number])]
        for group in groups
    ]


def _of_run(run: saved.SavedRun, backbone, users, steps, sigmas, seed: int) -> list[dict]:
    config = run.config
    about = {"dataset": config.dataset, "method": config.method, "seed": config.seed}
    form = make_form(config.form, backbone.tokenizer, backbone.start)
    rows, pooled = [], {}
    with run.adapter(backbone) as adapter:
        for parameter in adapter.parameters():
            parameter.requires_grad_(False)
        for domain in tqdm(run.domains, desc=f"attacks on {run.name}", unit="client"):
            # Of its own for each client: their intervals are independent.
            words = np.random.SeedSequence([seed, *domain.name.encode()])
            generator = np.random.default_rng(words)
            noise = torch.Generator().manual_seed(int(generator.integers(2**62)))
            drawn = int(generator.integers(2**62))
            inside, outside = people(run, domain, users, generator)
            mine = {**about, "client": domain.name}
            mine |= {"members": len(inside), "nonmembers": len(outside)}
            if not outside:
                rows.append(mine | {"attack": "update", "sigma": 0.0})
                continue
            records = Records(adapter, form, domain, [*inside, *outside], config)
            for key, scores in _scores(records, run, domain.name, steps, sigmas, noise).items():
                attacked = np.split(scores, [len(inside)])
                draws = resampled(*attacked, seed=drawn)
                rows.append(mine | _row(*key, auc(*attacked), draws))
                pooled.setdefault(key, []).append((rows[-1], draws))
    for key, parts in pooled.items():
        if len(parts) == len(run.domains):
            sums = {n: sum(row[n] for row, _ in parts) for n in ("members", "nonmembers")}
            value = float(np.mean([row["auc"] for row, _ in parts]))
            draws = np.mean([draws for _, draws in parts], axis=0)
            rows.append({**about, "client": MEAN, **sums} | _row(*key, value, draws))
    return rows


def _row(attack: str, c: float | None, sigma: float, value: float, draws: np.ndarray) -> dict:
    low, high = np.quantile(draws, [0.025, 0.975])
    found = {"attack": attack, "c": c, "sigma": sigma, "auc": value}
    return found | {"low": float(low), "high": float(high)}


def _scores(records: Records, run: saved.SavedRun, client: str, steps, sigmas, noise):
    """(attack, c, sigma) -> score of every user, (users,)."""
    adapter, config = records.adapter, run.config
    sent = run.sent(client, adapter)
    if not sent:
        raise ValueError(f"{client} of {run.name} has not trained: there is no update to attack")
    variants = {0.0: sent} | {
        sigma: {name: noised(pair, sigma, noise, config.norm) for name, pair in sent.items()}
        for sigma in sigmas
    }
    adapter.load(run.own(client))
    after = records.losses()
    adapter.load(adapter.initial)  # B = 0: W0
    base = records.losses()
    scores = {("update", None, 0.0): base - after}
    for sigma, slope in zip(variants, records.slopes(list(variants.values())).T, strict=True):
        scores["first-order", None, sigma] = -slope
    for c in steps:
        scores["step", c, 0.0] = base - records.stepped(sent, c)
    return scores
