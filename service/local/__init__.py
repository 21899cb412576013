"""Models in the own process: `Local`, which has the interface of `Client` and needs neither a server nor a port."""

from service.local.local import Local

__all__ = ["Local"]
