"""grpcio's private layer `grpc._cython.cygrpc`, which `completion_queue.py` is made of, and whether it is as tested."""

import time

import grpc

try:
    from grpc._cython import cygrpc as cygrpc  # type: ignore[attr-defined]  # noqa: TID251 - allowed in this file alone
except ImportError:
    cygrpc = None

TESTED = ((1, 81), (1, 85))
"""The lowest and the newest minor version of grpcio that the tests are run with."""

_NAMES = {
    "Server": ("register_completion_queue", "add_http2_port", "start", "request_call", "shutdown", "cancel_all_calls", "destroy"),
    "CompletionQueue": ("poll", "shutdown"),
    "Call": ("start_server_batch", "peer"),
    "auth_context": (),
    "CompletionType": ("queue_shutdown", "queue_timeout", "operation_complete"),
    "StatusCode": ("ok",),
    "WriteFlag": ("buffer_hint",),
    "SendInitialMetadataOperation": (),
    "SendMessageOperation": (),
    "SendStatusFromServerOperation": (),
    "ReceiveMessageOperation": (),
    "ReceiveCloseOnServerOperation": (),
}  # fmt: skip


def unavailable_reason() -> str:
    """Why the fast transport cannot be used with the installed grpcio; empty if it can."""
    if cygrpc is None:
        return "grpcio has no grpc._cython.cygrpc"
    for name, attributes in _NAMES.items():
        missing = [attribute for attribute in attributes if not hasattr(getattr(cygrpc, name, None), attribute)]
        if missing or not hasattr(cygrpc, name):
            return f"grpcio {grpc.__version__}: cygrpc.{name} is not as tested"
    major_minor = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if not TESTED[0] <= major_minor <= TESTED[1]:
        tested = " to ".join(".".join(map(str, version)) for version in TESTED)
        return f"grpcio {grpc.__version__} is untested (tested: {tested})"
    try:
        _self_test()
    except Exception as error:  # noqa: BLE001 - a private layer that has changed may raise anything
        return f"grpcio {grpc.__version__}: cygrpc does not work as tested ({type(error).__name__}: {error})"
    return ""


def _self_test() -> None:
    """Starts and stops a server, without a call."""
    queue = cygrpc.CompletionQueue()
    server = cygrpc.Server([(b"grpc.so_reuseport", 0)], False)
    server.register_completion_queue(queue)
    server.add_http2_port(b"127.0.0.1:0")
    server.start()
    server.request_call(queue, queue, "call")
    server.shutdown(queue, "shutdown")
    tags = {queue.poll(time.time() + 10).tag for _ in range(2)}
    server.destroy()
    queue.shutdown()
    if tags != {"call", "shutdown"} or queue.poll(time.time() + 10).completion_type != cygrpc.CompletionType.queue_shutdown:
        raise RuntimeError("a server did not shut down as expected")
