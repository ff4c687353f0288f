"""Every command and notebook that a page or a message names is there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data_prep", "fedecider", "figures", "notebooks")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("data_prep/*.md"), *ROOT.glob("figures/gallery/**/*.md")]
PAGES = sorted(path for path in PAGES if path.parent.name != "tables")
OTHERS = [ROOT / name for name in ("Makefile", "environment.yml", "pyproject.toml", ".ci/run")]
OTHERS += sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".ipynb", ".yaml") and "__pycache__" not in path.parts
)
# A notebook's name, its ending left out where it is numbered; <name> and * are placeholders.
NOTEBOOK = re.compile(r"(?<![\w<*/.-])(?:notebooks/)?(0\d_[a-z]+|[a-z]\w*(?=\.ipynb\b))")
TARGET = re.compile(r"(?:(?<=`)|(?<=another )|^ {4})make ([a-z]+)(?=[`\n]|  | [A-Z]+=| is)", re.M)
RULE = re.compile(r"^([a-z]+):", re.MULTILINE)


def absent(text: str, root: Path = ROOT) -> list[str]:
    """Modules, targets and notebooks that the text names and that are not there."""
    names = []
    for module in re.findall(r"python -m ([a-z_.]+\w)", text):
        stem = root / module.replace(".", "/")
        known = stem.with_suffix(".py").is_file() or (stem / "__main__.py").is_file()
        if module.split(".")[0] in PACKAGES and not known:
            names.append(f"python -m {module}")
    targets = set(RULE.findall((root / "Makefile").read_text()))
    for target in TARGET.findall(text):
        if target not in targets:
            names.append(f"make {target}")
    for notebook in NOTEBOOK.findall(text):
        if not (root / "notebooks" / f"{notebook}.ipynb").is_file():
            names.append(notebook)
    for script in re.findall(r"python ((?:tests|notebooks|figures|data_prep)/\S+\.py)", text):
        if not (root / script).is_file():
            names.append(script)
    return names


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_there(path):
    assert absent(path.read_text()) == []


def test_all_pages_are_looked_at():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    tracked = {ROOT / name for name in listed.stdout.split() if "/tables/" not in name}
    assert {path for path in tracked if path.exists()} == set(PAGES)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("`python -m notebooks.gallery sample`", ["python -m notebooks.gallery"]),
        ("    python -m notebooks.workflow.publish sample", []),
        ("python -m pip install, python -m pytest", []),
        ("    make gallery\n", ["make gallery"]),
        ("`make reproduce PRESET=demo`; these\n    make sense of", []),
        ("run prepare_goodreads.ipynb first", ["prepare_goodreads"]),
        ("run the notebook 01_prepare first; then notebooks/02_train", ["02_train"]),
        ("`notebooks/<name>_*.ipynb`, python tests/test_golden.py", []),
        ("(`python tests/test_goldn.py`)", ["tests/test_goldn.py"]),
    ],
)
def test_what_is_not_there_is_noticed(text, names):
    assert absent(text) == names
