"""What the user sees while notebooks run: lines, one overall bar, and the time left."""

import re
import shutil
import sys
import threading
import time

from tqdm import tqdm

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
    """Time left, from what each stage is expected to take and how the finished ones compared."""

    # An expectation of this weight stands against the first measurements, so that a single fast
    # stage does not swing the estimate.
    _PRIOR = 30.0

    def __init__(self, expected: dict[str, float]):
        self.expected = dict(expected)
        self.started = time.monotonic()
        self._done = self._planned = 0.0
        self._current: tuple[str, float] | None = None

    def begin(self, name: str) -> None:
        self._current = (name, time.monotonic())

    def end(self) -> float:
        """Seconds that the current stage took."""
        name, started = self._current
        took = time.monotonic() - started
        self._done += took
        self._planned += self.expected.pop(name, took)
        self._current = None
        return took

    def skip(self, name: str) -> None:
        """The stage turned out to be up to date."""
        self.expected.pop(name, None)

    def left(self) -> float:
        pace = (self._done + self._PRIOR) / (self._planned + self._PRIOR)
        left = pace * sum(self.expected.values())
        if self._current:
            name, started = self._current
            mine = pace * self.expected.get(name, 0.0)
            # A stage that outlives its expectation still has something to do.
            left -= min(time.monotonic() - started, 0.9 * mine)
        return left

    def gone(self) -> float:
        return time.monotonic() - self.started

    def words(self) -> str:
        return f"{clock(self.gone())} so far, about {clock(self.left())} left"


class Screen:
    """A bar and a status line at the bottom of a terminal; plain lines anywhere else."""

    def __init__(self, estimate: Estimate, stream=None):
        self.estimate, self.stream = estimate, stream or sys.stdout
        self.live = self.stream.isatty()
        self._bar = self._status = None
        self._stop = threading.Event()
        self._said = 0.0

    def __enter__(self) -> "Screen":
        if self.live:
            self._bar = tqdm(
                total=1.0,
                file=self.stream,
                bar_format="{percentage:3.0f}% |{bar:30}| {desc}",
                position=0,
                leave=False,
            )
            self._status = tqdm(file=self.stream, bar_format="{desc}", position=1, leave=False)
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self._stop.set()
            self._ticker.join()
            self._status.close()
            self._bar.close()

    def line(self, text: str) -> None:
        if self.live:
            tqdm.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def status(self, text: str) -> None:
        """A notebook's own progress: the newest replaces the last."""
        if self.live:
            width = shutil.get_terminal_size().columns - 3
            self._status.set_description_str(f"  {text.strip()}"[:width])
        elif time.monotonic() - self._said > _QUIET:
            self._said = time.monotonic()
            self.line(f"    {text.strip()}   [{self.estimate.words()}]")

    def stage(self) -> None:
        """A stage begins: its first progress line is not held back for long."""
        self._said = time.monotonic() - _QUIET / 2
        if self.live:
            self._status.set_description_str("")

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            gone, left = self.estimate.gone(), self.estimate.left()
            self._bar.n = gone / max(gone + left, 1e-9)
            self._bar.set_description_str(self.estimate.words())


class Output:
    """File-like receiver of a kernel's text: whole lines are printed, rewritten ones are status.

    A little terminal. tqdm in a notebook writes its bar over and over, each time after a carriage
    return; a bar below another goes down a line first and up again (ESC [ A) afterwards. So a line
    is printed once nothing can come back to it. ``passing``: whole lines are status too.
    """

    _NESTED = 3  # bars below bars, at most

    def __init__(self, screen: Screen, passing: bool = False):
        self.screen, self.passing = screen, passing
        self._rows, self._row = [""], 0  # lines not yet printed, and the cursor's
        self._bars = [False]  # which of them were rewritten
        self._returned, self._held = False, ""

    def write(self, text: str) -> int:
        pieces = re.split("(\x1b\\[?[0-9;]*$)", self._held + text.replace("\r\n", "\n"))
        self._held = "".join(pieces[1:])  # an escape sequence that has not ended
        for token in _TOKENS.findall(pieces[0]):
            if token == "\n":
                self._row, self._returned = self._row + 1, False
                if self._row == len(self._rows):
                    self._rows.append("")
                    self._bars.append(False)
                self._print(self._row - self._NESTED)
                while self._row and not self._bars[0]:
                    self._print(1)
            elif token == "\r":
                self._returned = True
            elif token == "\x1b[A":
                self._row = max(self._row - 1, 0)
            elif token[0] != "\x1b":
                self._text(token)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back that could be shown; close() prints the last lines."""

    def close(self) -> None:
        """Print what is left."""
        self._print(len(self._rows) - 1)
        self._line(self._rows.pop())
        self._rows, self._bars, self._row = [""], [False], 0

    def _text(self, text: str) -> None:
        if self._returned:
            self._rows[self._row], self._bars[self._row], self._returned = text, True, False
            if text.strip():
                self.screen.status(text)
            return
        if not self._rows[self._row]:  # ordinary text begins a line: what is above is done
            self._print(self._row)
        self._rows[self._row] += text

    def _print(self, number: int) -> None:
        for _ in range(number):
            self._line(self._rows.pop(0))
            self._bars.pop(0)
            self._row -= 1

    def _line(self, text: str) -> None:
        if text.strip():
            (self.screen.status if self.passing else self.screen.line)(f"    {text.rstrip()}")


_TOKENS = re.compile("\x1b\\[[0-9;]*[A-Za-z]|\x1b|[\r\n]|[^\r\n\x1b]+")
