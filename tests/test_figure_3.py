"""Figure 3: the bytes on its arrows are those of the frames."""

import pytest
from seen import laid_out, texts
from synthetic import SIX, THREE, described, round_rows, rounds_frame, without_rows

from figures import drawing, figure_3, style


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB")]
    + [(494_712, "483 KiB"), (1_048_570, "1 MiB"), (12_345_678, "11.8 MiB"), (2**33, "8 GiB")]
    + [(100 * 1024, "100 KiB"), (None, "not run"), (float("nan"), "not run")],
)
def test_bytes_for_people(count, text):
    assert drawing.size_label(count) == text


def overview(rounds, dataset, **arguments):
    return figure_3.plot(figure_3.numbers(rounds, dataset), dataset, **arguments)


def overview_rounds(domains, seeds=(0, 1)):
    rows = []
    for seed in seeds:
        for number in (1, 2):
            up = 1000 * 2**10 * number  # another size in each round
            part = round_rows(
                f"runs/goodreads/fedecider-seed{seed}", domains, method="fedecider", seed=seed,
                rounds=1, up=up + seed * 2**10, down=2 * up,
            )  # fmt: skip
            rows += [(*row[:3], number, *row[4:]) for row in part]
    return rounds_frame(rows)


def test_the_bytes_are_those_of_the_last_round():
    rounds = overview_rounds(THREE)
    rounds.loc[(rounds["client"] == THREE[0]) & (rounds["round"] == 2), "bytes_up"] = 512
    out = figure_3.numbers(rounds, "goodreads").set_index("client")
    assert list(out.index) == [*THREE, "mean"]
    assert out.loc[THREE[1], "bytes_up"] == 2**10 * (2000 + 0.5)  # mean of two seeds
    assert out.loc[THREE[0], "bytes_up"] == 512
    assert out.loc["mean", "bytes_up"] == pytest.approx(out["bytes_up"][:3].mean())
    assert set(out["round"]) == {2} and set(out["seeds"]) == {2}
    assert out.loc[THREE[2], "runs"] == ";".join(
        f"runs/goodreads/fedecider-seed{k}" for k in (0, 1)
    )
    figure = overview(rounds, "goodreads")
    shown = texts(figure)
    assert "$D_1$: 512 B" in shown and "$D_2$: 1.95 MiB" in shown
    assert shown.count("2 directions: 3.91 MiB") == 3
    assert any("round 2), mean over 2 seeds" in text for text in shown)
    laid_out(figure)


@pytest.mark.parametrize("domains", [SIX, THREE[:2], THREE[:1]])
def test_the_overview_draws_at_most_three_clients(domains):
    figure = overview(overview_rounds(domains, (5,)), "goodreads")
    shown = texts(figure)
    for place, domain in enumerate(domains):
        assert shown.count(style.domain_label(domain)) == (2 if place < 3 else 0)
    about = " ".join(shown)
    assert "one seed" in about
    assert ("3 more clients not drawn" in about) == (len(domains) == 6)
    directions = len(domains) - 1
    label = f"{directions} direction{'s' * (directions > 1)}: 3.91 MiB"
    assert shown.count(label) == (min(len(domains), 3) if directions else 0)
    laid_out(figure)


def test_the_overview_without_runs_says_so():
    other = described(overview_rounds(THREE).assign(method="fedavg"))
    assert figure_3.numbers(other, "goodreads").empty
    figure = overview(other, "goodreads")
    shown = texts(figure)
    assert sum("not run" in text for text in shown) == 6
    assert "No finished run of FeDecider: no bytes to show." in shown
    assert "Client 1" in shown and not any("KiB" in text or "MiB" in text for text in shown)
    laid_out(figure)
    named = overview(without_rows(other), "goodreads", domains=THREE)
    assert "Mystery thriller crime" in texts(named)
    with pytest.raises(ValueError, match="rounds frame has no column bytes_up"):
        figure_3.numbers(other.drop(columns="bytes_up"), "goodreads")
