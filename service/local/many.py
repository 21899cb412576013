"""Any number of images, each with one outcome, in bounded memory: what is behind `Local.classify_many`.

    images -> taken and read by threads -> packed into requests -> engine: decoded, batched -> answered -> caller, in order

Threads of one interpreter hinder each other where each does little at a time: whoever opens a small file or decodes a small picture
gives up the interpreter's lock for microseconds, and has to wait for it if another thread wants it. So small pictures have one
thread that takes, reads, packs and decodes them, and the others work on whole requests: the model's, and the caller's.

A request goes on when it is full. Before that it does if its images are small and the caller has waited LINGER_SECONDS for more,
or if they are large and the engine has fewer requests than threads to decode them. At most WINDOW images are taken and not given
back to the caller yet, fewer if they are large.

A request that fails is asked for again image by image, so that the one at fault gets the error alone. What concerns every image,
such as an unknown model, ends it all.
"""

import contextlib
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from service.client.images import Image, is_path
from service.client.images import item as as_item
from service.client.messages import CallFailed, Classification, Outcome, concerns_all, filled, rows
from service.client.packing import Input, Packing
from service.engine.decoding import INLINE_DECODE_BYTES, INLINE_DECODE_ITEMS
from service.errors import ConvoyError, QueueFull, UserError
from service.local.engine import Engine, Reply
from service.pb.convoy.v1 import classifier_pb2 as pb
from service.policy import MAX_TIMEOUT_SECONDS

WINDOW = 512
"""Or half of the model's queue, if that is less: the rest is left to others."""

OPEN_BYTES = 64 * 2**20
"""Of images that are taken and not given back: as the caller has them and as they are read, and again as the model has them."""

REQUEST_ITEMS = INLINE_DECODE_ITEMS
"""A request is full: as many small pictures are decoded by the thread that submits them."""

SMALL_BYTES = INLINE_DECODE_BYTES // INLINE_DECODE_ITEMS
"""Of an image, or of each on average."""

LINGER_SECONDS = 0.002

READERS = 16
SLOW_SECONDS = 0.002
PATIENCE_SECONDS = 0.05
"""Files are read by one thread more once that has taken so much longer than SLOW_SECONDS each. A single long time means nothing: on
a busy machine it is the wait for a processor, or for the interpreter's lock."""

_JOIN_SECONDS = 1.0


class Many:
    """One `classify_many`. Begins with the first outcome that is asked for; `close` it."""

    def __init__(self, engine: Engine, images: Iterable[Image], fields: dict[str, Any], *, ordered: bool) -> None:
        """Raises UserError for an invalid value."""
        self._engine = engine
        self._images = iter(images)
        # Where the policy has a time limit for those who wait, nobody waits here.
        self._packing = Packing(filled(pb.ClassifyRequest(), **fields, timeout_seconds=MAX_TIMEOUT_SECONDS))
        self._window, self._full = _limits(engine, filled(pb.GetModelRequest(), model=fields["model"], version=fields["version"]))
        self._ordered = ordered
        self._taking = threading.Lock()
        self._lock = threading.Lock()  # of what follows
        self._outcome = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._readers: list[threading.Thread] = []
        self._reading = 0  # threads
        self._taken = 0
        self._given = 0  # back to the caller
        self._open_bytes = 0
        self._requests = 0  # in the engine
        self._replies: set[Reply] = set()
        self._answered: list[tuple[Sequence[Input], bytes | BaseException]] = []
        self._early: dict[int, tuple[Outcome, int]] = {}  # answered before those in front of them, with their bytes
        self._ended = False
        self._error: BaseException | None = None  # of the iterable: raised once what came before is answered
        self._fatal: BaseException | None = None  # raised at once: some image has no outcome
        self._closed = False

    def outcomes(self) -> Iterator[Outcome]:
        """The outcome of each image.

        Raises CallFailed for what concerns all, what goes wrong with an image and is no UserError, and at the end what the images'
        iterable raised.
        """
        self._start_reader()
        while True:
            with self._outcome:
                lingered = False
                while not (lingered or self._answered or self._is_due() or self._is_finished() or self._fatal):
                    lingered = not self._outcome.wait(LINGER_SECONDS if self._packing else None)
                if self._fatal is not None:
                    raise self._fatal
                answered, self._answered = self._answered, []
                pack = self._take_pack() if self._packing and (lingered or self._is_due()) else None
                if self._is_finished() and not answered and pack is None:
                    break
            if pack is not None:
                self._submit(pack)
            found = [each for inputs, answer in answered for each in self._settled(inputs, answer)]
            yield from self._give_back(found)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Takes no more images and cancels what is not computed."""
        with self._lock:
            self._closed = True
            self._room.notify_all()
            replies = list(self._replies)
        for reply in replies:
            reply.cancel()
        until = time.monotonic() + _JOIN_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))  # the caller's iterable may keep it

    # The readers' side.

    def _start_reader(self) -> None:
        reader = threading.Thread(target=self._read, name="classify-many", daemon=True)
        with self._lock:
            if self._reading >= READERS:
                return
            self._reading += 1
        try:
            reader.start()
        except BaseException:
            with self._lock:
                self._reading -= 1
            raise
        self._readers.append(reader)

    def _read(self) -> None:
        late_seconds = 0.0
        try:
            while (taken := self._take()) is not None:
                if is_path(taken.image):
                    start = time.monotonic()
                    self._read_item(taken)
                    late_seconds = max(0.0, late_seconds + time.monotonic() - start - SLOW_SECONDS)
                if taken.item:
                    self._add(taken)
                if late_seconds > PATIENCE_SECONDS and self._reading < READERS:
                    late_seconds = 0.0
                    with contextlib.suppress(RuntimeError):  # there may be no more threads; it goes on with those that there are
                        self._start_reader()
        except BaseException as error:  # noqa: BLE001 - the caller gets it, and does not wait for ever
            with self._lock:
                self._ended, self._fatal = True, self._fatal or error
        finally:
            with self._lock:
                self._reading -= 1
                self._outcome.notify_all()

    def _take(self) -> Input | None:
        """The next image, once there is room for it; None at the end."""
        with self._taking:
            with self._lock:
                while not (self._closed or self._has_room()):
                    self._room.wait()
                if self._closed or self._ended:
                    return None
            try:
                image = next(self._images)
            except BaseException as error:  # noqa: BLE001 - the caller gets it, once what came before is answered
                with self._lock:
                    self._ended = True
                    self._error = None if isinstance(error, StopIteration) else error
                return None
            each = Input(self._taken, image)
            with self._lock:
                self._taken += 1
                self._open_bytes += each.kept_bytes
            if not is_path(image):  # the caller may use its memory for the next one
                self._read_item(each)
            return each

    def _read_item(self, each: Input) -> None:
        try:
            each.read(as_item(each.image))
        except UserError as error:
            self._done([each], error)

    def _has_room(self) -> bool:
        return self._taken - self._given < self._window and self._open_bytes < OPEN_BYTES

    def _add(self, read: Input) -> None:
        with self._lock:
            first = not self._packing
            self._packing.add(read)
            self._open_bytes += read.own_bytes
            pack = self._take_pack() if self._is_due() else None
            if first and pack is None:
                self._outcome.notify_all()  # the caller lingers
        if pack is not None:
            self._submit(pack)

    # Requests. These are called with the lock held.

    def _is_due(self) -> bool:
        """Whether what is read goes on: a request is full, there will be nothing more, or the engine has too little to decode."""
        packing = self._packing
        if not packing:
            return False
        if packing.has_full(self._full) or not self._reading:
            return True
        return packing.waiting_bytes > SMALL_BYTES * packing.waiting_images() and self._requests <= self._engine.cpus

    def _is_finished(self) -> bool:
        return not self._reading and self._taken == self._given

    def _take_pack(self) -> Sequence[Input]:
        self._requests += 1
        return self._packing.next_inputs(self._full)

    # And these without it.

    def _submit(self, inputs: Sequence[Input]) -> None:
        """Has images answered in one request, which waits for room in the queue. It is counted already."""
        request = self._packing.message(inputs).request
        reply = Reply(lambda outcome: self._computed(reply, inputs, outcome))
        with self._lock:
            self._replies.add(reply)
        while not self._closed:
            try:
                self._engine.submit(request, reply)
            except QueueFull as full:
                self._engine.wait(full.retry_after_seconds)
                continue
            except ConvoyError as refused:
                self._computed(reply, inputs, refused)
            return

    def _computed(self, reply: Reply, inputs: Sequence[Input], outcome: bytes | BaseException) -> None:
        with self._lock:
            self._replies.discard(reply)
            self._requests -= 1
        self._done(inputs, outcome)

    def _done(self, inputs: Sequence[Input], outcome: bytes | BaseException) -> None:
        with self._lock:
            self._answered.append((inputs, outcome))
            self._outcome.notify_all()

    # The caller's side.

    def _settled(
        self, inputs: Sequence[Input], answer: bytes | BaseException
    ) -> Iterator[tuple[Input, Classification | ConvoyError]]:
        """The outcomes of a request; none if its images are asked for again. Raises CallFailed for what concerns all."""
        if isinstance(answer, bytes):
            yield from zip(inputs, rows(pb.ClassifyResponse.FromString(answer)), strict=True)
            return
        error = answer if isinstance(answer, UserError) else self._engine.call_failed(answer)
        if isinstance(error, CallFailed):
            if concerns_all(error) or error.code == "CANCELLED":
                raise error
            if isinstance(answer, QueueFull):
                self._engine.wait(answer.retry_after_seconds)
                self._submit_again(inputs)
                return
        if len(inputs) == 1:
            yield inputs[0], error
        else:
            for each in inputs:
                self._submit_again([each])

    def _submit_again(self, inputs: Sequence[Input]) -> None:
        with self._lock:
            self._requests += 1
        self._submit(inputs)

    def _give_back(self, found: Iterable[tuple[Input, Classification | ConvoyError]]) -> list[Outcome]:
        """The outcomes that the caller gets now, for which there is room again."""
        ready: list[Outcome] = []
        open_bytes = 0
        for each, answer in found:
            outcome = Outcome(each.index, each.image, answer)
            if not self._ordered:
                ready.append(outcome)
                open_bytes += each.kept_bytes + each.own_bytes
            else:
                self._early[each.index] = outcome, each.kept_bytes + each.own_bytes
        while self._given + len(ready) in self._early:
            outcome, freed = self._early.pop(self._given + len(ready))
            ready.append(outcome)
            open_bytes += freed
        if ready:
            with self._lock:
                self._given += len(ready)
                self._open_bytes -= open_bytes
                self._room.notify_all()
        return ready


def _limits(engine: Engine, request: pb.GetModelRequest) -> tuple[int, int]:
    """How many images are taken and not given back, and how many a request has, at most."""
    try:
        info = engine.get_model(request)
    except CallFailed:
        return 1, 1  # whoever asks for an image gets the error; without one, there is none
    window = max(1, min(WINDOW, info.limits.max_queue_items // 2, OPEN_BYTES // _item_bytes(info.input)))
    return window, max(1, min(REQUEST_ITEMS, info.limits.max_request_items, window // 4))


def _item_bytes(spec: pb.TensorSpec) -> int:
    return max(1, math.prod(spec.shape) * np.dtype(spec.dtype).itemsize)
