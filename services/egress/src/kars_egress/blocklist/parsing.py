"""Reads a feed: one domain a line, or a hosts file. Bytes of strangers: bounded, and odd lines are left out.

A line that is left out is counted; a feed where most lines are odd is no feed (an error page, say) and is
refused whole, so that the last good one stays.
"""

from collections.abc import Iterator

from kars_common.errors import InvalidInputError

from kars_egress.policy.hosts import HostKind, canonical_host

MAX_BYTES = 64 * 1024 * 1024
MAX_DOMAINS = 2_000_000
_MAX_LINE = 1024
_SINKS = frozenset({"0.0.0.0", "127.0.0.1", "::", "::1"})  # noqa: S104 (what hosts files write before a name)
_NEVER = frozenset({"localhost", "localhost.localdomain", "local", "broadcasthost"})


def parse(data: bytes) -> set[str]:
    """Return the domains of a feed, in canonical form.

    Raises:
        InvalidInputError: `feed_too_large`, `feed_invalid`.
    """
    if len(data) > MAX_BYTES:
        raise InvalidInputError("feed_too_large", f"a feed has at most {MAX_BYTES} bytes")
    domains: set[str] = set()
    odd = 0
    for text in _lines(data):
        domain = _domain(text)
        if domain is None:
            odd += 1
        elif domain:
            domains.add(domain)
            if len(domains) > MAX_DOMAINS:
                raise InvalidInputError("feed_too_large", f"a feed has at most {MAX_DOMAINS} domains")
    if not domains or odd > len(domains) // 10:
        raise InvalidInputError("feed_invalid", f"{len(domains)} domains and {odd} lines that are none")
    return domains


def _lines(data: bytes) -> Iterator[str]:
    for line in data.splitlines():
        text = line[:_MAX_LINE].decode("utf-8", "replace").partition("#")[0].strip()
        if text and not text.startswith("!"):
            yield text


def _domain(text: str) -> str | None:
    """Return a domain, "" for what hosts files say about this machine, None for anything else."""
    words = text.split()
    if len(words) == 2 and words[0] in _SINKS:
        words = words[1:]
    if len(words) != 1:
        return None
    name = words[0].removeprefix("*.")
    if name in _NEVER or name in _SINKS:
        return ""
    if _plain(name):  # nearly every line; the full parser is for the rest
        return name
    try:
        host = canonical_host(name)
    except InvalidInputError:
        return None
    return host.text if host.kind is HostKind.NAME and len(host.labels) > 1 else None


def _plain(name: str) -> bool:
    if not (name.isascii() and name.islower() and name.replace(".", "").replace("-", "").isalnum()):
        return False
    labels = name.split(".")
    return (
        len(labels) > 1
        and len(name) <= 253
        and not labels[-1][0:1].isdigit()
        and all(0 < len(label) <= 63 and label[0] != "-" and label[-1] != "-" for label in labels)
    )
