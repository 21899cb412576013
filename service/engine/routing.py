"""Which version answers a request that names none, an alias or `latest`.

An alias is one more name of a version, and no more: it changes neither what `latest` is nor which version answers by default.
"""

import hashlib
import itertools
import random
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import NamedTuple

from service.engine.query import Query
from service.policy import LATEST, REQUEST_ID, Policy


class Routing(NamedTuple):
    """The names of one model's versions, some of which may not be served.

    Attributes:
        aliases: versions by alias.
        latest: the highest version that `versions` of the policy asks for; 0 if none of those is served.
        default: the version of requests that name none; 0 if that is `latest` and 0.
        traffic: served versions and their weights, among which requests that name no version are shared out, in place of `default`.
        key: what keeps requests at one version; see `Policy.traffic_key`.
    """

    aliases: dict[str, int]
    latest: int = 0
    default: int = 0
    traffic: tuple[tuple[int, float], ...] = ()
    key: str = ""

    def names(self) -> dict[str, int]:
        """Versions by what requests may call them, but for their numbers."""
        return self.aliases | {LATEST: self.latest, "": self.default}

    def shares(self) -> dict[int, float]:
        """Of the requests that name no version, the share that each version gets; their sum is 1. Empty if nothing answers them."""
        traffic = self.traffic or (((self.default, 1.0),) if self.default else ())
        shares: dict[int, float] = {}
        for version, weight in traffic:
            shares[version] = shares.get(version, 0.0) + weight / sum(weight for _, weight in traffic)
        return shares


class Split:
    """Shares requests out among versions by weight."""

    def __init__(self, traffic: Iterable[tuple[int, float]], key: str = "") -> None:
        """Of each version the weight, which is positive; and the name of what keeps requests at one version."""
        versions, weights = zip(*traffic, strict=True)
        self._versions: tuple[int, ...] = versions
        self._bounds: list[float] = list(itertools.accumulate(weights))
        self._key = key

    def version_for(self, query: Query) -> int:
        """The version that answers a request; the same one for all with the same key, while the weights are the same."""
        if self._key == REQUEST_ID:
            key: str | bytes = query.id
        else:
            key = next((value for name, value in query.metadata if name == self._key), "") if self._key else ""
        share = _fraction(key) if key else random.random()  # noqa: S311 - no secret
        return self._versions[min(bisect_right(self._bounds, share * self._bounds[-1]), len(self._versions) - 1)]


def make_routing(policy: Policy, served: Collection[int], asked_for: Collection[int], before: int) -> Routing:
    """The routing that a policy asks for.

    `served` are the versions that are, `asked_for` those of them that `versions` of the policy asks for, and `before` is what
    `latest` has been: it stays so while none of those asked for is served.
    """
    latest = max(asked_for, default=before if before in served else 0)
    names = policy.aliases | {LATEST: latest}

    def version(name: str | int) -> int:
        return names[name] if isinstance(name, str) and name in names else int(name)

    traffic = tuple((version(name), weight) for name, weight in policy.traffic.items())
    traffic = tuple((version, weight) for version, weight in traffic if version in served and weight)
    default = version(policy.default)
    if traffic and default not in served:
        default, _ = max(traffic, key=lambda each: each[1])  # what is asked of the model beside requests is answered, as they are
    return Routing(policy.aliases, latest, default, traffic, policy.traffic_key)


def _fraction(key: str | bytes) -> float:
    """A number from 0 to below 1 that looks random, and is the same for the same key in every server."""
    digest = hashlib.blake2b(key if isinstance(key, bytes) else key.encode(errors="surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest) / 2**56
