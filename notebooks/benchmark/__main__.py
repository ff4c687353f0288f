"""Runs benchmark.ipynb by papermill and says where its table and figures are.

    python -m notebooks.benchmark --results results/bench

`make bench` calls this file. A benchmark is never up to date: it is measured anew every time.
"""

import argparse
import sys
from pathlib import Path

import yaml

from notebooks.workflow.__main__ import ROOT, use_absolute_cache
from notebooks.workflow.execute import bring_up_to_date
from notebooks.workflow.pipeline import Task, WorkflowError


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.benchmark", description=__doc__)
    parser.add_argument("--results", default="results/bench", help="folder of the results")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the notebook"
    )
    options = parser.parse_args(arguments)
    results = Path(options.results).absolute()
    pairs = (entry.partition("=") for entry in options.set)
    task = Task(
        name="benchmark",
        entry="notebooks/benchmark.ipynb",
        parameters={name: yaml.safe_load(value) for name, _, value in pairs},
        where={"results": str(results)},
        outputs=("tables/benchmark*", "figures/benchmark*"),
        seconds=600,
    )
    (results / ".doit.db").unlink(missing_ok=True)
    try:
        bring_up_to_date([task], results, ROOT)
    except WorkflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print((results / "tables" / "benchmark.md").read_text())
    print(f"folder: {results}")
    return 0


if __name__ == "__main__":
    use_absolute_cache()
    sys.exit(main())
