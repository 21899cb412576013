"""`make test-image IMAGE=convoy:TAG`: the serving image, run by docker or podman as the kit runs it.

Non-root, read-only, without capabilities, with limits on memory and CPU: a call through the published port, the health check's
command, metrics, SIGTERM under load without a lost request, and what the limits come to. Needs a built image.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import grpc

from export.data import datasets
from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.deploy.traffic import Traffic, classify

MEMORY_BYTES = 512 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--engine", default="docker", help="docker or podman")
    parser.add_argument("--repository", type=Path, help="a repository with the model digits; trained afresh if not given")
    arguments = parser.parse_args()
    if shutil.which(arguments.engine) is None:
        sys.exit(f"{arguments.engine} is not installed; --engine podman takes the other one")
    with tempfile.TemporaryDirectory() as folder:
        repository = arguments.repository or trained(Path(folder))
        Path(folder).chmod(0o755)
        container = Container(arguments.engine, arguments.image, repository.resolve())
        try:
            check(container)
        finally:
            container.remove()


def trained(folder: Path) -> Path:
    """A repository with a model of the digits, made with the program."""
    for words in (
        ["train", "--data", "digits", "--epochs", "3", "--output", f"{folder}/run"],
        ["export", f"{folder}/run", "--repository", f"{folder}/models", "--name", "digits"],
    ):
        subprocess.run([sys.executable, "-m", "service.cli", *words], check=True, timeout=600)
    return folder / "models"


class Container:
    """One container of the image, with the kit's restrictions."""

    def __init__(self, engine: str, image: str, repository: Path) -> None:
        self._engine = engine
        self.name = self.run(
            "run", "--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges",
            f"--memory={MEMORY_BYTES}", "--cpus=1", "--publish=127.0.0.1::8001", "--publish=127.0.0.1::8002",
            "--volume", f"{repository}:/models:ro", image,
        ).splitlines()[-1]  # fmt: skip

    def run(self, *words: str) -> str:
        result = subprocess.run([self._engine, *words], capture_output=True, text=True, timeout=120, check=False)
        if result.returncode != 0:
            sys.exit(f"{self._engine} {' '.join(words)}: {result.stderr}")
        return (result.stdout + (result.stderr if words[0] == "logs" else "")).strip()

    def port(self, inside: int) -> int:
        return int(self.run("port", self.name, str(inside)).splitlines()[0].rpartition(":")[2])

    def python(self, text: str) -> str:
        return self.run("exec", self.name, "python", "-c", text)

    def inspect(self, what: str) -> str:
        return self.run("inspect", "--format", what, self.name)

    def remove(self) -> None:
        subprocess.run([self._engine, "rm", "--force", self.name], capture_output=True, timeout=120, check=False)


def check(container: Container) -> None:
    ports = {inside: container.port(inside) for inside in (8001, 8002)}
    deadline = time.monotonic() + 60
    while not answers(f"http://127.0.0.1:{ports[8002]}/readyz"):
        if time.monotonic() > deadline:
            sys.exit(f"not ready in 60 s: {container.run('logs', container.name)}")
        time.sleep(0.1)
    test = datasets.load_dataset("digits", 0).test
    request = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=test.encoded(0))])
    with grpc.insecure_channel(f"127.0.0.1:{ports[8001]}") as channel:
        best = classify(channel, request).results[0].predictions[0]
    say(best.label == str(test.labels[0]), f"a call through the published port: {best.label}, {best.probability:.1%}")
    [health] = json.loads(
        container.run("image", "inspect", "--format", "[{{json .Config.Healthcheck.Test}}]", container.inspect("{{.Image}}"))
    )
    container.run("exec", container.name, *health[1:])
    say(True, "the image's own health check passes")
    say(container.python("import os; print(os.getuid())") == "10001", "runs as user 10001")
    written = container.python(
        "import os; print(os.access('/', os.W_OK), os.access('/opt/convoy', os.W_OK), os.access('/tmp', os.W_OK))"
    )
    say(written == "False False True", "nothing but /tmp can be written")
    found = container.python("import importlib.util as u; print([n for n in ('torch', 'onnx', 'pip') if u.find_spec(n)])")
    say(found == "[]", "neither torch, onnx nor pip inside")
    version = container.run("exec", container.name, "convoy", "--version")
    say(version.endswith("(compiled)"), version)
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[8002]}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    threads = [line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith("convoy_ort_threads{")]
    say(threads == ["1.0"], f"ONNX Runtime's threads under --cpus=1: {', '.join(threads)}")
    with Traffic(f"127.0.0.1:{ports[8001]}", request, clients=8, fresh=False) as traffic:
        traffic.wait_for(500)
        started = time.monotonic()
        container.run("kill", "--signal=TERM", container.name)
        code = container.run("wait", container.name)
        seconds = time.monotonic() - started
    logs = container.run("logs", container.name)
    say(code == "0", f"SIGTERM under load of 8 clients: exit code {code} after {seconds:.1f} s")
    # A request that meets the port in the very moment it closes is reset by gRPC's C core: never begun, and so not lost.
    lost = [failure for failure in traffic.failures if failure.code != "UNAVAILABLE" and failure.begun < started]
    codes = dict(Counter(failure.code for failure in traffic.failures))
    say(not lost, f"{traffic.answered} answered; of those sent after SIGTERM some were refused, {codes}; lost were {len(lost)}")
    say("drain" in logs and "Traceback" not in logs, "its log says so, and holds no traceback")
    say(container.inspect("{{.State.OOMKilled}}") == "false", f"stayed within {MEMORY_BYTES // 2**20} MiB")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def say(holds: bool, what: str) -> None:
    print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)
    if not holds:
        sys.exit(1)


if __name__ == "__main__":
    main()
