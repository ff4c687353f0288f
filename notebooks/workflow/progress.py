"""What the user sees while tasks run: a line per task, a notebook's own bars, and the time left."""

import re
import shutil
import time
from typing import TextIO

from doit.exceptions import BaseFail
from doit.reporter import ZeroReporter
from doit.task import Task as DoitTask

from notebooks.workflow.pipeline import Pipeline

_QUIET = 30.0  # seconds between a notebook's progress lines where there is no terminal


def clock(seconds: float) -> str:
    """8 s, 2 min 10 s, 1 h 5 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    short = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{hours} h {minutes} min" if hours else short


class Estimate:
    """Time left: the work that is left, at the pace of the work that was done in this run.

    Work is counted in expected seconds. The running task ends as expected at that pace, or later:
    no sooner than each of its bars says by its own speed, and once it outlives all of these it is
    taken to have a tenth of its time still before it. What it thus takes counts for the pace, too.
    """

    def __init__(self, expected: dict[str, float]):
        self.expected, self.started = dict(expected), time.monotonic()
        # 30 s as expected stand against the first measurements, so that a single fast task does
        # not swing the estimate.
        self.took = self.planned = 30.0
        self.current, self.begun = "", 0.0
        self.bars: dict[str, tuple[float, int]] = {}  # title -> when and at which % first seen
        self.ends: dict[str, float] = {}  # title -> when it will be full

    def begin(self, name: str) -> None:
        """The task of that name starts now; its bars are yet to come."""
        self.current, self.begun, self.bars, self.ends = name, time.monotonic(), {}, {}

    def see(self, text: str) -> None:
        """A line of the running task; a tqdm bar in it says how much of its work is done."""
        if bar := re.search(r"(.*?)(\d+)%\|", text):
            now, title, percent = time.monotonic(), bar[1].strip(), int(bar[2])
            since, first = self.bars.setdefault(title, (now, percent))
            if percent < first:  # another bar of that title
                self.bars[title] = now, percent
            elif percent > first:
                self.ends[title] = now + (now - since) * (100 - percent) / (percent - first)

    def end(self) -> float:
        """The running task is done; the seconds that it took."""
        took = time.monotonic() - self.begun
        self.took += took
        self.planned += self.expected.pop(self.current, took)
        self.current = ""
        return took

    def left(self) -> float:
        """Seconds until all expected tasks are done, the running one included."""
        took, planned, rest = self.took, self.planned, 0.0
        if expected := self.expected.get(self.current):
            now = time.monotonic()
            end = max(self.begun + expected * took / planned, *self.ends.values(), now)
            rest = max(end - now, (now - self.begun) / 10)
            took, planned = took + now + rest - self.begun, planned + expected
        others = sum(self.expected.values()) - (expected or 0.0)
        return rest + others * took / planned

    def __str__(self) -> str:
        return f"{clock(time.monotonic() - self.started)} so far, about {clock(self.left())} left"


class Screen:
    """Lines, and on a terminal the newest status below them; without one, a status now and then."""

    def __init__(self, stream: TextIO):
        self.stream, self.estimate, self.shown = stream, Estimate({}), 0.0
        self.clear = "\r\x1b[K" if stream.isatty() else ""

    def line(self, text: str) -> None:
        """A line that stays, in place of the status if one is shown."""
        self.estimate.see(text)  # the last state of a bar is a line
        print(f"{self.clear}{text}", file=self.stream, flush=True)

    def status(self, text: str) -> None:
        """A notebook's own progress: the newest replaces the last."""
        self.estimate.see(text)
        text = f"    {text.strip()}   [{self.estimate}]"
        if self.clear:
            width = shutil.get_terminal_size().columns - 1
            print(f"{self.clear}{text[:width]}", end="", file=self.stream, flush=True)
        elif time.monotonic() - self.shown > _QUIET:
            self.shown = time.monotonic()
            self.line(text)


class Output:
    """File-like receiver of a kernel's text: lines are printed, a bar's rewritten one is status.

    tqdm writes a bar over and over, each time after a carriage return; kernels run with
    TQDM_POSITION=0, so bars below bars share that line. ``passing``: whole lines are status too.
    """

    def __init__(self, screen: Screen, passing: bool = False):
        self.show, self.screen, self.rest = screen.status if passing else screen.line, screen, ""

    def write(self, text: str) -> int:
        """Show the lines that are complete and the newest state of a bar; the length of text."""
        *lines, self.rest = re.split(r"\r?\n", self.rest + text)
        for line in lines:
            if last := line.rstrip("\r").rpartition("\r")[2].rstrip():
                self.show(f"    {last}")
        *rewritten, last = self.rest.rstrip("\r").split("\r")
        if rewritten and last.strip():
            self.screen.status(last)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back that could be shown; a last line break prints the rest."""


class Reporter(ZeroReporter):
    """doit's reporter: a line per task that says why it runs, and how long it took."""

    def __init__(self, pipeline: Pipeline, screen: Screen):
        super().__init__(screen.stream, {})
        self.pipeline, self.screen, self.failure, self.ran = pipeline, screen, "", 0
        self.reasons: dict[str, str | None] = {}
        total, numbered = str(len(pipeline.tasks)), enumerate(pipeline.tasks, 1)
        self.heads = {name: f"[{i:{len(total)}}/{total}] {name}" for i, name in numbered}

    def initialize(self, tasks: dict[str, DoitTask], selected: list[str]) -> None:
        """Expect every task that is stale, or reads what a stale one writes."""
        expected: dict[str, float] = {}
        for name, task in self.pipeline.tasks.items():
            if self.pipeline.stale_reason(name) or expected.keys() & set(task.needs):
                expected[name] = self.pipeline.expected_seconds(name)
        self.screen.estimate = Estimate(expected)

    def get_status(self, task: DoitTask) -> None:
        """The reason has to be told before `begin:<task>` makes doit forget it."""
        name = task.name.removeprefix("begin:")
        if name != task.name:
            self.reasons[name] = self.pipeline.stale_reason(name)

    def execute_task(self, task: DoitTask) -> None:
        """Print the task's number, name and reason, and the time left."""
        if task.name in self.heads:
            reason = f"{self.reasons[task.name]}   [{self.screen.estimate}]"
            self.screen.line(f"{self.heads[task.name]}: {reason}")
            self.screen.shown = time.monotonic() - _QUIET / 2  # its first progress comes early
            self.screen.estimate.begin(task.name)

    def add_success(self, task: DoitTask) -> None:
        """Count the task and print how long it took."""
        if task.name in self.heads:
            self.screen.line(f"    done in {clock(self.screen.estimate.end())}")
            self.ran += 1

    def skip_uptodate(self, task: DoitTask) -> None:
        """Print that nothing is to be done; the estimate expects the task no more."""
        if task.name in self.heads:
            self.screen.estimate.expected.pop(task.name, None)
            self.screen.line(f"{self.heads[task.name]}: up to date")

    def add_failure(self, task: DoitTask, fail: BaseFail) -> None:
        """The task failed: what WorkflowError says, else the last line of the traceback."""
        lines = "".join(fail.traceback).strip().splitlines()
        self.failure = f"{task.name} failed: {lines[-1]}" if lines else fail.message
