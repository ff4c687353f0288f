"""The gallery: small result files of runs, gathered as they are finished, and pictures of them.

    python -m notebooks.gallery sample

takes the finished runs of results/<preset> into figures/gallery/<preset>, beside those that are
there already, draws the figures and tables of all of them anew, and writes their summary, for
sample also into the README. What goes in is derived: no row of a data set (users are numbered, not
named) and no weights. `--draw` only draws.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import pandas as pd

from fedecider import runs
from figures import summary
from notebooks import plan, reproduce
from notebooks.stages import Stage, StageError

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("runs", "sweeps")
# In this order: a run that has result.json is finished, here as everywhere.
_FILES = ("config.json", "metrics.csv", "rounds.csv", "alphas.csv")
_SHOWN = (".png", ".csv", ".md", ".tex")


def take(results: Path, gallery: Path) -> list[str]:
    """Copy the small files of every finished run; names of the runs that are new or changed.

    Raises StageError, before anything is written, for a run on other data than those of the same
    data set in the gallery: their users would not be the same.
    """
    found = [run for kind in KINDS for run in runs.finished(results / kind)]
    configs = {run: json.loads((run / "config.json").read_text()) for run in found}
    digests = _digests(gallery)
    for run, config in configs.items():
        kind, digest = run.relative_to(results).parts[0], config["data_digest"]
        if digests.setdefault(_read_by(config, kind), digest) != digest:
            raise StageError(
                f"{run} ran on other data than the {config['dataset']} runs in {gallery}: name "
                "another gallery, or delete those runs first"
            )
    taken = []
    for run, config in configs.items():
        into = gallery / run.relative_to(results)
        if _same(run, into):
            continue
        for name in _FILES:
            with runs.atomic(into / name) as beside:
                shutil.copyfile(run / name, beside)
        with runs.atomic(into / "ranks.parquet") as beside:
            _numbered(pd.read_parquet(run / "ranks.parquet")).to_parquet(beside, index=False)
        # What the figure of the scale noise shows; the rest of the geometry is large.
        if config["method"] == "local":
            table = pd.read_csv(run / "geometry.csv")
            runs.write_csv(into / "geometry.csv", table[table["round"] == table["round"].max()])
        with runs.atomic(into / "result.json") as beside:
            shutil.copyfile(run / "result.json", beside)
        taken.append(into.relative_to(gallery).as_posix())
    for path in sorted(results.glob("search/*/*/chosen.json")):
        with runs.atomic(gallery / path.relative_to(results)) as beside:
            shutil.copyfile(path, beside)
    return taken


def _digests(gallery: Path) -> dict:
    found = {}
    for kind in KINDS:
        for path in gallery.glob(f"{kind}/*/*/config.json"):
            config = json.loads(path.read_text())
            found[_read_by(config, kind)] = config.get("data_digest")
    return found


def _read_by(config: dict, kind: str) -> tuple:
    """Runs for which this is equal read the same of the same data: their digests have to agree.

    A sweep may vary the number of training users. Test users have to be the same in all: they are
    numbered by their place among them.
    """
    return config["dataset"], kind, config.get("train_users") if kind == "sweeps" else None


def _same(run: Path, into: Path) -> bool:
    path = into / "result.json"
    return path.exists() and path.read_bytes() == (run / "result.json").read_bytes()


def _numbered(ranks: pd.DataFrame) -> pd.DataFrame:
    """Users by their place in the sorted ids of their domain: the same user has the same number."""
    number = ranks.groupby("domain")["user_id"].transform(
        lambda ids: ids.map({user: place for place, user in enumerate(sorted(set(ids)))})
    )
    return ranks.assign(user_id=number.map("{:05d}".format))


def draw(name: str, results: Path, gallery: Path) -> int:
    """Figures and tables of all runs in the gallery; how many were drawn anew.

    In results/published, where the runs of the gallery lie beside what only the results have: the
    prepared data, and the adapters of single runs. A picture that needs those is drawn where they
    are, and left as it is where not.
    """
    published = results / "published"
    for kind in KINDS:
        shutil.rmtree(published / kind, ignore_errors=True)  # of runs that may be there no more
        for run in runs.finished(gallery / kind):
            into = published / run.relative_to(gallery)
            shutil.copytree(run, into, copy_function=shutil.copy2)
            here = results / run.relative_to(gallery)
            if (here / "adapters").is_dir() and _same(here, run):
                (into / "adapters").symlink_to(os.path.abspath(here / "adapters"))
    (published / "data").unlink(missing_ok=True)
    if (results / "data").is_dir():
        (published / "data").symlink_to(os.path.abspath(results / "data"))
    todo = [one for one in _pictures(name, published) if _can(one, published)]
    ran, _ = reproduce.bring_up_to_date(todo, published, ROOT)
    for stage in todo:
        for path in sorted(path for glob in stage.outputs for path in published.glob(glob)):
            if path.suffix in _SHOWN:
                with runs.atomic(gallery / path.relative_to(published)) as beside:
                    shutil.copyfile(path, beside)
    return ran


def summarise(gallery: Path, readme: Path | None = None) -> str:
    """The results on one page, written to summary.md and, between its marks, into a README."""
    place = gallery / "runs"
    page = summary.page(runs.metrics(place), runs.rounds(place), runs.compare(runs.ranks(place)))
    with runs.atomic(gallery / "summary.md") as beside:
        beside.write_text(page, encoding="utf-8")
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        before, begin, rest = text.partition(summary.BEGIN)
        _, end, after = rest.partition(summary.END)
        if not (begin and end):
            raise StageError(f"{readme} needs the lines {summary.BEGIN} and {summary.END}")
        with runs.atomic(readme) as beside:
            beside.write_text(before + page.strip() + after, encoding="utf-8")
    return page


def _pictures(name: str, published: Path) -> list[Stage]:
    preset = plan.load(name, ROOT)
    preset = preset.model_copy(update={"backbone": preset.backbone or "smollm2-135m"})
    return [stage for stage in plan.stages(preset, published, ROOT) if stage.in_report]


def _can(stage: Stage, published: Path) -> bool:
    """Whether what the picture reads is there."""
    # Sweeps may be missing, but for the pictures that show nothing else.
    optional = stage.notebook not in ("figure_6_sensitivity", "table_7_backbones")
    wants = [one for one in stage.inputs if not (optional and one.startswith("sweeps/"))]
    if stage.notebook in ("table_6_privacy", "table_8_theory"):
        wants.append(f"runs/{stage.parameters['dataset']}/fedecider-seed*/adapters/*/*")
    return all(any(published.glob(pattern)) for pattern in wants)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.gallery",
        description="Take finished runs into the gallery and draw its figures and tables.",
    )
    parser.add_argument("preset", help="a name in notebooks/presets")
    parser.add_argument("--results", help="folder of the results (default: results/<preset>)")
    parser.add_argument("--gallery", help="folder (default: figures/gallery/<preset>)")
    parser.add_argument("--draw", action="store_true", help="take nothing, only draw")
    chosen = parser.parse_args(arguments)
    results = Path(chosen.results or ROOT / "results" / chosen.preset).absolute()
    gallery = Path(chosen.gallery or ROOT / "figures" / "gallery" / chosen.preset).absolute()
    try:
        taken = [] if chosen.draw else take(results, gallery)
        drawn = draw(chosen.preset, results, gallery)
        shown = gallery == ROOT / "figures/gallery/sample"
        summarise(gallery, ROOT / "README.md" if shown else None)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(taken)} runs taken, {drawn} pictures drawn: {gallery}")
    return 0


if __name__ == "__main__":
    os.environ["FEDECIDER_CACHE"] = os.path.abspath(
        os.environ.get("FEDECIDER_CACHE") or ROOT / ".cache"
    )
    sys.exit(main())
