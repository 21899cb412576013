"""`--shard I/N`: the pictures of one run of N, which know nothing of each other and have the same sources.

A picture falls to a run by its name alone. So it stays there whatever else is among the sources, and however often it is named.
"""

import re
import zlib
from typing import NamedTuple

MOST_SHARDS = 100_000
"""Kubernetes has no larger indexed Jobs."""

ACCEPTED = f"give I/N, with N of 1 to {MOST_SHARDS} and I of 0 to N-1, such as 0/4"


class Shard(NamedTuple):
    """One of `shards`, numbered from 0."""

    number: int = 0
    shards: int = 1

    def takes(self, name: str) -> bool:
        """Whether a picture of this name is in it."""
        return self.shards == 1 or zlib.crc32(name.encode()) % self.shards == self.number


def parse_shard(text: str) -> Shard:
    """Raises ValueError for what is no shard; its text says what is accepted."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(match[1]), int(match[2])) if match is not None else Shard(1, 0)
    if not shard.number < shard.shards <= MOST_SHARDS:
        raise ValueError(f"{text!r} is no shard: {ACCEPTED}")
    return shard
