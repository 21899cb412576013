"""Writes the version of pyproject.toml into deploy/ and the manuals. `--check` only says which files have another one."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMAGE = r"(\bconvoy(?:-export)?:)\d+\.\d+\.\d+\w*"
FIELD = r"(?m)^(version: |appVersion: |ARG VERSION=).+"


def main() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    stale = []
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "deploy").rglob("*")]):
        if path.is_file():
            text = fresh = path.read_text()
            for pattern in [IMAGE, FIELD] if path.name in ("Chart.yaml", "Dockerfile") else [IMAGE]:
                fresh = re.sub(pattern, rf"\g<1>{version}", fresh)
            if fresh != text:
                stale.append(path)
                if "--check" not in sys.argv[1:]:
                    path.write_text(fresh)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(f"not of version {version}: {', '.join(str(path.relative_to(ROOT)) for path in stale)}. Run `make version`")


main()
