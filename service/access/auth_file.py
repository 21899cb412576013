"""The file of `--auth`: groups with their rights, and who is in them. TOML, checked as a whole.

A token is kept as its SHA-256. Salt and a slow hash protect what people can guess; a token has 256 random bits.
"""

import hashlib
import secrets
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from service.errors import UserError
from service.sockets.loopback import is_loopback

TOKEN_PREFIX = "convoy_"  # noqa: S105 - lets programs that look for leaked secrets find it
TOKEN_BYTES = 32
MAX_NAME_CHARACTERS = 200

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]*$")]
T = TypeVar("T")
_Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Group(_Table):
    """What the members of a group may do. `infer` are patterns of model names, `priority` is the first level that they may have.

    Each member may send so many requests and bytes of images and tensors a second, at once what `burst_seconds` give, and have so
    many items in a model's queue; 0 is no limit. See engine/quotas.py.
    """

    infer: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    rights: Annotated[tuple[Literal["read", "control", "shared-memory", "metrics", "admin"], ...], Field(strict=False)] = ()
    priority: int = Field(default=1, ge=1, le=2**31 - 1)
    requests_per_second: float = Field(default=0.0, ge=0, le=1e12, allow_inf_nan=False)
    bytes_per_second: float = Field(default=0.0, ge=0, le=1e15, allow_inf_nan=False)
    burst_seconds: float = Field(default=1.0, gt=0, le=1e6, allow_inf_nan=False)
    queue_items: int = Field(default=0, ge=0)


class _Member(_Table):
    name: Name
    group: str


class Token(_Member):
    """A token, by the SHA-256 of its text. Without `expires` it is good for as long as it is in the file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    expires: datetime | None = None

    @field_validator("expires")
    @classmethod
    def _with_offset(cls, expires: datetime | None) -> datetime | None:
        if expires is not None and expires.tzinfo is None:
            raise ValueError("a time needs its offset, such as 2027-01-31T00:00:00Z")
        return expires


class Certificate(_Member):
    """Client certificates with this name: their subject's common name, or one of their alternative names."""


class Jwt(_Table):
    """JWTs of one issuer. `jwks` is a path, from the file's folder on, or an https URL; see jwks.py.

    `groups` are the file's groups by the values of the claim; without it the values are the groups' names.
    """

    jwks: str = Field(min_length=1, max_length=2000)
    issuer: Name
    audience: Name
    algorithms: Annotated[tuple[_Algorithm, ...], Field(strict=False, min_length=1)] = ("RS256", "ES256")
    name_claim: Name = "sub"
    groups_claim: Name = "groups"
    groups: dict[Name, str] = Field(default_factory=dict)
    leeway_seconds: Annotated[float, Field(strict=False, ge=0, le=300)] = 30.0

    @field_validator("jwks")
    @classmethod
    def _encrypted(cls, jwks: str) -> str:
        check_key_source(jwks)
        return jwks


class AuthFile(_Table):
    """The file as a whole."""

    groups: dict[Name, Group] = Field(default_factory=dict)
    tokens: Annotated[tuple[Token, ...], Field(strict=False)] = ()
    certificates: Annotated[tuple[Certificate, ...], Field(strict=False)] = ()
    jwt: Jwt | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "AuthFile":
        members: list[_Member] = [*self.tokens, *self.certificates]
        for member in members:
            if member.group not in self.groups:
                raise ValueError(f"{member.name!r} is in group {member.group!r}, which the file does not have")
        for value, group in ({} if self.jwt is None else self.jwt.groups).items():
            if group not in self.groups:
                raise ValueError(f"jwt.groups: {value!r} is group {group!r}, which the file does not have")
        repeated = _repeated([token.sha256 for token in self.tokens])
        if repeated is not None:
            raise ValueError(f"two tokens have the sha256 {repeated}")
        repeated = _repeated([certificate.name for certificate in self.certificates])
        if repeated is not None:
            raise ValueError(f"two certificates have the name {repeated!r}")
        return self

    @property
    def has_secrets(self) -> bool:
        """Whether clients send what must not be read on the way."""
        return bool(self.tokens) or self.jwt is not None


def is_url(source: str) -> bool:
    """Whether the source of an issuer's keys is a URL."""
    return "://" in source


def check_key_source(source: str) -> None:
    """Raises ValueError for a URL from which anybody on the way could give keys of their own."""
    parts = urlsplit(source)
    if is_url(source) and parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("a URL of keys must begin with https://")


def _repeated(values: list[T]) -> T | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def new_token() -> str:
    """A random token."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> str:
    """The SHA-256 of a token, as it is in the file."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def parse_auth_file(path: Path, content: bytes) -> AuthFile:
    """The file's content. Raises UserError that names the key and what it accepts."""
    try:
        settings = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # neither UTF-8 nor TOML
        raise UserError(f"--auth {str(path)!r}: {error}") from None
    try:
        return AuthFile.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"--auth {str(path)!r}: {_described(first)}") from None


def _described(error: Any) -> str:
    """One of pydantic's errors as one line: the key, and what it accepts. Never the value: it may be a secret in a wrong place."""
    key = ".".join(str(step) for step in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
