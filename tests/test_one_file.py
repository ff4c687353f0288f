"""A new method, ranker or model-free recommender is one file, found by its class.

The files are written into a folder that is put on the package's path; nothing else is edited.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from toy import config

from fedecider import federation, methods, rankers, results

ROOT = Path(__file__).resolve().parents[1]

# The example of CONTRIBUTING.md: fedavg, written once more.
(MEAN,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)

ALPHABET = '''
"""alphabet: items in the order of their ids. No language model."""

from pydantic import Field

from fedecider.methods.base import Method, NoSettings


class Alphabet(Method):
    class Settings(NoSettings):
        backwards: bool = Field(False, description="the last id first")

    name, label, family = "alphabet", "A to Z", "no language model"
    color, order = "#654321", 2
    trains = False

    def rank(self, domain, protocols):
        ids = sorted(domain.items.index, reverse=self.settings.backwards)
        ranks = [ids.index(domain.test[user]) + 1 for user in domain.users["test"]]
        return {protocol: ranks for protocol in protocols}, {}
'''

LENGTH = '''
"""Ranker `length`: the shortest title first."""

from fedecider.metrics import rank_of


class Length:
    name, protocol = "length", "catalogue"

    def rank(self, ranking):
        items = ranking.data.domain.items
        scores = -items.str.len().to_numpy(float)
        places = [items.index.get_loc(ranking.data.domain.test[u]) for u in ranking.data.test_users]
        return [rank_of(scores, place) for place in places], {"shortest": int(-scores.max())}
'''


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Puts a file into a package; what a fresh import would find is then in its registry."""
    loaded = set(sys.modules)

    def added(package, registry, walk, name, source):
        folder = tmp_path / "more" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        before = dict(registry)
        walked = walk()
        new = {key: value for key, value in walked.items() if key not in before}
        assert len(walked) == len(before) + 1
        for key, value in new.items():
            monkeypatch.setitem(registry, key, value)
        return new

    yield added
    for name in set(sys.modules) - loaded:
        if name.startswith(("fedecider.methods.", "fedecider.rankers.")):
            del sys.modules[name]


def test_a_method_is_one_file(add, data, backbone, tmp_path, monkeypatch):
    again = MEAN.replace('"plain-mean"', '"mean-again"')  # the example itself may be installed
    add(methods, methods.METHODS, methods._methods, "mean_again", again)
    for method in ("fedavg", "mean-again"):
        settings = config(data, tmp_path / f"runs/{method}-seed0", method)
        federation.run(settings, backbone)
    monkeypatch.undo()
    assert "mean-again" not in methods.METHODS
    # Read where the method is not installed: its run tells what it is called and drawn with.
    tables = {"rounds": ["round", "client"], "metrics": ["domain", "ranker", "metric"]}
    for kind, keys in tables.items():
        frame = getattr(results, kind)(tmp_path / "runs")
        new = frame[frame["method"] == "mean-again"]
        about = new[["label", "family", "color", "order"]].drop_duplicates().values.tolist()
        assert about == [["Plain mean", "federated", "#123456", 49]]
        own = ("method", "label", "color", "order", "run", "seconds", "memory", "bytes_up")
        columns = [column for column in frame if column not in own]  # the scalars' names differ
        same = [
            part[columns].sort_values(keys, ignore_index=True)
            for part in (new, frame[frame["method"] == "fedavg"])
        ]
        assert len(new)
        pd.testing.assert_frame_equal(*same, check_exact=True)


def test_a_new_file_breaks_no_test_of_the_methods(tmp_path):
    """In a copy of the tree that holds the example; what trains every method is left out."""
    for name in ("fedecider", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CONTRIBUTING.md", "figures", "notebooks", "data_prep"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "fedecider/methods/plain_mean.py").write_text(MEAN)
    tests = [
        "tests/test_methods.py::test_the_table_of_methods_is_that_of_section_5",
        "tests/test_methods.py::test_every_method_says_what_it_is_called_and_drawn_with",
        "tests/test_methods.py::test_searches_try_settings_that_exist",
        "tests/test_golden.py::test_every_stored_run_is_of_a_method_or_variant_that_there_is",
        "tests/test_results.py::test_the_published_packs_are_whole",
        "tests/test_one_file.py::test_a_method_is_one_file",
        "tests/test_one_file.py::test_a_method_is_named_in_its_own_file_alone",
        "tests/test_one_file.py::test_no_file_of_figures_or_notebooks_lists_the_methods",
    ]
    options = ["-n", "0", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_searches_try_settings_that_exist[plain-mean]" in done.stdout


def test_a_recommender_without_a_language_model_is_one_file(add, data, tmp_path):
    add(methods, methods.METHODS, methods._methods, "alphabet", ALPHABET)
    for backwards in (False, True):
        folder = tmp_path / f"runs/alphabet-{backwards}"
        federation.run(config(data, folder, "alphabet", backwards=backwards))
    with pytest.raises(ValueError, match="alphabet has no setting 'mu'; its own are: backwards"):
        federation.run(config(data, tmp_path / "x", "alphabet", mu=1))
    metrics = results.metrics(tmp_path / "runs")
    assert set(metrics["protocol"]) == {"sampled", "catalogue"}
    about = metrics[["ranker", "label", "family", "color", "order"]].drop_duplicates()
    assert about.values.tolist() == [["alphabet", "A to Z", "no language model", "#654321", 2]]
    ranks = results.ranks(tmp_path / "runs").groupby("run")["rank"].agg(list)
    assert all(a + b == 31 for a, b in zip(*ranks, strict=True))  # 30 items, from either end


def test_a_ranker_is_one_file(add, data, backbone, tmp_path):
    add(rankers, rankers.RANKERS, rankers._rankers, "length", LENGTH)
    settings = config(data, tmp_path / "run", "local", rankers=["likelihood", "length"], rounds=1)
    folder = federation.run(settings, backbone)
    metrics = pd.read_csv(folder / "metrics.csv")
    protocols = metrics.groupby("ranker")["protocol"].unique().map(list).to_dict()
    assert protocols == {"likelihood": ["sampled"], "length": ["catalogue"]}
    assert len(metrics[metrics["ranker"] == "length"]) == 3 * 6  # domains, metrics
    tidy = results.metrics(folder)
    assert set(tidy[tidy["protocol"] == "catalogue"]["ranker"]) == {"length"}
    choices = pd.read_json(folder / "result.json")["choices"].dropna()
    assert all(chosen["shortest"] > 0 and "prompt_weight" in chosen for chosen in choices)


def test_a_method_without_a_language_model_ranks_under_a_new_rankers_protocol(add, data, tmp_path):
    other = LENGTH.replace('"catalogue"', '"sampled"')
    add(rankers, rankers.RANKERS, rankers._rankers, "length", other)
    folder = federation.run(config(data, tmp_path / "run", "popularity", rankers=["length"]))
    assert set(results.metrics(folder)["protocol"]) == {"sampled"}


# No list of methods stands anywhere


def strings(path: Path) -> set[str]:
    """String constants of a file, whole; docstrings and texts are no names."""
    tree = ast.parse(path.read_text())
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {node.value for node in constants if isinstance(node.value, str)}


# `local` and `popularity` are words of their own, and `fedecider` is the package.
WORDS = {"local", "popularity", "fedecider"}
# Settings of before the groups, by the method whose they were.
OLD_SETTINGS = {"fedprox", "lora-sim", "fellrec", "feddpa", "als"}
OLD_SETTINGS |= {name for name in methods.METHODS if name.startswith("fedecider-no-")}


@pytest.mark.parametrize("method", sorted(set(methods.METHODS) - WORDS))
def test_a_method_is_named_in_its_own_file_alone(method):
    files = sorted((ROOT / "fedecider").rglob("*.py"))
    naming = {path for path in files if method in strings(path)}
    own = Path(sys.modules[methods.METHODS[method].__module__].__file__)
    mapping = {ROOT / "fedecider/config.py"} if method in OLD_SETTINGS else set()
    assert naming == {own} | mapping


@pytest.mark.parametrize("folder", ["figures", "notebooks"])
def test_no_file_of_figures_or_notebooks_lists_the_methods(folder):
    """A figure may name the two or three that it is about."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    naming = {path.name: sorted(strings(path) & set(methods.METHODS)) for path in files}
    assert {name: listed for name, listed in naming.items() if len(listed) > 3} == {}


@pytest.mark.parametrize("name", sorted(rankers.RANKERS))
def test_a_ranker_is_named_in_its_own_file_alone(name):
    files = sorted((ROOT / "fedecider").rglob("*.py"))
    naming = {path.name for path in files if name in strings(path)}
    own = Path(sys.modules[type(rankers.RANKERS[name]).__module__].__file__).name
    # The default of `rankers` is the one place that chooses among them.
    assert naming - {"config.py"} == {own}
