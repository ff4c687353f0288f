"""Table 8, from made-up frames: what was measured, the largest deviation, whether it holds."""

import pandas as pd
import pytest
from seen import lines

from fedecider.analysis import theory
from figures import table as printed
from figures import table_8

CLIENTS = ("children", "mystery_thriller_crime")
MEASURED = {
    "lemma 1": ((2.003, 0.003), (1.99, 0.01), 0.05, 18),
    "proposition 1": ((0.25, 0.0), (0.5, 0.0), 0.0, 48),
    "lemma 2": ((3e-13, 3e-13), (2e-14, 2e-14), 1e-8, 64),
    "lemma 3": ((1e-15, 1e-15), (2e-15, 2e-15), 1e-5, 32),
    "proposition 2": ((32.0, 0.0), (32.0, 0.0), 0.0, 32),
    "planted": ((16.0, 0.0), (16.0, 0.0), 0.0, 16),
}


def checked(measured=MEASURED, seed=0, dataset="goodreads"):
    rows = []
    for place, client in enumerate(CLIENTS):
        for statement, (*pairs, tolerance, cases) in measured.items():
            value, deviation = pairs[place]
            rows.append(
                (dataset, "fedecider", seed, client, statement, value, deviation, tolerance)
            )
            rows[-1] += (deviation <= tolerance, cases, f"{dataset}/fedecider-seed{seed}")
    return pd.DataFrame(rows, columns=theory.COLUMNS)


def statements(found, dataset):
    return table_8.table(table_8.numbers(found, dataset=dataset), dataset=dataset)


def cells_of(table):
    """Cells behind name, statement and what is measured."""
    return {(row[0], row[2]): row[3:] for row in lines(table)[1:]}


def test_every_statement_has_a_row_with_clients_and_the_largest_deviation():
    table = statements(checked(), dataset="goodreads")
    head = ["In the paper", "Statement", "Measured", "Children", "Mystery thriller crime"]
    assert lines(table)[0] == [*head, "Largest deviation", "Tolerance", "Holds"]
    assert [row[0] for row in lines(table)[1:]] == ["Lemma 1", "Lemma 2", "Proposition 1"] + [
        "Lemma 3",
        *["Proposition 2"] * 2,
    ]
    found = {name: cells for (name, _), cells in cells_of(table).items()}
    assert found["Lemma 1"] == ["2", "1.99", "0.01", "0.05", "yes"]
    assert found["Lemma 2"] == ["3e−13", "2e−14", "3e−13", "1e−08", "yes"]
    assert found["Proposition 1"] == ["0.25", "0.5", "0", "0", "yes"]
    planted = cells_of(table)["Proposition 2", "weights that fall (all)"]
    assert planted == ["16 of 16", "16 of 16", "0", "0", "yes"]
    assert set(table.rows["runs"]) == {"goodreads/fedecider-seed0"}


def test_the_statements_are_those_that_are_checked():
    assert set(table_8.STATEMENTS) == set(theory.STATEMENTS)
    with pytest.raises(ValueError, match="statement 'lemma 9' is unknown"):
        statements(checked({"lemma 9": MEASURED["lemma 1"]}), dataset="goodreads")


def test_one_client_on_which_it_fails_is_enough():
    wrong = MEASURED | {"proposition 2": ((32.0, 0.0), (30.0, 2.0), 0.0, 32)}
    table = statements(checked(wrong), dataset="goodreads")
    cells = cells_of(table)["Proposition 2", "weights that move so (all)"]
    assert cells == ["32 of 32", "30 of 32", "2", "0", "no"]
    rows = table_8.numbers(checked(wrong), dataset="goodreads").set_index(["statement", "client"])
    assert not rows.loc[("proposition 2", "largest"), "holds"]
    assert rows.loc[("planted", "largest"), "holds"]


def test_of_several_runs_the_largest_deviation_is_shown():
    other = MEASURED | {"lemma 1": ((2.02, 0.02), (2.0, 0.0), 0.05, 18)}
    table = statements(pd.concat([checked(), checked(other, 1)]), dataset="goodreads")
    cells = {name: cells for (name, _), cells in cells_of(table).items()}["Lemma 1"]
    assert cells == ["2.02", "1.99", "0.02", "0.05", "yes"]
    assert table.rows["runs"][0] == "goodreads/fedecider-seed0;goodreads/fedecider-seed1"


def test_the_csv_has_each_client_and_then_the_largest():
    rows = table_8.numbers(checked(), dataset="goodreads")
    assert list(rows.columns) == theory.COLUMNS
    assert list(rows["statement"].unique()) == list(table_8.STATEMENTS)
    assert list(rows["client"]) == [*CLIENTS, "largest"] * 6
    row = rows[(rows["statement"] == "lemma 2") & (rows["client"] == "largest")].iloc[0]
    assert row["deviation"] == 3e-13 and row["cases"] == 64 and row["holds"]


def test_without_a_run_there_are_gaps_and_a_note():
    none = pd.DataFrame(columns=theory.COLUMNS)
    for found in (none, checked(dataset="amazon")):
        table = statements(found, dataset="goodreads")
        assert table.notes == (printed.NO_RUN,)
        assert all(row[3:] == ["–", "–", "–"] for row in lines(table)[1:])
        assert table_8.numbers(found, dataset="goodreads").empty


def test_files_and_shown_forms(tmp_path):
    table = statements(checked(), dataset="goodreads")
    paths = printed.write(table, tmp_path, "table_8_theory-goodreads")
    assert len(pd.read_csv(paths[0])) == 18
    latex = paths[2].read_text()
    assert latex.isascii() and latex.count("{") == latex.count("}")
    assert "Proposition 1" in printed.to_styler(table).to_html()
