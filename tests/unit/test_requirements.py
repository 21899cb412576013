"""The lower bounds in pyproject.toml are versions that .ci/run has run tests with."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = ("export", "heic", "parquet", "remote", "tracing")


def pins(name: str) -> dict[str, Version]:
    lines = [line.partition(";")[0].strip() for line in (ROOT / ".ci" / name).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lines}


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(line for name in ("server", "cpu", *OPTIONAL) for line in EXTRAS[name])]
)
def test_a_lower_bound_is_a_version_that_is_tested(text: str) -> None:
    requirement = Requirement(text)
    if requirement.name == PROJECT["name"]:
        return
    bounds = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
    # PyTorch's lowest version is the one that all tests run with.
    tested = pins("requirements.lock" if requirement.name == "torch" else "lowest.lock")[canonicalize_name(requirement.name)]
    assert bounds == [tested], "make lock"


def test_the_newest_versions_are_within_the_bounds() -> None:
    newest = pins("requirements.lock")
    for text in [*PROJECT["dependencies"], *(line for name in ("server", *OPTIONAL) for line in EXTRAS[name])]:
        requirement = Requirement(text)
        assert newest[canonicalize_name(requirement.name)] in requirement.specifier, text
