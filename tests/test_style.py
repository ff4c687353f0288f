"""The style of all figures: colours, labels, files of equal bytes."""

import pytest
from synthetic import (
    ALL,
    SIX,
    THREE,
    square,
    synthetic_alphas,
    synthetic_geometry,
    synthetic_metrics,
    synthetic_rounds,
    synthetic_sweeps,
)

from figures import (
    figure_1,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    select,
    style,
)


def test_colours_are_fixed_and_distinct():
    genres = style.domain_colors(SIX)
    assert (
        len(set(genres.values())) == 6 and style.domain_colors([SIX[4]])[SIX[4]] == genres[SIX[4]]
    )
    mixed = style.domain_colors(["children", "zebra", "apple"])
    assert len(set(mixed.values())) == 3
    assert mixed == style.domain_colors(["zebra", "children", "apple"])


def test_labels():
    assert style.domain_label("mystery_thriller_crime") == "Mystery thriller crime"
    assert style.metric_label("ndcg@10") == "NDCG@10" and style.metric_label("hit@5") == "Hit@5"
    described = select.methods(
        synthetic_metrics(THREE, ["local", "ffa-lora"]), names=["mine", "ffa-lora"]
    )
    assert described["label"].to_dict() == {"ffa-lora": "FFA-LoRA", "mine": "mine"}
    assert (
        select.protocol_label("sampled").startswith("1 + 99") and select.protocol_label("x") == "x"
    )
    assert style.number(-0.126, 2) == "−0.13" and style.number(-0.001, 2) == "0.00"
    assert style.ink_on("#08306b") == "white" and style.ink_on("#fcfbfd") == "black"


def test_saved_files_are_whole_and_equal_bytes_twice(tmp_path):
    main = synthetic_metrics(THREE, ALL), synthetic_rounds(THREE, ALL)
    sweeps, geometry = synthetic_sweeps(), synthetic_geometry(THREE)
    alphas = synthetic_alphas(THREE)
    last = figure_4.last_round(alphas, "goodreads")
    of = "goodreads"
    for folder in ("a", "b"):
        figures = {
            "1": figure_1.plot(figure_1.numbers(main[0], of, "sampled"), of),
            "2": figure_2.plot(figure_2.numbers(main[0], geometry, of), of),
            "3": figure_3.plot(figure_3.numbers(main[1], of), of),
            "4": figure_4.plot(figure_4.numbers(last, square(THREE), None), of),
            "5": figure_5.plot(figure_5.numbers(alphas, of), of),
            "6": figure_6.plot(figure_6.numbers(*sweeps, of), of),
            "7": figure_7.plot(figure_7.numbers(*main, *sweeps, of), of),
        }
        for name, figure in figures.items():
            png, pdf = style.save(figure, tmp_path / folder, name)
            assert png.read_bytes()[:4] == b"\x89PNG" and pdf.read_bytes()[:4] == b"%PDF"
            assert b"CreationDate" not in pdf.read_bytes()
    names = [f"{number}.{kind}" for number in "1234567" for kind in ("pdf", "png")]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = style.write(tmp_path / "table.csv", "old")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(style.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        style.write(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
