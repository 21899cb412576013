"""`make check-kit`: checkov on what is applied of the kit, and on the Dockerfile, with deploy/checkov.yaml.

Its pins are not ours, so it lives in an environment of its own, whose program is the one argument.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from tests.deploy import kit


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for name in kit.RENDERINGS:
            if name in ("base", "dashboards") or name.startswith("claims/"):
                continue  # never applied but as part of others
            path = Path(folder) / f"{name.replace('/', '-')}.yaml"
            path.write_text(yaml.safe_dump_all(kit.render(name)))
        (Path(folder) / "Dockerfile").write_text((kit.DEPLOY / "Dockerfile").read_text())
        command = [sys.argv[1], "--directory", folder, "--config-file", str(kit.DEPLOY / "checkov.yaml")]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
