"""Table 6, from made-up frames: AUC by what is known, and quality under noise."""

import numpy as np
import pandas as pd
import pytest
from seen import lines
from synthetic import described

from fedecider import results
from fedecider.analysis import membership_inference
from figures import select, table_6
from figures import table as printed

CLIENTS = ("children", "mystery_thriller_crime")

KNOWN = described(pd.DataFrame({"method": ["local", "fedecider"]}))


def attacks_table(found, dataset):
    numbers = table_6.numbers(found, select.methods(KNOWN), dataset=dataset)
    return table_6.table(numbers, dataset=dataset)


def noise_table(found, *sweeps, dataset):
    return table_6.noise_table(
        table_6.noise_numbers(found, *sweeps, dataset=dataset), dataset=dataset
    )


def attacked(seeds=(0,), methods=("local", "fedecider"), sigmas=(0.1, 1.0), dataset="goodreads"):
    """AUC 0.6 + 0.1 for the second client + 0.01 a seed, lower by what is known and by noise."""
    keys = [("update", None, 0.0), ("first-order", None, 0.0), ("step", 4.0, 0.0)]
    keys += [("step", 1.0, 0.0), *(("first-order", None, sigma) for sigma in sigmas)]
    rows = []
    for method in methods:
        for seed in seeds:
            for attack, c, sigma in keys:
                base = 0.6 + 0.01 * seed - 0.05 * sigma - 0.02 * (attack != "update")
                about = {"dataset": dataset, "method": method, "seed": seed, "attack": attack}
                about |= {"c": c, "sigma": sigma, "run": f"runs/{dataset}/{method}-seed{seed}"}
                for place, client in enumerate((*CLIENTS, "mean")):
                    value = base + (0.1, 0.2, 0.15)[place]
                    users = 60 if client == "mean" else 30
                    rows.append(
                        {**about, "client": client, "auc": value, "low": value - 0.1}
                        | {"high": value + 0.1, "members": users, "nonmembers": users}
                    )
    return pd.DataFrame(rows, columns=membership_inference.COLUMNS)


def test_a_row_for_each_thing_known_a_block_for_each_method():
    found = attacked()
    table = attacks_table(found, dataset="goodreads")
    assert lines(table) == [
        ["Method", "What is known", "Mean AUC", "Mean 95 %", "Children AUC"]
        + ["Mystery thriller crime AUC"],
        ["Local", "Raw update", "0.750", "0.650 to 0.850", "0.700", "0.800"],
        ["", "Unit direction, slope at W0", "0.730", "0.630 to 0.830", "0.680", "0.780"],
        ["", "Unit direction, step of norm 1 per module", "0.730", "0.630 to 0.830"]
        + ["0.680", "0.780"],
        ["", "Unit direction, step of norm 4 per module", "0.730", "0.630 to 0.830"]
        + ["0.680", "0.780"],
        ["FeDecider", *lines(table)[1][1:]],
        *lines(table)[2:5],
    ]
    assert table.notes == ("Members and non-members per client: 30 each.",)
    assert "seeds" not in table.caption
    assert set(table.rows["runs"]) == {
        "runs/goodreads/local-seed0",
        "runs/goodreads/fedecider-seed0",
    }


def test_seeds_are_averaged_with_their_deviation():
    table = attacks_table(attacked(seeds=(0, 1, 2)), dataset="goodreads")
    assert lines(table)[1][2:5] == ["0.760 ± 0.010", "0.660 to 0.860", "0.710 ± 0.010"]
    assert "± sample standard deviation over seeds" in table.caption
    row = table.rows.iloc[0]
    assert row["seeds"] == 3 and row["runs"].count(";") == 2
    assert row["auc children"] == pytest.approx(0.71) and row["low"] == pytest.approx(0.66)


def test_gaps_are_told():
    empty = pd.DataFrame(columns=membership_inference.COLUMNS)
    table = attacks_table(empty, dataset="goodreads")
    assert lines(table)[1:] == [
        ["Local", "Raw update", "–", "–"],
        ["FeDecider", "Raw update", "–", "–"],
    ]
    assert table.notes == (printed.NO_RUN,)
    one = attacks_table(attacked(methods=["local"]), dataset="goodreads")
    assert lines(one)[5] == ["FeDecider", "Raw update", *["–"] * 4]
    other = attacks_table(attacked(dataset="amazon"), dataset="goodreads")
    assert other.notes == (printed.NO_RUN,)


def test_a_client_without_non_members_is_a_gap_and_a_note():
    found = attacked()
    found = found[found["client"] != "mean"]
    everyone = found["client"] == "children"
    found.loc[everyone, ["auc", "low", "high"]] = np.nan
    found.loc[everyone, "nonmembers"] = 0
    found = found[~everyone | ((found["attack"] == "update") & (found["sigma"] == 0))]
    table = attacks_table(found, dataset="goodreads")
    assert lines(table)[1] == ["Local", "Raw update", "–", "–", "–", "0.800"]
    assert table.notes == (
        "Children trained on every user: there are no non-members to tell apart.",
        "Members and non-members per client: 30 each.",
    )
    numbers = table.rows.set_index(["method", "attack"])
    assert numbers.loc[("local", "update"), "nonmembers children"].item() == 0
    assert numbers.loc[("local", "update"), "nonmembers mystery_thriller_crime"].item() == 30
    found.loc[~everyone & (found["method"] == "local"), "members"] = 20
    assert attacks_table(found, dataset="goodreads").notes[1:] == (
        "Members and non-members per client: 20 to 30 each.",
    )


def test_what_is_no_auc_is_refused():
    found = attacked()
    with pytest.raises(ValueError, match="goodreads/local-seed0: an AUC is 1.5"):
        attacks_table(found.assign(auc=1.5), dataset="goodreads")
    with pytest.raises(ValueError, match="no column sigma"):
        attacks_table(found.drop(columns="sigma"), dataset="goodreads")


def swept(values, seeds=(0,), dataset="goodreads", losses=True):
    """Frames of a sweep over direction_noise: {value: NDCG@10 of both domains}; 0 is the base."""
    metrics, rounds, configs = [], [], []
    for value, ndcg in values.items():
        for seed in seeds:
            name = (
                f"direction_noise-{value:g}-fedecider-seed{seed}"
                if value
                else f"base-fedecider-seed{seed}"
            )
            about = {"dataset": dataset, "method": "fedecider", "seed": seed}
            about["run"] = f"sweeps/{dataset}/{name}"
            configs.append({**about, "finished": True, "direction_noise": value})
            for domain in CLIENTS:
                row = {**about, "domain": domain, "protocol": "sampled", "ranker": "likelihood"}
                metrics.append({**row, "metric": "ndcg@10", "value": ndcg + seed / 100, "users": 9})
                for number, loss in enumerate((3.0, 2.0 + value, 2.5 + value), start=1):
                    row = {**about, "round": number, "client": domain, "valid_loss": loss}
                    rounds.append(row | {"bytes_up": 0, "bytes_down": 0})
    made = []
    for name, rows in (("metrics", metrics), ("rounds", rounds)):
        made.append(described(pd.DataFrame(rows, columns=results.COLUMNS[name])))
    columns = ["dataset", "method", "seed", "run", "finished", "direction_noise"]
    return [*made, described(pd.DataFrame(configs, columns=columns))]


def test_attack_and_quality_stand_side_by_side_by_noise():
    found = attacked()
    table = noise_table(found, *swept({0.0: 0.2, 0.1: 0.19, 0.5: 0.1}), dataset="goodreads")
    assert lines(table) == [
        [
            "Noise",
            "Attack AUC",
            "Attack 95 %",
            "Quality NDCG@10, %",
            "Quality Loss, nats per token",
        ],
        ["0", "0.730", "0.630 to 0.830", "20.00", "2.0000"],
        ["0.1", "0.725", "0.625 to 0.825", "19.00", "2.1000"],
        ["0.5", "–", "–", "10.00", "2.5000"],
        ["1", "0.680", "0.580 to 0.780", "–", "–"],
    ]
    runs_of = table.rows.set_index("noise")["runs"]
    assert runs_of["0"] == "runs/goodreads/fedecider-seed0;sweeps/goodreads/base-fedecider-seed0"
    assert runs_of["0.5"] == "sweeps/goodreads/direction_noise-0.5-fedecider-seed0"
    assert runs_of["1"] == "runs/goodreads/fedecider-seed0"
    assert table.notes == ()


def test_noise_over_seeds_and_without_any_run():
    found = attacked(seeds=(0, 1))
    table = noise_table(found, *swept({0.0: 0.2}, seeds=(0, 1)), dataset="goodreads")
    assert lines(table)[1][3:] == ["20.50 ± 0.71", "2.0000 ± 0.0000"]
    none = noise_table(
        pd.DataFrame(columns=membership_inference.COLUMNS), *swept({}), dataset="goodreads"
    )
    assert lines(none)[1:] == [["0", "–", "–", "–", "–"]]
    assert none.notes == (printed.NO_RUN,)


def test_files_and_shown_forms(tmp_path):
    found = attacked(seeds=(0, 1))
    tables = [attacks_table(found, dataset="goodreads")]
    tables.append(noise_table(found, *swept({0.0: 0.2}), dataset="goodreads"))
    for table in tables:
        paths = printed.write(table, tmp_path, table.label)
        again = pd.read_csv(paths[0])
        assert "runs" in again and len(again) == len(table.rows)
        latex = paths[2].read_text()
        assert latex.isascii() and latex.count("{") == latex.count("}")
        assert printed.to_styler(table).to_html() == printed.to_styler(table).to_html()
