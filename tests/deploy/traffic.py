"""Bounded traffic for the tests of the kit: clients that classify one picture again and again, and what came of it.

Clients are plain grpcio as anybody's are, with no retry policy: what gRPC sends again by itself is only what no server has seen.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb
from tests.deploy import kit

ROUND_ROBIN = (
    ("grpc.service_config", (kit.DEPLOY / "load-balancing" / "service-config.json").read_text()),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""Options of a channel that gives each server one request in turn, and leaves those whose health says NOT_SERVING."""

DIRECT = (("grpc.enable_http_proxy", 0),)


@dataclass(frozen=True)
class Failure:
    """A request that was not answered; `begun` is time.monotonic() when it was sent."""

    begun: float
    code: str
    detail: str


@dataclass
class Traffic:
    """`clients` threads, each one request in flight, until `stop`: every other with a channel of its own that it keeps, the rest
    with a fresh connection for each request. `fresh=False`: all keep theirs.
    """

    target: str
    request: pb.ClassifyRequest
    clients: int = 8
    fresh: bool = True
    options: Sequence[tuple[str, Any]] = ()
    pause_seconds: float = 0.005
    answered: int = 0
    failures: list["Failure"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,), daemon=True) for number in range(self.clients)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int, seconds: float = 60) -> None:
        """Returns when so many more have been answered."""
        wanted, deadline = self.answered + answers, time.monotonic() + seconds
        while self.answered < wanted:
            assert time.monotonic() < deadline, f"{self.answered} answers, wanted {wanted}; failures: {self.failures[:3]}"
            time.sleep(0.01)

    def _client(self, number: int) -> None:
        fresh = self.fresh and number % 2 == 1
        channel = self._channel()
        while not self._stopping.wait(self.pause_seconds):
            begun = time.monotonic()
            try:
                classify(channel, self.request)
                with self._lock:
                    self.answered += 1
            except grpc.RpcError as error:
                with self._lock:
                    self.failures.append(Failure(begun, error.code().name, error.details() or ""))
            if fresh:
                channel.close()
                channel = self._channel()
        channel.close()

    def _channel(self) -> grpc.Channel:
        # Without its own pool of subchannels, channels of one process to one address share a connection.
        return grpc.insecure_channel(self.target, [*DIRECT, ("grpc.use_local_subchannel_pool", 1), *self.options])


def classify(channel: grpc.Channel, request: pb.ClassifyRequest, timeout_seconds: float = 30) -> pb.ClassifyResponse:
    method = channel.unary_unary(
        "/convoy.v1.Classifier/Classify",
        request_serializer=pb.ClassifyRequest.SerializeToString,
        response_deserializer=pb.ClassifyResponse.FromString,
    )
    answer: pb.ClassifyResponse = method(request, timeout=timeout_seconds)
    return answer
