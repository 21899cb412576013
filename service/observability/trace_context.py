"""W3C Trace Context (https://www.w3.org/TR/trace-context/): the trace that a client says its request belongs to."""

import re
from typing import NamedTuple

HEADER = "traceparent"
_SAMPLED = 1

# version-trace id-parent id-flags. A version above 00 may have more after the flags. Ids of zeros only are invalid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """The id of a trace (32 hex digits), of a span in it (16 hex digits), and whether the trace is recorded."""

    trace_id: str
    span_id: str
    sampled: bool


def trace_context(traceparent: str | bytes) -> TraceContext | None:
    """Parses the header; None if it is invalid, which the standard treats as missing."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if found is None or (found[4] and found[0].startswith("00")):
        return None
    trace_id, span_id, flags, _ = found.groups()
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
