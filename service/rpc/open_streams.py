"""The open streams of a service, which end when the server stops."""

import threading
from typing import Protocol
from weakref import WeakSet


class Finishable(Protocol):
    """The receiver of an open stream. Not its call: a compiled class has no weak references."""

    def finish(self) -> object:
        """Ends the stream, as soon as no request is lost by it."""


class OpenStreams:
    """The open streams of a service, so that a server that stops can end them: their clients might keep them open for ever.

    Held weakly: the transport holds a call and its receiver for as long as the call is open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: WeakSet[Finishable] = WeakSet()
        self._finishing = False

    def add(self, stream: Finishable) -> None:
        """Adds a stream; ends it at once if the server is stopping."""
        with self._lock:
            self._streams.add(stream)
            finishing = self._finishing
        if finishing:
            stream.finish()

    def finish_all(self) -> None:
        """Ends all streams, and those that are added later."""
        with self._lock:
            self._finishing = True
            streams = list(self._streams)
        for stream in streams:
            stream.finish()
