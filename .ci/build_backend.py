"""Builds the package, as setuptools does; with CONVOY_COMPILE=1 mypyc makes C extensions of the modules that pyproject.toml lists.

That needs gcc. A build front end such as pip calls this through PEP 517. As a program, for `make compiled`, it takes setuptools'
commands.
"""

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Any

import setuptools
from setuptools import build_meta
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parents[1]
STAMP = ROOT / "service" / "compiled.sha256"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = [ROOT / f"{name.replace('.', '/')}.py" for name in PROJECT["tool"]["convoy"]["compiled"]]
COMPILES = os.environ.get("CONVOY_COMPILE") == "1"


class BuildExtensions(build_ext):
    """As setuptools' own. Beside modules that are compiled in place it writes what they were made of: see service/compiled.py."""

    def run(self) -> None:
        """Builds the extensions."""
        super().run()
        if self.inplace:
            lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(STAMP.parent)}\n" for path in MODULES]
            STAMP.write_text("".join(lines))


class SourceDistribution(sdist):
    """As setuptools' own, with this file, which builds a wheel from it."""

    def make_distribution(self) -> None:
        """Writes the archive."""
        self.filelist.append(str(Path(__file__).relative_to(ROOT)))
        super().make_distribution()


def setup(*, extensions: bool) -> None:
    """Runs the command of `sys.argv`. `extensions`: whether it is of a wheel, or of modules in place."""
    os.chdir(ROOT)
    arguments: dict[str, Any] = {"cmdclass": {"sdist": SourceDistribution}}
    if extensions and COMPILES:
        from mypyc.build import mypycify

        sources = [str(path.relative_to(ROOT)) for path in MODULES]
        arguments["ext_modules"] = mypycify(sources, group_name="convoy", debug_level="0")
        arguments["cmdclass"]["build_ext"] = BuildExtensions
    setuptools.setup(**arguments)


class Backend(build_meta.build_wheel.__self__.__class__):  # type: ignore[misc, name-defined]  # as setuptools' manual has it
    """setuptools' backend, without a setup.py."""

    extensions = False

    def run_setup(self, setup_script: str = "setup.py") -> None:
        """Runs the command that `sys.argv` has now."""
        setup(extensions=self.extensions)

    def get_requires_for_build_wheel(self, config_settings: Any = None) -> list[str]:
        """What a wheel needs: to compile, all whose types the modules use, so that mypy sees them."""
        if not COMPILES:
            return []
        extras = PROJECT["project"]["optional-dependencies"]
        tools = [line for line in extras["dev"] if line.startswith(("mypy", "types-"))]
        return [*PROJECT["project"]["dependencies"], *extras["server"], *extras["tracing"], *tools]

    get_requires_for_build_editable = get_requires_for_build_wheel

    def build_wheel(self, *arguments: Any, **keywords: Any) -> str:
        """Builds a wheel."""
        self.extensions = True
        return str(super().build_wheel(*arguments, **keywords))

    def build_editable(self, *arguments: Any, **keywords: Any) -> str:
        """Builds what `pip install --editable` installs."""
        self.extensions = True
        return str(super().build_editable(*arguments, **keywords))


_backend = Backend()
build_wheel = _backend.build_wheel
build_editable = _backend.build_editable
build_sdist = _backend.build_sdist
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_editable = _backend.get_requires_for_build_editable
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable

if __name__ == "__main__":
    setup(extensions=True)
