"""What servicers of streams keep of them: their receivers, weakly. Calls may be of compiled classes, without weak references."""

import gc

from service.rpc.open_streams import OpenStreams


class Stream:
    def __init__(self, finished: list[str]) -> None:
        self.finished = finished

    def finish(self) -> None:
        self.finished.append("finished")


def test_an_open_stream_is_ended_and_one_that_nobody_holds_is_forgotten() -> None:
    streams, finished = OpenStreams(), list[str]()
    held, let_go = Stream(finished), Stream(finished)
    streams.add(held)
    streams.add(let_go)
    del let_go
    gc.collect()
    streams.finish_all()
    assert finished == ["finished"]
    streams.add(Stream(finished))
    assert finished == ["finished"] * 2, "one that comes later is ended at once"
