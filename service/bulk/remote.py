"""Pictures at URLs (`s3://`, `gs://`, `https://` ...), by fsspec and the package of each kind of store."""

import posixpath
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

from service.bulk.archives import is_archive
from service.bulk.pictures import MAX_PICTURE_BYTES, LeftOut, Picture, name_of, scheme
from service.bulk.walk import is_glob
from service.errors import UserError, first_line

_THREADS = 16
_AHEAD_PICTURES = 64
_AHEAD_BYTES = 64 << 20
_SINGLE = ("http", "https")
"""Protocols without folders."""


class Fetch(NamedTuple):
    """A picture to be fetched; its name is known before."""

    name: str
    fetch: Callable[[], Picture]


def file_system(url: str) -> tuple[Any, str]:
    """Fsspec's file system for a URL, and the path in it. Raises UserError that says what to install."""
    try:
        import fsspec
    except ModuleNotFoundError:
        raise UserError(
            f"{scheme(url)}:// needs fsspec: install Convoy's extra 'remote' (pip install 'convoy-serving[remote]')"
        ) from None
    try:
        opened: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{scheme(url)}:// needs another package: {first_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{url}: {first_line(error)}") from None
    return opened


def open_remote(url: str) -> IO[bytes]:
    """An archive at a URL, open for reading. Raises UserError or, as everything of fsspec, any error."""
    system, path = file_system(url)
    opened: IO[bytes] = system.open(path, "rb")
    return opened


def remote_sources(url: str, left_out: LeftOut) -> Iterator[str | Fetch]:
    """What is at a URL: its pictures, and the URLs of archives that were named."""
    system, path = file_system(url)
    if scheme(url) in _SINGLE:
        yield url if is_archive(path) else _fetch(system, path, url, None)
        return
    found = sorted(system.glob(path)) if is_glob(path) and not system.exists(path) else [path]
    if not found:
        yield Fetch(name_of(url), lambda: Picture(name_of(url), None, "nothing matches"))
    for each in found:
        name = system.unstrip_protocol(each)
        if system.isdir(each):
            yield from _walk(system, each, left_out)
        elif is_archive(each):
            yield name
        else:
            yield _fetch(system, each, name, None)


def _walk(system: Any, root: str, left_out: LeftOut) -> Iterator[Fetch]:
    """Folder by folder; only the names of one are held."""
    stack = [root]
    while stack:
        folders = []
        for entry in sorted(system.ls(stack.pop(), detail=True), key=lambda entry: entry["name"]):
            path = entry["name"]
            last = posixpath.basename(path.rstrip("/"))
            if entry["type"] == "directory":
                if last.startswith("."):
                    left_out.counts["hidden"] += 1
                else:
                    folders.append(path)
            elif left_out.takes(last):
                yield _fetch(system, path, system.unstrip_protocol(path), entry.get("size"))
        stack += reversed(folders)


def _fetch(system: Any, path: str, name: str, size: int | None) -> Fetch:
    def fetch() -> Picture:
        try:
            length = system.info(path).get("size") if size is None else size
            if length is None:
                with system.open(path, "rb") as file:
                    content = file.read(MAX_PICTURE_BYTES + 1)
            else:
                content = system.cat_file(path) if length <= MAX_PICTURE_BYTES else b""
        except FileNotFoundError:
            return Picture(name_of(name), None, "No such file or directory")
        except Exception as error:  # noqa: BLE001 - each store's package has errors of its own
            return Picture(name_of(name), None, f"cannot be fetched: {first_line(error)}")
        if (length or len(content)) > MAX_PICTURE_BYTES:
            return Picture(name_of(name), None, f"too large: a picture at a URL has at most {MAX_PICTURE_BYTES} bytes")
        return Picture(name_of(name), content)

    return Fetch(name_of(name), fetch)


def read_ahead(pictures: Iterator[Picture | Fetch]) -> Iterator[Picture]:
    """The pictures in order; up to 64 that have to be fetched are fetched at a time, as long as they have 64 MiB in all."""
    pool: ThreadPoolExecutor | None = None
    waiting: deque[Future[Picture]] = deque()
    try:
        for each in pictures:
            if isinstance(each, Picture):
                while waiting:
                    yield waiting.popleft().result()
                yield each
                continue
            pool = pool or ThreadPoolExecutor(_THREADS, "fetch")
            waiting.append(pool.submit(each.fetch))
            while len(waiting) >= _AHEAD_PICTURES or _bytes_of(waiting) > _AHEAD_BYTES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _bytes_of(waiting: "deque[Future[Picture]]") -> int:
    """Of the pictures that have been fetched and are not taken yet."""
    contents = (each.result().image for each in waiting if each.done())
    return sum(len(content) for content in contents if content is not None)
