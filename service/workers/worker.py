"""One worker of several: a server that does what its supervisor asks, and ends with it.

    load      constructs the server and loads the models. What the operator can put right is raised, and so told to the supervisor.
    open      takes up what was asked of the workers before there was this one, then binds the shared port.
    report    says whether it is ready, and gives all metrics; fails if nothing but another worker can help.
    act       does here what somebody asked of some worker (`control.py`).
    http      answers one HTTP request that came in on the supervisor's port.
    drain     begins the end, as SIGTERM and SIGINT do: what is in hand is finished, the process leaves.

Of its own accord it sends a report when it may have become ready or has ended its work, and passes on what is to be done by all.
"""

import io
import itertools
import logging
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from service.config import ServerConfig
from service.control import Call
from service.errors import ConvoyError, Unavailable
from service.http.server import CLOSE_SECONDS, ROUTE
from service.lifecycle import AskedToStop, leave_at_once
from service.logs import set_up_logging
from service.workers.ipc import Channel, ChannelClosed
from service.workers.process import Report

if TYPE_CHECKING:
    from service.server import Server

log = logging.getLogger(__name__)

GOODBYE_SECONDS = 5.0


class Worker:
    """Answers a supervisor's questions with a server."""

    def __init__(self, config: ServerConfig, connection: Connection) -> None:
        self._config = config
        self._channel = Channel(connection, self._answer, _supervisor_gone)
        self._server: Server | None = None
        self._opened = False
        self._opening = threading.Lock()
        self._http_in_hand = 0
        self._http_answered = threading.Condition()
        self._reports = itertools.count(1)
        self._reporting = threading.Lock()
        self._last_report: Report | None = None
        self._asked_to_stop = AskedToStop()
        self._lame_duck_seconds = config.lame_duck_seconds

    def run(self) -> None:
        """Serves until the supervisor or a signal ends it."""
        self._channel.start()
        self._asked_to_stop.wait()
        with self._opening:
            server = self._server
            if server is None or not self._opened:
                os._exit(0)  # a load that is under way would hold us up, for nothing
        server.drain(self._lame_duck_seconds)
        with self._http_answered:  # a model has given its answer before the answer is written
            self._http_answered.wait_for(lambda: not self._http_in_hand, CLOSE_SECONDS)
        self._last_report = self._state()  # what comes after it has no metrics left to tell of
        try:
            self._channel.ask("report", self._last_report).result(GOODBYE_SECONDS)
        except (ChannelClosed, TimeoutError):
            log.warning("the supervisor has not heard of the end")
        server.close()
        leave_at_once()

    def _answer(self, question: str, *arguments: Any) -> Any:
        return getattr(self, f"_{question}")(*arguments)

    def _load(self) -> None:
        from service.server import Server

        server = Server(self._config, self._changed, BroadcastControl(self._channel))
        server.check()
        self._server = server
        server.load()

    def _open(self, remembered: Sequence[Call]) -> None:
        with self._opening:
            if self._asked_to_stop.is_set():
                raise Unavailable("the worker is ending")
            for method, *arguments in remembered:
                try:
                    self._act(str(method), *arguments)
                except ConvoyError as error:
                    log.warning("%s %s: %s", method, " ".join(map(str, arguments)), error)
            self._loaded.listen()
            self._opened = True

    def _act(self, method: str, *arguments: str | int) -> None:
        self._loaded.act(method, *arguments)

    def _drain(self, lame_duck_seconds: float) -> None:
        self._lame_duck_seconds = lame_duck_seconds
        self._asked_to_stop.set()

    def _report(self) -> Report:
        why = self._server.why_not_alive() if self._server is not None else ""
        if why:
            raise Unavailable(why)
        return self._state()

    def _state(self) -> Report:
        with self._reporting:
            if self._last_report is not None:
                return self._last_report
            server = self._server
            if server is None:
                return Report(next(self._reports), "loading", [])
            return Report(next(self._reports), server.why_not_ready(), server.metrics())

    def _http(self, environ: dict[str, Any], body: bytes) -> tuple[int, list[tuple[str, str]], bytes, list[str]]:
        route: list[str] = []
        environ |= {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.version": (1, 0), "wsgi.multithread": True,
                    "wsgi.multiprocess": True, "wsgi.run_once": False, ROUTE: route}  # fmt: skip
        with self._http_answered:
            self._http_in_hand += 1
        try:
            response = Response.from_app(self._loaded.http_application, environ, buffered=True)
            return response.status_code, list(response.headers.items()), response.get_data(), route
        finally:
            with self._http_answered:
                self._http_in_hand -= 1
                self._http_answered.notify_all()

    @property
    def _loaded(self) -> "Server":
        if self._server is None:
            raise Unavailable("the worker has not loaded its models yet")
        return self._server

    def _changed(self) -> None:
        self._channel.ask("report", self._state())


class BroadcastControl:
    """Control of all workers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def load(self, name: str) -> None:
        """See Control."""
        self._channel.ask("broadcast", "load", name).result()

    def unload(self, name: str) -> None:
        """See Control."""
        self._channel.ask("broadcast", "unload", name).result()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """See Control."""
        self._channel.ask("broadcast", "register", name, key, offset, byte_size).result()

    def unregister(self, name: str) -> None:
        """See Control."""
        self._channel.ask("broadcast", "unregister", name).result()


def _supervisor_gone() -> None:
    """Nobody would restart this process, drain it, or know of it."""
    os._exit(1)


def main(file_descriptor: int) -> None:
    """Runs the worker that a supervisor has started, with one end of a connection to it."""
    connection = Connection(file_descriptor)
    number, config = connection.recv()
    set_up_logging(config.log_level, config.log_format, number)
    Worker(config, connection).run()
