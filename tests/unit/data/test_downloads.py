"""Downloading the files that are missing."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.data import datasets
from export.data import mnist as mnist_files
from service.errors import UserError
from tests.conftest import full_disk


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server's address and its folder."""
    root = tmp_path / "site"
    root.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", root
        server.shutdown()
        thread.join()


def test_without_a_network_the_error_has_the_url_and_the_path(mnist: Path) -> None:
    path = mnist / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, mnist)
    assert f"{path} is missing, and downloading it failed (" in str(raised.value)
    assert "fetch http://127.0.0.1:9/none/t10k-labels-idx1-ubyte.gz on another machine and put it there" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_are_downloaded_and_checked(
    mnist: Path, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = site
    for path in mnist.iterdir():
        path.rename(root / path.name)
    monkeypatch.setattr(mnist_files, "URLS", ("http://127.0.0.1:9/", address))  # the first mirror is down
    seen: list[tuple[str, int, int]] = []
    cache = tmp_path / "new" / "cache"
    found = datasets.load_dataset("mnist", 0, cache, on_progress=lambda *step: seen.append(step))
    assert len(found.test) == 50
    size = (root / "train-images-idx3-ubyte.gz").stat().st_size
    assert ("downloading train-images-idx3-ubyte.gz", size, size) in seen
    assert sorted(path.name for path in cache.iterdir()) == sorted(path.name for path in root.iterdir())
    (root / "train-labels-idx1-ubyte.gz").write_bytes(b"not what it was")
    (cache / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(mnist_files, "URLS", (address,))
    with pytest.raises(UserError) as raised:
        datasets.load_dataset("mnist", 0, cache)
    wanted, got = mnist_files.FILES[1].packed, hashlib.sha256(b"not what it was").hexdigest()
    assert f"expected sha256:{wanted} but got {got}" in str(raised.value)
    assert not (cache / "train-labels-idx1-ubyte.gz").exists()


def test_a_full_disk_is_not_taken_for_the_network(
    mnist: Path, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = site
    for path in mnist.iterdir():
        path.rename(root / path.name)
    monkeypatch.setattr(mnist_files, "URLS", (address,))
    with full_disk(), pytest.raises(UserError, match=rf"^cannot write {tmp_path}/cache/.*-ubyte.gz: File too large$"):
        datasets.load_dataset("mnist", 0, tmp_path / "cache")
