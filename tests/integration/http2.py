"""One end of an HTTP/2 connection, frame by frame: pings at times of a test's choice, which gRPC's own client does not allow.

Headers are sent as literals, those that arrive are not decoded. There is no flow control: messages must be small.
"""

import socket
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def literals(headers: Sequence[tuple[str, str]]) -> bytes:
    """HPACK without its tables and Huffman code. Names and values are shorter than 127 bytes."""
    return b"".join(b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in headers)


class Http2:
    """A connection. Settings are acknowledged when they are read; pings are not, so that a test can count and withhold."""

    def __init__(self, connection: socket.socket, *, client: bool) -> None:
        self._connection = connection
        connection.settimeout(20)
        self._bytes = connection.makefile("rb")
        self._next_stream = 1
        if client:
            connection.sendall(PREFACE)
        else:
            assert self._bytes.read(len(PREFACE)) == PREFACE
        self.send(Frame(SETTINGS, 0, 0, b""))
        if client:
            self.receive_until(lambda frame: frame.kind == SETTINGS and bool(frame.flags & ACK))

    @classmethod
    def to(cls, port: int) -> "Http2":
        """A client's end, connected."""
        return cls(socket.create_connection(("127.0.0.1", port)), client=True)

    def __enter__(self) -> "Http2":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._bytes.close()
        self._connection.close()

    def send(self, *frames: Frame) -> None:
        """Sends frames in one write."""
        self._connection.sendall(
            b"".join(
                struct.pack(">I", len(frame.payload))[1:] + struct.pack(">BBI", *frame[:3]) + frame.payload for frame in frames
            )
        )

    def receive(self) -> Frame | None:
        """The next frame; None at the end of the connection. Raises TimeoutError after 20 s without one."""
        try:
            head = self._bytes.read(9)
            if len(head) < 9:
                return None
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            frame = Frame(kind, flags, stream, self._bytes.read(int.from_bytes(head[:3], "big")))
            if kind == SETTINGS and not flags & ACK:
                self.send(Frame(SETTINGS, ACK, 0, b""))
        except ConnectionError:
            return None
        return frame

    def receive_until(self, wanted: Callable[[Frame], bool]) -> Frame | None:
        """The first frame that is `wanted`; None if the connection ends before."""
        while (frame := self.receive()) is not None and not wanted(frame):
            pass
        return frame

    def call(self, path: str, message: bytes | None = None, *, more: bool = False) -> int:
        """Starts a call; returns its stream. `more` keeps it open for messages that follow."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = literals(
            [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("content-type", "application/grpc"),
             ("te", "trailers")]
        )  # fmt: skip
        frames = [Frame(HEADERS, END_HEADERS, stream, headers)]
        if message is not None:
            frames.append(Frame(DATA, 0 if more else END_STREAM, stream, struct.pack(">BI", 0, len(message)) + message))
        self.send(*frames)
        return stream

    def pings(self, count: int) -> bool:
        """Sends pings in one write; returns whether the server lets that pass. If not, it has cut the connection."""
        # GOAWAY goes out together with the acknowledgements of pings, but before that of settings that came after them.
        self.send(*(Frame(PING, 0, 0, bytes(8)) for _ in range(count)), Frame(SETTINGS, 0, 0, b""))
        answer = self.receive_until(lambda frame: frame.kind == GOAWAY or (frame.kind == SETTINGS and bool(frame.flags & ACK)))
        return answer is not None and answer.kind == SETTINGS
