"""What the dashboard and the rules ask of Prometheus, taken apart."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RULES = DEPLOY / "rules" / "convoy.yaml"
DASHBOARD = json.loads((DEPLOY / "dashboards" / "convoy.json").read_text())

NO_GPU_HERE = {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE"}
"""Metrics of NVIDIA's DCGM exporter (its etc/default-counters.csv), which needs a GPU: the row GPU runs against no Prometheus."""


def filled(expr: str) -> str:
    """An expression of the dashboard as Grafana sends it, with everything chosen."""
    expr = expr.replace("$__rate_interval", "30s").replace("$__range", "1h")
    return re.sub(r"\$(namespace|pod|model|version)\b", ".*", expr)


def panels() -> dict[str, str]:
    """The expressions of the dashboard's panels, by panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": filled(target["expr"])
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    }


def variables() -> dict[str, tuple[str, str]]:
    """The dashboard's variables: for each the selector whose series it looks at, and the label whose values it takes."""
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
            assert match is not None, variable["query"]
            found[variable["name"]] = filled(match[1]), match[2]
    return found


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """The alerting rules; two of a name are one alert for two severities."""
    return [rule for rule in rules() if "alert" in rule]


def selectors(expr: str) -> list[promql_parser.VectorSelector]:
    """The vector selectors of an expression."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(expr), visit)
    unique = {selector.prettify(): selector for selector in found}
    return list(unique.values())
