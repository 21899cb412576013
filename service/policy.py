"""How one model is served: `serving.toml`. CONFIGURATION.md is made from the fields of `Policy`."""

import re
import tomllib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import UserError
from service.model.declared import Declared, SaidScores
from service.model.providers import Provider
from service.model.repository_layout import MAX_VERSION, is_version
from service.model.text_files import read_text

_METADATA_KEY = re.compile(r"[a-z0-9_.-]{1,64}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
LATEST = "latest"
"""What requests call the highest version that `versions` asks for."""

REQUEST_ID = "request-id"
"""The `traffic_key` that is the request's id."""

_LATEST = re.compile(r"latest:[1-9][0-9]{0,8}")

CHOOSING_KEYS = {"versions", "aliases", "default", "traffic", "traffic_key"}
"""The keys that say which versions answer. Without any other changed, no version is loaded again."""

MAX_TIMEOUT_SECONDS = 1e9
"""Longest timeout of a request, set by the request or by the policy of its model."""


FEWEST_EXPLAIN_ITEMS = 50
"""Items that the explanation of one picture takes: itself, and with a patch hidden on at least seven by seven places."""


class Policy(BaseModel):
    """How one model is served. Counts are of items (images), never of requests.

    `json_schema_extra` holds what CONFIGURATION.md cannot take from a field's type: `default`, `accepted`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    max_batch_size: int = Field(default=64, ge=1, le=4096, description="Most items in one ONNX Runtime call.")
    max_queue_delay_seconds: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="How long a request may wait for others to fill its batch, at most half of the time to its deadline; 0 never "
        "waits.",
    )
    max_queue_items: int = Field(
        default=1024,
        ge=1,
        description="Items that may wait in the queue; requests beyond it get RESOURCE_EXHAUSTED.",
    )
    max_request_items: int = Field(
        default_factory=lambda given: min(512, given["max_queue_items"]),
        ge=1,
        description="Most items in one request; at most max_queue_items.",
        json_schema_extra={"default": "512, or max_queue_items if that is less"},
    )
    default_timeout_seconds: float = Field(
        default=0.0,
        ge=0,
        le=MAX_TIMEOUT_SECONDS,
        description="Timeout of requests that set none; 0 leaves the client's deadline alone.",
    )
    priority_levels: int = Field(default=2, ge=1, le=1000, description="Number of priority levels; 1 is served first.")
    default_priority: int = Field(
        default_factory=lambda given: given["priority_levels"],
        ge=1,
        description="Level of requests with priority 0; at most priority_levels.",
        json_schema_extra={"default": "priority_levels"},
    )
    instances: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Batches that the model computes at a time; on the CPU they share the threads.",
    )
    provider: Provider | None = Field(
        default=None,
        description="ONNX Runtime execution provider; auto takes CUDA where it works, else the CPU.",
        json_schema_extra={"default": "the server's --provider"},
    )
    max_image_pixels: int = Field(
        default=25_000_000,
        ge=1,
        description="Most pixels of an encoded image, checked from its header before it is decoded.",
    )
    max_explain_items: int = Field(
        default=200,
        ge=0,
        le=10_000,
        description="Most items computed for one Explain request: a picture is 50 or more, itself and its copies with a patch "
        "hidden; 0 refuses Explain.",
        json_schema_extra={"accepted": "0, or 50 to 10000"},
    )
    versions: str = Field(
        default="latest:1",
        description="Versions to serve: the N highest that load, all, or those listed.",
        json_schema_extra={"accepted": '`"latest:N"`, `"all"`, or a list such as `"1,3"`'},
    )
    aliases: dict[str, Annotated[int, Field(ge=1, le=MAX_VERSION, strict=True)]] = Field(
        default={},
        description="Names that requests may use for a version, such as `stable = 3`. A version with an alias is served whatever "
        "`versions` says.",
        json_schema_extra={"default": "none", "accepted": "a table of names and version numbers"},
    )
    default: str | int = Field(
        default=LATEST,
        description="The version that answers requests that name none: an alias, a number, or the highest that `versions` asks "
        "for. An alias alone does not change it.",
        json_schema_extra={"accepted": '`"latest"`, an alias, or a version number, which is served whatever `versions` says'},
    )
    traffic: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Shares requests that name no version out among several, by weight, such as `stable = 95` and `canary = 5`. A "
        "version that is not served gets none. What asks for metadata gets that of `default`.",
        json_schema_extra={
            "default": "none: all go to `default`",
            "accepted": "a table of aliases or version numbers, and weights",
        },
    )
    traffic_key: str = Field(
        default="",
        description="Keeps requests with the same key at one version while `traffic` is the same: `request-id`, or the name of a "
        "gRPC metadata key or HTTP header. Requests without the key are shared out at random.",
        json_schema_extra={"default": "none: at random", "accepted": "`request-id`, or a name such as `x-user`"},
    )

    output: str = Field(
        default="",
        description="Of a model without a contract: the output that holds the scores.",
        json_schema_extra={"default": "found on trial"},
    )
    scores: SaidScores = Field(
        default="auto",
        description="Of a model without a contract: what its scores are, so that answers have probabilities. auto: probabilities "
        "if they are some on trial, else scores. sigmoid: one number, the probability of the second of two labels. multilabel: a "
        "number for each label, by itself. Both may be before the sigmoid, if that shows on trial.",
    )
    input_shape: list[Annotated[int, Field(ge=1, le=2**20, strict=True)]] = Field(
        default=[],
        max_length=8,
        description="Of a model without a contract: the sizes that its graph leaves open, but for the batch's.",
        json_schema_extra={"default": "the graph's", "accepted": "a list of integers, such as `[224, 224]` for height and width"},
    )
    labels: list[str] | dict[str, list[str]] = Field(
        default=[],
        description="Of a model without a contract: the names of its classes, in place of `labels.txt` in its folder. "
        "`<version>/labels.txt` comes before both.",
        json_schema_extra={"default": "`labels.txt`", "accepted": "a list of names, or a table of lists by output"},
    )

    @field_validator("labels")
    @classmethod
    def _names_of_classes(cls, labels: list[str] | dict[str, list[str]]) -> list[str] | dict[str, list[str]]:
        for names in labels.values() if isinstance(labels, dict) else [labels]:
            if not all(name.strip() for name in names):
                raise ValueError("a name is empty")
        return labels

    @cached_property
    def declared(self) -> Declared:
        """What is said of a model without a contract. Labels that are of no output by name are of the scores, under ''."""
        by_output = self.labels if isinstance(self.labels, dict) else {"": self.labels} if self.labels else {}
        labels = {output: tuple(names) for output, names in by_output.items()}
        return Declared(self.output, self.scores, tuple(self.input_shape), labels)

    @field_validator("max_explain_items")
    @classmethod
    def _one_picture(cls, items: int) -> int:
        if 0 < items < FEWEST_EXPLAIN_ITEMS:
            raise ValueError(f"accepted are 0, and {FEWEST_EXPLAIN_ITEMS} or more, as one picture takes")
        return items

    @field_validator("versions")
    @classmethod
    def _known_form(cls, versions: str) -> str:
        versions = versions.replace(" ", "")
        if versions != "all" and not _LATEST.fullmatch(versions) and not all(map(is_version, versions.split(","))):
            raise ValueError(f'accepted are "latest:N", "all", and a list of versions, 1 to {MAX_VERSION}, such as "1,3"')
        return versions

    @field_validator("aliases")
    @classmethod
    def _names(cls, aliases: dict[str, int]) -> dict[str, int]:
        for name in aliases:
            if not _ALIAS.fullmatch(name) or name == LATEST:
                raise ValueError(
                    f"invalid alias {name!r}: an alias starts with a letter, has at most 64 letters, digits, '.', '_' and '-', "
                    "and is not 'latest', which is the highest version that `versions` asks for"
                )
        return aliases

    @field_validator("default", mode="before")
    @classmethod
    def _name_or_number(cls, default: object) -> object:
        if not isinstance(default, str) and not (type(default) is int and 1 <= default <= MAX_VERSION):
            raise ValueError(f'accepted are "{LATEST}", an alias, and a version, 1 to {MAX_VERSION}')
        return default

    @field_validator("traffic_key")
    @classmethod
    def _metadata_key(cls, key: str) -> str:
        if key and not _METADATA_KEY.fullmatch(key):
            raise ValueError("accepted are request-id, and names of lower-case letters, digits, '_', '-' and '.', such as x-user")
        return key

    @cached_property
    def latest(self) -> int:
        """N of `versions = "latest:N"`: how many of the highest versions are served; 0 for other settings."""
        return int(self.versions.removeprefix("latest:")) if self.versions.startswith("latest:") else 0

    def named(self, found: Collection[int]) -> set[int]:
        """The versions that are served by number or alias; `found` are the versions in the repository."""
        others = (self.default, *self.traffic)
        return self.listed(found) | set(self.aliases.values()) | {int(name) for name in others if _is_number(name)}

    def listed(self, found: Collection[int]) -> set[int]:
        """Those that `versions` lists, of the versions `found` if it says `all`; none if it says `latest:N`."""
        if self.versions == "all":
            return set(found)
        return set() if self.latest else {int(version) for version in self.versions.split(",")}

    @model_validator(mode="after")
    def _consistent(self) -> "Policy":
        if self.max_request_items > self.max_queue_items:
            raise ValueError(f"max_request_items ({self.max_request_items}) is above max_queue_items ({self.max_queue_items})")
        if self.default_priority > self.priority_levels:
            raise ValueError(f"default_priority ({self.default_priority}) is above priority_levels ({self.priority_levels})")
        for key, names in (("default", [self.default]), ("traffic", self.traffic)):
            for name in names:
                if name != LATEST and name not in self.aliases and not _is_number(name):
                    known = ", ".join([repr(LATEST), *map(repr, self.aliases)])
                    raise ValueError(f"{key}: {name!r} is no alias; accepted are {known} and version numbers")
        if self.traffic and not any(self.traffic.values()):
            raise ValueError("traffic: one weight must be above 0")
        if self.traffic_key and not self.traffic:
            raise ValueError("traffic_key: there is no traffic to share out")
        return self


def _is_number(name: str | int) -> bool:
    return isinstance(name, int) or is_version(name)


def read_policy(path: Path) -> Policy:
    """The policy in a `serving.toml`; the defaults where there is no such file.

    Raises UserError that names the key and what it accepts.
    """
    return make_policy(read_keys(path), path)


def read_keys(path: Path) -> dict[str, Any]:
    """The keys in a `serving.toml`, unchecked; none where there is no such file. Raises UserError if it cannot be read."""
    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path.parent.name}/{path.name}: {error.strerror}") from None
    except ValueError as error:  # neither text nor TOML
        raise UserError(f"{path.parent.name}/{path.name}: {error}") from None


def make_policy(keys: Mapping[str, Any], path: Path) -> Policy:
    """The policy of these keys. Raises UserError that names `path`, the key and what it accepts."""
    try:
        return Policy.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        known = f"; the keys are {', '.join(Policy.model_fields)}" if first["type"] == "extra_forbidden" else ""
        what = "unknown key" if known else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path.parent.name}/{path.name}: {key + ': ' if key else ''}{what}{known}") from None
