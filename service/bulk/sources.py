"""Everything that `convoy classify` is given, as one iterator of pictures."""

import os
from collections.abc import Callable, Iterable, Iterator

from service.bulk.archives import is_archive, members
from service.bulk.pictures import SUFFIXES, LeftOut, Picture, name_of, path_of, scheme
from service.bulk.remote import Fetch, file_system, open_remote, read_ahead, remote_sources
from service.bulk.walk import Skip, glob, is_glob, walk
from service.client.images import NOT_REGULAR
from service.errors import UserError, first_line


def pictures(
    sources: Iterable[str], left_out: LeftOut, skip: Skip = lambda _: False, takes: Callable[[str], bool] = lambda _: True
) -> Iterator[Picture]:
    """The pictures in files, folders, globs, archives and at URLs, in order, read as they are asked for.

    What cannot be read is a Picture with an error. `left_out` counts what folders and archives hold beside pictures; of folders,
    those for which `skip` is true are not entered. Pictures whose path `takes` refuses are not fetched.
    """
    yield from read_ahead(found for found in _unread(sources, left_out, skip) if takes(_path_of(found)))


def _path_of(found: Picture | Fetch) -> str:
    """As it was given, if it is a file of this machine: its name may be another, which depends on the working folder."""
    return (isinstance(found, Picture) and found.path) or path_of(found.name)


def check(source: str) -> None:
    """Raises UserError for a URL whose package is not installed, and for an empty path."""
    if not source:
        raise UserError("a PATH is empty: give a picture, a folder, a glob, an archive or a URL")
    if scheme(source) not in ("", "file"):
        file_system(source)


def is_one_file(source: str) -> bool:
    """Whether a source is taken as a picture's file, whether it is there or not."""
    return not (scheme(source) or is_archive(source) or os.path.isdir(source) or (is_glob(source) and not os.path.lexists(source)))  # noqa: PTH112


def _unread(sources: Iterable[str], left_out: LeftOut, skip: Skip) -> Iterator[Picture | Fetch]:
    for given in sources:
        source = path_of(given)
        if scheme(source):
            yield from _at_url(source, left_out)
        else:
            yield from _at_path(source, left_out, skip)


def _at_path(source: str, left_out: LeftOut, skip: Skip) -> Iterator[Picture]:
    if source.lower().endswith(SUFFIXES) and not is_glob(source):  # saves a system call: should it be a folder, its reader says so
        yield Picture(name_of(source), source)
    elif os.path.isdir(source):  # noqa: PTH112
        yield from walk(source, left_out, skip)
    elif is_glob(source) and not os.path.lexists(source):
        matched = False
        for path in glob(source, skip):
            matched = True
            yield from _at_match(path, left_out, skip)
        if not matched:
            yield Picture(name_of(source), None, "nothing matches")
    else:
        yield from _at_match(source, left_out, skip)


def _at_match(path: str, left_out: LeftOut, skip: Skip) -> Iterator[Picture]:
    if os.path.isdir(path):  # noqa: PTH112
        if not skip(path):
            yield from walk(path, left_out, skip)
    elif is_archive(path) and os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - who opens a pipe waits
        yield Picture(name_of(path), None, NOT_REGULAR)
    elif is_archive(path):
        try:
            file = open(path, "rb")  # noqa: SIM115, PTH123 - members() closes it
        except OSError as error:
            yield Picture(name_of(path), None, error.strerror or str(error))
        else:
            yield from members(file, path, left_out)
    else:
        yield Picture(name_of(path), path)


def _at_url(url: str, left_out: LeftOut) -> Iterator[Picture | Fetch]:
    try:
        for found in remote_sources(url, left_out):
            if isinstance(found, str):
                yield from members(open_remote(found), found, left_out)
            else:
                yield found
    except UserError as error:
        yield Picture(name_of(url), None, str(error))
    except Exception as error:  # noqa: BLE001 - each store's package has errors of its own
        yield Picture(name_of(url), None, f"cannot be listed: {first_line(error)}")
