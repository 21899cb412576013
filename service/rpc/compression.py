"""Compressed messages, unfolded within limits.

C core would unfold a compressed message on the transport's thread, up to the size limit of a message, whatever memory is left. It
is told to leave that to us (`transport.py`). It does not say of a message whether it is compressed: the first bytes do.
"""

import zlib

from service.errors import TooLarge
from service.requests.byte_budget import ByteBudget

FIRST_BYTES = frozenset({b"\x1f", b"\x78"})
"""Of gzip, which no protobuf message begins with, and of zlib, which one might: with its field 15."""

_CHUNK_BYTES = 64 * 1024
_STEP_BYTES = 1024 * 1024


def unfold(message: bytes, budget: ByteBudget, max_bytes: int, reason: str) -> bytes | None:
    """The unfolded message, whose bytes are taken from the budget; None if it is not compressed, or not to its end.

    Raises:
        TooLarge: it has more than `max_bytes`, for this reason, or more than the budget ever gives.
        TooManyBytes: the budget does not have so many left.
    """
    decompressor = zlib.decompressobj(zlib.MAX_WBITS + 32)  # either format
    parts: list[bytes] = []
    taken = 0
    try:
        # In chunks, because zlib copies what it has not used yet.
        for start in range(0, len(message), _CHUNK_BYTES):
            chunk = message[start : start + _CHUNK_BYTES]
            while chunk and not decompressor.eof:
                part = decompressor.decompress(chunk, _STEP_BYTES)
                if taken + len(part) > max_bytes:
                    raise TooLarge(f"the message is larger than {max_bytes} bytes when it is decompressed ({reason})")
                if len(message) + taken + len(part) > budget.limit_bytes:
                    raise TooLarge(
                        f"the message and what is in it have more than {budget.limit_bytes} bytes (--max-inflight-bytes)"
                    )
                if not budget.take(len(part)):
                    raise budget.refusal()
                taken += len(part)
                parts.append(part)
                chunk = decompressor.unconsumed_tail
            if decompressor.eof:
                complete = start + _CHUNK_BYTES >= len(message) and not decompressor.unused_data
                break
        else:
            complete = False
        if complete:
            return b"".join(parts)
    except zlib.error:
        pass
    except BaseException:
        budget.give_back(taken)
        raise
    budget.give_back(taken)
    return None
