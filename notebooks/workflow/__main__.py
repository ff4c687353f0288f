"""From raw data to the report: runs a preset's notebooks in order, only those that are stale.

python -m notebooks.workflow --preset demo --results results/demo
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from notebooks.workflow import preset as presets
from notebooks.workflow import report
from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import WorkflowError
from notebooks.workflow.progress import clock
from notebooks.workflow.tasks import tasks

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.workflow",
        description="Run a preset's notebooks, those that are not up to date, and its report.",
    )
    parser.add_argument("--preset", default="demo", help="a name in notebooks/presets, or a file")
    parser.add_argument("--results", help="folder of the results (default: results/<preset>)")
    parser.add_argument("--goodreads", help="folder with the Goodreads dumps (or plain tables)")
    parser.add_argument("--amazon", help="folder with the Amazon dumps (or plain tables)")
    parser.add_argument("--model", help="hub id or folder of a causal language model")
    parser.add_argument("--datasets", nargs="+", help="only these of the preset's data sets")
    # Stopping by a signal is the same as by Ctrl-C: kernels are ended, nothing is half-recorded.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(parser.parse_args(arguments))
    except WorkflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    name = Path(options.preset).stem
    results = Path(options.results or ROOT / "results" / name).absolute()
    folders = {"goodreads": options.goodreads, "amazon": options.amazon}
    preset = presets.load(options.preset, ROOT)
    preset = presets.complete(preset, name, ROOT, folders, options.model, options.datasets)
    todo = tasks(preset, results, ROOT)
    todo.append(report.task(name, preset, todo))
    ran, seconds = bring_up_to_date(todo, results, ROOT)
    words = f"{ran} of {len(todo)} tasks ran, {clock(seconds)}" if ran else "everything up to date"
    print(f"done: {words}\nreport: {results / 'report.html'}\nfolder: {results}")
    return 0


def use_absolute_cache() -> None:
    """Notebooks run in another folder."""
    cache = os.environ.get("FEDECIDER_CACHE") or ROOT / ".cache"
    os.environ["FEDECIDER_CACHE"] = os.path.abspath(cache)


if __name__ == "__main__":
    use_absolute_cache()
    sys.exit(main())
