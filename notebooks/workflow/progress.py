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
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Estimate:
    """Time left, from what each task is expected to take and how the finished ones compared."""

    def __init__(self, expected: dict[str, float]):
        self.expected, self.started = dict(expected), time.monotonic()
        # 30 s as expected stand against the first measurements, so that a single fast task does
        # not swing the estimate.
        self.took = self.planned = 30.0
        self.current, self.begun = "", 0.0

    def begin(self, name: str) -> None:
        self.current, self.begun = name, time.monotonic()

    def end(self) -> float:
        took = time.monotonic() - self.begun
        self.took += took
        self.planned += self.expected.pop(self.current, took)
        self.current = ""
        return took

    def left(self) -> float:
        pace = self.took / self.planned
        # A task that outlives its expectation still has something to do.
        share = 0.9 * self.expected.get(self.current, 0.0)
        return pace * sum(self.expected.values()) - min(time.monotonic() - self.begun, pace * share)

    def __str__(self) -> str:
        return f"{clock(time.monotonic() - self.started)} so far, about {clock(self.left())} left"


class Screen:
    """Lines, and on a terminal the newest status below them; without one, a status now and then."""

    def __init__(self, stream: TextIO):
        self.stream, self.estimate, self.shown = stream, Estimate({}), 0.0
        self.clear = "\r\x1b[K" if stream.isatty() else ""

    def line(self, text: str) -> None:
        print(f"{self.clear}{text}", file=self.stream, flush=True)

    def status(self, text: str) -> None:
        """A notebook's own progress: the newest replaces the last."""
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
        self.pipeline, self.screen, self.failure = pipeline, screen, ""
        self.reasons: dict[str, str | None] = {}
        total, self.ran = str(len(pipeline.tasks)), 0
        numbered = enumerate(pipeline.tasks, 1)
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
        if task.name in self.heads:
            head, reason = self.heads[task.name], self.reasons[task.name]
            self.screen.line(f"{head}: {reason}   [{self.screen.estimate}]")
            self.screen.shown = time.monotonic() - _QUIET / 2  # its first progress comes early
            self.screen.estimate.begin(task.name)

    def add_success(self, task: DoitTask) -> None:
        if task.name in self.heads:
            self.screen.line(f"    done in {clock(self.screen.estimate.end())}")
            self.ran += 1

    def skip_uptodate(self, task: DoitTask) -> None:
        if task.name in self.heads:
            self.screen.estimate.expected.pop(task.name, None)
            self.screen.line(f"{self.heads[task.name]}: up to date")

    def add_failure(self, task: DoitTask, fail: BaseFail) -> None:
        """The task failed: what WorkflowError says, else the last line of the traceback."""
        lines = "".join(fail.traceback).strip().splitlines()
        self.failure = f"{task.name} failed: {lines[-1]}" if lines else fail.message
