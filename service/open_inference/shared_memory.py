"""Regions of POSIX shared memory, registered by clients on the same machine, for tensors that are not sent over the network.

A region is read and written through its file descriptor, never mapped: if a client shortened a mapped object, the server would end
with SIGBUS, as it would when it wrote to a page for which /dev/shm has no room. A descriptor returns fewer bytes, or an error. A
request refers to the `Region` that it uses, so a region that is unregistered stays open until its requests have ended.

Which objects. A client has the server read and write with the server's rights, and any program may keep objects in /dev/shm. So
there is no shared memory unless the operator names prefixes (`--shared-memory-prefix`), and only objects whose names begin with one
can be registered: regular files, with no second name. No object is made here, and none is written but inside a registered region.
"""

import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from service.config import FOREIGN_SHARED_MEMORY
from service.errors import InvalidRequest, NotFound, SharedMemoryFull, Unimplemented

MAX_REGIONS = 256
"""Each holds a file descriptor."""

MAX_NAME_CHARACTERS = 255

OFF = "shared memory is off: the server was started without --shared-memory-prefix"

_OBJECTS = Path("/dev/shm")  # noqa: S108 - where Linux keeps the objects of shm_open
_KEY = re.compile(r"/?(?!\.\.?$)[^/\0\ud800-\udfff]{1,255}")  # no surrogates: a response could not name it


class Region:
    """`byte_size` bytes of a shared memory object, from `offset` on. Closed with the last reference to it."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens the object. Raises InvalidRequest if it does not exist or is too small."""
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._descriptor = -1
        try:
            self._descriptor = os.open(_OBJECTS / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InvalidRequest(f"shared memory object {key!r} cannot be opened: {error.strerror}", "key") from None
        except UnicodeEncodeError:
            raise InvalidRequest(f"{key[:64]!r} cannot be the name of a shared memory object", "key") from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # another name may be another program's
            raise InvalidRequest(f"{key!r} is not a shared memory object with one name", "key")
        size_bytes = status.st_size
        if byte_size < 1 or offset + byte_size > size_bytes:
            raise InvalidRequest(
                f"shared memory object {key!r} has {size_bytes} bytes; a region of {byte_size} bytes at {offset} is not inside it",
                "byte_size",
            )

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of the region on. Raises InvalidRequest if the object has been shortened."""
        data = os.pread(self._descriptor, size, self.offset + offset)
        if len(data) != size:
            raise self._shortened()
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Writes bytes from `offset` of the region on.

        Raises InvalidRequest if the object has been shortened, SharedMemoryFull if there is no room for its pages.
        """
        position = self.offset + offset
        if os.fstat(self._descriptor).st_size < position + len(data):
            raise self._shortened()
        while data:
            try:
                written = os.pwrite(self._descriptor, data, position)
            except OSError as error:
                raise SharedMemoryFull(f"cannot write to shared memory region {self.name!r}: {error.strerror}") from None
            position, data = position + written, data[written:]

    def _shortened(self) -> InvalidRequest:
        return InvalidRequest(f"the object of shared memory region {self.name!r} is shorter than when it was registered")


class MemoryRange(NamedTuple):
    """Bytes of a region: the place of a tensor."""

    region: Region
    offset: int
    byte_size: int

    def read(self) -> bytes:
        """The bytes. Raises InvalidRequest if the object has been shortened."""
        return self.region.read(self.offset, self.byte_size)

    def write(self, data: bytes) -> None:
        """Writes at most `byte_size` bytes from the start. Raises as `Region.write`."""
        self.region.write(self.offset, data)


class SharedMemory:
    """The registered regions, by the names that clients gave them. For any thread."""

    def __init__(self, prefixes: Sequence[str] = ()) -> None:
        """`prefixes` are those of the objects that may be registered; without any, shared memory is off."""
        self._prefixes = tuple(prefix.removeprefix("/") for prefix in prefixes)
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens a region.

        Raises InvalidRequest if it cannot be opened, may not be or the name is taken, Unimplemented if there is no shared memory.
        """
        if not self.is_on:
            raise Unimplemented(OFF)
        if not _OBJECTS.is_dir():
            raise Unimplemented("this system has no POSIX shared memory in /dev/shm")
        if not name or len(name) > MAX_NAME_CHARACTERS:
            raise InvalidRequest(f"a region's name has 1 to {MAX_NAME_CHARACTERS} characters, this one has {len(name)}", "name")
        self._check_key(key)
        region = Region(name, key, offset, byte_size)
        with self._lock:
            if name in self._regions:
                raise InvalidRequest(f"a shared memory region {name[:64]!r} is registered already; unregister it first", "name")
            if len(self._regions) >= MAX_REGIONS:
                raise InvalidRequest(f"{MAX_REGIONS} shared memory regions are registered; no more are accepted", "name")
            self._regions[name] = region

    @property
    def is_on(self) -> bool:
        """Whether regions can be registered, as far as the settings go."""
        return bool(self._prefixes)

    def _check_key(self, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"{key[:64]!r} cannot be the name of a shared memory object", "key")
        name = key.removeprefix("/")
        if not name.startswith(self._prefixes) or name.startswith(FOREIGN_SHARED_MEMORY):
            raise InvalidRequest(
                f"shared memory object {key[:64]!r} is not accepted: names begin with {' or '.join(self._prefixes)}", "key"
            )

    def unregister(self, name: str) -> None:
        """Removes a region, if it is registered; all of them if the name is empty."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()

    def region(self, name: str) -> Region:
        """The region of this name. Raises NotFound."""
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"no shared memory region {name[:64]!r} is registered")
        return region

    def regions(self, name: str = "") -> dict[str, Region]:
        """All regions, or the one of this name. Raises NotFound."""
        if name:
            return {name: self.region(name)}
        with self._lock:
            return dict(self._regions)
