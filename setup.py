"""The compiled build: with CONVOY_COMPILE=1 mypyc makes C extensions of the modules that pyproject.toml lists. It needs gcc."""

import hashlib
import os
import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
STAMP = ROOT / "service" / "compiled.sha256"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = [ROOT / f"{name.replace('.', '/')}.py" for name in PROJECT["tool"]["convoy"]["compiled"]]


class BuildExtensions(build_ext):
    """As setuptools' own. Beside modules that are compiled in place it writes what they were made of: see service/compiled.py."""

    def run(self) -> None:
        """Builds the extensions."""
        super().run()
        if self.inplace:
            lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(STAMP.parent)}\n" for path in MODULES]
            STAMP.write_text("".join(lines))


def needed() -> list[str]:
    """What mypy must see, so that it knows the types of everything that the modules use."""
    extras = PROJECT["project"]["optional-dependencies"]
    tools = [line for line in extras["dev"] if line.startswith(("mypy", "types-"))]
    return [*PROJECT["project"]["dependencies"], *extras["server"], *extras["tracing"], *tools]


if os.environ.get("CONVOY_COMPILE") != "1":
    setup()
elif {"egg_info", "dist_info", "sdist"} & set(sys.argv):  # a front end asks what the build needs, or for the metadata
    setup(setup_requires=needed())
else:
    from mypyc.build import mypycify

    os.chdir(ROOT)
    sources = [str(path.relative_to(ROOT)) for path in MODULES]
    setup(ext_modules=mypycify(sources, group_name="convoy", debug_level="0"), cmdclass={"build_ext": BuildExtensions})
