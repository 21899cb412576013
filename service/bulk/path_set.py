"""A set of names that may be a hundred million."""

from hashlib import blake2b

_BYTES = 16
"""Of a digest: that two of 10^9 names have the same one has a probability of 10^-21."""


class PathSet:
    """Names by their digests, in buckets: 32 bytes a name, where Python's set takes 150 or more."""

    def __init__(self) -> None:
        self._buckets: dict[int, bytearray] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: str) -> bool:
        """Adds a name; False if it was there."""
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
        key = digest[0] << 8 | digest[1]
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = bytearray()
        elif _holds(bucket, digest):
            return False
        bucket += digest
        self._count += 1
        return True

    def __contains__(self, name: str) -> bool:
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
        return _holds(self._buckets.get(digest[0] << 8 | digest[1], b""), digest)


def _holds(bucket: bytes | bytearray, digest: bytes) -> bool:
    at = bucket.find(digest)
    while at % _BYTES and at >= 0:
        at = bucket.find(digest, at + 1)
    return at >= 0
