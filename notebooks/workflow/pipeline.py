"""Tasks on one results folder, run by doit: what is stale, why, and only that again.

Every task becomes two of doit's. ``begin:<task>`` depends on parameters, input files and code, the
key; when one changed, it clears what the task had made and forgets that it was done. ``<task>`` has
the outputs as targets. So what was stopped half-way goes on if nothing changed, and results of two
keys never mix. doit's records lie in ``<results>/.doit.db``, on disk after each task.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from doit.control import TaskControl
from doit.dependency import DatabaseException, Dependency, SqliteDB
from doit.exceptions import TaskFailed
from doit.reporter import ZeroReporter
from doit.runner import Runner
from doit.task import Task as DoitTask

from fedecider.engine.files import digest
from notebooks.workflow.code_digest import PACKAGES, code_digest

# What later tasks read of a run folder; checkpoints and adapters are large and not read.
_TABLES = (".json", ".jsonl", ".csv", ".parquet")


class WorkflowError(Exception):
    """A task cannot run or failed; the message is for the user."""


@dataclass(frozen=True)
class Task:
    """One notebook with parameters, or one function. Patterns are relative to the results."""

    name: str
    entry: str  # the notebook, or the module of `call`, relative to the repository
    call: Callable[[Callable[[str], dict]], None] | None = None  # takes what gives tasks' records
    parameters: dict = field(default_factory=dict)
    where: dict = field(default_factory=dict)  # parameters that only say where things are
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # each must match a file in the end
    not_outputs: tuple[str, ...] = ()  # of tasks whose names begin alike
    sources: tuple[Path, ...] = ()  # the user's files, huge: known by name, size and time of change
    clears: tuple[str, ...] = ()  # folders whose content belongs to one key
    needs: tuple[str, ...] = ()  # names of the tasks that write the inputs
    modules: tuple[str, ...] = ()  # called, but not to be seen from imports
    packages: tuple[str, ...] = PACKAGES  # whose code counts
    in_report: bool = False
    seconds: float = 30.0  # expected, until a run has been measured


class _Records(Dependency):
    def save_success(self, task: DoitTask, result_hash: str | None = None) -> None:
        """As doit's, and on disk at once: a driver that is killed loses no record."""
        super().save_success(task, result_hash)
        self.backend.dump()  # closes the database
        self.backend._conn = self.backend._sqlite3(self.backend.name)


class Pipeline:
    """The tasks, in order, on the results folder that `open` makes the working directory.

    execute(task) runs a notebook; it raises WorkflowError with what to tell the user.
    """

    def __init__(self, tasks: list[Task], root: Path, execute: Callable[[Task], None]):
        self.tasks, self.root, self.execute = {task.name: task for task in tasks}, root, execute
        self.keys: dict[str, dict[str, dict[str, str]]] = {}
        self.control = TaskControl(
            [doit_task for task in tasks for doit_task in self._doit_tasks(task)]
        )
        self.control.process(None)

    @contextlib.contextmanager
    def open(self, results: Path) -> Iterator[None]:
        """Records at hand; two drivers do not work in one folder."""
        results.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(results), Path(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise WorkflowError(f"another make reproduce is at work in {results}") from None
            try:
                self.records = _Records(SqliteDB, os.path.abspath(".doit.db"))
            except DatabaseException as error:
                raise WorkflowError(" ".join(str(error).split())) from None
            yield

    def run(self, reporter: ZeroReporter) -> bool:
        """Run the stale tasks up to the first that fails; whether none did."""
        return Runner(self.records, reporter).run_all(self.control.task_dispatcher()) == 0

    def stale_reason(self, name: str) -> str | None:
        """None for a task that is up to date, else the reason to run it, for the user."""
        begin = self.control.tasks[f"begin:{name}"]
        status = self.records.get_status(begin, self.control.tasks, get_log=True)
        begun = self.records.get_values(begin.name)
        outputs = self.records.get_values(name).get("outputs")
        if not begun:
            return "first run"
        if outputs is None:
            same = status.status == "up-to-date"
            changed = "parameters, inputs or code changed since it was stopped"
            return "goes on from where it was stopped" if same else changed
        reasons = []
        for part, now in self.keys[name].items():
            before = begun.get(part, {})
            changed = {key for key in before | now if before.get(key) != now.get(key)}
            if part == "input":
                kinds = ("changed_file_dep", "added_file_dep", "removed_file_dep")
                changed |= {path for kind in kinds for path in status.reasons.get(kind, ())}
            if changed:
                more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
                reasons.append(f"{part} changed: {', '.join(sorted(changed)[:2])}{more}")
        return "; ".join([*reasons, *([] if reasons else _differences(outputs)[:1])]) or None

    def expected_seconds(self, name: str) -> float:
        """How long the task took last time, else what its kind usually takes."""
        measured = (self.records.get_values(key).get("seconds") for key in (name, f"begin:{name}"))
        return next(filter(None, measured), self.tasks[name].seconds)

    def _doit_tasks(self, task: Task) -> list[DoitTask]:
        begin, plain = f"begin:{task.name}", {"io": {"capture": False}}
        needs = [name for name in task.needs if name in self.tasks]
        exact = [pattern for pattern in task.outputs if "*" not in pattern]
        key, clear, work = (self._same_key, [task]), (self._clear, [task]), (self._work, [task])
        return [
            DoitTask(begin, [clear], task_dep=needs, uptodate=[key], **plain),
            DoitTask(
                task.name, [work], task_dep=[begin], targets=exact, uptodate=[_are_there], **plain
            ),
        ]

    def _same_key(self, task: DoitTask, values: dict, of: Task) -> bool:
        """For doit's `uptodate`; also lists the input files that there are by now."""
        task.file_dep = set(files(of.inputs))
        if not (self.root / of.entry).is_file():
            raise WorkflowError(f"{self.root / of.entry} is missing")
        self.keys[of.name] = {
            "parameter": _opened(of.parameters),
            "input": _states(of.sources),
            "code": code_digest(self.root, of.entry, of.modules, of.packages, of.in_report),
        }
        return all(values.get(part) == now for part, now in self.keys[of.name].items())

    def _clear(self, task: Task) -> dict:
        """Remove what belongs to another key, also what was made by hand from who knows what."""
        for folder in task.clears:
            shutil.rmtree(folder, ignore_errors=True)
        seconds = self.expected_seconds(task.name)
        self.records.remove(task.name)
        return {**self.keys[task.name], "seconds": seconds}

    def _work(self, task: Task) -> dict | TaskFailed:
        started = time.monotonic()
        try:
            task.call(self.records.get_values) if task.call else self.execute(task)
            for pattern in task.outputs:
                if not files((pattern,)):
                    path = Path.cwd() / pattern
                    raise WorkflowError(f"{task.name} ended without writing {path}")
        except WorkflowError as error:
            return TaskFailed(str(error))
        digests = {name: digest(Path(name)) for name in files(task.outputs, task.not_outputs)}
        return {"outputs": digests, "seconds": round(time.monotonic() - started, 1)}


def files(patterns: tuple[str, ...], but_not: tuple[str, ...] = ()) -> list[str]:
    """Files that match, relative to the working directory."""
    return sorted(
        path.as_posix()
        for path in {path for pattern in patterns for path in Path().glob(pattern)}
        if path.is_file()
        and path.name[0] != "."
        and (path.parts[0] not in ("runs", "sweeps") or path.suffix in _TABLES)
        and not any(fnmatch(path.as_posix(), pattern) for pattern in but_not)
    )


def _opened(parameters: dict) -> dict[str, str]:
    """Nested parameters by dotted names, so that a reason can name the one that changed."""
    groups = [(k, v if isinstance(v, dict) else {"": v}) for k, v in parameters.items()]
    values = {f"{k}.{name}".rstrip("."): v for k, group in groups for name, v in group.items()}
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items()}


def _states(sources: tuple[Path, ...]) -> dict[str, str]:
    states = {}
    for source in sources:
        for path in (path for path in [source, *source.rglob("*")] if path.is_file()):
            name, stat = f"{source.name}/{path.relative_to(source).as_posix()}", path.stat()
            states[name] = f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    return states


def _differences(outputs: dict[str, str]) -> list[str]:
    """What happened to the files of a finished task, from their digests."""
    there = {name: digest(Path(name)) for name in outputs if os.path.isfile(name)}
    changed = [name for name in outputs if there.get(name) != outputs[name]]
    return [f"output {'changed' if name in there else 'missing'}: {name}" for name in changed]


def _are_there(task: DoitTask, values: dict) -> bool:
    return "outputs" in values and not _differences(values["outputs"])
