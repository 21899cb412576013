"""Which hosts are this machine itself: what is sent there crosses no network."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, is `localhost`, or an address that never leaves the machine: of 127.0.0.0/8, or ::1.

    A name that only begins like such an address, as 127.example.com does, may be anywhere.
    """
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"
