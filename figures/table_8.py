"""Table 8: the paper's lemmas and propositions, checked on a trained model.

The numbers are those of fedecider/analysis/theory.py, where each statement is a function.
"""

from typing import NamedTuple

import pandas as pd

from figures import select, style
from figures.table import GAP, NO_RUN, Column, Table

_COLUMNS = ("dataset", "client", "statement", "measured", "deviation", "tolerance", "holds")
LARGEST = "largest"  # the client of the CSV's rows over all clients


class Statement(NamedTuple):
    """Its name in the paper, what it says (our reconstruction), what is measured of it."""

    name: str
    words: str
    measured: str
    counted: bool = False  # the measured number is one of so many cases


STATEMENTS = {
    "lemma 1": Statement(
        "Lemma 1",
        "the first-order remainder of F(W0 + mD) falls as the square of m",
        "exponent (2)",
    ),
    "lemma 2": Statement(
        "Lemma 2",
        "mixtures and fixed aggregates of directions lie in their span",
        "relative residual (0)",
    ),
    "proposition 1": Statement(
        "Proposition 1",
        "the best weights are no worse than the uniform average",
        "nats per token saved (0 or more)",
    ),
    "lemma 3": Statement(
        "Lemma 3",
        "a weight's derivative is the inner product of gradient and direction",
        "relative difference (0)",
    ),
    "proposition 2": Statement(
        "Proposition 2",
        "a gradient step lowers weights of harmful directions, raises the others",
        "weights that move so (all)",
        counted=True,
    ),
    "planted": Statement(
        "Proposition 2",
        "a planted harmful direction, the gradient's own, loses weight",
        "weights that fall (all)",
        counted=True,
    ),
}


def numbers(checks: pd.DataFrame, *, dataset: str) -> pd.DataFrame:
    """The checks of one data set, and per statement the client that deviates most ("largest").

    ``checks`` is the frame of ``fedecider.analysis.theory.check``, of one run or of several; its
    columns are kept. Raises ValueError for a lacking column and for an unknown statement.
    """
    select.require(checks, (*_COLUMNS, "cases", "run"), "statements")
    kept = checks[checks["dataset"] == dataset]
    unknown = sorted(set(kept["statement"]) - set(STATEMENTS))
    if unknown:
        raise ValueError(f"statement {unknown[0]!r} is unknown; known: {', '.join(STATEMENTS)}")
    kept = kept.astype({"measured": float, "deviation": float, "tolerance": float})
    by_statement = kept.groupby("statement")
    worst = kept.sort_values("deviation").groupby("statement", sort=False).tail(1)
    worst = worst.assign(
        client=LARGEST,
        holds=list(worst["statement"].map(by_statement["holds"].all())),
        run=list(worst["statement"].map(by_statement["run"].agg(select.joined))),
    )
    both = pd.concat([kept, worst]) if len(kept) else kept
    order = {key: i for i, key in enumerate(STATEMENTS)}
    return both.sort_values(
        "statement", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )


def table(numbers: pd.DataFrame, *, dataset: str) -> Table:
    """One row per statement: measured on each client, and the largest deviation over clients.

    Of several runs the number shown is that of the largest deviation. A statement that was not
    checked is a gap.
    """
    checks = numbers[numbers["client"] != LARGEST].sort_values("deviation", kind="stable")
    clients = sorted(set(checks["client"]))
    rows = []
    for key, statement in STATEMENTS.items():
        of = checks[checks["statement"] == key]
        row = {"name": statement.name, "words": statement.words, "measured": statement.measured}
        for client in clients:
            worst = of[of["client"] == client].tail(1)
            row[f"measured {client}"] = _text(statement, worst.iloc[0]) if len(worst) else None
        row |= {"deviation": None, "tolerance": None, "holds": None}
        if len(of):
            row |= {"deviation": of["deviation"].max(), "tolerance": of["tolerance"].min()}
            row["holds"] = "yes" if of["holds"].all() else "no"
        rows.append(row | {"runs": select.joined(of["run"])})
    label = style.domain_label
    return Table(
        label=f"theory-{dataset}",
        caption=f"{style.dataset_label(dataset)}: the paper's statements on trained models of "
        "FeDecider, on each client's own training loss F. Names as in the "
        "paper, statements as reconstructed here; in brackets what is expected. A statement holds "
        "if its largest deviation over clients is within the tolerance.",
        columns=(
            Column("name", "In the paper", align="l"),
            Column("words", "Statement", align="l"),
            Column("measured", "Measured", align="l"),
            *(Column(f"measured {client}", label(client)) for client in clients),
            Column("deviation", "Largest deviation", ".2g"),
            Column("tolerance", "Tolerance", ".2g"),
            Column("holds", "Holds"),
        ),
        rows=pd.DataFrame(rows).astype({"deviation": float, "tolerance": float}),
        notes=() if len(checks) else (NO_RUN,),
        numbers=numbers,
    )


def _text(statement: Statement, row: pd.Series) -> str:
    if statement.counted:
        return f"{row['measured']:g} of {row['cases']}"
    return GAP if pd.isna(row["measured"]) else format(row["measured"], ".3g").replace("-", "−")
