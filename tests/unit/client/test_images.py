"""Files of pictures are read whole, whatever their size and kind."""

import os
import threading
from pathlib import Path

import pytest

from service.client import images
from service.client.images import item, read_file
from service.errors import FileUnreadable


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000])
def test_a_file_of_any_size_is_read_whole(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "picture").write_bytes(content)
    assert read_file(tmp_path / "picture") == content


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = os.urandom(150_000)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    assert read_file(pipe) == content
    writer.join(60)


def test_a_picture_that_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", "/dev/zero", "/dev/null"):
        with pytest.raises(FileUnreadable, match="not a regular file"):
            item(path)
    writer = os.open(pipe, os.O_RDWR)  # which says nothing
    with pytest.raises(FileUnreadable, match="not a regular file"):
        item(pipe)
    os.close(writer)
    (tmp_path / "empty").touch()
    assert item(tmp_path / "empty") == {"encoded": b""}


def test_what_cannot_be_read_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(70_000))
    monkeypatch.setattr(images, "MAX_MESSAGE_BYTES", 69_999)
    for path, message in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        ("a\0b", "null byte"),
        (large, "70000 bytes; a request holds at most 69999"),
    ):
        with pytest.raises(FileUnreadable, match=message):
            read_file(path)
