"""Random interleavings of arrive, cancel, deadline, reply, fail and stop, on both transports."""

import threading
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from service import errors
from service.rpc.aio_server import AioServer
from service.rpc.call import UnaryCall
from service.rpc.completion_queue import CompletionQueueServer
from service.rpc.transport import Options
from tests.integration.transport_service import LIMIT, Kind, RecordingObserver, Service


class Interleavings(RuleBasedStateMachine):
    """Calls that arrive, are answered, failed, cancelled or late in any order, and a stop in the middle of it.

    Whatever happens, each call has one end, the client sees that end, and the transport stops.
    """

    kind: Kind

    def __init__(self) -> None:
        super().__init__()
        self.service, self.seen = Service(), RecordingObserver()
        self.transport = self.kind(Options(["127.0.0.1"], 0, LIMIT, self.service.methods(), self.seen, self.service.on_idle))
        self.transport.start()
        self.channel: Any = grpc.insecure_channel(f"127.0.0.1:{self.transport.port}", [("grpc.enable_retries", 0)])
        self.keep = self.channel.unary_unary("/t.T/Keep", BytesValue.SerializeToString, BytesValue.FromString)
        self.open: list[tuple[Any, UnaryCall]] = []
        self.expected: list[tuple[Any, set[str]]] = []

    def arrive(self) -> tuple[Any, UnaryCall]:
        value = str(len(self.service.kept_by_value)).encode()
        future = self.keep.future(BytesValue(value=value), timeout=60)
        while value not in self.service.kept_by_value:
            assert self.service.kept.wait(10)
            self.service.kept.clear()
        return future, self.service.kept_by_value[value]

    @rule(count=st.integers(1, 4))
    def some_arrive(self, count: int) -> None:
        self.open += [self.arrive() for _ in range(count)]

    @rule()
    def one_is_late(self) -> None:
        future = self.keep.future(BytesValue(value=b"late"), timeout=0.1)  # too short to arrive, where the machine is busy
        assert future.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["reply", "fail", "cancel", "reply twice", "race"]))
    def one_ends(self, data: st.DataObject, how: str) -> None:
        future, call = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        payload = BytesValue(value=b"x").SerializeToString()
        if how == "cancel":
            future.cancel()
            self.expected.append((future, {"CANCELLED"}))
        elif how == "fail":
            assert call.fail(errors.NotFound("no"))
            self.expected.append((future, {"NOT_FOUND"}))
        elif how == "race":
            answer = threading.Thread(target=call.reply, args=(payload,))
            answer.start()
            future.cancel()
            answer.join()
            self.expected.append((future, {"OK", "CANCELLED"}))
        else:
            assert call.reply(payload)
            if how == "reply twice":
                assert not call.reply(payload)
                assert not call.fail(errors.NotFound("no"))
            self.expected.append((future, {"OK"}))

    def teardown(self) -> None:
        stopping = threading.Thread(target=self.transport.stop, args=(0.2 if self.open else 5,))
        stopping.start()
        for index, (future, call) in enumerate(self.open):
            if index % 2 and call.reply(BytesValue(value=b"x").SerializeToString()):
                self.expected.append((future, {"OK"}))
            else:
                self.expected.append((future, {"UNAVAILABLE", "CANCELLED", "UNKNOWN"}))
        for future, codes in self.expected:
            assert future.code().name in codes
        stopping.join(20)
        assert not stopping.is_alive()
        assert len(self.seen.handled) == len(self.seen.started) >= len(self.service.calls)
        self.channel.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [AioServer, CompletionQueueServer], ids=lambda kind: kind.name)
def test_any_interleaving_gives_each_call_one_end(kind: Kind) -> None:
    machine = type(f"Interleavings_{kind.name}", (Interleavings,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=15, deadline=None))
