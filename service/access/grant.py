"""What a client that is known may do."""

import re
import time
from collections.abc import Collection, Sequence
from fnmatch import translate
from typing import Any, Protocol

from service.access.rights import ADMIN, Right, need_of
from service.errors import PermissionDenied, Refused, Unauthenticated
from service.requests.principal import Principal

_MAX_REMEMBERED_CHARACTERS = 256
"""A longer name is no model's, and is not kept: ten thousand grants may be remembered."""


class RefusalCounter(Protocol):
    """Counts what was refused."""

    def refused(self, error: Refused, principal: Principal | None, peer: str, what: str) -> None:
        """`peer` is the client's address, `what` the method or route."""


class Grant:
    """A principal with its rights, until `expires` (seconds since 1970). Its methods raise PermissionDenied for what it may not do.

    Whoever turns such an error into a reply has it counted by `counter`.
    """

    __slots__ = ("_last", "_models", "_rights", "counter", "expires", "principal")

    def __init__(
        self,
        principal: Principal,
        rights: Collection[str],
        models: Sequence[str],
        expires: float,
        counter: RefusalCounter,
    ) -> None:
        """`models` are patterns of the models that the principal may infer with: `*` stands for any text, `?` for one character."""
        self.principal = principal
        self.expires = expires
        self.counter = counter
        self._rights = frozenset(rights)
        patterns = ["*"] if ADMIN in rights else models
        self._models = re.compile("|".join(map(translate, patterns))) if patterns else None
        self._last = "", self._matches("")  # the model last asked for, and whether the patterns allow it: mostly the next, too

    def require(self, right: Right) -> None:
        """Checks a right; of `infer` and `describe`, that the principal has it for some model."""
        if not self._has(right):
            raise PermissionDenied(f"{self._described()} does not have the right {right!r}")

    def require_model(self, right: Right, model: str) -> None:
        """Checks `infer` or `describe` for one model, whether or not there is such a model."""
        if not (self._may_infer(model) or (right == "describe" and self._has("read"))):
            raise PermissionDenied(f"{self._described()} does not have the right 'infer' for model {model[:64]!r}")

    def require_message(self, path: str, message: Any) -> None:
        """Checks the right that a gRPC method needs for the model that a message names."""
        need = need_of(path)
        if need.model_field:
            self.require_model(need.right, need.model(message))

    def require_current(self) -> None:
        """Raises Unauthenticated once it has expired."""
        if time.time() >= self.expires:
            raise Unauthenticated(f"the credentials of {self.principal.name!r} have expired", "expired")

    def _has(self, right: Right) -> bool:
        if ADMIN in self._rights or right in self._rights:
            return True
        if right == "describe":
            return "read" in self._rights or self._models is not None
        return right == "infer" and self._models is not None

    def _may_infer(self, model: str) -> bool:
        last, allowed = self._last
        if model != last:
            allowed = self._matches(model)
            if len(model) <= _MAX_REMEMBERED_CHARACTERS:
                self._last = model, allowed
        return allowed

    def _matches(self, model: str) -> bool:
        return self._models is not None and self._models.match(model) is not None

    def _described(self) -> str:
        return f"{self.principal.name!r} of group {self.principal.group!r}"
