"""How people name mesh peers in resources, and which SPIFFE id they mean.

`<name>` is a sandbox of the namespace at hand, `<namespace>/<name>` of that one; `a2a-agent/` may stand
before it; a SPIFFE id is itself. A name never means several sandboxes, and never another one tomorrow.
"""

from collections.abc import Iterator

from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

_SPIFFE = "spiffe://"
_A2A = "a2a-agent/"


def entries(listed: str) -> Iterator[str]:
    """Yield the entries of a comma-separated list."""
    for entry in listed.split(","):
        if entry.strip():
            yield entry.strip()


def parse_entry(entry: str, namespace: str = "default", trust_domain: str = "kars.local") -> SpiffeId | None:
    """Return whom an entry of `trustedPeers` names; None when it names nobody."""
    if entry.startswith(_SPIFFE):
        return parse(entry, namespace, trust_domain)
    return parse(entry.partition(":")[0], namespace, trust_domain)


def has_foreign_id(entry: str) -> bool:
    """Tell whether an entry carries a mesh id beside the name."""
    return not entry.startswith(_SPIFFE) and ":" in entry


def parse(text: str, namespace: str, trust_domain: str) -> SpiffeId | None:
    """Return the sandbox that a text names; None when it names none."""
    try:
        if text.startswith(_SPIFFE):
            identity = SpiffeId.parse(text)
        else:
            first, slash, rest = text.removeprefix(_A2A).partition("/")
            identity = SpiffeId.sandbox(trust_domain, *((first, rest) if slash else (namespace, first)))
        # A SPIFFE id of something that is no sandbox has no mesh identity.
        return (
            None
            if identity.sandbox_ref is None
            else SpiffeId.sandbox(identity.trust_domain, *identity.sandbox_ref)
        )
    except InvalidInputError:
        return None
