"""Who can reach a server: this machine alone, or others, and what they would then get."""

import socket
from ipaddress import ip_address

DASHBOARD = "the dashboard: its runs and uploads, starting and stopping jobs, and the keys of this machine through them"
MODEL = "the model, without a key and without a limit"


def is_local(host: str | None) -> bool:
    """Whether only this machine reaches what listens at `host`. No host at all is every address."""
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return all(ip_address(str(place[4][0]).partition("%")[0]).is_loopback for place in found)
    except (OSError, ValueError):
        return False


def warning(host: str | None, what: str, remedy: str) -> str | None:
    """Return the warning to show before a server listens at `host`; None where only this machine reaches it."""
    if is_local(host):
        return None
    return f"it listens at {host or 'every address'}: whoever reaches this machine gets {what}; {remedy}."
