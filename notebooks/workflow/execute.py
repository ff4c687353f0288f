"""Runs the stale notebooks of a pipeline by papermill, in this very Python."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import TextIO

logging.getLogger("papermill").setLevel(logging.ERROR)  # it would repeat the workflow's own lines

import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

from notebooks.workflow.pipeline import Pipeline, Task, WorkflowError  # noqa: E402
from notebooks.workflow.preset import refuse_unknown  # noqa: E402
from notebooks.workflow.progress import Output, Reporter, Screen  # noqa: E402


class ThisPython(AsyncKernelManager):
    """Kernels of the Python that runs the workflow, whatever else is installed as "python3"."""

    # Takes what the process says outside its cells: start-up warnings, a crash's trace.
    process_log: Path

    @property
    def kernel_spec(self) -> KernelSpec:
        """A spec made on the spot, so no kernel folder is looked up."""
        argv = [sys.executable, "-X", "faulthandler", "-m", "ipykernel_launcher"]
        return KernelSpec(
            argv=[*argv, "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            env={
                # Figures belong into the notebook, also where the caller's shell asks for Agg.
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                # With every version pinned, what a library plans to change is of no use here.
                "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
                "TQDM_POSITION": "0",  # see progress.Output
            },
        )

    async def start_kernel(self, **options) -> None:
        """As the parent's, the process's own output going to the log."""
        with self.process_log.open("wb") as log:
            await super().start_kernel(**{**options, "stdout": log, "stderr": log})


def bring_up_to_date(
    tasks: list[Task], results: Path, root: Path, stream: TextIO | None = None
) -> tuple[int, float]:
    """Run the tasks that are not up to date, in order; (how many ran, seconds in all).

    ``root`` is the repository: notebooks lie in root/notebooks and run there. Raises WorkflowError,
    with the reason in one or two lines, at the first task that fails.
    """
    started, screen = time.monotonic(), Screen(stream or sys.stdout)
    pipeline = Pipeline(tasks, root, lambda task: _run_notebook(task, results, root, screen))
    reporter = Reporter(pipeline, screen)
    with pipeline.open(results):
        if not pipeline.run(reporter):
            raise WorkflowError(reporter.failure)
    return reporter.ran, time.monotonic() - started


def _run_notebook(task: Task, results: Path, root: Path, screen: Screen) -> None:
    """Execute into results/notebooks/<task>.ipynb."""
    notebook, parameters = root / task.entry, {**task.where, **task.parameters}
    # papermill only warns of a name that the notebook does not have, and runs with its default
    known = papermill.inspect_notebook(notebook)
    refuse_unknown(parameters, known, f"{notebook.name} has no parameter")
    executed = results / "notebooks" / f"{task.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    log = executed.with_suffix(".log")
    # What a notebook prints stands in the executed notebook; its bars and warnings are shown here.
    printed, warned = Output(screen, passing=True), Output(screen)
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            cwd=notebook.parent,
            kernel_name="python3",
            kernel_manager_class=type("Kernel", (ThisPython,), {"process_log": log}),
            progress_bar=False,
            stdout_file=printed,
            stderr_file=warned,
        )
    except PapermillExecutionError as error:
        first, *rest = f"{error.ename}: {error.evalue}".strip().splitlines()
        message = " ... ".join([first, *rest[-1:]])
        raise WorkflowError(f"{task.name} failed: {message}\nthe notebook: {executed}") from error
    except DeadKernelError as error:
        raise WorkflowError(
            f"{task.name} failed: its process died, most likely for want of memory\n"
            f"the notebook: {executed}\nwhat the process said last: {log}"
        ) from error
    finally:
        warned.write("\n")
