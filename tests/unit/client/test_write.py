"""What sends the messages of an RPC of grpc.aio: an error in it ends the RPC, and is the one that is raised."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.client.aio_many import check_written, write
from service.pb.convoy.v1 import classifier_pb2 as pb


@pytest.mark.parametrize("raised", [KeyError("source"), asyncio.InvalidStateError("the RPC has ended")])
def test_an_error_while_messages_are_sent_ends_the_rpc(raised: Exception) -> None:
    async def messages() -> AsyncIterator[pb.ClassifyStreamRequest]:
        yield pb.ClassifyStreamRequest()
        raise raised

    async def silent(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for _request in requests:
            pass
        yield b""

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.method_handlers_generic_handler("s", {"m": grpc.stream_stream_rpc_method_handler(silent)})
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream("/s/m", pb.ClassifyStreamRequest.SerializeToString)()
            writing = asyncio.create_task(write(call, messages()))
            if isinstance(raised, KeyError):
                with pytest.raises(asyncio.CancelledError):  # noqa: PT012 - waits, at most so long
                    async with asyncio.timeout(20):
                        async for _response in call:
                            pass
                with pytest.raises(KeyError, match="source"):
                    check_written(writing)
            else:
                await writing
                check_written(writing)
                call.cancel()
        await server.stop(None)

    asyncio.run(main())
