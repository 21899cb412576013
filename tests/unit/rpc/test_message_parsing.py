"""Messages unfolded, counted and parsed, within a budget that has all of its bytes afterwards."""

import gzip
import random
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest
from google.protobuf.message import Message

from service.errors import Cancelled, InvalidRequest, TooLarge, TooManyBytes, Unavailable
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.pb.inference import open_inference_pb2 as oip
from service.requests.byte_budget import ByteBudget
from service.requests.principal import UNKNOWN, Principal
from service.rpc import message_parsing
from service.rpc.call import NEVER, Unary, UnaryCall
from service.rpc.message_parsing import MAX_OPEN_BYTES, THREADS, MessageParser, Parsed, in_pool
from service.rpc.status import Status
from tests.integration.transport_service import RecordingMethodObserver, RecordingObserver
from tests.lack_of_threads import no_more_threads

MIB = 1024 * 1024
LIMIT = 4 * MIB
CLASSIFY = Unary("/c.C/Classify", pb.ClassifyRequest, lambda *_: None)
INFER = Unary("/i.I/Infer", oip.ModelInferRequest, lambda *_: None)


@pytest.fixture
def budget() -> Iterator[ByteBudget]:
    """Checks that nothing is left of it after a test that has given back what it got."""
    budget = ByteBudget(8 * MIB)
    yield budget
    assert budget.in_flight_bytes == 0


@pytest.fixture
def parser(budget: ByteBudget) -> Iterator[MessageParser]:
    parser = MessageParser(budget, LIMIT)
    yield parser
    parser.close()


def request(size: int) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model="digits", items=[pb.Item(pixels=random.Random(0).randbytes(size))])


def at_once(parser: MessageParser, method: Unary, message: bytes) -> Parsed:
    return parser.parse(method, message)


class ACall(UnaryCall):
    """A call without a transport: notes how it ends."""

    status: Status | None = None

    def __init__(self, method: Unary = CLASSIFY, principal: Principal = UNKNOWN) -> None:
        super().__init__(method, NEVER, (), RecordingMethodObserver(RecordingObserver(), "unary", method.service, method.name))
        self.principal = principal

    def peer(self) -> str:
        return ""

    def certificate_names(self) -> Sequence[str]:
        return ()

    def _send(self, payload: bytes | None, status: Status) -> None:
        self.status = status


def pooled(parser: MessageParser, method: Unary, message: bytes, call: ACall | None = None) -> Parsed:
    done = threading.Event()
    outcomes: list[Parsed] = []

    def on_done(parsed: Parsed) -> None:
        outcomes.append(parsed)
        done.set()

    parser.parse_in_pool(call or ACall(method), message, on_done)
    assert done.wait(30)
    return outcomes[0]


def identity(message: bytes) -> bytes:
    return message


WAYS = pytest.mark.parametrize("way", [at_once, pooled])
Way = Callable[[MessageParser, Unary, bytes], Parsed]


@WAYS
@pytest.mark.parametrize("fold", [identity, gzip.compress, zlib.compress])
@pytest.mark.parametrize("size", [0, 10, 100_000, 3 * MIB])
def test_a_message_is_parsed_whatever_its_size_and_compression(
    parser: MessageParser, budget: ByteBudget, way: Way, fold: Callable[[bytes], bytes], size: int
) -> None:
    sent = request(size)
    parsed = way(parser, CLASSIFY, fold(sent.SerializeToString()))
    assert parsed.outcome == sent
    assert parsed.held_bytes == sent.ByteSize()
    assert budget.in_flight_bytes == parsed.held_bytes + parsed.passing_bytes
    parser.give_back(parsed)


def zeros(mebibytes: int, form: str) -> bytes:
    """Compressed zeros, without the end: the same block over and over, which takes no time to make."""
    compressor = zlib.compressobj(wbits={"gzip": 31, "zlib": 15}[form])
    begin, block = (compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return begin + block * (mebibytes - 1)


def refused(parsed: Parsed, error: type[Exception], text: str) -> None:
    assert isinstance(parsed.outcome, error), parsed
    assert text in str(parsed.outcome)
    assert parsed.outcome.__traceback__ is None, "its frames hold the message"
    assert parsed[1:] == (0, 0)


@WAYS
@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (b"\x0a", InvalidRequest, "malformed message: not a convoy.v1.ClassifyRequest"),
        (b"\x0a" * 100_000, InvalidRequest, "malformed message"),
        (gzip.compress(b"\x0a"), InvalidRequest, "malformed message"),
        (gzip.compress(request(10_000).SerializeToString())[:-9], InvalidRequest, "malformed message"),
        (gzip.compress(b"") + b"more", InvalidRequest, "malformed message"),
        (b"\x1a\x00" * 100_000, InvalidRequest, "more fields"),
        (gzip.compress(b"\x1a\x00" * 100_000), InvalidRequest, "more fields"),
        (gzip.compress(bytes(LIMIT + 1)), TooLarge, f"larger than {LIMIT} bytes when it is decompressed"),
        (zeros(1000, "gzip"), TooLarge, "when it is decompressed"),
        (zeros(100, "zlib"), TooLarge, "when it is decompressed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_that_is_refused_holds_nothing(
    parser: MessageParser, way: Way, message: bytes, error: type[Exception], text: str
) -> None:
    refused(way(parser, CLASSIFY, message), error, text)


def test_without_a_thread_a_message_is_refused_once(parser: MessageParser, budget: ByteBudget) -> None:
    outcomes: list[Parsed] = []
    with no_more_threads():
        parser.parse_in_pool(ACall(CLASSIFY), gzip.compress(request(10).SerializeToString()), outcomes.append)
    refused(outcomes[0], Unavailable, "can start no thread")
    assert budget.in_flight_bytes == 0
    parser.give_back(pooled(parser, CLASSIFY, request(10).SerializeToString()))
    parser.close()
    assert len(outcomes) == 1


def test_a_message_that_begins_like_zlib_and_is_not_is_parsed(parser: MessageParser) -> None:
    message = b"\x78\x9c\x01" + request(10).SerializeToString()  # an unknown field 15
    assert in_pool(message)
    parsed = parser.parse(CLASSIFY, message)
    assert isinstance(parsed.outcome, Message)
    assert parsed.outcome.items[0] == request(10).items[0]  # type: ignore[attr-defined]
    parser.give_back(parsed)


@WAYS
@pytest.mark.parametrize("fold", [identity, gzip.compress])
def test_a_message_that_does_not_fit_now_may_be_sent_again(
    parser: MessageParser, budget: ByteBudget, way: Way, fold: Callable[[bytes], bytes]
) -> None:
    assert budget.take(7 * MIB)
    refused(way(parser, CLASSIFY, fold(request(2 * MIB).SerializeToString())), TooManyBytes, "--max-inflight-bytes")
    budget.give_back(7 * MIB)


@WAYS
def test_what_lists_of_numbers_become_is_counted(parser: MessageParser, way: Way) -> None:
    def numbers(count: int) -> bytes:
        tensor = oip.ModelInferRequest.InferInputTensor(contents=oip.InferTensorContents(uint_contents=[1] * count))
        return oip.ModelInferRequest(inputs=[tensor]).SerializeToString()

    parsed = way(parser, INFER, numbers(800_000))
    assert parsed.passing_bytes > 8 * 800_000
    parser.give_back(parsed)
    refused(way(parser, INFER, numbers(1_000_000)), TooLarge, "tensors need least in raw_input_contents")


@pytest.fixture
def busy(parser: MessageParser) -> Iterator[threading.Event]:
    """All threads of the pool wait for this event."""
    go = threading.Event()
    begun = threading.Semaphore(0)

    def wait(parsed: Parsed) -> None:
        begun.release()
        assert go.wait(30)
        parser.give_back(parsed)

    for _ in range(THREADS):
        parser.parse_in_pool(ACall(), b"", wait)
        assert begun.acquire(timeout=30)
    yield go
    go.set()


def test_the_message_of_a_call_that_has_ended_is_not_parsed(parser: MessageParser) -> None:
    call = ACall()
    call.cancelled_by_client()
    refused(pooled(parser, CLASSIFY, request(10).SerializeToString(), call), Cancelled, "the call has ended")


def test_messages_that_wait_when_the_pool_is_closed_are_not_parsed(
    parser: MessageParser, budget: ByteBudget, busy: threading.Event
) -> None:
    outcomes: list[Parsed] = []
    for _ in range(3):
        parser.parse_in_pool(ACall(), request(10).SerializeToString(), outcomes.append)
    closing = threading.Thread(target=parser.close)
    closing.start()
    while not parser._closed:
        closing.join(0.01)
    assert budget.in_flight_bytes > 0
    busy.set()
    closing.join(30)
    assert len(outcomes) == 3
    for parsed in outcomes:
        refused(parsed, Cancelled, "the call has ended")


def test_clients_take_turns(parser: MessageParser, busy: threading.Event) -> None:
    order: list[str] = []
    for who in ("greedy", "greedy", "greedy", "greedy", "polite"):

        def on_done(parsed: Parsed, who: str = who) -> None:
            order.append(who)
            parser.give_back(parsed)

        parser.parse_in_pool(ACall(principal=Principal("address", who)), request(10).SerializeToString(), on_done)
    busy.set()
    parser.close()
    assert "polite" in order[: 1 + THREADS]
    assert len(order) == 5


def test_a_message_that_has_waited_long_is_refused(
    parser: MessageParser, busy: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_parsing, "WAITING_SECONDS", 0.0)
    outcomes: list[Parsed] = []
    parser.parse_in_pool(ACall(), request(10).SerializeToString(), outcomes.append)
    busy.set()
    while not outcomes:
        threading.Event().wait(0.01)
    refused(outcomes[0], TooManyBytes, "wait to be parsed; try again")


@WAYS
@pytest.mark.parametrize("fold", [identity, gzip.compress])
def test_a_method_that_needs_no_credentials_takes_small_messages(
    parser: MessageParser, way: Way, fold: Callable[[bytes], bytes]
) -> None:
    method = Unary("/grpc.health.v1.Health/Check", pb.ClassifyRequest, lambda *_: None)
    parsed = way(parser, method, fold(request(MAX_OPEN_BYTES - 100).SerializeToString()))
    assert parsed.outcome == request(MAX_OPEN_BYTES - 100)
    parser.give_back(parsed)
    refused(way(parser, method, fold(request(MAX_OPEN_BYTES).SerializeToString())), TooLarge, "this method needs no credentials")


def test_a_message_that_cannot_be_passed_on_fails_its_call(parser: MessageParser) -> None:
    call = ACall()

    def raises(_: Parsed) -> None:
        raise RuntimeError

    parser.parse_in_pool(call, request(10).SerializeToString(), raises)
    parser.close()
    assert call.status is not None
    assert call.status.name == "INTERNAL"


LACKING = """
import resource
from service.requests.byte_budget import ByteBudget
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.rpc.call import Unary
from service.rpc.message_parsing import MessageParser
method = Unary("/c.C/Classify", pb.ClassifyRequest, lambda *_: None)
budget = ByteBudget(2**40)
parser = MessageParser(budget, 2**31)
message = pb.ClassifyRequest(items=[pb.Item(pixels=bytes(200 << 20))]).SerializeToString()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
outcome = parser.parse(method, message).outcome
print(type(outcome).__name__, outcome, budget.in_flight_bytes)
"""


def test_lack_of_memory_is_not_called_a_malformed_message() -> None:
    answer = subprocess.run([sys.executable, "-c", LACKING], capture_output=True, text=True, timeout=60, check=True).stdout
    assert answer == "TooManyBytes the server has no memory left for this request; try again 0\n"
