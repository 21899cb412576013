"""Spans of requests and of batches, sent to an OpenTelemetry collector. Needs the extra `tracing`.

A recorded request has a span `classify`, a child of the client's span if it sent one, with a child for each phase. A batch has a
span in a trace of its own, as it belongs to several requests: it links to their spans, and their `inference` spans link to it.

A request whose client sent a trace is recorded if the client records that trace; of the other requests, a share is. Arguments are
`time.monotonic` seconds; they are converted to wall-clock time here.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from service import convoy_version
from service.errors import RequestError, UserError
from service.observability.trace_context import TraceContext
from service.requests.phases import Phases
from service.sockets.loopback import is_loopback

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}/?")


class RequestSpan:
    """The span of a recorded request."""

    __slots__ = ("_tracing", "batches", "span", "trace")

    def __init__(self, tracing: "Tracing", span: Span) -> None:
        context = span.get_span_context()
        self.span = span
        self.trace = TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", sampled=True)
        self.batches: list[SpanContext] = []
        self._tracing = tracing

    def answered(self, model: str, version: int, items: int, phases: Phases, finished: float, encoded: tuple[float, float]) -> None:
        """Ends the span of a request that was answered. Inference had `finished`, the reply was `encoded` from start to end."""
        self.span.set_attributes({"convoy.model": model, "convoy.version": version, "convoy.items": items})
        self._tracing.phases(self, phases, finished, encoded)
        self._tracing.ended(self, encoded[1])

    def failed(self, error: BaseException, ended: float) -> None:
        """Ends the span of a request that failed."""
        self.span.set_attribute("error.type", type(error).__name__)
        message = str(error) if isinstance(error, RequestError) else ""
        self.span.set_status(Status(StatusCode.ERROR, message))
        self._tracing.ended(self, ended)


class Tracing:
    """Creates spans and exports them from a background thread."""

    def __init__(self, endpoint: str, sample: float) -> None:
        """Exports to `endpoint`, `http://HOST:PORT` or `https://HOST:PORT`, by OTLP over gRPC.

        `sample` is the share, 0 to 1, of requests without a trace that is recorded. OpenTelemetry's own variables
        (OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS ...) apply.

        Raises UserError for an invalid endpoint.
        """
        if not _URL.fullmatch(endpoint):
            raise UserError(f"--otlp-endpoint {endpoint!r} is not http://HOST:PORT or https://HOST:PORT")
        self._sample = sample
        named = Resource({"service.name": "convoy", "service.version": convoy_version()})
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create().merge(named).merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        # gRPC would send spans for a collector on this machine through the HTTP proxy of the environment too.
        options: Any = (("grpc.enable_http_proxy", 0),) if is_loopback(urlsplit(endpoint).hostname or "") else None
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, channel_options=options)))
        self._tracer = self._provider.get_tracer("convoy")
        self._open: dict[str, RequestSpan] = {}  # by span id

    def begin(self, parent: TraceContext | None, request_id: str, began: float) -> RequestSpan | None:
        """The span of a new request, on which `answered` or `failed` must be called; None if it is not recorded."""
        if not (parent.sampled if parent is not None else random.random() < self._sample):  # noqa: S311 - no secret
            return None
        context = None if parent is None else set_span_in_context(NonRecordingSpan(_remote(parent)))
        attributes = {"convoy.request_id": request_id} if request_id else {}
        span = self._tracer.start_span("classify", context, SpanKind.SERVER, attributes, start_time=_nanoseconds(began))
        request = RequestSpan(self, span)
        self._open[request.trace.span_id] = request
        return request

    def batch(self, model: str, version: int, items: int, traces: list[TraceContext], started: float, finished: float) -> None:
        """A batch of `items` has run. `traces` are those of its recorded requests' own spans."""
        requests = [request for trace in traces if (request := self._open.get(trace.span_id)) is not None]
        if not requests:
            return
        span = self._tracer.start_span(
            "batch",
            attributes={"convoy.model": model, "convoy.version": version, "convoy.items": items},
            links=[Link(request.span.get_span_context()) for request in requests],
            start_time=_nanoseconds(started),
        )
        span.end(_nanoseconds(finished))
        for request in requests:
            request.batches.append(span.get_span_context())

    def phases(self, request: RequestSpan, phases: Phases, finished: float, encoded: tuple[float, float]) -> None:
        """Adds the spans of the phases, which end at `finished`, and of the encoding."""
        started = finished - phases.inference_seconds
        submitted = started - phases.queue_seconds
        context = set_span_in_context(request.span)
        if phases.decode_seconds is not None:
            self._phase("decode", context, submitted - phases.decode_seconds, submitted)
        self._phase("queue", context, submitted, started)
        self._phase("inference", context, started, finished, [Link(batch) for batch in request.batches])
        self._phase("encode", context, *encoded)

    def _phase(self, name: str, context: object, started: float, ended: float, links: Iterable[Link] = ()) -> None:
        span = self._tracer.start_span(name, context, links=tuple(links), start_time=_nanoseconds(started))  # type: ignore[arg-type]
        span.end(_nanoseconds(ended))

    def ended(self, request: RequestSpan, ended: float) -> None:
        """Ends the span of a request."""
        del self._open[request.trace.span_id]
        request.span.end(_nanoseconds(ended))

    def close(self) -> None:
        """Exports the remaining spans, for at most FLUSH_SECONDS, so that a server can always stop."""
        flush = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        try:
            flush.start()
        except (RuntimeError, MemoryError) as error:
            log.error("the last spans are lost, no thread can be started to export them: %s", error)
        else:
            flush.join(FLUSH_SECONDS)


def _remote(parent: TraceContext) -> SpanContext:
    return SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)
    )


def _nanoseconds(moment: float) -> int:
    """Converts `time.monotonic` seconds to nanoseconds since 1970."""
    return time.time_ns() + round(1e9 * (moment - time.monotonic()))
