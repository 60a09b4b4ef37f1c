"""The one form of a host and of a URL that every part of kars compares.

Two parsers that disagree about a URL are a way out: one judges, the other connects. So there is one parser
here, it accepts only what all common ones read alike, and refuses the rest by name: backslashes, controls,
user information, percent signs and underscores' cousins in hosts, numeric hosts in odd bases, zones. Nothing
is repaired but case, one trailing dot, and IDNA.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import Enum

import idna
from kars_common.errors import InvalidInputError

MAX_URL_BYTES = 8192
MAX_HOST_CHARS = 253
DEFAULT_PORTS = {"https": 443, "http": 80}

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*")


class HostKind(Enum):
    """What a host is."""

    NAME = "name"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Host:
    """A host in its one form: a name in lower case A-labels without trailing dot, or a canonical address."""

    text: str
    kind: HostKind

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a name; an address has none."""
        return tuple(self.text.split(".")) if self.kind is HostKind.NAME else ()


@dataclass(frozen=True, slots=True)
class Target:
    """What one request is for."""

    scheme: str
    host: Host
    port: int
    path: str = "/"
    method: str = "GET"


def canonical_host(text: str) -> Host:
    """Return the one form of a host.

    Raises:
        InvalidInputError: `host_invalid` when it has none that all parsers agree on.
    """
    if not text or len(text) > MAX_HOST_CHARS * 4:
        raise _bad_host("it must have 1 to 253 characters")
    if text.startswith("["):
        if not text.endswith("]"):
            raise _bad_host("a bracket is not closed")
        return _ipv6(text[1:-1])
    if ":" in text:
        return _ipv6(text)
    return _name_or_ipv4(text)


def parse_url(url: str, method: str = "GET") -> Target:
    """Return what a URL is for.

    Raises:
        InvalidInputError: `url_invalid` or `host_invalid`.
    """
    _check_characters(url)
    scheme, separator, rest = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise _bad_url("it must begin with https:// or http://")
    scheme = scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise _bad_url("only https and http leave a sandbox")
    end = min((position for position in map(rest.find, "/?#") if position >= 0), default=len(rest))
    authority, tail = rest[:end], rest[end:]
    host, port = split_authority(authority, DEFAULT_PORTS[scheme])
    path = tail.partition("#")[0].partition("?")[0] or "/"
    return Target(scheme, host, port, path, method.upper())


def split_authority(authority: str, default_port: int) -> tuple[Host, int]:
    """Return host and port of `host[:port]`.

    Raises:
        InvalidInputError: `url_invalid` or `host_invalid`.
    """
    if "@" in authority:
        raise _bad_url("user information before the host is not allowed")
    if authority.startswith("["):
        host_text, bracket, port_text = authority.rpartition("]")
        host_text += bracket
        if port_text and not port_text.startswith(":"):
            raise _bad_url("after a bracket only a port may follow")
        colon, port_text = port_text[:1], port_text[1:]
    else:
        host_text, colon, port_text = authority.partition(":")
    if not colon:
        return canonical_host(host_text), default_port
    if not (
        port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) < 65536
    ):
        raise _bad_url("the port must be 1 to 65535")
    return canonical_host(host_text), int(port_text)


def _check_characters(url: str) -> None:
    if len(url.encode("utf-8", "surrogatepass")) > MAX_URL_BYTES:
        raise _bad_url(f"it must have at most {MAX_URL_BYTES} bytes")
    if "\\" in url:
        raise _bad_url("a backslash is read as a slash by some and as a character by others")
    if any(character <= " " or character == "\x7f" or character.isspace() for character in url):
        raise _bad_url("spaces and control characters are dropped by some and kept by others")


def _name_or_ipv4(text: str) -> Host:
    name = text.removesuffix(".")
    name = _to_ascii(name) if not name.isascii() else name.lower()
    labels = name.split(".")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(name)
    if len(name) > MAX_HOST_CHARS:
        raise _bad_host(f"it must have at most {MAX_HOST_CHARS} characters")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad_host("labels are made of letters, digits, hyphen and underscore, 1 to 63 of them")
    return Host(name, HostKind.NAME)


def _to_ascii(name: str) -> str:
    if any(dot in name for dot in "\u3002\uff0e\uff61"):
        raise _bad_host("a dot of another script ends a label for some only")
    try:
        return idna.encode(name, uts46=True, std3_rules=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as exc:
        raise _bad_host("it is no valid internationalised name") from exc


def _ipv4(text: str) -> Host:
    try:
        return Host(str(ipaddress.IPv4Address(text)), HostKind.ADDRESS)
    except ValueError as exc:
        raise _bad_host("a number is an address in some notation; write four decimal parts") from exc


def _ipv6(text: str) -> Host:
    if "%" in text:
        raise _bad_host("an address with a zone is only good on this machine")
    try:
        return Host(str(ipaddress.IPv6Address(text)), HostKind.ADDRESS)
    except ValueError as exc:
        raise _bad_host("it is no IPv6 address") from exc


def _bad_host(why: str) -> InvalidInputError:
    return InvalidInputError("host_invalid", f"the host is not accepted: {why}")


def _bad_url(why: str) -> InvalidInputError:
    return InvalidInputError("url_invalid", f"the URL is not accepted: {why}")
