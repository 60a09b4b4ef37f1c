"""Entries of an allowlist: which host, port, scheme, and where requests are seen, which methods and paths.

An entry that means more than it seems to is refused when it is written, not when it is used: `*`, wildcards
over a whole top-level domain, addresses, and the top-level domains that are mostly abuse.
"""

import re
from dataclasses import dataclass
from typing import Self

from kars_common.errors import InvalidInputError

from kars_egress.policy.hosts import DEFAULT_PORTS, Host, HostKind, Target, canonical_host

HIGH_RISK_TLDS = frozenset({"tk", "ml", "ga", "cf", "gq", "top", "buzz", "surf", "rest", "onion"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
MAX_PATH_CHARS = 1024

_CREDENTIAL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One name, or every name below one."""

    suffix: str
    wildcard: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name` or `*.name`.

        Raises:
            InvalidInputError: `host_invalid`, `wildcard_too_wide`, `address_not_allowed`, `high_risk_tld`.
        """
        wildcard = text.startswith("*.")
        host = canonical_host(text[2:] if wildcard else text)
        if host.kind is HostKind.ADDRESS:
            raise InvalidInputError("address_not_allowed", "entries are names; an address proves no name")
        if len(host.labels) < 2:
            raise InvalidInputError("wildcard_too_wide", "an entry needs at least two labels")
        if is_high_risk(host):
            raise InvalidInputError("high_risk_tld", f"nothing below .{host.labels[-1]} can be allowed")
        return cls(host.text, wildcard)

    def matches(self, host: Host) -> bool:
        """Tell whether it names this host."""
        if host.kind is not HostKind.NAME:
            return False
        return host.text.endswith(f".{self.suffix}") if self.wildcard else host.text == self.suffix

    def covers(self, other: "HostPattern") -> bool:
        """Tell whether it names everything that another pattern names."""
        if self == other:
            return True
        return self.wildcard and other.suffix.endswith(f".{self.suffix}")

    def __str__(self) -> str:
        return f"*.{self.suffix}" if self.wildcard else self.suffix


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that may be reached."""

    pattern: HostPattern
    port: int
    scheme: str = "https"
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    upstream_tls: bool = False
    """The agent speaks HTTP to the proxy, which speaks TLS to the host: what is said can be judged."""
    credential: str = ""
    """Name of a secret that the proxy puts in."""

    @classmethod
    def build(
        cls,
        host: str,
        *,
        port: int = 0,
        scheme: str = "https",
        methods: tuple[str, ...] = (),
        paths: tuple[str, ...] = (),
        upstream_tls: bool = False,
        credential: str = "",
    ) -> Self:
        """Check and build; port 0 is the scheme's own.

        Raises:
            InvalidInputError: what is wrong with it; reasons as `HostPattern.parse`, `entry_invalid`.
        """
        if scheme not in DEFAULT_PORTS:
            raise InvalidInputError("entry_invalid", f"scheme must be https or http, got {scheme[:16]!r}")
        if not 0 <= port < 65536:
            raise InvalidInputError("entry_invalid", f"port must be 1 to 65535, got {port}")
        if scheme == "https" and (methods or paths):
            raise InvalidInputError(
                "entry_invalid", "methods and paths are inside TLS; an entry for https cannot name them"
            )
        unknown = set(methods) - METHODS
        if unknown:
            raise InvalidInputError("entry_invalid", f"methods must be of {sorted(METHODS)}")
        for path in paths:
            _check_path(path)
        pattern = HostPattern.parse(host)
        if upstream_tls and scheme != "http":
            raise InvalidInputError(
                "entry_invalid", "upstream_tls is for entries that the agent reaches by http"
            )
        if credential and (not upstream_tls or pattern.wildcard or not _CREDENTIAL.fullmatch(credential)):
            raise InvalidInputError(
                "entry_invalid",
                "a credential goes to one exact host over upstream_tls; its name is a-z 0-9 -",
            )
        usual = DEFAULT_PORTS["https" if upstream_tls else scheme]
        return cls(
            pattern,
            port or usual,
            scheme,
            tuple(sorted(set(methods))),
            tuple(sorted(paths)),
            upstream_tls,
            credential,
        )

    def allows(self, target: Target) -> bool:
        """Tell whether it lets this request through."""
        return (
            self.scheme == target.scheme
            and self.door_port == target.port
            and self.pattern.matches(target.host)
            and (not self.methods or target.method in self.methods)
            and (not self.paths or any(below(prefix, target.path) for prefix in self.paths))
        )

    @property
    def door_port(self) -> int:
        """The port that the agent's URL has: the usual one for the usual one."""
        return (
            DEFAULT_PORTS["http"] if self.upstream_tls and self.port == DEFAULT_PORTS["https"] else self.port
        )

    def __str__(self) -> str:
        parts = [f"{self.scheme}://{self.pattern}:{self.port}{' over TLS' if self.upstream_tls else ''}"]
        if self.methods:
            parts.append(",".join(self.methods))
        if self.paths:
            parts.append(",".join(self.paths))
        return " ".join(parts)


def is_high_risk(host: Host) -> bool:
    """Tell whether a name lies in a top-level domain that is mostly abuse."""
    return bool(host.labels) and host.labels[-1] in HIGH_RISK_TLDS


def below(prefix: str, path: str) -> bool:
    """Tell whether a path is a prefix or lies below it, by whole segments."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else f"{prefix}/")


def _check_path(path: str) -> None:
    if len(path) > MAX_PATH_CHARS or not _PATH.fullmatch(path):
        raise InvalidInputError("entry_invalid", "a path begins with / and has no query, fragment or escape")
    if "//" in path or any(part in {".", ".."} for part in path.split("/")):
        raise InvalidInputError("entry_invalid", "a path has no empty or dot segments")
