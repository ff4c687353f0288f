"""The results table, from synthetic frames: numbers, gaps, bold, and the three files."""

import io

import pandas as pd
import pytest

from figures import frames, main_table

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


def metrics_frame(values, protocol="catalogue", metric="hit@5", dataset="goodreads", users=40):
    """{(method, domain): one value a seed} -> a metrics frame."""
    ranker = {"catalogue": "grounding", "sampled": "likelihood"}[protocol]
    rows = [
        (
            dataset,
            method,
            seed,
            domain,
            protocol,
            "popularity" if method == "popularity" else ranker,
            metric,
            value,
            users,
            f"runs/{dataset}/{method}-seed{seed}",
        )
        for (method, domain), seeds in values.items()
        for seed, value in enumerate(seeds)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


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


def table(values=VALUES, names=("hit@5",), **changes):
    arguments = {"dataset": "goodreads", "protocol": "catalogue", "names": names} | changes
    return main_table.results_table(metrics_frame(values), **arguments)


def cell(frame, row, *column):
    return frame.loc[row, column]


def test_means_deviations_seeds_and_gaps():
    frame = main_table.to_frame(table())
    assert list(frame.index) == ["Zero-shot", "Popularity", "Local", "FedAvg", "FeDecider"]
    assert cell(frame, "Local", "Children", "Hit@5") == "5.00 ± 1.00"
    assert cell(frame, "Local", "Comics graphic", "Hit@5") == "6.00 ± 2.00"
    # per seed the means over domains are 5, 5 and 6.5 %
    assert cell(frame, "Local", "Mean", "Hit@5") == "5.50 ± 0.87"
    assert cell(frame, "Zero-shot", "Mean", "Hit@5") == "3.00"
    assert list(frame["", "Seeds"]) == ["1", "–", "3", "–", "3"]
    assert list(frame.loc["FedAvg"]) == ["–"] * 4
    assert table().notes == ("Not run: FedAvg.",)


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
    made = main_table.results_table(metrics_frame(values), None, compared, **arguments)
    assert made.notes[-2:] == (
        "FeDecider against the best other method, Local: +0.5 points of Hit@5 (95 %: −1.0 to +2.0; "
        "p = 0.25, paired bootstrap over 40 users).",
        "FeDecider against the best other federated method, FLoRA: +3.0 points of Hit@5 (95 %: "
        "+1.0 to +4.0; p = 0.002, paired bootstrap over 40 users).",
    )
    assert main_table.to_latex(made).isascii()
    without = main_table.results_table(metrics_frame(values), None, compared[:0], **arguments)
    assert without.notes == table(values).notes


def test_single_seed_has_no_deviation():
    one = {key: values[:1] for key, values in VALUES.items()}
    assert "±" not in main_table.to_markdown(table(one))
    assert "one seed" in table(one).caption


def test_no_mean_over_domains_for_a_method_that_lacks_one():
    values = {key: v for key, v in VALUES.items() if key != ("fedecider", "children")}
    values["local", "children"] = [0.04, 0.06]  # the third seed has one domain only
    frame = main_table.to_frame(table(values))
    assert cell(frame, "FeDecider", "Children", "Hit@5") == "–"
    assert cell(frame, "FeDecider", "Mean", "Hit@5") == "–"
    assert cell(frame, "Local", "Mean", "Hit@5").startswith("5.00")
    assert cell(frame, "Local", "", "Seeds") == "2–3"


def test_best_is_bold_and_ties_all_are():
    markdown = main_table.to_markdown(table())
    local = next(line for line in markdown.splitlines() if line.startswith("| Local"))
    ours = next(line for line in markdown.splitlines() if line.startswith("| FeDecider"))
    # children: 6.00 against 5.00; comics: 6.00 twice; mean: 6.00 (6, 5.5, 6.5) against 5.50
    assert local == "| Local | 3 | 5.50 ± 0.87 | 5.00 ± 1.00 | **6.00** ± 2.00 |"
    assert ours == "| FeDecider | 3 | **6.00** ± 0.50 | **6.00** ± 1.00 | **6.00** ± 1.00 |"
    assert markdown.count("**") == 2 * 4


def test_values_that_print_alike_tie():
    values = {("local", "children"): [0.050001], ("fedavg", "children"): [0.050004]}
    assert main_table.to_markdown(table(values)).count("**5.00**") == 4  # the domain and the mean


def test_popularity_can_be_the_best():
    values = VALUES | {("popularity", "children"): [0.5]}
    assert "| Popularity | – | **26.50** | **50.00** |" in main_table.to_markdown(table(values))


def test_csv_is_tidy_and_traceable():
    rows = pd.read_csv(io.StringIO(main_table.to_csv(table())))
    assert list(rows.columns[:8]) == [
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
    assert list(rows["metric"].unique()) == list(frames.METRICS)
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
    arguments = {"dataset": "goodreads", "protocol": "catalogue", "methods": ["local"]}
    compact = main_table.results_table(frame, **arguments)
    rows = pd.read_csv(io.StringIO(main_table.to_csv(compact)))
    mine = rows[(rows["method"] == "local") & (rows["domain"] == "mean")]
    assert dict(zip(mine["metric"], mine["mean"], strict=True)) == pytest.approx(values)
    assert list(main_table.to_frame(compact)["Mean"]) == ["Hit@5", "Hit@10", "NDCG@5", "NDCG@10"]
    for text in (main_table.to_markdown(compact), main_table.to_latex(compact)):
        assert "NDCG@10" in text and "Hit@1 " not in text and "MRR" not in text
    assert "MRR" not in main_table.to_styler(compact).to_html()
    whole = main_table.results_table(frame, names=frames.METRICS, **arguments)
    assert "Mean Hit@1 " in main_table.to_markdown(whole)
    assert main_table.to_csv(whole) == main_table.to_csv(compact)


def test_the_mean_over_domains_comes_before_the_domains():
    """Where a table is wider than its place, the right-hand columns are not seen."""
    head = ["Method", "Seeds", "Mean", "Children", "Comics graphic"]
    assert [name or "Seeds" for name, _ in main_table.to_frame(table())] == head[1:]
    html = main_table.to_styler(table()).to_html()
    places = [html.index(f">{name}<") for name in head[2:]]
    assert places == sorted(places)
    latex = main_table.to_latex(table())
    spans = ["\\multicolumn{1}{c}{" + name for name in head[2:]]
    assert sorted(map(latex.index, spans)) == [latex.index(span) for span in spans]
    assert "| Method | Seeds | Mean Hit@5 | Children Hit@5 |" in main_table.to_markdown(table())


def test_protocols_never_mix():
    sampled = metrics_frame({("local", "children"): [0.9]}, protocol="sampled")
    both = pd.concat([metrics_frame(VALUES), sampled])
    catalogue = main_table.results_table(
        both, dataset="goodreads", protocol="catalogue", names=["hit@5"]
    )
    assert "90.00" not in main_table.to_markdown(catalogue)
    assert main_table.to_csv(catalogue) == main_table.to_csv(table())
    other = main_table.results_table(both, dataset="goodreads", protocol="sampled", names=["hit@5"])
    assert "| Local | 1 | **90.00** | **90.00** |" in main_table.to_markdown(other)
    assert "1 + 99 sampled candidates (ranker: likelihood)" in other.caption
    assert "whole catalogue (ranker: grounding)" in catalogue.caption


def test_methods_stand_in_display_order_and_unknown_ones_follow_alphabetically():
    more = ("rolora", "fedzip", "fedbee")
    values = VALUES | {(method, "children"): [0.01] for method in more}
    assert table(values).methods[-4:] == ("rolora", "fedecider", "fedbee", "fedzip")
    assert table(values, methods=["local"]).methods[:2] == ("zero-shot", "popularity")


def test_popularity_row_is_always_there():
    values = {("local", "children"): [0.1]}
    markdown = main_table.to_markdown(table(values, methods=["local"]))
    assert "| Popularity | – | – | – |" in markdown and "Not run: Popularity." in markdown


def test_empty_frame_gives_rows_without_numbers(tmp_path):
    empty = main_table.results_table(
        metrics_frame({}), dataset="amazon", protocol="sampled", methods=["local", "fedecider"]
    )
    assert metrics_frame({})["value"].dtype == object  # as fedecider.runs gives it
    assert main_table.to_csv(empty).count("\n") == 1
    assert "| FeDecider | – |" in main_table.to_markdown(empty)
    assert "No finished run." in main_table.to_latex(empty)
    assert list(main_table.to_frame(empty).index) == ["Popularity", "Local", "FeDecider"]
    main_table.to_styler(empty).to_html()
    assert all(path.stat().st_size for path in main_table.write(empty, tmp_path, "empty"))


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
    wide = main_table.results_table(frame, dataset="goodreads", protocol="catalogue")
    markdown, latex = main_table.to_markdown(wide), main_table.to_latex(wide)
    heads = [line for line in markdown.splitlines() if line.startswith("| Method")]
    assert len(heads) == 4 and heads[0].count("Domain 0") == 4 and "Mean NDCG@10" in heads[0]
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 4
    assert "\\multicolumn{4}{c}{Mean} & \\multicolumn{4}{c}{Domain 0}" in latex
    assert "\\cmidrule(lr){3-6}\\cmidrule(lr){7-10}" in latex


def test_latex_is_well_formed():
    latex = main_table.to_latex(table())
    assert latex.count("{") == latex.count("}")
    rows = [line for line in latex.splitlines() if line.endswith("\\\\")]
    spanning, rows = rows[0], rows[1:]
    assert spanning.count("&") == 4 and {row.count("&") for row in rows} == {4}
    assert "FeDecider & 3 & \\textbf{6.00}{\\scriptsize$\\,\\pm\\,$0.50}" in latex
    assert "FedAvg & -- & -- & -- & -- \\\\" in latex
    assert "in \\%; mean $\\pm$ sample" in latex and "±" not in latex and "–" not in latex
    odd = table({("a_b&c", "x%_y"): [0.1]})
    assert "a\\_b\\&c & 1" in main_table.to_latex(odd) and "X\\% y" in main_table.to_latex(odd)


def test_different_test_users_are_said():
    frame = metrics_frame(VALUES)
    frame.loc[(frame.method == "local") & (frame.domain == "children"), "users"] = 30
    notes = main_table.results_table(
        frame, dataset="goodreads", protocol="catalogue", names=["hit@5"]
    ).notes
    assert notes[1] == (
        "Children: test users differ (Zero-shot 40, Popularity 40, Local 30, FeDecider 40)."
    )


def test_ranks_tell_whether_the_users_were_the_same():
    def ranks(method, users):
        rows = [("goodreads", method, 0, "children", "catalogue", "grounding", u, 1) for u in users]
        columns = ["dataset", "method", "seed", "domain", "protocol", "ranker", "user_id", "rank"]
        return pd.DataFrame(rows, columns=columns)

    arguments = {"dataset": "goodreads", "protocol": "catalogue", "names": ["hit@5"]}
    same = pd.concat([ranks("local", "abc"), ranks("fedecider", "cba")])
    notes = main_table.results_table(metrics_frame(VALUES), same, **arguments).notes
    assert notes == ("Not run: FedAvg.",)
    other = pd.concat([ranks("local", "abc"), ranks("fedecider", "abd")])
    notes = main_table.results_table(metrics_frame(VALUES), other, **arguments).notes
    assert "Children: not all methods ranked for the same users (2 of 4" in notes[1]


def test_popularity_repeated_in_every_run_counts_once_but_not_if_it_differs():
    frame = metrics_frame(VALUES)
    popular = frame[frame.method == "popularity"]
    again = popular.assign(seed=1, run="runs/goodreads/local-seed1")
    arguments = {"dataset": "goodreads", "protocol": "catalogue", "names": ["hit@5"]}
    once = main_table.results_table(pd.concat([frame, again]), **arguments)
    assert "| Popularity | – | 4.00 | 5.00 | 3.00 |" in main_table.to_markdown(once)
    differs = again.assign(value=0.9, seed=0)
    with pytest.raises(ValueError, match="popularity, seed 0, domain children is in several runs"):
        main_table.results_table(pd.concat([frame, differs]), **arguments)


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric 'recall@5' is unknown"):
        table(names=["recall@5"])


def test_styler_marks_the_best_cells_and_is_stable():
    html = main_table.to_styler(table()).to_html()
    assert html == main_table.to_styler(table()).to_html()
    assert html.count("font-weight: bold") == 1  # one rule,
    rule = html.split("{")[0]
    assert rule.count("#T_goodreads-catalogue_row") == 4  # for the four best cells
    assert "Not run: FedAvg." in html


def test_files(tmp_path):
    csv, md, tex = main_table.write(table(), tmp_path / "tables", "table_2_goodreads_catalogue")
    assert csv.name == "table_2_goodreads_catalogue.csv"
    assert csv.read_text() == main_table.to_csv(table())
    assert md.read_text() == main_table.to_markdown(table())
    assert tex.read_text() == main_table.to_latex(table())
    assert len(list((tmp_path / "tables").iterdir())) == 3
