"""Connections that another process has accepted, for this process's gRPC server: how a supervisor chooses the worker of each.

C++ has this as gRPC's ExternalConnectionAcceptor; grpcio has no binding for it, but all that it needs:

    1. The server is made with a channel argument that is named as the address ADDRESS; its value is a pointer to an empty slot.
    2. The address is added as any port is. C core then opens no socket, and fills the slot with a pointer to an object that takes
       connections, its `TcpServerFdHandler`.
    3. `TcpServerFdHandler::Handle(listener_fd, fd, buffer)` takes one. It is a virtual method, after the two entries of the
       destructor, and called here through the object's table of methods, as C++ on Linux and macOS lays it out.

Nothing in grpcio says whether that still holds, and where it does not, the process may crash. So `self_test` is run by a process of
its own first (`workers/acceptor.py`), and without it the workers share the port by SO_REUSEPORT.
"""

import contextlib
import ctypes
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc

from service.process.vital_thread import vital_thread

log = logging.getLogger(__name__)

ADDRESS = "external:convoy"

SELF_TEST_SECONDS = 10.0

_HANDLE = 2
"""Which virtual method of TcpServerFdHandler takes a connection."""

_ANY_LISTENER = 0
"""In place of the listening socket, which is another process's: C core only wants it not to be negative."""

_SETTINGS = 4
"""The type of the HTTP/2 frame that each side sends first."""

_handle_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


class _Slot:
    """What grpcio passes on as a pointer: its `int` is the address. C core fills it."""

    def __init__(self) -> None:
        self.handler = ctypes.c_void_p(0)

    def __int__(self) -> int:
        return ctypes.addressof(self.handler)


class ExternalConnections:
    """Takes connections from a unix socket, by a thread of its own, and passes them to a gRPC server of this process.

    Make the server with `argument` and have it listen on ADDRESS; then `start`. `close` before the server stops.
    """

    def __init__(self, source: socket.socket) -> None:
        """`source` brings the connections: with each byte one descriptor."""
        self._source = source
        self._slot = _Slot()
        self._thread = vital_thread(self._run, "take-connections")

    @property
    def argument(self) -> tuple[str, object]:
        """The channel argument of the server."""
        return ADDRESS, self._slot

    def start(self) -> None:
        """Takes connections from now on. The server must have started."""
        self._thread.start()

    def close(self) -> None:
        """Passes on what has come, and takes no more: C core must get none once its server stops."""
        with contextlib.suppress(OSError):  # the other end is closed
            self._source.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        self._source.close()

    def _run(self) -> None:
        handler = self._slot.handler
        methods = ctypes.cast(handler, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
        handle = _handle_type(methods[_HANDLE])
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._source, 1, 1, socket.MSG_CMSG_CLOEXEC)
            except ConnectionError:
                return
            if not data:
                return
            if not descriptors:  # the system has dropped it
                log.warning("a connection is lost: the process can open no more files (ulimit -n)")
            for each in descriptors:
                os.set_blocking(each, False)
                handle(handler, _ANY_LISTENER, each, None)


def self_test() -> None:
    """Has a server take a connection and begin to speak HTTP/2 on it. Raises, or crashes, where that does not work."""
    ours, theirs = socket.socketpair()
    connections = ExternalConnections(theirs)
    server = grpc.server(ThreadPoolExecutor(1), options=[connections.argument])
    server.add_insecure_port(ADDRESS)
    server.start()
    connections.start()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, _ = listening.accept()
        with accepted:
            socket.send_fds(ours, [b"c"], [accepted.fileno()])
        client.settimeout(SELF_TEST_SECONDS)
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0)))
        header = client.recv(9)
    if len(header) < 4 or header[3] != _SETTINGS:
        raise RuntimeError(f"a server sent {header!r} in place of its settings")
    connections.close()
    server.stop(None).wait()
