"""JWTs of an issuer that the file of `--auth` names: whom they are of, in which group, until when.

Only algorithms with a public key are taken: with a secret that both sides know, whoever can check a token can make one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jwt

from service.access.auth_file import Jwt
from service.access.jwks import KeySource
from service.errors import PermissionDenied, Unauthenticated, Unavailable

_REASONS: dict[type[Exception], str] = {
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.MissingRequiredClaimError: "a claim is missing: exp, iss and aud are needed",
    jwt.InvalidAlgorithmError: "its algorithm is not allowed",
}


class Identity(NamedTuple):
    """Whom a JWT is of. `expires` is in seconds since 1970."""

    name: str
    group: str
    expires: float


class JwtVerifier:
    """Verifies JWTs by the settings of the file and the issuer's keys."""

    def __init__(self, settings: Jwt, source: KeySource, groups: Sequence[str]) -> None:
        """`groups` are those of the file, in its order: of several that a JWT names, the first counts."""
        self._settings = settings
        self._source = source
        self._groups = groups

    def verify(self, token: str) -> Identity:
        """Whom a JWT is of.

        Raises:
            Unauthenticated: it is not accepted.
            PermissionDenied: none of its groups is in the file.
            Unavailable: the issuer's keys are not known yet.
        """
        settings = self._settings
        claims, expires = self._claims(token)
        name = claims.get(settings.name_claim)
        if not isinstance(name, str) or not name:
            raise Unauthenticated(f"the JWT is not accepted: it has no claim {settings.name_claim!r}", "malformed")
        group = self._group(claims)
        if group is None:
            raise PermissionDenied(f"no group of the claim {settings.groups_claim!r} of the JWT has any right here")
        return Identity(name[:200], group, expires + settings.leeway_seconds)

    def _claims(self, token: str) -> tuple[Mapping[str, Any], float]:
        """The claims, and the time of `exp`."""
        keys = self._source.keys
        if keys is None:
            raise Unavailable("the keys of the issuer of JWTs are not known yet")
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            key_id = header.get("kid")
            key = keys.get(key_id) if key_id is not None or len(keys) > 1 else next(iter(keys.values()))
            if key is None:
                self._source.unknown()
                raise Unauthenticated("the JWT is not accepted: its key is not known", "unknown")
            algorithms = [each for each in settings.algorithms if key.algorithm in (None, each)]
            claims: Mapping[str, Any] = jwt.decode(
                token, key.key, algorithms=algorithms, audience=settings.audience, issuer=settings.issuer,
                leeway=settings.leeway_seconds, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
            expires = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the JWT has expired", "expired") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError) as error:
            reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), "it cannot be read")
            raise Unauthenticated(f"the JWT is not accepted: {reason}", "unknown") from None
        return claims, expires

    def _group(self, claims: Mapping[str, Any]) -> str | None:
        found = claims.get(self._settings.groups_claim)
        values = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
        named = self._settings.groups
        groups = {named.get(value) if named else value for value in values if isinstance(value, str)}
        return next((group for group in self._groups if group in groups), None)
