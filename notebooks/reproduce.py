"""From raw data to the report: runs a preset's notebooks in order, only those that are not current.

    python -m notebooks.reproduce --preset demo --results results/demo

Notebooks run by papermill in this very Python. `make reproduce` calls this file.
"""

import argparse
import ast
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# papermill's own log lines say what the lines of this driver say
logging.getLogger("papermill").setLevel(logging.ERROR)

import nbformat  # noqa: E402
import papermill  # noqa: E402
from jupyter_client import AsyncKernelManager  # noqa: E402
from jupyter_client.kernelspec import KernelSpec  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

from notebooks import plan, report, stages  # noqa: E402
from notebooks.progress import Estimate, Output, Screen, clock  # noqa: E402
from notebooks.stages import Stage, StageError  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


class ThisPython(AsyncKernelManager):
    """Kernels of the Python that runs the driver, whatever else is installed as "python3"."""

    said: (
        Path  # file for what the process says outside its cells: start-up warnings, a crash's trace
    )

    @property
    def kernel_spec(self) -> KernelSpec:
        """A spec made on the spot, so no kernel folder is looked up."""
        return KernelSpec(
            argv=[sys.executable, "-X", "faulthandler", "-m", "ipykernel_launcher"]
            + ["-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
            env={
                # Figures belong into the notebook, also where the caller's shell asks for Agg.
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                # With every version pinned, what a library plans to change is of no use here.
                "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
            },
        )

    async def start_kernel(self, **options) -> None:
        """As the parent's, the process's own output going to the log."""
        with self.said.open("wb") as log:
            await super().start_kernel(**{**options, "stdout": log, "stderr": log})


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.reproduce",
        description="Run a preset's notebooks, those that are not up to date, and its report.",
    )
    parser.add_argument("--preset", default="demo", help="a name in notebooks/presets, or a file")
    parser.add_argument("--results", help="folder of the results (default: results/<preset>)")
    parser.add_argument("--goodreads", help="folder with the Goodreads dumps (or plain tables)")
    parser.add_argument("--amazon", help="folder with the Amazon dumps (or plain tables)")
    parser.add_argument("--model", help="hub id or folder of a causal language model")
    parser.add_argument("--datasets", nargs="+", help="only these of the preset's data sets")
    chosen = parser.parse_args(arguments)
    # Stopping by a signal is the same as by Ctrl-C: kernels are ended, nothing is half-stamped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(chosen)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(chosen: argparse.Namespace) -> int:
    name = Path(chosen.preset).stem
    results = Path(chosen.results or ROOT / "results" / name).absolute()
    preset = plan.given(
        plan.load(chosen.preset, ROOT),
        name,
        ROOT,
        chosen.goodreads,
        chosen.amazon,
        chosen.model,
        chosen.datasets,
    )
    todo = plan.stages(preset, results, ROOT)
    todo.append(report.stage(name, preset, todo, results))
    ran, seconds = bring_up_to_date(todo, results, ROOT)
    words = f"{ran} of {len(todo)} stages ran, {clock(seconds)}" if ran else "everything up to date"
    print(f"done: {words}\nreport: {results / 'report.html'}\nfolder: {results}")
    return 0


def bring_up_to_date(
    todo: list[Stage], results: Path, root: Path, stream=None
) -> tuple[int, float]:
    """Run the stages that are not up to date, in order; (how many ran, seconds in all).

    ``root`` is the repository: notebooks lie in root/notebooks and run there. Raises StageError,
    with the reason in one line, at the first stage that fails.
    """
    results.mkdir(parents=True, exist_ok=True)
    with _alone(results):
        stale: dict[str, float] = {}
        for stage in todo:
            current = stages.key(stage, results, root)
            if stages.why(stage, results, current) or stale.keys() & set(stage.needs):
                stale[stage.name] = stages.expected_seconds(stage, results)
        estimate, ran = Estimate(stale), 0
        with Screen(estimate, stream) as screen:
            for number, stage in enumerate(todo, 1):
                place = f"[{number:{len(str(len(todo)))}}/{len(todo)}] {stage.name}"
                current = stages.key(stage, results, root)
                reason = stages.why(stage, results, current)
                if reason is None:
                    estimate.skip(stage.name)
                    screen.line(f"{place}: up to date")
                    continue
                screen.line(f"{place}: {reason}   [{estimate.words()}]")
                screen.stage()
                estimate.begin(stage.name)
                stages.begin(stage, results, current)
                if stage.notebook:
                    _execute(stage, results, root, screen)
                else:
                    stage.call(results)
                took = estimate.end()
                stages.finish(stage, results, current, took)
                screen.line(f"    done in {clock(took)}")
                ran += 1
        return ran, estimate.gone()


def _execute(stage: Stage, results: Path, root: Path, screen: Screen) -> None:
    notebook = root / "notebooks" / f"{stage.notebook}.ipynb"
    parameters = {**stage.unkeyed, **stage.parameters}
    # papermill only warns of a name that the notebook does not have, and runs with its default
    unknown = sorted(parameters.keys() - _parameters(notebook))
    if unknown:
        raise StageError(f"{notebook.name} has no parameter {unknown[0]!r}")
    executed = results / "notebooks" / f"{stage.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    log = executed.with_suffix(".log")
    # What a notebook prints stands in the executed notebook; its bars and warnings are shown here.
    printed, output = Output(screen, passing=True), Output(screen)
    try:
        papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            cwd=notebook.parent,
            kernel_name="python3",
            kernel_manager_class=type("Kernel", (ThisPython,), {"said": log}),
            progress_bar=False,
            stdout_file=printed,
            stderr_file=output,
        )
    except PapermillExecutionError as error:
        last = f"{error.ename}: {error.evalue}".strip().splitlines()
        message = last[0] if len(last) == 1 else f"{last[0]} ... {last[-1]}"
        raise StageError(f"{stage.name} failed: {message}\nthe notebook: {executed}") from error
    except DeadKernelError as error:
        raise StageError(
            f"{stage.name} failed: its process died, most likely for want of memory\n"
            f"the notebook: {executed}\nwhat the process said last: {log}"
        ) from error
    finally:
        output.close()


def _parameters(notebook: Path) -> set[str]:
    """Names that the cell tagged `parameters` sets."""
    return {
        target.id
        for cell in nbformat.read(notebook, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
        for node in ast.parse(cell.source).body
        for target in (
            getattr(node, "targets", None) or ([node.target] if hasattr(node, "target") else [])
        )
        if isinstance(target, ast.Name)
    }


@contextlib.contextmanager
def _alone(results: Path) -> Iterator[None]:
    """Two drivers must not work in one folder."""
    with (results / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StageError(f"another make reproduce is at work in {results}") from None
        yield


if __name__ == "__main__":
    # Absolute, since notebooks run in another folder.
    os.environ["FEDECIDER_CACHE"] = os.path.abspath(
        os.environ.get("FEDECIDER_CACHE") or ROOT / ".cache"
    )
    sys.exit(main())
