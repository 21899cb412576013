"""`--shard I/N`: the pictures of one run of N, which know nothing of each other and have the same sources.

A picture falls to a run by its path as it is given, without `.` and empty parts. So it stays there whatever else is among the
sources, however often it is named, and in whatever folder each run works; but a relative and an absolute path are two.
"""

import os
import re
import zlib
from typing import NamedTuple

from service.bulk.pictures import plain

MOST_SHARDS = 100_000
"""Kubernetes has no larger indexed Jobs."""

ACCEPTED = f"give I/N, with N of 1 to {MOST_SHARDS} and I of 0 to N-1, such as 0/4"


class Shard(NamedTuple):
    """One of `shards`, numbered from 0."""

    number: int = 0
    shards: int = 1

    def takes(self, path: str) -> bool:
        """Whether the picture at this path, or at this URL, is in it."""
        return self.shards == 1 or zlib.crc32(os.fsencode(plain(path))) % self.shards == self.number


def parse_shard(text: str) -> Shard:
    """Raises ValueError for what is no shard; its text says what is accepted."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(match[1]), int(match[2])) if match is not None else Shard(1, 0)
    if not shard.number < shard.shards <= MOST_SHARDS:
        raise ValueError(f"{text!r} is no shard: {ACCEPTED}")
    return shard
