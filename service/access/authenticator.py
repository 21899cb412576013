"""From credentials to what their owner may do, for one surface: gRPC or HTTP.

What has been verified is remembered, so that a request costs one SHA-256 and one look into a dict. It is forgotten when the rules
change, and not used after it has expired.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence

from service.access.access import Access, Rules
from service.access.grant import Grant
from service.errors import Refused, Unauthenticated
from service.requests.principal import Principal

MAX_REMEMBERED = 10_000
MAX_TOKEN_CHARACTERS = 16 * 1024


def bearer_token(header: str) -> str:
    """The token of an `authorization` header. Raises Unauthenticated for any other scheme."""
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARACTERS:
        raise Unauthenticated("the authorization is not of the form `Bearer TOKEN`", "malformed")
    return token


class Authenticator:
    """Verifies credentials and counts refusals. Thread-safe."""

    def __init__(self, access: Access, surface: str) -> None:
        """`surface` is a label of `convoy_auth_failures_total`."""
        self.access = access
        self._surface = surface

    def grant(self, authorization: str | None, certificate_names: Callable[[], Sequence[str]]) -> Grant:
        """What the owner of these credentials may do.

        Args:
            authorization: the header; it counts before a certificate.
            certificate_names: returns the names in the client's verified certificate; none without one.

        Raises:
            Unauthenticated: there are no credentials, or not of anybody known.
            PermissionDenied: a JWT names no group of the file.
            Unavailable: the keys of the issuer of JWTs are not known yet.
        """
        rules = self.access.rules
        if authorization is None:
            return self._grant_to_certificate(rules, certificate_names)
        token = bearer_token(authorization)
        digest = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        remembered = rules.remembered[self._surface]
        grant = remembered.get(digest)
        if grant is None:
            grant = self._verify_token(rules, token, digest)
            if len(remembered) >= MAX_REMEMBERED:
                remembered.clear()
            remembered[digest] = grant
        grant.require_current()
        return grant

    def refused(self, error: Refused, principal: Principal | None, peer: str, what: str) -> None:
        """Counts a request that was refused."""
        self.access.refused(self._surface, error, principal, peer, what)

    def _verify_token(self, rules: Rules, text: str, digest: bytes) -> Grant:
        token = rules.tokens.get(digest)
        if token is None and rules.jwt is not None and text.count(".") == 2:
            identity = rules.jwt.verify(text)
            return self._grant(rules, "jwt", identity.name, identity.group, identity.expires)
        if token is None:
            raise Unauthenticated("the token is not known", "unknown")
        expires = math.inf if token.expires is None else token.expires.timestamp()
        if expires <= time.time():
            raise Unauthenticated(f"the token {token.name!r} has expired", "expired")
        return self._grant(rules, "token", token.name, token.group, expires)

    def _grant_to_certificate(self, rules: Rules, certificate_names: Callable[[], Sequence[str]]) -> Grant:
        """Of several names that are known, the one that comes first in the file counts."""
        names = certificate_names() if rules.certificates else ()
        if not names:
            raise Unauthenticated("no credentials: send `authorization: Bearer TOKEN`", "missing")
        known = [rules.certificates[name] for name in names if name in rules.certificates]
        if not known:
            raise Unauthenticated("no name in the client's certificate is known", "unknown")
        name, group = min(known)[1:]
        remembered = rules.remembered[self._surface]
        grant = remembered.get(("certificate", name))
        if grant is None:
            grant = remembered[("certificate", name)] = self._grant(rules, "certificate", name, group, math.inf)
        return grant

    def _grant(self, rules: Rules, kind: str, name: str, group_name: str, expires: float) -> Grant:
        group = rules.group(group_name)
        principal = Principal(kind, name, group_name, group.priority)  # type: ignore[arg-type]
        return Grant(principal, group.rights, group.infer, expires, self)
