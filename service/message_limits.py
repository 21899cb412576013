"""How large a gRPC message may be: as large as the largest request that a model of the repository takes.

gRPC wants to know when the port is bound, and the port is bound before models are loaded. So what their files say of themselves is
read first, which takes no engine.
"""

from pathlib import Path

from service.errors import ConvoyError
from service.model.contract import Contract
from service.model.repository_layout import model_names, model_path, policy_path, version_numbers
from service.policy import Policy, read_policy

LEAST_BYTES = 4 * 1024 * 1024
"""What gRPC allows by itself, and clients expect."""

MOST_BYTES = 2**31 - 1
ENVELOPE_BYTES = 64 * 1024
"""What a request holds besides its items: names, ids, parameters."""

ITEM_BYTES = 32
"""What an item takes besides its picture: field keys and lengths."""

PIXEL_BYTES = 4
"""Of an encoded picture that is not compressed, such as a BMP, with transparency."""


def largest_request_bytes(policy: Policy, item_bytes: int, *, pictures: bool = True) -> int:
    """Bytes of the largest request to a model: its most items as pixels or tensors, or one encoded picture of its most pixels.

    `pictures` says whether the model takes any.
    """
    raw = policy.max_request_items * (item_bytes + ITEM_BYTES)
    encoded = policy.max_image_pixels * PIXEL_BYTES if pictures else 0
    return min(max(raw, encoded, LEAST_BYTES) + ENVELOPE_BYTES, MOST_BYTES)


def message_bytes(repository: Path, policies: Path | None = None) -> int:
    """The most that any model takes which is in the repository now, by its highest version that says what it takes."""
    try:
        names = model_names(repository)
    except OSError:
        names = []  # what is wrong with the folder is said when it is checked
    return max((_of_model(repository, name, policies) for name in names), default=largest_request_bytes(Policy(), 0))


def _of_model(repository: Path, name: str, policies: Path | None) -> int:
    try:
        policy = read_policy(policy_path(repository, name, policies))
    except ConvoyError:
        policy = Policy()  # why it cannot be used is said when the model is loaded
    try:
        versions = version_numbers(repository, name)
    except OSError:
        versions = []  # as above
    item_bytes = 0
    for version in reversed(versions):
        path = model_path(repository, name, version)
        try:
            if not path.is_file():  # what cannot be read to its end would hold up the start
                continue
            contract = Contract.of_file(path)
        except (ConvoyError, OSError):
            continue
        item_bytes = contract.input.size_bytes if contract is not None else 0
        break
    return largest_request_bytes(policy, item_bytes)
