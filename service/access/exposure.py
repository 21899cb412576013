"""What a server offers to whoever reaches it, from what it listens on: the rules of `--auth`, `--insecure` and `--control`.

On this machine's own addresses whoever can connect is trusted with control, as far as `--auth` does not say otherwise. Beyond them
nobody is, unless `--auth` says who, or `--control on` that everybody.
"""

import logging

from prometheus_client import CollectorRegistry

from service.access.access import Access
from service.config import ServerConfig
from service.sockets import listeners
from service.sockets.loopback import is_loopback

log = logging.getLogger(__name__)


def listens_beyond_loopback(config: ServerConfig) -> bool:
    """Whether other machines may reach a port. Raises UserError for an unknown host."""
    return not all(is_loopback(address.host) for address in listeners.resolve(config.host))


def control_allowed(config: ServerConfig) -> bool:
    """Whether requests may load and unload models and register shared memory, as far as `--auth` lets their clients."""
    if config.control == "auto":
        return config.auth is not None or not listens_beyond_loopback(config)
    return config.control == "on"


def open_access(config: ServerConfig, registry: CollectorRegistry) -> Access | None:
    """The rules of `--auth`; None without.

    Raises:
        UserError: the file is not accepted, or tokens would cross a network that anybody may listen to.
    """
    if config.auth is None:
        return None
    why_no_secrets = ""
    if config.tls_cert is None and not config.insecure and listens_beyond_loopback(config):
        why_no_secrets = (
            f"has tokens, which would cross the network unencrypted to --host {','.join(config.host)}: "
            "give --tls-cert and --tls-key, or --insecure where something else encrypts, such as a proxy"
        )
    return Access(config.auth, registry, why_no_secrets)


def log_exposure(config: ServerConfig) -> None:
    """Says in the log what is off without having been switched off."""
    if config.control == "auto" and not control_allowed(config):
        log.info(
            "control and shared memory by request are off beyond loopback without --auth; --control on offers them to everyone"
        )
