"""Runs benchmark.ipynb by papermill and says where its table and figures are.

    python -m notebooks.bench --results results/bench

`make bench` calls this file. A benchmark is never up to date: it is measured anew every time.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import yaml
from notebooks.reproduce import ROOT, bring_up_to_date
from notebooks.stages import Stage, StageError


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.bench", description=__doc__)
    parser.add_argument("--results", default="results/bench", help="folder of the results")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="parameters of the notebook"
    )
    chosen = parser.parse_args(arguments)
    results = Path(chosen.results).absolute()
    pairs = (entry.partition("=") for entry in chosen.set)
    parameters = {name: yaml.safe_load(value) for name, _, value in pairs}
    stage = Stage(
        name="benchmark",
        notebook="benchmark",
        parameters=parameters,
        unkeyed={"results": str(results)},
        outputs=("tables/benchmark*", "figures/benchmark*"),
        seconds=600,
    )
    shutil.rmtree(results / "stages", ignore_errors=True)
    try:
        bring_up_to_date([stage], results, ROOT)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print((results / "tables" / "benchmark.md").read_text())
    print(f"folder: {results}")
    return 0


if __name__ == "__main__":
    os.environ["FEDECIDER_CACHE"] = os.path.abspath(
        os.environ.get("FEDECIDER_CACHE") or ROOT / ".cache"
    )
    sys.exit(main())
