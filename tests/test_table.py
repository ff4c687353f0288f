"""The printable table that all tables share: numbers, best values, files."""

from dataclasses import replace

import pandas as pd
import pytest
from seen import csv, lines

from figures import table as printed
from figures.table import Column, Table

ROWS = pd.DataFrame(
    {
        "block": ["one", "one", "one", "two", "two", "three"],
        "name": ["a_b", "b", "c", "a_b", "b", "a_b"],
        "score": [0.12344, 0.12341, None, 0.5, 0.25, 0.9],
        "score_sd": [0.01, None, None, 0.02, 0.0, None],
        "loss": [2.0, 1.0, 3.0, None, 4.0, None],
        "change": [-0.00004, 0.01, None, -0.02, 0.0, None],
        "bytes": [1234567, 0, None, 1e6, 2e6, 3e6],
        "runs": ["x/1;x/2", "x/3", "", "x/4", "x/5", "x/6"],
        "hidden": range(6),
    }
)
COLUMNS = (
    Column("block", "Block", align="l"),
    Column("name", "Name", align="l", words=str.upper),
    Column("score", "Score, %", ".2f", 100, "score_sd", "Good", best="max"),
    Column("loss", "Loss", ".1f", group="Bad", best="min"),
    Column("change", "Δ", "+.3f", spread="score_sd", group="Bad"),
    Column("bytes", "kB", ",.1f", 1e-3, group="Ugly"),
)
TABLE = Table("six-rows", "Six rows.", COLUMNS, ROWS, ("A note of 5 %.",), block="block")


def test_numbers_are_scaled_signed_and_grouped():
    assert lines(TABLE)[:2] == [
        ["Block", "Name", "Good Score, %", "Bad Loss", "Bad Δ", "Ugly kB"],
        # -0.00004 prints as a zero without a sign; a spread has no plus
        ["one", "A_B", "**12.34** ± 1.00", "2.0", "0.000 ± 0.010", "1,234.6"],
    ]
    assert lines(TABLE)[2] == ["", "B", "**12.34**", "**1.0**", "+0.010", "0.0"]
    assert lines(TABLE)[3] == ["", "C", "–", "3.0", "–", "–"]
    assert lines(TABLE)[4][4] == "−0.020 ± 0.020"


def test_best_values_are_those_of_a_block_as_printed():
    bold = [[cell.bold for cell in row] for _, row in printed.cells(TABLE).iterrows()]
    score, loss = ([row[c] for row in bold] for c in (2, 3))
    assert score == [True, True, False, True, False, False]  # 12.344 and 12.341 print alike
    assert loss == [False, True, False, False, False, False]  # one value has none to beat
    assert not any(row[c] for row in bold for c in (0, 1, 4, 5))
    whole = replace(TABLE, block="")
    assert [cell.bold for cell in printed.cells(whole).iloc[:, 2]] == [False] * 5 + [True]


def test_a_block_is_named_once_and_set_apart():
    assert [row[0] for row in lines(TABLE)[1:]] == ["one", "", "", "two", "", "three"]
    assert printed.to_latex(TABLE).count("\\midrule") == 3
    frame = printed.cells(TABLE)
    assert list(frame["", "Name"].map(lambda cell: cell.text))[:2] == ["A_B", "B"]
    assert frame.loc[4, ("Ugly", "kB")].text == "2,000.0"


def test_csv_holds_every_column_unrounded_and_the_runs_are_not_printed():
    pd.testing.assert_frame_equal(csv(TABLE).drop(columns="runs"), ROWS.drop(columns="runs"))
    assert list(csv(TABLE)["runs"].fillna("")) == list(ROWS["runs"])
    assert "0.12344" in printed.to_csv(TABLE)
    for text in (
        printed.to_markdown(TABLE),
        printed.to_latex(TABLE),
        printed.to_styler(TABLE).to_html(),
    ):
        assert "x/1" not in text and "hidden" not in text.lower()
        assert "A note of 5" in text


def test_wide_tables_are_cut_between_groups():
    assert len([row for row in lines(replace(TABLE, width=3)) if row[0] == "Block"]) == 2
    heads = [row for row in lines(replace(TABLE, width=1)) if row[0] == "Block"]
    assert [row[2:] for row in heads] == [["Good Score, %"], ["Bad Loss", "Bad Δ"], ["Ugly kB"]]
    latex = printed.to_latex(replace(TABLE, width=2))
    assert latex.count("\\begin{tabular}{llr}") == 2 and latex.count("{llrr}") == 1
    assert latex.count("\\par\\medskip") == 2


def test_latex_is_well_formed_and_plain_ascii():
    latex = printed.to_latex(TABLE)
    assert latex.isascii() and latex.count("{") == latex.count("}")
    assert "\\multicolumn{2}{c}{Bad}" in latex
    assert "\\cmidrule(lr){3-3}\\cmidrule(lr){4-5}\\cmidrule(lr){6-6}" in latex
    assert "one & A\\_B & \\textbf{12.34}{\\scriptsize$\\,\\pm\\,$1.00} & 2.0" in latex
    assert "$-$0.020" in latex and "Score, \\%" in latex and "$\\Delta$" in latex
    assert "\\label{tab:six-rows}" in latex and "\\footnotesize A note of 5 \\%." in latex


def test_styler_marks_the_best_cells():
    html = printed.to_styler(TABLE).to_html()
    assert html.split("font-weight")[0].rsplit("}", 1)[1].count("#T_six-rows_row") == 4
    assert "12.34\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}1.00" in html


def test_tables_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="six-rows frame has no column bytes"):
        replace(TABLE, rows=ROWS.drop(columns="bytes"))
    with pytest.raises(ValueError, match="six-rows frame has no column runs"):
        replace(TABLE, rows=ROWS.drop(columns="runs"))
    with pytest.raises(ValueError, match="table six-rows has several rows two / b"):
        replace(TABLE, rows=pd.concat([ROWS, ROWS[4:5]]))
    with pytest.raises(ValueError, match="no leading column of text"):
        replace(TABLE, columns=COLUMNS[2:])
