"""Table 6: what an observer of the server learns, and what noise on the direction costs.

Who attacks, and by which scores, is told in fedecider/analysis/membership_inference.py.
"""

from collections.abc import Sequence

import pandas as pd

from figures import select, style, sweeps
from figures.table import NO_RUN, Column, Table

_ATTACK = ("dataset", "method", "seed", "client", "attack", "c", "sigma", "auc", "low", "high")
_COLUMNS = (*_ATTACK, "members", "nonmembers", "run")
_KNOWN = {
    "update": "Raw update",
    "first-order": "Unit direction, slope at W0",
    "step": "Unit direction, step of norm {:g} per module",
}
_NUMBERS = {"auc": float, "low": float, "high": float, "sigma": float, "c": float}


def numbers(
    attacks: pd.DataFrame,
    known: pd.DataFrame,
    *,
    dataset: str,
    methods: Sequence[str] = ("local", "fedecider"),
) -> pd.DataFrame:
    """AUC of each attack on what is sent without noise: one row per method and what is known.

    Columns: block (the method's label), known, method, attack, c, per client and for "mean"
    "auc <client>" and "auc <client> sd", low, high, interval, seeds, members, nonmembers, runs, per
    client "members <client>" and "nonmembers <client>" (also where they allow no AUC).
    ``attacks`` is the frame of ``fedecider.analysis.membership_inference.attacks``, ``known`` one
    of :func:`figures.select.methods`. Numbers are means over seeds, with the sample standard
    deviation; the interval is the mean over seeds of the 95 % intervals over users, which are the
    same users for every seed. Methods that were not attacked are a gap. Raises ValueError for a
    lacking column and for what is no AUC.
    """
    kept = _of(attacks, dataset)
    clean = kept[kept["sigma"] == 0]
    attacked = clean[clean["auc"].notna()]
    groups = [select.MEAN, *sorted(set(clean["client"]) - {select.MEAN})]
    keys = attacked[["attack", "c"]].drop_duplicates()
    order = keys.assign(rank=keys["attack"].map(list(_KNOWN).index)).sort_values(["rank", "c"])
    pairs = [*zip(order["attack"], order["c"], strict=True)]
    rows = []
    for method in methods:
        of_method = attacked[attacked["method"] == method]
        block = {"block": known["label"].get(method, method)}
        for attack, c in pairs or [("update", float("nan"))]:
            same_c = (of_method["c"] == c) | (pd.isna(c) & of_method["c"].isna())
            row = block | {"known": _KNOWN[attack].format(c), "method": method}
            row |= {"attack": attack, "c": c}
            values = _values(of_method[(of_method["attack"] == attack) & same_c], groups)
            users = clean[(clean["method"] == method) & (clean["attack"] == attack)]
            rows.append(row | values | _users(users, groups[1:]))
    return pd.DataFrame(rows)


def table(numbers: pd.DataFrame, *, dataset: str) -> Table:
    """One block per method, one row per thing known; notes tell the users that were attacked."""
    label, ends = style.domain_label, (" sd", f"auc {select.MEAN}")
    clients = [c for c in numbers.columns if c.startswith("auc ") and not c.endswith(ends)]
    clients = [client.removeprefix("auc ") for client in clients]
    several = (numbers["seeds"] > 1).any()
    return Table(
        label=f"privacy-{dataset}",
        caption=f"{style.dataset_label(dataset)}: membership inference against one client by an "
        "observer of the server, who knows the frozen base: AUC (chance: 0.5) by what is known of "
        "the client's update. Interval: 95 %, bootstrap over users."
        + (" ± sample standard deviation over seeds." if several else ""),
        columns=(
            Column("block", "Method", align="l"),
            Column("known", "What is known", align="l"),
            _auc(select.MEAN, label(select.MEAN)),
            Column("interval", "95 %", group=label(select.MEAN)),
            *(_auc(client, label(client)) for client in clients),
        ),
        rows=numbers,
        notes=_notes(numbers, clients),
        block="block",
        width=8,
    )


def noise_numbers(
    attacks: pd.DataFrame,
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    protocol: str = "sampled",
    method: str = "fedecider",
) -> pd.DataFrame:
    """Attack and quality by the noise on the unit direction, one row per sigma.

    Columns: noise, sigma, those of :func:`numbers` for "mean", ndcg@10 and loss with "_sd", runs.
    ``attacks`` as in :func:`numbers`; the other frames are those of ``fedecider.results`` of
    sweeps/: the sweep over ``direction_noise`` and its base. The attack is first-order on a run
    trained without noise, its direction noised once; quality is that of runs in which every
    direction was sent with noise. Mean over domains, mean and sample standard deviation over seeds;
    what was not run is a gap.
    """
    kept = _of(attacks, dataset)
    slopes = kept[(kept["method"] == method) & (kept["attack"] == "first-order")]
    slopes = slopes[slopes["client"] == select.MEAN]
    swept = sweeps.swept(configs, dataset, method, "direction_noise")
    swept = sweeps.attach(swept, sweeps.scores(metrics, dataset, protocol, ("ndcg@10",)))
    swept = sweeps.attach(swept, sweeps.losses(rounds, dataset))
    rows = []
    for sigma in sorted({0.0, *slopes["sigma"], *map(float, swept["value"])}):
        row = {"noise": f"{sigma:g}", "sigma": sigma}
        row |= _values(slopes[slopes["sigma"] == sigma], [select.MEAN])
        runs = swept[swept["value"] == sigma]
        for name in ("ndcg@10", "loss"):
            values = runs[name].astype(float)
            row |= {name: values.mean(), f"{name}_sd": values.std()}
        used = runs[runs[["ndcg@10", "loss"]].notna().any(axis=1)]["run"]
        rows.append(row | {"runs": select.joined([row["runs"], *used])})
    return pd.DataFrame(rows)


def noise_table(numbers: pd.DataFrame, *, dataset: str, protocol: str = "sampled") -> Table:
    """Attack and quality side by side, one row per sigma."""
    return Table(
        label=f"privacy-noise-{dataset}",
        caption=f"{style.dataset_label(dataset)}: Gaussian noise on the unit direction that a "
        "client of FeDecider sends, as a share of its norm. AUC: first-order membership inference "
        "from one noised direction (chance: 0.5), 95 % interval over users. Quality, "
        f"{select.protocol_label(protocol)}, and lowest validation loss of runs with that noise in "
        "every round, mean over domains.",
        columns=(
            Column("noise", "Noise", align="l"),
            _auc(select.MEAN, "Attack"),
            Column("interval", "95 %", group="Attack"),
            Column("ndcg@10", "NDCG@10, %", ".2f", 100, "ndcg@10_sd", "Quality"),
            Column("loss", "Loss, nats per token", ".4f", 1, "loss_sd", "Quality"),
        ),
        rows=numbers,
        notes=() if numbers["runs"].any() else (NO_RUN,),
    )


def _auc(client: str, group: str) -> Column:
    return Column(f"auc {client}", "AUC", ".3f", 1, f"auc {client} sd", group)


def _of(attacks: pd.DataFrame, dataset: str) -> pd.DataFrame:
    select.require(attacks, _COLUMNS, "attacks")
    rows = attacks[attacks["dataset"] == dataset].astype(_NUMBERS)
    outside = rows[(rows["auc"] < 0) | (rows["auc"] > 1)]
    if len(outside):
        row = outside.iloc[0]
        raise ValueError(f"run {row['run']}: an AUC is {row['auc']}; expected 0..1")
    return rows


def _values(rows: pd.DataFrame, clients: Sequence[str]) -> dict:
    """AUC and its deviation over seeds for each client; interval and users of the mean."""
    out: dict = {}
    for client in clients:
        values = rows[rows["client"] == client]["auc"]
        out |= {f"auc {client}": values.mean(), f"auc {client} sd": values.std()}
    mean = rows[rows["client"] == select.MEAN]
    low, high = mean["low"].mean(), mean["high"].mean()
    interval = None if pd.isna(low) else f"{low:.3f} to {high:.3f}"
    out |= {"low": low, "high": high, "interval": interval, "seeds": mean["seed"].nunique()}
    out |= {name: mean[name].max() for name in ("members", "nonmembers")}
    return out | {"runs": select.joined(rows["run"])}


def _users(rows: pd.DataFrame, clients: Sequence[str]) -> dict:
    """Members and non-members of each client, the same users for every seed."""
    largest = rows.groupby("client")[["members", "nonmembers"]].max()
    return {
        f"{name} {client}": largest[name].get(client, float("nan"))
        for client in clients
        for name in ("members", "nonmembers")
    }


def _notes(numbers: pd.DataFrame, clients: Sequence[str]) -> tuple[str, ...]:
    members = numbers[[f"members {client}" for client in clients]]
    if members.isna().all(axis=None):
        return (NO_RUN,)
    notes = []
    for client in clients:
        if (numbers[f"nonmembers {client}"] == 0).any():
            name = style.domain_label(client)
            notes.append(f"{name} trained on every user: there are no non-members to tell apart.")
    attacked = numbers[[f"auc {client}" for client in clients]].notna().to_numpy()
    counts = members.to_numpy(float)[attacked].astype(int)
    if len(counts):
        ends = sorted({counts.min(), counts.max()})
        notes.append(f"Members and non-members per client: {' to '.join(map(str, ends))} each.")
    return tuple(notes)
