"""The file of a unix socket: checked before it is taken, put in its place once a server listens on it, removed at the end.

The socket is bound under another name in the same folder and then renamed. So a file that another server left is replaced at once,
and C core, which deletes the path that it has bound before and after, never deletes the file of another server.
"""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from service.errors import UserError

MAX_PATH_BYTES = 99
"""Linux takes 107 bytes, of which `.PID` needs up to eight."""


class UnixSocket:
    """A unix socket at `path`, which the flag `option` names."""

    def __init__(self, path: Path, option: str) -> None:
        self.path = path
        self._option = option
        self.bind_path = path.parent / f"{path.name}.{os.getpid()}"
        """Where to bind."""
        self._own: tuple[int, int] | None = None

    def check(self) -> None:
        """Raises UserError if a server cannot take the path."""
        path = self.path
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise self._error(f"the path has more than {MAX_PATH_BYTES} bytes")
        if not path.name or not path.parent.is_dir():
            raise self._error("not a file in a folder that exists")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise self._error("permission denied")
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise self._error("it exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)  # a server with a full backlog would be waited for
            code = client.connect_ex(str(path))
        if code not in (errno.ECONNREFUSED, errno.ENOENT):
            raise self._error(os.strerror(code) if code == errno.EACCES else "a server listens on it")

    def listen(self) -> socket.socket:
        """A socket that listens, in its place. Raises UserError if a server cannot take the path."""
        self.check()
        listener = socket.socket(socket.AF_UNIX)
        try:
            self.bind_path.unlink(missing_ok=True)
            listener.bind(str(self.bind_path))
            listener.listen()
        except OSError as error:
            listener.close()
            raise self._error(error.strerror or str(error)) from None
        try:
            self.publish()
        except UserError:
            listener.close()
            raise
        return listener

    def publish(self) -> None:
        """Moves the socket, which is bound and listens, to its path. Raises UserError if that cannot be done."""
        try:
            state = self.bind_path.stat()
            self._own = (state.st_dev, state.st_ino)
            self.bind_path.replace(self.path)
        except OSError as error:
            self.bind_path.unlink(missing_ok=True)
            raise self._error(error.strerror or str(error)) from None

    def remove(self) -> None:
        """Removes the file, unless it is another server's or was never published."""
        with contextlib.suppress(OSError):
            state = self.path.lstat()
            if (state.st_dev, state.st_ino) == self._own:
                self.path.unlink()

    def _error(self, reason: str) -> UserError:
        return UserError(f"{self._option} {str(self.path)!r}: {reason}")
