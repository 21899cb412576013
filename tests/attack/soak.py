"""A soak: mixed load for minutes, whose memory must be flat.

At the same time: unary calls of pixels and pictures, streams, cancelled calls, requests that are refused, REST as JSON and binary,
scrapes, the page's data, health watches, and a new version of the model every few seconds. A row a minute (or a sixth of a shorter
time). The first third fills caches and pools; what grows after it is a leak.

Usage: python -m tests.attack.soak [--minutes 10] [--workers 1] [--transport fast] [--model MODEL.onnx]
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests import refusals
from tests.attack.repository_attacks import publish
from tests.attack.target import Held, Target, held, serving
from tests.benchmarks.transport import make_repository

GROWTH_MB = 15.0
"""By which the last look may be above that after a third of the time."""

RELOAD_SECONDS = 4.0
PAUSE_SECONDS = 0.005
"""Between the requests of each kind: a server that is busy all the time shows no more, and takes the machine from others."""

ALLOWED = {"CANCELLED", "RESOURCE_EXHAUSTED"}
"""How valid requests may fail here: those that are cancelled, and those that meet a full queue."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--transport", choices=["fast", "public"], default="fast")
    parser.add_argument("--model", type=Path, help="a digits model; trained afresh if not given")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as name:
        repository = make_repository(Path(name), arguments.model)
        options = ("--workers", str(arguments.workers), "--transport", arguments.transport, "--log-level", "error")
        with serving(repository, Path(name), *options) as target:
            rows, outcomes = soak(target, 60 * arguments.minutes, lambda text: console.print(text, style="dim"))
    console.print(", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items())))
    sys.exit(verdict(rows, outcomes))


def verdict(rows: list[Held], outcomes: Counter[str]) -> str:
    """What is wrong; empty if nothing is."""
    settled, last = rows[len(rows) // 3], rows[-1]
    wrong = [f"{outcome}: {count}" for outcome, count in outcomes.items() if outcome.startswith("failed")]
    if last.rss_mb > settled.rss_mb + GROWTH_MB:
        wrong.append(f"memory has grown from {settled.rss_mb:.0f} to {last.rss_mb:.0f} MB")
    if last.threads > settled.threads + 2:
        wrong.append(f"threads have grown from {settled.threads} to {last.threads}")
    return "; ".join(wrong)


def soak(target: Target, seconds: float, say: Callable[[str], None]) -> tuple[list[Held], Counter[str]]:
    """Loads the server; returns what it held from time to time, and how often requests ended in which way."""
    outcomes: Counter[str] = Counter()
    over = threading.Event()
    with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        threads = [
            threading.Thread(target=_repeat, args=(kind, outcomes, over), daemon=True) for kind in _kinds(target, channel).values()
        ]
        for thread in threads:
            thread.start()
        rows = []
        looks = max(6, round(seconds / 60))
        for look in range(looks):
            time.sleep(seconds / looks)
            rows.append(held(target.pid))
            now = rows[-1]
            say(f"{(look + 1) * seconds / looks:.0f} s: {now.rss_mb:.1f} MB, {now.threads} threads, {now.files} files")
        over.set()
        for thread in threads:
            thread.join(60)
        time.sleep(2)
        rows.append(held(target.pid))
    return rows, outcomes


def _repeat(kind: Callable[[], str], outcomes: Counter[str], over: threading.Event) -> None:
    name = kind.__name__.strip("_")
    while not over.wait(PAUSE_SECONDS):
        try:
            outcome = kind()
        except (grpc.RpcError, OSError) as error:
            outcome = f"failed {name}: {error}"
        outcomes[outcome] += 1


def _kinds(target: Target, channel: grpc.Channel) -> dict[str, Callable[[], str]]:
    """One function for each kind of request; each sends one and says in a word how it ended."""
    chance = random.Random(0)
    url = f"http://127.0.0.1:{target.http_port}"
    versions = itertools.count(2)
    pixels = pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))] * 4).SerializeToString()
    pictures = pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=refusals.BIG)] * 2).SerializeToString()
    in_stream = pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(pixels)).SerializeToString()
    # Not those that wait in a queue, nor those for a version that comes to exist here.
    refused = [
        message for kind, (message, _) in refusals.CLASSIFY_MESSAGES.items() if "queue" not in kind and "version" not in kind
    ]
    rest_requests = [request for kind, request in refusals.REST_REQUESTS.items() if "version" not in kind]
    classify: Any = channel.unary_unary(refusals.CLASSIFY)
    stream: Any = channel.stream_stream(refusals.CLASSIFY_STREAM)
    health: Any = health_pb2_grpc.HealthStub(channel)

    def ended(call: Any, name: str) -> str:
        code = call.code().name
        return name if code == "OK" else code if code in ALLOWED else f"failed {name}: {code} {call.details()}"

    def unary() -> str:
        call = classify.future(pixels, timeout=60)
        call.exception()
        return ended(call, "calls")

    def decoded() -> str:
        call = classify.future(pictures, timeout=60)
        call.exception()
        return ended(call, "pictures")

    def streams() -> str:
        answers = list(stream(iter([in_stream] * 20), timeout=60))
        return "streams" if len(answers) == 20 else f"failed stream: {len(answers)} answers of 20"

    def cut_streams() -> str:
        call = stream(iter([in_stream] * 20), timeout=60)
        next(call)
        call.cancel()
        return "cut streams"

    def cancelled() -> str:
        call = classify.future(pixels, timeout=60)
        time.sleep(chance.random() / 500)
        call.cancel()
        return "cancelled calls"

    def refusal() -> str:
        call = classify.future(chance.choice(refused), timeout=60)
        call.exception()
        return "refusals"

    def watched() -> str:
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watch)
        watch.cancel()
        return "watches"

    def rest() -> str:
        path, body, headers, status = chance.choice(rest_requests)
        if "full" in path or "raising" in path:
            path, body, headers, status = "/v2/models/digits/infer", refusals.BIG, {"Inference-Header-Content-Length": "0"}, 200
        try:
            with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=60) as response:
                response.read()
                found = response.status
        except urllib.error.HTTPError as error:
            with error:
                error.read()
            found = error.code
        return "REST requests" if found in (status, 429) else f"failed {path}: {found} instead of {status}"

    def read() -> str:
        for path in ("/metrics", "/", "/v2/models/digits", "/v2/models/digits/stats", "/readyz"):
            with urllib.request.urlopen(url + path, timeout=60) as response:
                response.read()
        return "rounds of scrapes and pages"

    def reload() -> str:
        time.sleep(RELOAD_SECONDS)
        version = next(versions)
        model = target.repository / "digits"
        publish(model, version)
        body = json.dumps({}).encode()
        urllib.request.urlopen(f"{url}/v2/repository/models/digits/load", body, timeout=120).close()
        with suppress(FileNotFoundError):
            shutil.rmtree(model / str(version - 1))
        return "reloads"

    kinds = (unary, decoded, streams, cut_streams, cancelled, refusal, watched, rest, read, reload)
    return {kind.__name__: kind for kind in kinds}


if __name__ == "__main__":
    main()
