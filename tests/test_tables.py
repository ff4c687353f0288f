"""Tables 4, 5, 7 and 9, from made-up run folders: numbers, gaps, files."""

import math
import shutil

import pandas as pd
import pytest
from seen import csv, line, lines
from synthetic import KNOWN
from test_table_1 import meta

from fedecider import results as read
from fedecider import runs
from fedecider.config import RunConfig
from figures import select, sweeps, table_1, table_4, table_5, table_7, table_9
from figures import table as printed

DOMAINS = ("children", "comics_graphic")


# Folders of made-up results


def result(folder, method, seed=0, dataset="goodreads", finished=True, ranking=8.0, **settings):
    """A run folder without numbers."""
    folder.mkdir(parents=True)
    about = {"prepared": "data", "folder": folder, "dataset": dataset, "method": method}
    config = RunConfig.of(**about, seed=seed, **settings).stored()
    info = dict(zip(select.METHOD, KNOWN[method], strict=True))
    runs.write_json(folder / "config.json", config | {"method_info": info})
    pd.DataFrame(columns=runs.COLUMNS["metrics"]).to_csv(folder / "metrics.csv", index=False)
    pd.DataFrame(columns=runs.COLUMNS["rounds"]).to_csv(folder / "rounds.csv", index=False)
    if finished:
        content = {"config": config} | ({} if ranking is None else {"ranking_seconds": ranking})
        runs.write_json(folder / "result.json", content)
    return folder


def ranked(folder, values, ranker="likelihood", domains=DOMAINS):
    """{metric: one value per domain} added to the folder's metrics."""
    path = folder / "metrics.csv"
    protocol = "sampled" if ranker == "likelihood" else "catalogue"
    rows = [
        (domain, protocol, ranker, metric, value, 40)
        for metric, each in values.items()
        for domain, value in zip(domains, each, strict=True)
    ]
    columns = ["domain", "protocol", "ranker", "metric", "value", "users"]
    new = pd.DataFrame(rows, columns=columns)
    old = pd.read_csv(path)
    (pd.concat([old, new]) if len(old) else new).to_csv(path, index=False)
    return folder


def trained(folder, losses, up=0, down=0, seconds=1.0, memory=100.0, domains=DOMAINS):
    """Validation losses per client and round; bytes, seconds, memory by (round, client)."""

    def at(value, number, c):
        return value(number, c) if callable(value) else value

    rows = [
        {
            "round": number,
            "client": client,
            "train_loss": 1.0,
            "valid_loss": loss,
            "bytes_up": at(up, number, c),
            "bytes_down": at(down, number, c),
            "seconds": at(seconds, number, c),
            "update_norm": 1.0,
            "steps": 10 * number,
            "memory": at(memory, number, c),
        }
        for c, client in enumerate(domains)
        for number, loss in enumerate(losses[c], start=1)
    ]
    pd.DataFrame(rows[::-1]).to_csv(folder / "rounds.csv", index=False)  # in no useful order
    return folder


def both(results, *reads):
    """Frames of runs/ and sweeps/ together."""
    return [read(results / "runs", results / "sweeps") for read in reads]


def ablations(results, protocol="sampled", **arguments):
    frames = both(results, read.metrics, read.rounds, read.configs)
    about = {"dataset": "goodreads", "protocol": protocol}
    return table_4.table(table_4.numbers(*frames, **about, **arguments), **about)


def communication(results, **arguments):
    numbers = table_5.numbers(
        *both(results, read.rounds, read.configs), dataset="goodreads", **arguments
    )
    return table_5.table(numbers, dataset="goodreads")


def backbones(results, **arguments):
    frames = (of(results / "sweeps") for of in (read.metrics, read.rounds, read.configs))
    numbers = table_7.numbers(*frames, dataset="goodreads", **arguments)
    return table_7.table(numbers, dataset="goodreads")


def cost(results, **arguments):
    frames = read.rounds(results / "runs"), read.ranking(results / "runs")
    return table_9.table(
        table_9.numbers(*frames, dataset="goodreads", **arguments), dataset="goodreads"
    )


def all_tables(results):
    return [
        table_1.table(table_1.numbers(results)),
        ablations(results),
        ablations(results, protocol="catalogue"),
        communication(results),
        backbones(results),
        cost(results),
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two seeds of the main runs, one of the sweeps; nothing of fedecider-no-both."""
    results = tmp_path_factory.mktemp("results")
    main, swept = results / "runs/goodreads", results / "sweeps/goodreads"

    def run(folder, method, ndcg, loss, seed=0, up=0, down=0, **settings):
        folder = result(folder, method, seed, **settings)
        ranked(folder, {"ndcg@10": ndcg, "hit@10": [value / 2 for value in ndcg]})
        return trained(folder, loss, up, down)

    flat = [[2.0, 1.5], [3.0, 2.5]]  # best 1.5 and 2.5 in round 2: mean 2
    first = [[1.5, 1.5], [2.5, 2.6]]  # best in round 1
    run(main / "local-seed0", "local", [0.1, 0.2], flat)
    run(main / "fedavg-seed0", "fedavg", [0.1, 0.2], flat, up=1024, down=1024)
    run(main / "fedecider-seed0", "fedecider", [0.2, 0.3], flat, up=2048, down=4096)
    run(main / "fedecider-seed1", "fedecider", [0.3, 0.4], first, 1, 2048, 4096)
    # rolora: B in odd rounds, A in even ones, and clients of other sizes
    alternating = {"up": lambda r, c: (100, 300)[r % 2] * 1024 + 1024 * c}
    run(
        main / "rolora-seed0",
        "rolora",
        [0.1, 0.1],
        [[2.0] * 4, [2.0, 1.9, 1.8, 1.8]],
        **alternating,
    )
    for seed, ndcg in ((0, [0.1, 0.3]), (1, [0.4, 0.3])):
        folder = main / f"fedecider-no-direction-seed{seed}"
        run(folder, "fedecider-no-direction", ndcg, [[1.0 + seed], [2.0]], seed)
    ranked(main / "fedecider-seed0", {"ndcg@10": [0.01, 0.03]}, "grounding")
    ranked(main / "fedecider-seed0", {"ndcg@10": [0.05, 0.07]}, "trie")
    ranked(main / "fedecider-no-direction-seed0", {"ndcg@10": [0.02, 0.04]}, "grounding")
    # Without seed 0, and without a domain: no mean.
    folder = result(main / "fedecider-no-personalization-seed1", "fedecider-no-personalization", 1)
    ranked(folder, {"ndcg@10": [0.9], "hit@10": [0.9]}, domains=DOMAINS[:1])
    result(main / "zero-shot-seed0", "zero-shot", ranking=2.0)
    result(main / "flora-seed0", "flora", finished=False)
    # Other data, by the same name of a method.
    run(results / "runs/amazon/fedavg-seed0", "fedavg", [0.9, 0.9], flat, 0, 9, 9, dataset="amazon")

    run(swept / "base-local-seed0", "local", [0.3, 0.3], flat)
    run(swept / "base-fedavg-seed0", "fedavg", [0.2, 0.2], flat, up=512, down=512)
    run(swept / "base-fedecider-seed0", "fedecider", [0.2, 0.2], flat, up=1024, down=2048)
    sweep = {"norm-column": {"norm": "column"}, "norm-frobenius": {"norm": "frobenius"}}
    sweep |= {f"alpha_init-{v}": {"alpha_init": v} for v in (0.1, 0.02)}
    sweep |= {"payload_dtype-int8": {"payload_dtype": "int8"}, "truncate-4": {"truncate": 4}}
    sweep |= {
        "truncate-1": {"truncate": 1},
        "model-smollm2-135m@10": {"model": "smollm2-135m@10"},
    }
    for place, (name, settings) in enumerate(sweep.items()):
        ndcg, loss = [0.2 + 0.1 * place] * 2, [[1.9], [1.9 + 0.1 * place]]
        run(swept / f"{name}-fedecider-seed0", "fedecider", ndcg, loss, 0, 256, 512, **settings)
    run(
        swept / "payload_dtype-int8-fedavg-seed0",
        "fedavg",
        [0.2, 0.2],
        flat,
        0,
        7,
        7,
        payload_dtype="int8",
    )
    folder = swept / "model-tiny-local-seed0"
    run(folder, "local", [0.0, 0.1], [[4.0], [4.0]], model="/somewhere/else/tiny")
    return results


# Table 4


def test_table_4_ablations_over_seeds(results):
    table = ablations(results)
    # means over domains: 25 and 35 % for the method, 20 and 35 % without the direction
    assert line(table, "Parts", "FeDecider (base)") == [
        "2",
        "**15.00** ± 3.54",
        "**30.00** ± 7.07",
        "–",
        "2.0000 ± 0.0000",
        "–",
    ]
    label = KNOWN["fedecider-no-direction"][0]
    # differences -5 and 0 points; losses 1.5 and 2 against 2
    assert line(table, "", label) == [
        "2",
        "13.75 ± 5.30",
        "27.50 ± 10.61",
        "−2.50 ± 3.54",
        "**1.7500** ± 0.3536",
        "−0.2500 ± 0.3536",
    ]
    rows = csv(table).set_index("method")
    assert rows.loc["fedecider-no-direction", "runs"].split(";") == [
        f"runs/goodreads/fedecider-no-direction-seed{seed}" for seed in (0, 1)
    ]


def test_table_4_gaps(results):
    rows = csv(ablations(results))
    row = rows[rows["method"] == "fedecider-no-personalization"].iloc[0]  # lacks a domain
    assert row[["likelihood ndcg@10", "loss", "seeds", "runs"]].isna().all()
    assert "fedecider-no-both" not in set(rows["method"])  # no run tells of it
    gaps = rows[rows["runs"].isna()]
    settings = ["spectral", "layer", "client", "nonnegative", "–"]  # no other warm-up than none
    assert list(gaps["setting"])[1:] == settings


def test_table_4_sweeps_against_their_own_base(results):
    table = ablations(results)
    base = ["1", "**10.00**", "**20.00**", "–", "2.0000", "–"]
    assert line(table, "Norm of a direction", "frobenius (base)") == base
    assert line(table, "", "column") == [*base[:3], "0.00", "**1.9000**", "−0.1000"]
    settings = [row[1] for row in lines(table)]
    assert settings[4:7] == ["frobenius (base)", "column", "spectral"]
    start = settings.index("0 (base)")
    assert settings[start : start + 3] == ["0 (base)", "0.02", "0.1"]
    # the third and fourth of the sweeps: 40 and 50 %, losses (1.9 + 2.1) / 2 and (1.9 + 2.2) / 2
    assert line(table, "", "0.1") == ["1", "20.00", "40.00", "+20.00", "**2.0000**", "0.0000"]
    assert line(table, "", "0.02") == [
        "1",
        "**25.00**",
        "**50.00**",
        "+30.00",
        "2.0500",
        "+0.0500",
    ]
    rows = csv(table)
    assert rows[rows["setting"] == "0.02"]["runs"].item() == (
        "sweeps/goodreads/alpha_init-0.02-fedecider-seed0"
    )
    # a swept run with the base's value adds nothing
    frobenius = rows[rows["setting"] == "frobenius (base)"]["runs"].item()
    assert frobenius == "sweeps/goodreads/base-fedecider-seed0"


def test_table_4_protocols_never_mix(results):
    table = ablations(results, protocol="catalogue")
    each = ("Hit@10, %", "NDCG@10, %", "Δ NDCG@10, points")
    loss = ["Best validation loss nats per token", "Best validation loss Δ"]
    columns = [f"{ranker} {name}" for ranker in ("grounding", "trie") for name in each]
    assert lines(table)[0][3:] == [*columns, *loss]
    assert line(table, "Parts", "FeDecider (base)")[:-2] == (
        ["1–2", "–", "2.00", "–", "–", "6.00", "–"]
    )
    rows = csv(table)
    row = rows[rows["method"] == "fedecider-no-direction"].iloc[0]
    assert row["grounding ndcg@10"] == pytest.approx(0.03)
    assert row["grounding difference"] == pytest.approx(0.01)
    assert pd.isna(row["trie ndcg@10"]) and row["runs"].startswith("runs/goodreads/fedecider-no-d")
    ranks = [f"{ranker} ndcg@10" for ranker in ("grounding", "trie")]
    assert rows.loc[rows["block"] != "Parts", ranks].isna().all(axis=None)
    assert "whole catalogue" in table.caption and "1 + 99" in ablations(results).caption
    with pytest.raises(ValueError, match="protocol is 'full'"):
        ablations(results, protocol="full")


def test_two_runs_of_one_method_and_seed_are_refused(tmp_path):
    for name in ("fedecider-seed0", "again"):
        ranked(result(tmp_path / "runs/goodreads" / name, "fedecider"), {"ndcg@10": [0.1, 0.2]})
    with pytest.raises(ValueError, match="fedecider, seed 0, is in several runs .*again"):
        ablations(tmp_path)


def test_seeds_are_a_range_where_columns_differ(tmp_path):
    for seed in (0, 1):
        folder = result(tmp_path / f"runs/goodreads/fedecider-seed{seed}", "fedecider", seed)
        ranked(folder, {"ndcg@10": [0.1, 0.2]}, "grounding")
    ranked(folder, {"ndcg@10": [0.1, 0.2]}, "trie")
    table = ablations(tmp_path, protocol="catalogue")
    assert line(table, "Parts", "FeDecider (base)")[0] == "1–2"


def test_sweeps_begin_with_the_base_and_leave_a_gap_where_nothing_else_is(tmp_path):
    result(tmp_path / "sweeps/goodreads/base-fedecider-seed0", "fedecider", norm="spectral")
    [configs] = both(tmp_path, read.configs)
    found = sweeps.of_field(configs, "goodreads", "fedecider", "norm")
    assert list(found["setting"]) == ["spectral (base)", "frobenius", "column"]
    found = sweeps.of_field(configs, "goodreads", "fedecider", "alpha_init")
    assert list(found["setting"]) == ["0 (base)", "–"]
    assert list(found["base"]) == [True, False] and found["run"].isna().to_list() == [False, True]


# Table 5


def test_traffic_by_hand(results):
    values = table_5.traffic(*both(results, read.rounds), "goodreads")
    row = values.loc["runs/goodreads/rolora-seed0"]
    # up in KiB: 300, 100, 300, 100 and one more for the second client
    assert row["bytes_up"] == 1024 * 200.5 and row["bytes_down"] == 0
    assert row["best_round"] == 2  # 1 (first among equals) and 3
    assert row["best_bytes"] == 1024 * (300 + 703) / 2
    assert values.loc["runs/goodreads/fedecider-seed0"].to_list() == [2048, 4096, 2, 2 * 6144]
    assert not any("amazon" in run or "flora" in run for run in values.index)


def test_table_5_methods_and_ratios(results):
    table = communication(results)
    assert line(table, "Method", "Local") == ["1", "0.0", "0.00", "0.0", "0.00", "2.0", "0.0"]
    assert line(table, "", "FedAvg") == ["1", "1.0", "1.00", "1.0", "1.00", "2.0", "4.0"]
    # until the best model 12 and 6 KiB
    assert line(table, "", "FeDecider") == [
        "2",
        "2.0",
        "2.00",
        "4.0",
        "4.00",
        "1.5 ± 0.7",
        "9.0 ± 4.2",
    ]
    assert line(table, "", "RoLoRA") == ["1", "200.5", "200.50", "0.0", "0.00", "2.0", "501.5"]
    assert not [row for row in lines(table) if row[1] in ("FLoRA", "flora", "Zero-shot")]
    assert [row[1] for row in lines(communication(results, expected=["flora"]))].count("flora") == 1


def test_table_5_sweeps_have_the_ratio_to_their_own_base(results):
    table = communication(results)
    base = line(table, "Precision of the payload", "float32 (base)")
    assert base == ["1", "1.0", "2.00", "2.0", "4.00", "2.0", "6.0"]
    assert line(table, "", "bfloat16") == ["–"] * 7
    assert line(table, "", "int8") == ["1", "0.2", "0.50", "0.5", "1.00", "1.0", "0.8"]
    places = [row[1] for row in lines(table)]
    assert places[-3:] == ["all (base)", "1", "4"]


def test_table_5_without_the_base_has_no_ratio(tmp_path):
    losses = [[1.0], [1.0]]
    trained(result(tmp_path / "runs/goodreads/ffa-lora-seed0", "ffa-lora"), losses, 1024, 1024)
    trained(
        result(
            tmp_path / "sweeps/goodreads/payload_dtype-int8-fedecider-seed0",
            "fedecider",
            payload_dtype="int8",
        ),
        losses,
        2048,
        2048,
    )
    table = communication(tmp_path)
    assert line(table, "Method", "FFA-LoRA") == ["1", "1.0", "–", "1.0", "–", "1.0", "2.0"]
    assert line(communication(tmp_path, expected=["fedavg"]), "", "fedavg") == ["–"] * 7
    assert line(table, "", "int8") == ["1", "2.0", "–", "2.0", "–", "1.0", "4.0"]
    # a base that moves nothing is none either
    assert math.isnan(sweeps.ratio(3, 0)) and sweeps.ratio(3, 2) == 1.5


@pytest.mark.parametrize("folder", ["main", "results/2026"])
def test_main_runs_may_lie_in_a_folder_of_any_name(results, tmp_path, folder):
    shutil.copytree(results / "runs", tmp_path / folder)
    shutil.copytree(results / "sweeps", tmp_path / "sweeps")
    folders = tmp_path / folder, tmp_path / "sweeps"
    metrics, rounds, configs = (of(*folders) for of in (read.metrics, read.rounds, read.configs))
    table = table_4.table(
        table_4.numbers(metrics, rounds, configs, dataset="goodreads", protocol="sampled"),
        dataset="goodreads",
        protocol="sampled",
    )
    assert lines(table) == lines(ablations(results))
    table = table_5.table(
        table_5.numbers(rounds, configs, dataset="goodreads"), dataset="goodreads"
    )
    assert lines(table) == lines(communication(results))
    name = folder.rpartition("/")[2]
    assert csv(table)["runs"].str.startswith(f"{name}/goodreads/").any()


# Table 7


def test_table_7_backbones_the_base_first(results):
    table = backbones(results, methods=["local", "fedavg", "fedecider"])
    assert line(table, "smollm2-135m (base)", "Local") == [
        "1",
        "**15.00**",
        "**30.00**",
        "**2.0000**",
        "2.0",
    ]
    blocks = [row[0] for row in lines(table)[1:] if row[0]]
    assert blocks[0] == "smollm2-135m (base)"
    assert set(blocks[1:]) == {"smollm2-135m, first 10 blocks", "tiny"}  # a folder by its name
    assert len(lines(table)) == 1 + 3 * 3
    rows = csv(table)
    cut = rows[rows["block"] == "smollm2-135m, first 10 blocks"].set_index("method")
    assert cut.loc[["local", "fedavg"], "ndcg@10"].isna().all()
    assert cut.loc["fedecider", "runs"] == (
        "sweeps/goodreads/model-smollm2-135m@10-fedecider-seed0"
    )
    assert cut.loc["fedecider", "ndcg@10"] == pytest.approx(0.9)
    assert "/somewhere" not in printed.to_csv(table)


def test_seconds_of_a_round_are_those_of_all_clients(tmp_path):
    folder = result(tmp_path / "sweeps/goodreads/base-local-seed0", "local")
    trained(folder, [[1.0, 1.0], [1.0, 1.0]], seconds=lambda r, c: 10 * r + c)
    found = table_7.seconds_per_round(read.rounds(tmp_path / "sweeps"), "goodreads")
    assert found["seconds"].to_list() == [(21 + 41) / 2]


# Table 9


def test_table_9_spread_and_ratios(tmp_path):
    main = tmp_path / "runs/goodreads"
    losses = [[1.0, 1.0], [1.0, 1.0]]
    unknown = float("nan")
    for seed, ranking in ((0, 10.0), (1, 14.0)):
        folder = result(main / f"local-seed{seed}", "local", seed, ranking=ranking)
        trained(folder, losses, seconds=lambda r, c: 1 + 2 * c, memory=1000)
    folder = result(main / "fedavg-seed0", "fedavg", ranking=None)
    trained(folder, losses, seconds=4.0, memory=unknown)
    folder = result(main / "centralized-seed0", "centralized", ranking=6.0)
    trained(folder, losses, seconds=6.0, memory=lambda r, c: 1000 * r)
    result(main / "zero-shot-seed0", "zero-shot", ranking=3.0)
    other = result(tmp_path / "runs/amazon/local-seed0", "local", dataset="amazon", ranking=99.0)
    trained(other, losses, seconds=99.0)
    table = cost(tmp_path)
    # seconds 1, 1, 3, 3 twice: mean 2, sd sqrt(8 / 7); steps 10 and 20: sd sqrt(200 / 7)
    assert line(table, "Local") == [
        "2",
        "2.00 ± 1.07",
        "1.00",
        "15.0 ± 5.3",
        "1,000 ± 0",
        "1.00",
        "12.0 ± 2.8",
        "1.00",
    ]
    assert line(table, "FedAvg") == ["1", "4.00 ± 0.00", "2.00", "15.0 ± 5.8", "–", "–", "–", "–"]
    assert line(table, "Centralized")[1:5] == ["6.00 ± 0.00", "3.00", "15.0 ± 5.8", "1,500 ± 577"]
    assert line(table, "Zero-shot") == ["1", "–", "–", "–", "–", "–", "3.0", "0.25"]
    assert line(cost(tmp_path, expected=["fedecider"]), "fedecider") == ["–"] * 8
    assert table.notes[0].startswith("Centralized trains one model on the data of all clients")
    rows = csv(table).set_index("method")
    assert rows.loc["local", "runs"] == "runs/goodreads/local-seed0;runs/goodreads/local-seed1"
    assert rows.loc["local", "seconds_sd"] == pytest.approx((8 / 7) ** 0.5)
    without = cost(tmp_path, base="flora")
    assert line(without, "Local")[2] == "–" and "× flora" in lines(without)[0][3]


# All of them


def test_an_empty_folder_gives_tables_that_say_so(tmp_path):
    (tmp_path / "runs").mkdir()
    for table in all_tables(tmp_path):
        assert table.notes in (("No finished run.",), ("No prepared data.",))
        for row in lines(table)[1:]:
            assert set(row[2:]) == {"–"}
        for text in (printed.to_markdown(table), printed.to_latex(table)):
            assert table.notes[0] in text
        assert table.notes[0] in printed.to_styler(table).to_html()
        assert all(path.stat().st_size for path in printed.write(table, tmp_path, table.label))


def test_equal_input_gives_equal_bytes_and_every_number_its_source(results, tmp_path):
    meta(results, "goodreads", "children")
    for first, second in zip(all_tables(results), all_tables(results), strict=True):
        assert "No finished run." not in first.notes
        paths = printed.write(first, tmp_path / "a", first.label)
        again = printed.write(second, tmp_path / "b", first.label)
        assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
        assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
        html = [printed.to_styler(table).to_html() for table in (first, second)]
        assert html[0] == html[1]
        assert paths[2].read_text().isascii()
        rows = csv(first)
        sources = rows[first.sources].dropna()
        assert len(sources) and str(results) not in paths[0].read_text()
        for folder in ";".join(sources).split(";"):
            assert (results / folder).is_dir()
        shown = [column.name for column in first.columns if column.number_format]
        assert rows[rows[first.sources].isna()][shown].isna().all(axis=None)
