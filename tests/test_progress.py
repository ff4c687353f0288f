"""What a notebook's output becomes on a terminal, and the time left."""

import io

import pytest

from notebooks.progress import Estimate, Output, Screen, clock


def shown(*texts: str, passing: bool = False) -> list[str]:
    """Lines that a user without a terminal sees of a kernel's text."""
    stream = io.StringIO()
    output = Output(Screen(Estimate({"a": 60.0}), stream), passing)
    for text in texts:
        output.write(text)
    output.close()
    return [line.split("   [")[0].strip() for line in stream.getvalue().splitlines()]


def test_progress_bars_of_a_notebook_become_a_few_lines():
    bar = ["\r  0%|  | 0/9", "\r 50%|# | 5/9", "\r100%|##| 9/9\n"]
    expected = ["round 1", "round 2", "0%|  | 0/9", "100%|##| 9/9", "the end"]
    # after the first bar line there is silence for half a minute
    assert shown("round 1\nrou", "nd 2\n", *bar, "the end") == expected
    assert shown("".join(["round 1\nround 2\n", *bar[:1]]), *bar[1:], "the end\n") == expected
    assert shown("round 1\n", *bar, passing=True) == ["round 1"]


def test_nested_bars_and_their_cursor_moves_leave_no_lines_behind():
    inner = "\n\r{} users\x1b[A"
    pieces = ["\r 33%|# | 1/3", inner.format(1), inner.format(2), "\n\r       \r\x1b[A"]
    pieces += ["\r100%|##| 3/3", "\n", "\r  0%| next", "\r100%| next", "\n"]
    expected = ["33%|# | 1/3", "100%|##| 3/3", "100%| next"]
    assert shown(*pieces) == expected
    text = "".join(pieces)
    for size in (1, 2, 3, 7):  # however the stream is cut
        lines = shown(*(text[i : i + size] for i in range(0, len(text), size)))
        assert lines[-2:] == expected[-2:] and len(lines) == 3, size
    # two levels down
    deep = "\n\n\r{}\x1b[A\x1b[A"
    assert shown("\r0%", deep.format("deep"), deep.format("    "), "\r100%\n") == ["0%", "100%"]


def test_time_left_follows_what_was_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("notebooks.progress.time.monotonic", lambda: now[0])
    estimate = Estimate({"a": 100.0, "b": 100.0, "c": 100.0})
    assert estimate.left() == 300
    estimate.begin("a")
    now[0] = 40.0
    assert estimate.left() == 260
    now[0] = 400.0  # longer than expected: never nothing left of the stage itself
    assert estimate.left() == pytest.approx(210)
    assert estimate.end() == 400
    # 430 s for 130 s (the prior counts 30 s on both sides)
    assert estimate.left() == pytest.approx(200 * 430 / 130)
    estimate.skip("b")
    assert estimate.left() == pytest.approx(100 * 430 / 130)
    assert [clock(s) for s in (8.4, 130, 3900)] == ["8 s", "2 min 10 s", "1 h 5 min"]
