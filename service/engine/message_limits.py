"""The size limit of messages: the largest request that a model in the repository accepts.

Other limits: of all messages in flight together in requests/byte_budget.py; of a model's items, pixels and queue in policy.py; of
deadlines in engine/scheduling.py; of bytes to decode in engine/decoding.py; of unanswered requests of a stream in
rpc/request_stream.py; of RPCs per gRPC connection in rpc/grpc_transport.py; of HTTP requests and connections in http/server.py and
http/event_loop.py.

gRPC needs the limit when the port is bound, which is before models are loaded; so the size of their inputs is read from the files,
without ONNX Runtime: from the contract or, without one, from the graph.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from service.config import MAX_MESSAGE_BYTES, ServerConfig
from service.errors import ConvoyError
from service.model.input_size import input_item_bytes
from service.model.repository_layout import model_names, model_path, version_numbers
from service.policy import Policy
from service.process.memory_limit import memory_limit_bytes
from service.requests.byte_budget import SHARE_OF_MEMORY, ByteBudget
from service.triton.settings import ModelSettings, declare, read_settings

if TYPE_CHECKING:
    from service.model.trusted_keys import TrustedKeys

MIN_MESSAGE_BYTES = 4 * 1024 * 1024
"""gRPC's own default limit, which clients expect."""

ENVELOPE_BYTES = 64 * 1024
"""For a request's fields beside its items: names, ids, parameters."""

ITEM_OVERHEAD_BYTES = 32
"""For an item's field keys and lengths."""

UNCOMPRESSED_PIXEL_BYTES = 4
"""Of an encoded image without compression, such as a BMP with transparency."""


def largest_request_bytes(policy: Policy, item_bytes: int, *, images: bool = True) -> int:
    """Bytes of a model's largest request: `max_request_items` raw items, or one uncompressed image of `max_image_pixels`.

    `images` says whether the model accepts encoded images.
    """
    raw = policy.max_request_items * (item_bytes + ITEM_OVERHEAD_BYTES)
    encoded = policy.max_image_pixels * UNCOMPRESSED_PIXEL_BYTES if images else 0
    return min(max(raw, encoded, MIN_MESSAGE_BYTES) + ENVELOPE_BYTES, MAX_MESSAGE_BYTES)


def max_message_bytes(repository: Path, policies: Path | None = None, trusted: "TrustedKeys | None" = None) -> int:
    """The largest request of all models in the repository, each by its highest version that can be read.

    With `trusted`, only of files that one of these keys has signed.

    It is at least that of a model with a contract, small pixels and the default policy: such a model may come later.
    """
    try:
        names = model_names(repository)
    except OSError:
        names = []  # reported when the folder is checked
    return max((_of_model(repository, name, policies, trusted) for name in names), default=largest_request_bytes(Policy(), 0))


def byte_budget(config: ServerConfig, max_message_bytes: int) -> ByteBudget:
    """The budget of one of the server's processes for requests in flight, by the flags."""
    limit_bytes = config.max_inflight_bytes or memory_limit_bytes() // SHARE_OF_MEMORY
    return ByteBudget(max(limit_bytes // config.worker_count, max_message_bytes))


def _of_model(repository: Path, name: str, policies: Path | None, trusted: "TrustedKeys | None") -> int:
    try:
        settings = read_settings(repository, name, policies)
    except ConvoyError:
        settings = ModelSettings(Policy())  # reported when the model is loaded
    try:
        versions = version_numbers(repository, name)
    except OSError:
        versions = []  # likewise
    item_bytes = 0
    declared = declare(settings.policy, settings.triton)
    for version in reversed(versions):
        path = model_path(repository, name, version, settings.triton.model_file)
        try:
            if trusted is not None:
                trusted.verify_file(path)
            item_bytes = input_item_bytes(path, declared.input_shape or declared.open_sizes)
        except (ConvoyError, OSError):
            continue
        break
    return largest_request_bytes(settings.policy, item_bytes)
