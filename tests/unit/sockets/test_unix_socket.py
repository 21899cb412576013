"""The file of a unix socket, where another process interferes between the check and the start."""

import socket
from pathlib import Path

import pytest

from service.errors import UserError
from service.sockets.unix_socket import UnixSocket


def test_a_path_that_became_a_folder_is_one_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    unix_socket = UnixSocket(tmp_path / "grpc.sock", "--grpc-socket")
    unix_socket.check()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(unix_socket.bind_path))
        unix_socket.path.mkdir()
        with pytest.raises(UserError, match=r"^--grpc-socket '.*grpc\.sock': Is a directory$"):
            unix_socket.publish()
    assert list(tmp_path.iterdir()) == [unix_socket.path]
    unix_socket.remove()
    assert unix_socket.path.is_dir()
