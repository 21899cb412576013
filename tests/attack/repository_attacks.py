"""Attacks by whoever may write to the repository or ask for loads. Each leaves the repository as it was."""

import os
import shutil
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.attack.target import Target


def _load(target: Target, model: str) -> None:
    with suppress(urllib.error.URLError, OSError):
        url = f"http://127.0.0.1:{target.http_port}/v2/repository/models/{model}/load"
        urllib.request.urlopen(url, b"{}", timeout=60).close()


def broken_versions(target: Target, until: float) -> str:
    """Versions that are nonsense, cut off, empty, a folder or a pipe, and policies and labels that are."""
    digits = (target.repository / "digits" / "1" / "model.onnx").read_bytes()
    contents = [b"nonsense", digits[: len(digits) // 2], b"", digits[::-1]]
    count = 0
    while time.monotonic() < until:
        for number, content in enumerate(contents):
            version = target.repository / f"broken-{number}" / str(count + 1)
            version.mkdir(parents=True)
            (version / "model.onnx").write_bytes(content)
        odd = target.repository / "odd"
        (odd / "1").mkdir(parents=True, exist_ok=True)
        for path in (odd / "serving.toml", odd / "labels.txt", odd / "1" / "model.onnx"):
            if not path.exists():
                os.mkfifo(path)
        for number in range(len(contents)):
            _load(target, f"broken-{number}")
        count += 1
        for folder in target.repository.glob("broken-*"):
            shutil.rmtree(folder)
    shutil.rmtree(target.repository / "odd", ignore_errors=True)
    return f"{count * len(contents)} versions"


def reloads(target: Target, until: float) -> str:
    """New versions of the served model, one after the other."""
    model = target.repository / "digits"
    version = max(int(each.name) for each in model.iterdir() if each.name.isdigit())
    first = version
    while time.monotonic() < until:
        publish(model, version + 1)
        _load(target, "digits")
        version += 1
        shutil.rmtree(model / str(version - 1))
    return f"{version - first} versions"


def many_loads(target: Target, until: float) -> str:
    """Load requests, 64 at a time."""
    sent = 0

    def run() -> None:
        nonlocal sent
        while time.monotonic() < until:
            _load(target, "digits")
            sent += 1

    threads = [threading.Thread(target=run) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{sent:,} requests"


def publish(model: Path, version: int) -> None:
    """Copies the version before to a new one, in one step."""
    staging = model / ".staging"
    shutil.copytree(model / str(version - 1), staging)
    staging.rename(model / str(version))
