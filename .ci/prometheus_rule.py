"""Writes deploy/monitoring/prometheusrule.yaml: the rules for the Prometheus operator. `--check` only says if it is stale."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "rules" / "convoy.yaml"
TARGET = ROOT / "deploy" / "monitoring" / "prometheusrule.yaml"

HEAD = """# Made from deploy/rules/convoy.yaml by `make rules`: change that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: convoy
spec:
"""


def main() -> int:
    lines = [line for line in RULES.read_text().splitlines() if not line.startswith("#")]
    fresh = HEAD + "".join(f"  {line}".rstrip() + "\n" for line in "\n".join(lines).strip().splitlines())
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(fresh)
    elif not TARGET.exists() or TARGET.read_text() != fresh:
        print(f"{TARGET.relative_to(ROOT)} is stale: make rules")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
