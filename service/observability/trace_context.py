"""W3C Trace Context (https://www.w3.org/TR/trace-context/): which trace a request belongs to, as its client says."""

import re
from typing import NamedTuple

HEADER = "traceparent"
_SAMPLED = 1

# version-trace id-parent id-flags; a version above 00 may go on after the flags. Ids of nothing but zeros are invalid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """A place in a trace: its id, 32 hex digits, the span there, 16 hex digits, and whether the trace is recorded."""

    trace_id: str
    span_id: str
    sampled: bool


def trace_context(traceparent: str | bytes) -> TraceContext | None:
    """Reads the header; None if it is not valid, which by the standard is as if it had not been sent."""
    found = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
    if found is None or (found[4] and found[0].startswith("00")):
        return None
    trace_id, span_id, flags, _ = found.groups()
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
