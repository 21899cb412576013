"""An empty gRPC server: answers `Classify` with the same bytes every time and infers nothing. The floor that others stand on.

Usage: echo_server.py aio|sync PORT_FILE
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from service.pb.convoy.v1 import classifier_pb2 as pb

ANSWER = pb.ClassifyResponse(
    model="digits",
    version="1",
    results=[pb.ItemResult(predictions=[pb.Prediction(label=str(i), index=i, probability=0.2) for i in range(5)])],
    phases=pb.Phases(queue_seconds=1e-4, inference_seconds=1e-4),
)


def handlers(behaviour: Any) -> Any:
    """The one service with the one method, with the messages (de)serialised as a generated servicer would."""
    method = grpc.unary_unary_rpc_method_handler(behaviour, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString)
    return (grpc.method_handlers_generic_handler("convoy.v1.Classifier", {"Classify": method}),)


async def serve_aio(port_file: Path) -> None:
    async def classify(request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return ANSWER

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers(classify))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port_file.write_text(str(port))
    await server.wait_for_termination()


def serve_sync(port_file: Path) -> None:
    def classify(request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return ANSWER

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(handlers(classify))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    port_file.write_text(str(port))
    server.wait_for_termination()


if __name__ == "__main__":
    kind, file = sys.argv[1], Path(sys.argv[2])
    if kind == "aio":
        asyncio.run(serve_aio(file))
    else:
        serve_sync(file)
