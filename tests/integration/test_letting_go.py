"""What a request holds is let go of when it ends: at once, not when the garbage collector comes, and however it ends."""

import gc
import http.client
import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

import service.engine.decoding
from service.engine.entry import DECODING, DONE, QUEUED, RECEIVED, RUNNING, State
from service.engine.query import Item, Query
from service.errors import Cancelled, RequestError
from service.model.input_spec import InputSpec
from service.model.preprocessing import open_image, to_pixels
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.server import Server
from tests.builds import pure_only
from tests.conftest import Serve, put
from tests.refusals import MAX_MESSAGE_BYTES, NO_MESSAGE, REFUSALS, WHEN_DRAINING, Clients, Refusal, make_repository
from tests.request_states import CheckedState

pytestmark = pytest.mark.usefixtures("checked_states")

CLASSIFY = "/convoy.v1.Classifier/Classify"


def png(side: int, note: str = "") -> bytes:
    buffer = io.BytesIO()
    noted = PngImagePlugin.PngInfo()
    if note:
        noted.add_text("note", note, zip=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)).save(buffer, "PNG", pnginfo=noted)
    return buffer.getvalue()


def left_behind(ask: Callable[[], None]) -> set[str]:
    """What of ours, and of the HTTP library's, only the garbage collector would find after requests of one kind."""
    ask()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            ask()
        time.sleep(0.2)  # whoever answers may still be on the way out
        gc.collect()
        ours = {type(found).__qualname__ for found in gc.garbage if type(found).__module__.startswith(("service.", "werkzeug."))}
        frames = [found.f_code for found in gc.garbage if isinstance(found, FrameType)]
        return ours | {code.co_qualname for code in frames if "/service/" in code.co_filename}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


BIG, SMALL = png(600), png(28)
REQUESTS: dict[str, pb.ClassifyRequest] = {
    "answered": pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784)), pb.Item(encoded=BIG)]),
    "broken, decoded at once": pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=SMALL[:-30])]),
    "broken, decoded in the pool": pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=BIG[:-30])]),
    "too many bytes": pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(785))]),
    "unknown model": pb.ClassifyRequest(model="other", items=[pb.Item(pixels=bytes(784))]),
    "late": pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=bytes(784))], timeout_seconds=1e-6),
    "late, decoded in the pool": pb.ClassifyRequest(model="digits", items=[pb.Item(encoded=BIG)], timeout_seconds=1e-6),
}


ABORTED = {"AioServer._serve_unary", "_AioUnaryCall", "Status"}
"""What grpc.aio's `abort` holds, by the traceback of what it raises. None of it has the message."""


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_call_leaves_nothing_to_the_garbage_collector(server: Server, kind: str, transport_name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        classify = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)

        def ask() -> None:
            outcome = classify.future(REQUESTS[kind], timeout=20)
            assert (outcome.exception() is None) == (kind == "answered")

        assert left_behind(ask) - (ABORTED if transport_name == "public" else set()) == set()


@pytest.fixture
def refusing(tmp_path: Path, model_file: Path, serve: Serve) -> Server:
    """A server with the models that every kind of refusal needs."""
    repository = make_repository(tmp_path / "refusing", model_file)
    return serve(repository, max_message_bytes=MAX_MESSAGE_BYTES, access_log_sample=0.5)


@pytest.fixture
def clients(refusing: Server) -> Iterator[Clients]:
    with Clients(refusing.grpc_port, refusing.http_port) as opened:
        yield opened


def left_by_refusals(clients: Clients, kinds: Sequence[Refusal], transport_name: str) -> dict[str, set[str]]:
    """By kind, what of its requests only the garbage collector would find."""

    def send(kinds: Sequence[Refusal]) -> None:
        for kind in kinds:
            kind.send(clients)

    def left(kinds: Sequence[Refusal]) -> set[str]:
        return left_behind(lambda: send(kinds)) - (ABORTED if transport_name == "public" else set())

    assert {str(kind): kind.send(clients) for kind in kinds} == {str(kind): kind.outcome for kind in kinds}
    return {str(kind): left([kind]) for kind in kinds} if left(kinds) else {}


def test_no_kind_of_refusal_leaves_anything_to_the_garbage_collector(clients: Clients, transport_name: str) -> None:
    kinds = [*REFUSALS, NO_MESSAGE] if transport_name == "fast" else REFUSALS
    assert left_by_refusals(clients, kinds, transport_name) == {}


def test_what_a_draining_server_refuses_leaves_nothing_to_the_garbage_collector(
    refusing: Server, clients: Clients, transport_name: str
) -> None:
    refusing._classifier._draining = True
    assert left_by_refusals(clients, WHEN_DRAINING, transport_name) == {}


def test_a_model_that_is_unloaded_leaves_nothing_to_the_garbage_collector(server: Server) -> None:
    def reload() -> None:
        server._repository.unload("digits")
        server._repository.load("digits")

    assert left_behind(reload) == set()


def test_reloads_leave_no_session_and_no_thread(server: Server, repository: Path, model_file: Path) -> None:
    def threads() -> int:
        for thread in threading.enumerate():
            if thread.name.startswith("close-"):
                thread.join()
        return len(list(Path("/proc/self/task").iterdir()))

    server._repository.load("digits")
    before = threads()
    held, sessions, batchers = [], [], []
    gc.collect()
    gc.disable()
    try:
        for version in range(2, 26):
            served = server._repository.acquire("digits", "")
            sessions.append(weakref.ref(served.model._run.__self__))  # type: ignore[attr-defined]
            batchers.append(weakref.ref(served.batcher._threads))  # a batcher that is compiled has no weak references
            held.append(served)  # as a thread might, that still writes its reply
            put(model_file, repository, "digits", version)
            server._repository.load("digits")
            assert sessions[-1]() is not None, "a request is running"
            server._repository.release(served)
        assert threads() < before + len(held) / 2  # gRPC's own come and go
        assert [session() for session in sessions] == [None] * len(sessions)
        del held, served
        assert [batcher() for batcher in batchers] == [None] * len(batchers)
    finally:
        gc.enable()


@pytest.mark.parametrize("body", [SMALL, BIG[:-30], b"nonsense"], ids=["answered", "broken", "nonsense"])
def test_an_http_request_leaves_nothing_to_the_garbage_collector(server: Server, body: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port)

    def ask() -> None:
        connection.request("POST", "/v2/models/digits/infer", body, {"Inference-Header-Content-Length": "0"})
        response = connection.getresponse()
        response.read()
        assert (response.status == 200) == (body == SMALL)

    assert left_behind(ask) == set()
    connection.close()


def test_a_request_that_nobody_waits_for_is_not_decoded_to_the_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[object] = []
    ended = threading.Event()

    def respond(outcome: object) -> None:
        outcomes.append(outcome)
        ended.set()

    decoded = 0
    cancelled = threading.Event()

    def slowly(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
        nonlocal decoded
        decoded += 1
        assert cancelled.wait(10)
        return to_pixels(image, spec)

    monkeypatch.setattr(service.engine.decoding, "to_pixels", slowly)
    cancel = server._classifier.classify(Query("digits", [Item(BIG, True)] * 20), respond, on_transport=False)
    cancel()
    cancelled.set()
    assert ended.wait(10)
    assert isinstance(outcomes[0], Cancelled)
    assert decoded <= 1


@pure_only("compiled code writes states unseen")
@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("answered", [RECEIVED, DECODING, QUEUED, RUNNING, DONE]),
        ("broken, decoded at once", [RECEIVED]),
        ("broken, decoded in the pool", [RECEIVED, DECODING, DONE]),
        ("too many bytes", [RECEIVED]),
        ("unknown model", []),
        ("late, decoded in the pool", [RECEIVED, DECODING, DONE]),
    ],
)
def test_a_request_goes_through_the_states_of_its_way(
    server: Server, checked_states: CheckedState, kind: str, states: list[State]
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        classify = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
        classify.future(REQUESTS[kind], timeout=20).exception()
    assert server._repository.wait_until_idle(20)
    assert checked_states.history == states


def test_what_is_compressed_beside_a_png_s_pixels_is_not_unfolded_on_the_transports_thread(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[bytes, str] = {}

    def noting(encoded: bytes, max_pixels: int) -> Image.Image:
        threads[encoded] = threading.current_thread().name
        return open_image(encoded, max_pixels)

    monkeypatch.setattr(service.engine.decoding, "open_image", noting)
    plain, noted = SMALL, png(28, "a" * 100_000)
    for encoded in (plain, noted):
        request = Query("digits", [Item(encoded, True)])
        ended = threading.Event()
        outcomes: list[object] = []

        def respond(outcome: object, outcomes: list[object] = outcomes, ended: threading.Event = ended) -> None:
            outcomes.append(outcome)
            ended.set()

        server._classifier.classify(request, respond)
        server._classifier.pump()
        assert ended.wait(10)
        assert not isinstance(outcomes[0], RequestError)
    assert threads[plain] == threading.current_thread().name
    assert threads[noted].startswith("decode")
