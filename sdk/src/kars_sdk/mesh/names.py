"""Peers are named by the SPIFFE id of their sandbox: `spiffe://<domain>/ns/<namespace>/sandbox/<name>`."""

import re
from typing import NewType

from kars_sdk.mesh.errors import IdentityError

PeerName = NewType("PeerName", str)
"""A checked SPIFFE id of a sandbox."""

MAX_NAME_BYTES = 512
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(r"[a-z0-9](?:[-a-z0-9._]{0,253}[a-z0-9])?")
_NAME = re.compile(rf"spiffe://({_DOMAIN.pattern})/ns/({_LABEL})/sandbox/({_LABEL})")


def peer_name(text: str) -> PeerName:
    """Check a peer's name.

    Raises:
        IdentityError: `peer_name_invalid`.
    """
    if len(text) > MAX_NAME_BYTES or not _NAME.fullmatch(text):
        raise IdentityError(
            "peer_name_invalid",
            f"a peer is named spiffe://<trust domain>/ns/<namespace>/sandbox/<name>, got {text[:128]!r}",
        )
    return PeerName(text)


def trust_domain(peer: PeerName) -> str:
    """Return the trust domain of a peer."""
    return _groups(peer)[0]


def short_name(peer: PeerName) -> str:
    """Return the sandbox's name, for people; two peers may share it."""
    return _groups(peer)[2]


def _groups(peer: PeerName) -> tuple[str, str, str]:
    match = _NAME.fullmatch(peer)
    if match is None:
        raise IdentityError("peer_name_invalid", f"not a peer's name: {peer[:128]!r}")
    return match.group(1), match.group(2), match.group(3)
