"""Tables 2 and 3, from synthetic frames: numbers, gaps, bold, the best others, the files."""

import io
import re

import pandas as pd
import pytest
from synthetic import described

from fedecider import results
from figures import select, summary, table_2
from figures import table as printed

COLUMNS = [
    "dataset",
    "method",
    "seed",
    "domain",
    "protocol",
    "ranker",
    "metric",
    "value",
    "users",
    "run",
]


def metrics_frame(
    values, protocol="catalogue", metric="hit@5", dataset="goodreads", users=40, **families
):
    """{(method, domain): one value a seed} -> a metrics frame."""
    ranker = {"catalogue": "grounding", "sampled": "likelihood"}[protocol]
    rows = [
        (
            dataset,
            method,
            seed,
            domain,
            protocol,
            method if method in ("popularity", "als") else ranker,
            metric,
            value,
            users,
            f"runs/{dataset}/{method}-seed{seed}",
        )
        for (method, domain), seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    return described(pd.DataFrame(rows, columns=COLUMNS), **families)


VALUES = {
    ("zero-shot", "children"): [0.02],
    ("zero-shot", "comics_graphic"): [0.04],
    ("popularity", "children"): [0.05],
    ("popularity", "comics_graphic"): [0.03],
    ("local", "children"): [0.04, 0.06, 0.05],
    ("local", "comics_graphic"): [0.06, 0.04, 0.08],
    ("fedecider", "children"): [0.07, 0.05, 0.06],
    ("fedecider", "comics_graphic"): [0.05, 0.06, 0.07],
}


EXPECTED = ("zero-shot", "popularity", "local", "fedavg", "fedecider")


def results_table(metrics, ranks=None, compared=None, *, names=table_2.NAMES, **about):
    """The table with its notes, as `table_2.tables` makes each of them."""
    about = {"dataset": "goodreads", "protocol": "catalogue", "expected": EXPECTED} | about
    rows = table_2.numbers(metrics, **about)
    notes = [] if ranks is None else table_2.other_users(ranks, rows)
    notes += [] if compared is None else table_2.best_others(rows, compared)
    return table_2.table(rows, dataset=about["dataset"], names=names, notes=notes)


def table(values=VALUES, names=("hit@5",), **about):
    return results_table(metrics_frame(values), names=names, **about)


def to_frame(table):
    """Printed cells by method and (domain, metric)."""
    cells = printed.cells(table).map(
        lambda cell: cell.text + f" ± {cell.spread}" * bool(cell.spread)
    )
    if cells.columns.nlevels == 1:
        cells.columns = pd.MultiIndex.from_product([[""], cells.columns])
    return cells.set_index(("", "Method"))


def methods_of(table):
    return list(dict.fromkeys(table.numbers["method"]))


def cell(frame, row, *column):
    return frame.loc[row, column]


def test_means_deviations_seeds_and_gaps():
    frame = to_frame(table())
    assert list(frame.index) == ["Popularity", "Zero-shot", "Local", "FeDecider", "fedavg"]
    assert cell(frame, "Local", "Children", "Hit@5") == "5.00 ± 1.00"
    assert cell(frame, "Local", "Comics graphic", "Hit@5") == "6.00 ± 2.00"
    # per seed the means over domains are 5, 5 and 6.5 %
    assert cell(frame, "Local", "Mean", "Hit@5") == "5.50 ± 0.87"
    assert cell(frame, "Zero-shot", "Mean", "Hit@5") == "3.00"
    assert list(frame["", "Seeds"]) == ["–", "1", "3", "3", "–"]
    assert list(frame.loc["fedavg"]) == ["–"] * 4
    assert table().notes == ("Not run: fedavg.",)


def test_a_note_tells_how_far_the_best_of_the_others_is():
    columns = ["dataset", "protocol", "ranker", "method", "against", "metric", "users"]
    columns += ["difference", "low", "high", "p"]
    key = ("goodreads", "catalogue", "grounding", "fedecider")
    rows = [
        (*key, "local", "hit@5", 40, 0.005, -0.01, 0.02, 0.25),
        (*key, "popularity", "hit@5", 40, 0.02, 0.01, 0.03, 0.001),
        (*key, "flora", "hit@5", 40, 0.03, 0.01, 0.04, 0.002),
        ("goodreads", "sampled", "likelihood", "fedecider", "local", "hit@5", 9, 1.0, 1.0, 1.0, 0),
    ]
    compared = pd.DataFrame(rows, columns=columns)
    values = {**VALUES, ("flora", "children"): [0.01], ("flora", "comics_graphic"): [0.02]}
    arguments = {"dataset": "goodreads", "protocol": "catalogue", "names": ["hit@5"]}
    made = results_table(metrics_frame(values), None, compared, **arguments)
    assert made.notes[-2:] == (
        "FeDecider against the best other method, Local: +0.5 points of Hit@5 (95 %: −1.0 to +2.0; "
        "p = 0.25, paired bootstrap over 40 users).",
        "FeDecider against the best other federated method, FLoRA: +3.0 points of Hit@5 (95 %: "
        "+1.0 to +4.0; p = 0.002, paired bootstrap over 40 users).",
    )
    assert printed.to_latex(made).isascii()
    without = results_table(metrics_frame(values), None, compared[:0], **arguments)
    assert without.notes == table(values).notes


def test_single_seed_has_no_deviation():
    one = {key: values[:1] for key, values in VALUES.items()}
    assert "±" not in printed.to_markdown(table(one))
    assert "one seed" in table(one).caption


def test_no_mean_over_domains_for_a_method_that_lacks_one():
    values = {key: v for key, v in VALUES.items() if key != ("fedecider", "children")}
    values["local", "children"] = [0.04, 0.06]  # the third seed has one domain only
    frame = to_frame(table(values))
    assert cell(frame, "FeDecider", "Children", "Hit@5") == "–"
    assert cell(frame, "FeDecider", "Mean", "Hit@5") == "–"
    assert cell(frame, "Local", "Mean", "Hit@5").startswith("5.00")
    assert cell(frame, "Local", "", "Seeds") == "2–3"


def test_best_is_bold_and_ties_all_are():
    markdown = printed.to_markdown(table())
    local = next(line for line in markdown.splitlines() if line.startswith("| Local"))
    ours = next(line for line in markdown.splitlines() if line.startswith("| FeDecider"))
    # children: 6.00 against 5.00; comics: 6.00 twice; mean: 6.00 (6, 5.5, 6.5) against 5.50
    assert local == "| Local | 3 | 5.50 ± 0.87 | 5.00 ± 1.00 | **6.00** ± 2.00 |"
    assert ours == "| FeDecider | 3 | **6.00** ± 0.50 | **6.00** ± 1.00 | **6.00** ± 1.00 |"
    assert markdown.count("**") == 2 * 4


def test_values_that_print_alike_tie():
    values = {("local", "children"): [0.050001], ("fedavg", "children"): [0.050004]}
    assert printed.to_markdown(table(values)).count("**5.00**") == 4  # the domain and the mean


def test_popularity_can_be_the_best():
    values = VALUES | {("popularity", "children"): [0.5]}
    assert "| Popularity | – | **26.50** | **50.00** |" in printed.to_markdown(table(values))


def test_csv_is_tidy_and_traceable():
    rows = pd.read_csv(io.StringIO(printed.to_csv(table())))
    assert [column for column in rows.columns if column not in select.METHOD][:8] == [
        "method",
        "domain",
        "metric",
        "mean",
        "sd",
        "seeds",
        "users",
        "runs",
    ]
    assert len(rows) == 5 * 3 * 6  # every metric, though one is printed
    assert list(rows["metric"].unique()) == list(select.METRICS)
    rows = rows[rows["metric"] == "hit@5"]
    row = rows[(rows.method == "local") & (rows.domain == "children")].iloc[0]
    assert row["mean"] == pytest.approx(0.05) and row["sd"] == pytest.approx(0.01)
    assert (row["seeds"], row["users"]) == (3, 40)
    assert row["runs"] == ";".join(f"runs/goodreads/local-seed{seed}" for seed in (0, 1, 2))
    gap = rows[rows.method == "fedavg"]
    assert gap["mean"].isna().all() and gap["runs"].isna().all() and (gap["seeds"] == 0).all()
    assert set(rows["protocol"]) == {"catalogue"} and set(rows["ranker"]) == {"grounding"}
    both = rows[(rows.method == "local") & (rows.domain == "mean")].iloc[0]
    assert both["runs"] == row["runs"] and both["users"] == 80


def test_the_csv_has_all_metrics_and_the_print_those_that_are_named():
    """One user of rank 1 and one of rank 3 in each domain, as `runs.metrics` gives them."""
    values = {"hit@1": 0.5, "hit@5": 1, "hit@10": 1, "ndcg@5": 0.75, "ndcg@10": 0.75}
    values |= {"mrr@10": 2 / 3}
    frame = pd.concat(
        metrics_frame({("local", "children"): [value]}, metric=metric)
        for metric, value in values.items()
    )
    arguments = {"dataset": "goodreads", "protocol": "catalogue", "expected": ["local"]}
    compact = results_table(frame, **arguments)
    rows = pd.read_csv(io.StringIO(printed.to_csv(compact)))
    mine = rows[(rows["method"] == "local") & (rows["domain"] == "mean")]
    assert dict(zip(mine["metric"], mine["mean"], strict=True)) == pytest.approx(values)
    assert list(to_frame(compact)["Mean"]) == ["Hit@5", "Hit@10", "NDCG@5", "NDCG@10"]
    for text in (printed.to_markdown(compact), printed.to_latex(compact)):
        assert "NDCG@10" in text and "Hit@1 " not in text and "MRR" not in text
    assert "MRR" not in printed.to_styler(compact).to_html()
    whole = results_table(frame, names=select.METRICS, **arguments)
    assert "Mean Hit@1 " in printed.to_markdown(whole)
    assert printed.to_csv(whole) == printed.to_csv(compact)


def test_the_mean_over_domains_comes_before_the_domains():
    """Where a table is wider than its place, the right-hand columns are not seen."""
    head = ["Method", "Seeds", "Mean", "Children", "Comics graphic"]
    assert [name or "Seeds" for name, _ in to_frame(table())] == head[1:]
    html = printed.to_styler(table()).to_html()
    places = [html.index(f">{name}<") for name in head[2:]]
    assert places == sorted(places)
    latex = printed.to_latex(table())
    spans = next(row for row in latex.splitlines() if "Mean" in row)
    assert [span.strip(" \\") for span in spans.split("&")[1:]] == head[2:]
    assert "| Method | Seeds | Mean Hit@5 | Children Hit@5 |" in printed.to_markdown(table())


def test_protocols_never_mix():
    sampled = metrics_frame({("local", "children"): [0.9]}, protocol="sampled")
    both = pd.concat([metrics_frame(VALUES), sampled])
    catalogue = results_table(both, dataset="goodreads", protocol="catalogue", names=["hit@5"])
    assert "90.00" not in printed.to_markdown(catalogue)
    assert printed.to_csv(catalogue) == printed.to_csv(table())
    other = results_table(both, dataset="goodreads", protocol="sampled", names=["hit@5"])
    assert "| Local | 1 | **90.00** | **90.00** |" in printed.to_markdown(other)
    assert "1 + 99 sampled candidates (ranker: likelihood)" in other.caption
    assert "whole catalogue (ranker: grounding)" in catalogue.caption


def test_methods_stand_in_display_order_and_unknown_ones_follow_alphabetically():
    more = ("rolora", "fedzip", "fedbee")
    values = VALUES | {(method, "children"): [0.01] for method in more}
    assert methods_of(table(values, expected=()))[-4:] == [
        "rolora",
        "fedecider",
        "fedbee",
        "fedzip",
    ]
    assert methods_of(table(values, expected=["local"]))[:2] == ["popularity", "zero-shot"]


def test_an_expected_method_that_was_not_run_is_a_gap():
    values = {("local", "children"): [0.1]}
    markdown = printed.to_markdown(table(values, expected=["local", "popularity"]))
    assert "| popularity | – | – | – |" in markdown and "Not run: popularity." in markdown


def test_empty_frame_gives_rows_without_numbers(tmp_path):
    empty = results_table(
        metrics_frame({}),
        dataset="amazon",
        protocol="sampled",
        expected=["popularity", "local", "fedecider"],
    )
    assert metrics_frame({})["value"].dtype == object  # as fedecider.results gives it
    assert empty.numbers["mean"].isna().all() and not empty.numbers["runs"].any()
    assert "| fedecider | – |" in printed.to_markdown(empty)  # no frame tells its label
    assert "No finished run." in printed.to_latex(empty)
    assert list(to_frame(empty).index) == ["fedecider", "local", "popularity"]
    none = metrics_frame({})
    [nothing] = table_2.tables(none, none.assign(user_id=""), none, dataset="amazon").values()
    assert printed.to_csv(nothing).count("\n") == 1 and nothing.notes == ("No finished run.",)
    printed.to_styler(nothing).to_html()
    assert "No finished run." in printed.to_markdown(nothing) + printed.to_latex(nothing)
    printed.to_styler(empty).to_html()
    assert all(path.stat().st_size for path in printed.write(empty, tmp_path, "empty"))


def test_six_domains_are_cut_into_blocks():
    domains = [f"domain_{i}" for i in range(6)]
    frame = pd.concat(
        metrics_frame(
            {("local", d): [0.1, 0.2] for d in domains}
            | {("popularity", d): [0.1] for d in domains},
            metric=name,
        )
        for name in ("hit@5", "hit@10", "ndcg@5", "ndcg@10")
    )
    wide = results_table(frame, dataset="goodreads", protocol="catalogue")
    markdown, latex = printed.to_markdown(wide), printed.to_latex(wide)
    heads = [line for line in markdown.splitlines() if line.startswith("| Method")]
    assert len(heads) == 4 and heads[0].count("Domain 0") == 4 and "Mean NDCG@10" in heads[0]
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 4
    assert "\\multicolumn{4}{c}{Mean} & \\multicolumn{4}{c}{Domain 0}" in latex
    assert "\\cmidrule(lr){3-6}\\cmidrule(lr){7-10}" in latex


def test_latex_is_well_formed():
    latex = printed.to_latex(table())
    assert latex.count("{") == latex.count("}")
    rows = [line for line in latex.splitlines() if line.endswith("\\\\")]
    spanning, rows = rows[0], rows[1:]
    spans = sum(int(n) - 1 for n in re.findall(r"multicolumn\{(\d)\}", spanning))
    assert spanning.count("&") + spans == 4 and {row.count("&") for row in rows} == {4}
    assert "FeDecider & 3 & \\textbf{6.00}{\\scriptsize$\\,\\pm\\,$0.50}" in latex
    assert "fedavg & -- & -- & -- & -- \\\\" in latex
    assert "in \\%; mean $\\pm$ sample" in latex and "±" not in latex and "–" not in latex
    odd = table({("a_b&c", "x%_y"): [0.1]})
    assert "a\\_b\\&c & 1" in printed.to_latex(odd) and "X\\% y" in printed.to_latex(odd)


def test_different_test_users_are_said():
    frame = metrics_frame(VALUES)
    frame.loc[(frame.method == "local") & (frame.domain == "children"), "users"] = 30
    notes = results_table(frame, dataset="goodreads", protocol="catalogue", names=["hit@5"]).notes
    assert notes[1] == (
        "Children: test users differ (Popularity 40, Zero-shot 40, Local 30, FeDecider 40)."
    )


def test_ranks_tell_whether_the_users_were_the_same():
    def ranks(method, users):
        rows = [("goodreads", method, 0, "children", "catalogue", "grounding", u, 1) for u in users]
        columns = ["dataset", "method", "seed", "domain", "protocol", "ranker", "user_id", "rank"]
        return described(pd.DataFrame(rows, columns=columns))

    arguments = {"dataset": "goodreads", "protocol": "catalogue", "names": ["hit@5"]}
    same = pd.concat([ranks("local", "abc"), ranks("fedecider", "cba")])
    notes = results_table(metrics_frame(VALUES), same, **arguments).notes
    assert notes == ("Not run: fedavg.",)
    other = pd.concat([ranks("local", "abc"), ranks("fedecider", "abd")])
    notes = results_table(metrics_frame(VALUES), other, **arguments).notes
    assert "Children: not all methods ranked for the same users (2 of 4" in notes[1]


def test_a_method_and_seed_in_two_runs_is_refused():
    frame = metrics_frame(VALUES)
    again = frame[frame.method == "popularity"].assign(run="runs/goodreads/again", value=0.9)
    with pytest.raises(ValueError, match="popularity, seed 0, domain children is in several runs"):
        results_table(pd.concat([frame, again]))


def ranks_of(metrics, levels):
    """Ranks of 30 users per domain, from 1 on, the lower the level the better."""
    keys = ["dataset", "method", "seed", "domain", "protocol", "ranker", "run"]
    runs = metrics[keys].drop_duplicates()
    rows = [
        dict(zip(keys, run, strict=True)) | {"user_id": str(u), "rank": 1 + (u + level) // 3}
        for run in runs.itertuples(index=False)
        for level in [levels[run.method]]
        for u in range(30)
    ]
    return pd.DataFrame(rows)


def made_up(family):
    """Metrics, ranks and comparison with a method of that family that nobody listed, the best."""
    levels = {"local": 6, "fedavg": 9, "fednew": 0, "fedecider": 12, "popularity": 15}
    values = {(m, d): [1 - 0.05 * v] for m, v in levels.items() for d in ("children", "poetry")}
    metrics = pd.concat(
        metrics_frame(values, metric=metric, fednew=family) for metric in ("hit@5", "ndcg@10")
    )
    ranks = described(ranks_of(metrics, levels), fednew=family)
    return metrics, ranks, results.compare(ranks)


@pytest.mark.parametrize("family", ["federated", "ablation", "reference", "no language model"])
def test_the_best_other_federated_method_is_whoever_the_frame_holds(family):
    metrics, ranks, compared = made_up(family)
    made = table_2.tables(metrics, ranks, compared, dataset="goodreads")["catalogue_grounding"]
    notes = " ".join(made.notes)
    assert "FeDecider against the best other method, Fednew:" in notes
    federated = "Fednew" if family == "federated" else "FedAvg"
    assert f"FeDecider against the best other federated method, {federated}:" in notes
    rounds = pd.DataFrame(columns=results.COLUMNS["rounds"]).astype({"valid_loss": float})
    page = summary.page(metrics, rounds, compared)
    assert f"best federated: {federated} |" in page and "| Fednew |" in page


def test_a_new_ranker_and_protocol_have_their_tables():
    metrics, ranks, compared = made_up("federated")
    new = [part.replace({"ranker": {"grounding": "oracle"}}) for part in (metrics, ranks)]
    far = [part.assign(protocol="open world") for part in new]
    frames = [
        pd.concat(parts, ignore_index=True)
        for parts in zip((metrics, ranks), new, far, strict=True)
    ]
    frames = [part.drop_duplicates() for part in frames]  # popularity ranks by itself
    made = table_2.tables(*frames, compared, dataset="goodreads")
    assert list(made) == ["catalogue_grounding", "catalogue_oracle", "open world_oracle"]
    assert "open world (ranker: oracle)" in made["open world_oracle"].caption
    labels = {tuple(methods_of(one)) for one in made.values()}
    assert labels == {("popularity", "local", "fedavg", "fedecider", "fednew")}


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric 'recall@5' is unknown"):
        table(names=["recall@5"])


def test_styler_marks_the_best_cells_and_is_stable():
    html = printed.to_styler(table()).to_html()
    assert html == printed.to_styler(table()).to_html()
    assert html.count("font-weight: bold") == 1  # one rule,
    rule = html.split("font-weight")[0].rsplit("}", 1)[1]
    assert rule.count("#T_goodreads-catalogue-grounding_row") == 4  # for the four best cells
    assert "Not run: fedavg." in html


def test_files(tmp_path):
    csv, md, tex = printed.write(table(), tmp_path / "tables", "table_2_goodreads_catalogue")
    assert csv.name == "table_2_goodreads_catalogue.csv"
    assert csv.read_text() == printed.to_csv(table())
    assert md.read_text() == printed.to_markdown(table())
    assert tex.read_text() == printed.to_latex(table())
    assert len(list((tmp_path / "tables").iterdir())) == 3
