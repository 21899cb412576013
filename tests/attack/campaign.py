"""Runs attacks in turn on one server, the polite client beside each, and says what the server held and whom it kept waiting."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tests.attack import grpc_attacks, http_attacks, repository_attacks
from tests.attack.polite import PoliteClient, Seen
from tests.attack.target import Held, PeakMemory, Target, held

Attack = Callable[[Target, float], str]


def nothing(_: Target, until: float) -> str:
    """How the polite client fares alone."""
    time.sleep(max(0.0, until - time.monotonic()))
    return ""


ATTACKS: Mapping[str, Attack] = {
    "nothing": nothing,
    "garbage": grpc_attacks.garbage,
    "empty parts": grpc_attacks.empty_parts,
    "gzip bombs": grpc_attacks.compressed,
    "gzip bombs, cancelled": grpc_attacks.cancelled_bombs,
    "refused requests": grpc_attacks.refused,
    "large messages": grpc_attacks.stalled_in_clients,
    "stalled messages": grpc_attacks.stalled,
    "cancelled calls": grpc_attacks.cancelled,
    "rapid reset": grpc_attacks.rapid_reset,
    "many headers": grpc_attacks.many_headers,
    "health watches": grpc_attacks.watches,
    "half-open connections": grpc_attacks.half_open,
    "broken connections": grpc_attacks.broken_off,
    "HTTP: idle connections": http_attacks.idle,
    "HTTP: trickling headers": http_attacks.trickling,
    "HTTP: stalled bodies": http_attacks.stalled_bodies,
    "HTTP: stalled, no such path": http_attacks.stalled_elsewhere,
    "HTTP: answers left unread": http_attacks.unread,
    "HTTP: JSON bombs": http_attacks.json_bombs,
    "HTTP: refused requests": http_attacks.refused,
    "HTTP: malformed": http_attacks.malformed,
    "broken versions": repository_attacks.broken_versions,
    "reloads": repository_attacks.reloads,
    "64 loads at a time": repository_attacks.many_loads,
}

WARM_UP_SECONDS = 2.0
SETTLE_SECONDS = 20.0
SETTLED_MB = 5.0
"""After an attack the server's memory is looked at until it no longer falls, for at most SETTLE_SECONDS."""

HANDSHAKE_SECONDS = 130.0
"""C core now and then keeps connections that were reset before they said anything until its time for a handshake is over."""

FEW_FILES = 20
"""Pipes to processes and connections that are kept for the next request are not waited for."""


@dataclass(frozen=True)
class Result:
    """What came of one attack.

    Attributes:
        sent: in words.
        before, after: what the server held.
        peak_mb: its highest resident memory.
        seen: by the polite client.
    """

    attack: str
    sent: str
    before: Held
    peak_mb: float
    after: Held
    seen: Seen


def warm_up(target: Target) -> None:
    """Fills caches and starts the threads and processes that a server starts when they are first needed."""
    fresh = held(target.pid)
    for attack in ("garbage", "large messages", "HTTP: answers left unread"):
        ATTACKS[attack](target, time.monotonic() + WARM_UP_SECONDS)
    settled(target.pid, Held(math.inf, sys.maxsize, fresh.files + FEW_FILES))


def run(target: Target, attack: str, seconds: float) -> Result:
    """Attacks for a time; the attack has a server that has come to rest, and leaves it time to do so again."""
    before = held(target.pid)
    with PeakMemory(target.pid) as peak, PoliteClient(target.grpc_port, target.http_port) as polite:
        sent = ATTACKS[attack](target, time.monotonic() + seconds)
    after = settled(target.pid, replace(before, files=before.files + FEW_FILES))
    return Result(attack, sent, before, max(before.rss_mb, peak.rss_mb), after, polite.seen)


def settled(pid: int, before: Held) -> Held:
    """What the server holds once it has as few threads and files as before, and memory stands still; or after a time."""
    start = time.monotonic()
    while True:
        now, passed = held(pid), time.monotonic() - start
        has_more = now.threads > before.threads or now.rss_mb > before.rss_mb + SETTLED_MB
        if not (now.files > before.files and passed < HANDSHAKE_SECONDS) and not (has_more and passed < SETTLE_SECONDS):
            return now
        time.sleep(0.25)
