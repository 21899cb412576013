"""The polite client: small calls at a steady rate, whatever else the server is asked, and probes beside them.

It is a process of its own, so that what the attacks cost here is not measured as the server's. A call's time counts from when it
was due: a server that does not answer for a second has made fifty calls late, not one.

As a program: python -m tests.attack.polite GRPC_PORT HTTP_PORT [PATIENCE]; it ends at the end of its input, and
prints what it saw as JSON.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb

CALLS_A_SECOND = 50
CALL_SECONDS = 20.0
PROBES_A_SECOND = 4
PROBE_SECONDS = 10.0
"""As Prometheus waits for a scrape by default."""
PROBED = ("/livez", "/readyz", "/metrics")
CLASSIFY = "/convoy.v1.Classifier/Classify"
MODEL = "digits"


@dataclass
class Seen:
    """What the polite client saw.

    Attributes:
        milliseconds: of each answered call, from when it was due.
        failures: how calls failed: a code and a message.
        probe_milliseconds: of each probe, on a connection of its own.
        probe_failures: how probes failed.
    """

    milliseconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    probe_milliseconds: list[float] = field(default_factory=list)
    probe_failures: list[str] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the calls; 0 without calls."""
        ordered = sorted(self.milliseconds)
        return ordered[len(ordered) * 99 // 100] if ordered else 0.0

    @property
    def slowest_ms(self) -> float:
        """The slowest call."""
        return max(self.milliseconds, default=0.0)

    @property
    def slowest_probe_ms(self) -> float:
        """The slowest probe."""
        return max(self.probe_milliseconds, default=0.0)


class PoliteClient:
    """Runs the polite client within a `with` block; `seen` afterwards."""

    def __init__(self, grpc_port: int, http_port: int, patience: float = 1.0) -> None:
        """It waits `patience` times as long as usual: on a machine that other tests keep busy, slow is not wrong."""
        self.seen = Seen()
        self._command = [sys.executable, "-m", "tests.attack.polite", str(grpc_port), str(http_port), str(patience)]

    def __enter__(self) -> "PoliteClient":
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "began\n":
            raise SystemExit("the polite client did not begin")
        return self

    def __exit__(self, *_: object) -> None:
        output, _errors = self._process.communicate(timeout=240)
        self.seen = Seen(**json.loads(output))


def _call(grpc_port: int, seconds: float, seen: Seen, over: threading.Event) -> None:
    request = pb.ClassifyRequest(model=MODEL, items=[pb.Item(pixels=bytes(784))]).SerializeToString()
    ended: list[grpc.Future] = []
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        method: Any = channel.unary_unary(CLASSIFY)
        method(request, timeout=60, wait_for_ready=True)
        sys.stdout.write("began\n")
        sys.stdout.flush()
        due = time.monotonic()
        while not over.is_set():
            due += 1 / CALLS_A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            future = method.future(request, timeout=seconds)
            future.add_done_callback(lambda call, due=due: _note(call, due, seen))
            ended = [each for each in ended if not each.done()] + [future]
        for each in ended:
            each.exception()


def _note(call: Any, due: float, seen: Seen) -> None:
    code = call.code()
    if code is grpc.StatusCode.OK:
        seen.milliseconds.append(1000 * (time.monotonic() - due))
    else:
        seen.failures.append(f"{code.name}: {call.details()}")


def _probe(http_port: int, seconds: float, seen: Seen, over: threading.Event) -> None:
    number = 0
    while not over.wait(1 / PROBES_A_SECOND):
        path = PROBED[number % len(PROBED)]
        number += 1
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=seconds)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            if response.status == 200:
                seen.probe_milliseconds.append(1000 * (time.monotonic() - start))
            else:
                seen.probe_failures.append(f"{path}: {response.status}")
        except (OSError, http.client.HTTPException) as error:
            seen.probe_failures.append(f"{path}: {type(error).__name__}: {error}")
        finally:
            connection.close()


def main() -> None:
    grpc_port, http_port = map(int, sys.argv[1:3])
    patience = float(sys.argv[3]) if sys.argv[3:] else 1.0
    seen, over = Seen(), threading.Event()
    threads = [
        threading.Thread(target=_call, args=(grpc_port, patience * CALL_SECONDS, seen, over)),
        threading.Thread(target=_probe, args=(http_port, patience * PROBE_SECONDS, seen, over)),
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    json.dump(asdict(seen), sys.stdout)


if __name__ == "__main__":
    main()
