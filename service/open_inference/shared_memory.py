"""Regions of POSIX shared memory that clients on the same machine have registered, for tensors that need not cross the wire.

A region is read and written through its file descriptor, never mapped: a client that shortens the object under a mapping would end
the server with SIGBUS; a descriptor merely gives fewer bytes. A request holds the `Region` that it uses, so that one that is
unregistered meanwhile stays open until the request has ended.
"""

import os
import re
import threading
from pathlib import Path

from service.errors import InvalidRequest, NotFound, Unimplemented

MAX_REGIONS = 256
"""Each holds a file descriptor."""

MAX_NAME_CHARACTERS = 255
MAX_READ_BYTES = 1 << 30

_OBJECTS = Path("/dev/shm")  # noqa: S108 - where Linux keeps the objects of shm_open
_KEY = re.compile(r"/?(?!\.\.?$)[^/\0\ud800-\udfff]{1,255}")  # no surrogates: no answer could name it


class Region:
    """`byte_size` bytes of a shared memory object, from `offset` on. It is closed when nobody refers to it any more."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens the object. Raises InvalidRequest if there is none of that name, or if it is not as large."""
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = -1
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"{key[:64]!r} cannot be the name of a shared memory object", "key")
        try:
            self._descriptor = os.open(_OBJECTS / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidRequest(f"shared memory object {key!r} cannot be opened: {error.strerror}", "key") from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"{key[:64]!r} cannot be the name of a shared memory object", "key") from None
        there = os.fstat(self._descriptor).st_size
        if byte_size < 1 or offset + byte_size > there:
            raise InvalidRequest(
                f"shared memory object {key!r} has {there} bytes; a region of {byte_size} bytes at {offset} is not inside it",
                "byte_size",
            )

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of the region on. Raises InvalidRequest if the object has been shortened below that."""
        data = os.pread(self._descriptor, size, self.offset + offset)
        if len(data) != size:
            raise self._shortened()
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Puts bytes there. Raises InvalidRequest if the object has been shortened below that."""
        at = self.offset + offset
        if os.fstat(self._descriptor).st_size < at + len(data):
            raise self._shortened()
        while data:
            written = os.pwrite(self._descriptor, data, at)
            at, data = at + written, data[written:]

    def _shortened(self) -> InvalidRequest:
        return InvalidRequest(f"the object of shared memory region {self.name!r} is shorter than when it was registered")


class SharedMemory:
    """The regions that are registered, by the names that clients gave them. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens a region. Raises InvalidRequest if it cannot be had or the name is taken, Unimplemented if the system has none."""
        if not _OBJECTS.is_dir():
            raise Unimplemented("this system has no POSIX shared memory in /dev/shm")
        if not name or len(name) > MAX_NAME_CHARACTERS:
            raise InvalidRequest(f"a region's name has 1 to {MAX_NAME_CHARACTERS} characters, this one {len(name)}", "name")
        region = Region(name, key, offset, byte_size)
        with self._lock:
            if name in self._regions:
                raise InvalidRequest(f"a shared memory region {name[:64]!r} is registered already; unregister it first", "name")
            if len(self._regions) >= MAX_REGIONS:
                raise InvalidRequest(f"{MAX_REGIONS} shared memory regions are registered; no more are accepted", "name")
            self._regions[name] = region

    def unregister(self, name: str) -> None:
        """Forgets a region, if it is there; all of them if the name is empty."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def region(self, name: str) -> Region:
        """The region of this name. Raises NotFound if there is none."""
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"no shared memory region {name[:64]!r} is registered")
        return region

    def regions(self, name: str = "") -> dict[str, Region]:
        """All regions, or that of this name. Raises NotFound if there is none of that name."""
        if name:
            return {name: self.region(name)}
        with self._lock:
            return dict(self._regions)
