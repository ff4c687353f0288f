"""What a notebook's output becomes on a terminal, and the time left."""

import io
import os
import subprocess
import sys

import pytest

from notebooks.workflow.progress import Estimate, Output, Screen, clock


def shown(*texts: str, passing: bool = False) -> list[str]:
    """Lines that a user without a terminal sees of a kernel's text."""
    stream = io.StringIO()
    output = Output(Screen(stream), passing)
    for text in texts:
        output.write(text)
    output.write("\n")
    return [line.split("   [")[0].strip() for line in stream.getvalue().splitlines()]


def test_progress_bars_of_a_notebook_become_a_few_lines():
    bar = ["\r  0%|  | 0/9", "\r 50%|# | 5/9", "\r100%|##| 9/9\n"]
    expected = ["round 1", "round 2", "0%|  | 0/9", "100%|##| 9/9", "the end"]
    # after the first bar line there is silence for half a minute
    assert shown("round 1\nrou", "nd 2\n", *bar, "the end") == expected
    assert shown("".join(["round 1\nround 2\n", *bar[:1]]), *bar[1:], "the end\n") == expected
    assert shown("round 1\n", *bar, passing=True) == ["round 1"]


def test_nested_bars_leave_no_lines_behind():
    """As tqdm writes them at TQDM_POSITION=0, at two and three levels."""
    code = (
        "from tqdm import tqdm\n"
        "for _ in tqdm(range(3), desc='outer', mininterval=0):\n"
        "    for _ in tqdm(range(2), desc='inner', leave=False, mininterval=0):\n"
        "        list(tqdm(range(2), desc='deep', leave=False, mininterval=0))\n"
        "list(tqdm(range(3), desc='next', mininterval=0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TQDM_POSITION": "0"},
        stderr=subprocess.PIPE,
        check=True,
    )
    text = done.stderr.decode()
    assert "deep" in text and "\x1b" not in text
    for size in (1, 2, 3, 7, len(text)):  # however the stream is cut
        lines = shown(*(text[i : i + size] for i in range(0, len(text), size)))
        *status, outer, after = lines
        assert "outer: 100%" in outer and "next: 100%" in after and len(status) <= 1, size


def test_a_terminal_shows_the_newest_status_below_the_lines():
    stream = io.StringIO()
    stream.isatty = lambda: True
    screen = Screen(stream)
    screen.status("1/9")
    screen.status("2/9")
    screen.line("done")
    clear = "\r\x1b[K"
    first, second, last = stream.getvalue().split(clear)[1:]
    assert "1/9" in first and "2/9" in second and "left]" in second and "\n" not in first + second
    assert last == "done\n"


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time, to be set."""
    time = [0.0]
    monkeypatch.setattr("notebooks.workflow.progress.time.monotonic", lambda: time[0])
    return time


def test_time_left_follows_what_was_measured(now):
    estimate = Estimate({"a": 100.0, "b": 100.0, "c": 100.0})
    assert estimate.left() == 300
    estimate.begin("a")
    now[0] = 40.0
    assert estimate.left() == 260
    now[0] = 400.0  # longer than expected: a tenth is left of the task, and the others take as long
    assert estimate.left() == pytest.approx(40 + 200 * (30 + 440) / 130)
    assert estimate.end() == 400
    # 430 s for 130 s (the prior counts 30 s on both sides)
    assert estimate.left() == pytest.approx(200 * 430 / 130)
    estimate.expected.pop("b")  # turned out to be up to date
    assert estimate.left() == pytest.approx(100 * 430 / 130)
    assert [clock(s) for s in (8.4, 130, 3900)] == ["8 s", "2 min 10 s", "1 h 5 min"]


def test_a_bar_says_the_least_that_a_task_still_takes(now):
    estimate = Estimate({"a": 100.0, "b": 100.0})
    estimate.begin("a")
    now[0] = 10.0
    estimate.see("train:  20%|##        | 2/10")  # goes on from a checkpoint
    now[0] = 110.0
    estimate.see("train:  30%|###       | 3/10")  # 10 % in 100 s
    assert estimate.left() == pytest.approx(700 + 100 * (30 + 810) / 130)
    now[0] = 210.0
    estimate.see("inner: 100%|##########| 9/9")  # says nothing of the task's own bar
    assert estimate.left() == pytest.approx(600 + 100 * (30 + 810) / 130)
    now[0] = 310.0
    estimate.see("train:  90%|######### | 9/10")  # the machine is free again
    assert estimate.left() == pytest.approx(300 / 7 + 100 * (30 + 310 + 300 / 7) / 130)
    estimate.see("no bar, and 50% of nothing")
    estimate.end()
    estimate.begin("b")  # bars are the last task's
    assert estimate.left() == pytest.approx(100 * 340 / 130)


def test_bars_in_a_notebook_s_text_reach_the_estimate(now):
    screen = Screen(io.StringIO())
    screen.estimate = Estimate({"a": 10.0, "b": 100.0})
    screen.estimate.begin("a")
    output = Output(screen)
    output.write("\rtrain:   0%|   | 0/4")
    now[0] = 100.0
    output.write("\rtrain:  25%|#  | 1/4")
    assert screen.estimate.left() == pytest.approx(300 + 100 * (30 + 400) / 40)
    now[0] = 120.0  # ends early
    output.write("\rtrain: 100%|###| 4/4\n")
    assert screen.estimate.left() == pytest.approx(12 + 100 * (30 + 132) / 40)


def test_time_left_does_not_stand_still_on_a_busy_machine(now):
    """A single task that takes thirty times as long as expected, without any bar."""
    estimate = Estimate({"a": 120.0})
    estimate.begin("a")
    left = []
    for now[0] in (600.0, 1800.0, 3600.0):
        left.append(estimate.left())
    assert left == [60, 180, 360]
