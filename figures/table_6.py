"""Table 6: what an observer of the server learns, and what noise on the direction costs.

Who attacks, and by which scores, is told in fedecider/membership.py.
"""

from collections.abc import Sequence

import pandas as pd

from figures import frames, per_run, setting_rows, style
from figures.small_table import NO_RUN, Column, Table

_ATTACK = ("dataset", "method", "seed", "client", "attack", "c", "sigma", "auc", "low", "high")
_COLUMNS = (*_ATTACK, "members", "nonmembers", "run")
_KNOWN = {
    "update": "Raw update",
    "first-order": "Unit direction, slope at W0",
    "step": "Unit direction, step of norm {:g} a module",
}
_NUMBERS = {"auc": float, "low": float, "high": float, "sigma": float, "c": float}


def attacks(
    found: pd.DataFrame, *, dataset: str, methods: Sequence[str] = ("local", "fedecider")
) -> Table:
    """AUC of each attack on what is sent without noise: a block a method, a row what is known.

    ``found`` is the frame of ``fedecider.membership.attacks``. Numbers are means over seeds, with
    the sample standard deviation; the interval is the mean over seeds of the 95 % intervals over
    users, which are the same users for every seed. Methods that were not attacked are a gap.
    """
    kept = _of(found, dataset)
    clean = kept[kept["sigma"] == 0]
    attacked = clean[clean["auc"].notna()]
    clients = sorted(set(clean["client"]) - {frames.MEAN})
    groups = [frames.MEAN, *clients]
    keys = attacked[["attack", "c"]].drop_duplicates()
    order = keys.assign(place=keys["attack"].map(list(_KNOWN).index)).sort_values(["place", "c"])
    rows = []
    for method in methods:
        mine = attacked[attacked["method"] == method]
        for attack, c in zip(order["attack"], order["c"], strict=True):
            same = (mine["attack"] == attack) & ((mine["c"] == c) | (pd.isna(c) & mine["c"].isna()))
            block = style.method_label(method)
            row = {"block": block, "known": _KNOWN[attack].format(c), "method": method}
            rows.append(row | {"attack": attack, "c": c} | _values(mine[same], groups))
        if not len(order):
            row = {"block": style.method_label(method), "known": _KNOWN["update"]}
            rows.append(row | {"method": method} | _values(mine, groups))
    label = style.domain_label
    return Table(
        label=f"privacy-{dataset}",
        caption=f"{style.dataset_label(dataset)}: membership inference against one client by an "
        "observer of the server, who knows the frozen base: AUC (chance: 0.5) by what is known of "
        "the client's update. Interval: 95 %, bootstrap over users."
        + (" ± sample standard deviation over seeds." if attacked["seed"].nunique() > 1 else ""),
        columns=(
            Column("block", "Method", align="l"),
            Column("known", "What is known", align="l"),
            _auc(frames.MEAN, label(frames.MEAN)),
            Column("interval", "95 %", group=label(frames.MEAN)),
            *(_auc(client, label(client)) for client in clients),
        ),
        rows=pd.DataFrame(rows),
        notes=_notes(kept, attacked, clients),
        block="block",
        width=8,
    )


def noise(
    found: pd.DataFrame,
    metrics: pd.DataFrame,
    rounds: pd.DataFrame,
    configs: pd.DataFrame,
    *,
    dataset: str,
    method: str = "fedecider",
) -> Table:
    """Attack and quality by the noise on the unit direction, a row a sigma.

    ``found`` as in :func:`attacks`; the other frames are those of ``fedecider.runs`` of sweeps/:
    the sweep over ``noise`` and its base. The attack is first-order on a run trained without noise,
    its direction noised once; quality is that of runs in which every direction was sent with noise.
    Mean over domains, mean and sample standard deviation over seeds; what was not run is a gap.
    """
    kept = _of(found, dataset)
    slopes = kept[(kept["method"] == method) & (kept["attack"] == "first-order")]
    slopes = slopes[slopes["client"] == frames.MEAN]
    swept = per_run.swept(configs, dataset, method, "noise")
    quality = setting_rows.scores(metrics, dataset, "sampled", ("ndcg@10",), "likelihood")
    swept = setting_rows.attach(swept, quality)
    swept = setting_rows.attach(swept, setting_rows.losses(rounds, dataset))
    rows = []
    for sigma in sorted({0.0, *slopes["sigma"], *map(float, swept["value"])}):
        row = {"noise": f"{sigma:g}", "sigma": sigma}
        row |= _values(slopes[slopes["sigma"] == sigma], [frames.MEAN])
        runs = swept[swept["value"] == sigma]
        for name in ("ndcg@10", "loss"):
            values = runs[name].astype(float)
            row |= {name: values.mean(), f"{name}_sd": values.std()}
        used = runs[runs[["ndcg@10", "loss"]].notna().any(axis=1)]["run"]
        sources = [run for run in (row["runs"], *used) if run]
        rows.append(row | {"runs": frames.joined(pd.Series(sources, dtype=object))})
    table = pd.DataFrame(rows)
    return Table(
        label=f"privacy-noise-{dataset}",
        caption=f"{style.dataset_label(dataset)}: Gaussian noise on the unit direction that a "
        f"client of {style.method_label(method)} sends, as a share of its norm. AUC: "
        "first-order membership inference from one noised direction (chance: 0.5), 95 % interval "
        f"over users. Quality, {frames.PROTOCOL_LABELS['sampled']} (ranker: likelihood), and "
        "lowest validation loss of runs with that noise in every round, mean over domains.",
        columns=(
            Column("noise", "Noise", align="l"),
            _auc(frames.MEAN, "Attack"),
            Column("interval", "95 %", group="Attack"),
            Column("ndcg@10", "NDCG@10, %", ".2f", 100, "ndcg@10_sd", "Quality"),
            Column("loss", "Loss, nats a token", ".4f", 1, "loss_sd", "Quality"),
        ),
        rows=table,
        notes=() if table["runs"].any() else (NO_RUN,),
    )


def _auc(client: str, group: str) -> Column:
    return Column(f"auc {client}", "AUC", ".3f", 1, f"auc {client} sd", group)


def _of(found: pd.DataFrame, dataset: str) -> pd.DataFrame:
    frames.require(found, _COLUMNS, "attacks")
    rows = found[found["dataset"] == dataset].astype(_NUMBERS)
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
    mean = rows[rows["client"] == frames.MEAN]
    low, high = mean["low"].mean(), mean["high"].mean()
    interval = None if pd.isna(low) else f"{low:.3f} to {high:.3f}"
    out |= {"low": low, "high": high, "interval": interval, "seeds": mean["seed"].nunique()}
    out |= {name: mean[name].max() for name in ("members", "nonmembers")}
    return out | {"runs": frames.joined(rows["run"])}


def _notes(kept: pd.DataFrame, attacked: pd.DataFrame, clients: Sequence[str]) -> tuple[str, ...]:
    if kept.empty:
        return (NO_RUN,)
    notes = []
    for client in clients:
        mine = kept[kept["client"] == client]
        if (mine["nonmembers"] == 0).any():
            name = style.domain_label(client)
            notes.append(f"{name} trained on every user: there are no non-members to tell apart.")
    counts = attacked[attacked["client"] != frames.MEAN]["members"]
    if len(counts):
        ends = sorted({int(counts.min()), int(counts.max())})
        notes.append(f"Members and non-members a client: {' to '.join(map(str, ends))} each.")
    return tuple(notes)
