"""How many pictures there are to be, for the time that is left."""

from collections.abc import Callable, Sequence

from service.bulk.archives import is_archive
from service.bulk.pictures import LeftOut, path_of, scheme
from service.bulk.sources import pictures
from service.bulk.walk import Skip


def count(sources: Sequence[str], skip: Skip, takes: Callable[[str], bool]) -> int | None:
    """The pictures in files, folders and globs on this machine; None if there are others, which only reading them would tell."""
    if any(scheme(path_of(source)) or is_archive(source) for source in sources):
        return None
    return sum(1 for _ in pictures(sources, LeftOut(), skip, takes))
