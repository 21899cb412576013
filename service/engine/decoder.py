"""The program that decodes dear pictures: started by `decoding_processes.py`, it forks a decoder for each socket that it is sent.

It is a new Python program, not a fork of the server, whose threads and ports would come along. It imports what decoding needs, has
one thread, and waits for sockets; so a decoder that has ended is replaced within milliseconds. When the server ends, the program
reads the end of its socket and ends too, and the kernel its decoders with it.

A decoder answers one picture at a time. What is in its way, such as a library that never ends, ends with it: a timer of the kernel
kills it, and its memory is limited. Nothing that libraries write by themselves gets anywhere.

It says its process id first. A question is a header, the model's input as JSON, and the file. The answer is a byte and what
belongs to it: PIXELS and the pixels, REFUSED and a text, or NEEDS and a number of bytes, which asks to go on. On GO the decoder
does.
"""

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from service.errors import InvalidRequest
from service.model.input_spec import InputSpec
from service.model.picture_cost import bytes_needed, bytes_to_open
from service.model.preprocessing import open_image, to_pixels
from service.process.malloc import limit_freed_memory

QUESTION = struct.Struct(">dQIQ")
"""Seconds, the most pixels that are accepted, the bytes of the JSON, the bytes of the file."""
LENGTH = struct.Struct(">Q")

PIXELS, REFUSED, NEEDS, GO = b"P", b"R", b"N", b"G"

FREE_BYTES = 32 * 2**20
"""What a picture may take without asking."""
_SPARE_BYTES = 96 * 2**20
"""Beyond what a picture needs by its header: code, tables, what Python allocates ahead."""

_PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Forks a decoder for each socket that comes through the one given, until that ends."""
    limit_freed_memory()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets decoders that have ended
    program = os.getpid()
    with socket.socket(fileno=descriptor) as control:
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not data:
                return
            if not os.fork():
                control.close()
                _end_with(program)
                with contextlib.suppress(ConnectionError), socket.socket(fileno=descriptors[0]) as server:
                    _decode_all(server)
                os._exit(0)
            os.close(descriptors[0])


def read_exactly(connection: socket.socket, count: int) -> bytearray:
    """The next `count` bytes. Raises ConnectionError if the socket ends before."""
    data = bytearray(count)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if not received:
            raise ConnectionResetError
        view = view[received:]
    return data


def _end_with(program: int) -> None:
    """Has the kernel kill this process when its parent ends; where it cannot, it ends after its picture."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != program:
        os._exit(0)


def _decode_all(server: socket.socket) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    server.sendall(LENGTH.pack(os.getpid()))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    while True:
        seconds, max_pixels, json_bytes, file_bytes = QUESTION.unpack(read_exactly(server, QUESTION.size))
        spec = InputSpec.model_validate_json(bytes(read_exactly(server, json_bytes)))
        encoded = bytes(read_exactly(server, file_bytes))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = _answer(encoded, spec, max_pixels, lambda count: _ask_for(server, count))
        signal.setitimer(signal.ITIMER_REAL, 0)
        server.sendall(answer)


def _answer(encoded: bytes, spec: InputSpec, max_pixels: int, ask_for: Callable[[int], None]) -> bytes:
    granted = needed = FREE_BYTES
    try:
        _limit_memory(granted)
        image = None
        needed = bytes_to_open(encoded, max_pixels)
        if needed <= granted:
            image = open_image(encoded, max_pixels)
            needed = bytes_needed(image, spec)
        if needed > granted:
            ask_for(needed)
            granted = needed
            _limit_memory(granted)
        return PIXELS + to_pixels(image or open_image(encoded, max_pixels), spec).tobytes()
    except InvalidRequest as error:
        text = str(error)
    except MemoryError:
        text = f"decoding the image takes more memory than its size accounts for, {granted // 2**20} MiB"
    finally:
        _limit_memory(None)
    return REFUSED + LENGTH.pack(len(text.encode())) + text.encode()


def _ask_for(server: socket.socket, count: int) -> None:
    """Waits until the server grants so many bytes. The time that this takes does not count."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    server.sendall(NEEDS + LENGTH.pack(count))
    read_exactly(server, len(GO))
    signal.setitimer(signal.ITIMER_REAL, left)


def _limit_memory(needed: int | None) -> None:
    """Lets this process allocate so many bytes more, or any number. Where the kernel does not count them, it does nothing."""
    limit = resource.RLIM_INFINITY
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if needed is not None:
            data_pages = int(Path("/proc/self/statm").read_text().split()[5])
            limit = data_pages * resource.getpagesize() + needed + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
