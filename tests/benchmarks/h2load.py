"""The load that the benchmarks share: h2load (Debian package nghttp2-client), one thread of C, a closed loop of gRPC calls.

It takes far less of the machine than a client in Python, which matters where client and server share the cores.
"""

import re
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import Message

LEAST_BYTES = 60
"""An answer has at least so many. A gRPC error has HTTP status 200 too, and fewer: what came back says whether it was answered."""

_DONE = re.compile(
    r"finished in ([\d.]+)(us|ms|s),.*requests: \d+ total, \d+ started, (\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored",
    re.S,
)
_DATA = re.compile(r"\((\d+)\) data")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Load:
    """What a load came to."""

    calls: int
    seconds: float

    @property
    def calls_per_second(self) -> float:
        """Calls answered a second."""
        return self.calls / self.seconds


def needed() -> None:
    """Ends the program with a hint if h2load is not installed."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed: apt-get install nghttp2-client")


def framed(*messages: Message) -> bytes:
    """Messages as gRPC puts them into HTTP/2: the body of a call."""
    serialised = [message.SerializeToString() for message in messages]
    return b"".join(struct.pack(">BI", 0, len(message)) + message for message in serialised)


def load(
    port: int, body: Path, connections: int, streams: int, *, seconds: float = 0, calls: int = 0,
    method: str = "Classify", answers: int = 1, log: Path | None = None,
) -> Load:  # fmt: skip
    """Sends calls with this body over so many connections, `streams` at a time on each: for `seconds`, or so many `calls`.

    Ends the program unless every call was answered with so many `answers`. `log` gets a line a call: start, status, microseconds.
    """
    command = [
        "h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-n{calls}" if calls else f"-D{round(1000 * seconds)}ms", f"-d{body}",
        *([f"--log-file={log}"] if log else []), "-Hcontent-type: application/grpc", "-Hte: trailers",
        f"http://127.0.0.1:{port}/convoy.v1.Classifier/{method}",
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800).stdout
    done, data = _DONE.search(printed), _DATA.search(printed)
    if done is None or data is None or int(done[3]) == 0:
        sys.exit(f"h2load said nothing that can be read:\n{printed}")
    count = int(done[3])
    if int(done[4]) or (calls and count != calls) or int(data[1]) < LEAST_BYTES * count * answers:
        sys.exit(f"not every call was answered:\n{printed}")
    return Load(count, float(done[1]) * _UNITS[done[2]] if calls else seconds)
