"""Which outside addresses may be dialled, judged by the address itself at the moment of the dial.

A URL is checked when it is registered, and that proves nothing: the name may resolve to another address a
second later. So the address that was resolved for a connection is the address that is judged and dialled.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from kars_common.errors import InvalidInputError, PermissionDeniedError

MAX_URL_CHARS = 2048
PORTS = frozenset((443, 8443))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAMES = ("localhost", "localhost.localdomain")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal", ".svc", ".cluster.local", ".home.arpa")


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The rules; `allow_loopback` opens loopback and plain HTTP there, and nothing else."""

    allow_loopback: bool = False

    def check_url(self, url: str, hosts: Sequence[str] = ()) -> None:
        """Refuse a URL that must never be dialled.

        Args:
            url: what somebody asks us to call.
            hosts: allowed host names, exact or `*.suffix`; empty for all.

        Raises:
            InvalidInputError: `target_url_invalid`.
            PermissionDeniedError: `target_not_allowed`.
        """
        if len(url) > MAX_URL_CHARS or not url.isascii() or any(c <= " " or c == "\\" for c in url):
            raise InvalidInputError("target_url_invalid", "the URL must be plain ASCII without spaces")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError as exc:
            raise InvalidInputError("target_url_invalid", "the URL cannot be read") from exc
        if parts.username is not None or parts.password is not None or parts.fragment or not host:
            raise InvalidInputError("target_url_invalid", "the URL must have a host, no user and no fragment")
        loopback = self.allow_loopback and _names_loopback(host)
        if parts.scheme != "https" and not (loopback and parts.scheme == "http"):
            raise PermissionDeniedError("target_not_allowed", "the URL must be https")
        if loopback:
            return
        if port not in (None, *PORTS):
            raise PermissionDeniedError("target_not_allowed", f"the port must be one of {sorted(PORTS)}")
        if hosts and not any(_host_matches(pattern, host) for pattern in hosts):
            raise PermissionDeniedError("target_not_allowed", "the host is not on the agent's list")
        if _is_address(host):
            self.check_address(host)
        elif "." not in host or host in _LOCAL_NAMES or host.endswith(_LOCAL_SUFFIXES):
            raise PermissionDeniedError("target_not_allowed", "the host is a local name")

    def check_address(self, address: str) -> None:
        """Refuse an address that is not of the public internet.

        Raises:
            PermissionDeniedError: `target_not_allowed`.
        """
        ip = ipaddress.ip_address(address.partition("%")[0])
        if self.allow_loopback and ip.is_loopback:
            return
        if isinstance(ip, ipaddress.IPv6Address):
            inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
            if inner is None and ip in _NAT64:
                inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
            if inner is not None or ip in _NAT64:
                # An address in disguise is never needed to reach a public host.
                raise PermissionDeniedError("target_not_allowed", "the address embeds another one")
        if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
            raise PermissionDeniedError("target_not_allowed", "the address is not public")


def _host_matches(pattern: str, host: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _names_loopback(host: str) -> bool:
    return host in _LOCAL_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
