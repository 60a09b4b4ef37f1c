"""Whom to believe across a border: each domain's roots, about that domain's names only.

TLS accepts a certificate under any federated root; that alone would let one domain's authority issue names
of another. So every call is checked again: the certificate must have been issued by a root of the very
domain that its name is in.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from kars_common.errors import PermissionDeniedError, UnauthenticatedError
from kars_common.rpc import AuthorizationTable, caller
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid, SvidSource

from kars_relay.policy import FederatedDomain, MeshPolicy

METHODS = (
    "kars.mesh.v1.Federation/Forward",
    "kars.mesh.v1.Federation/LookupForeign",
    "kars.mesh.v1.Federation/TakeForeignPrekeys",
)


class FederatedSource:
    """The relay's own SVID, with other roots to verify peers with."""

    def __init__(self, source: SvidSource, roots: Callable[[], bytes]) -> None:
        """Wrap a source.

        Args:
            source: whose certificate and key are shown.
            roots: returns the PEM to verify peers with; empty means the source's own.
        """
        self._source = source
        self._roots = roots

    def current(self) -> Svid:
        """See `SvidSource`."""
        svid = self._source.current()
        roots = self._roots()
        return replace(svid, trust_bundle_pem=roots) if roots else svid

    async def wait_changed(self, previous: Svid | None) -> Svid:
        """See `SvidSource`."""
        inner = self._source.current() if previous is not None else None
        await self._source.wait_changed(inner)
        return self.current()

    async def run(self) -> None:
        """Nothing to do: the wrapped source is run by its owner."""


class FederationTable(AuthorizationTable):
    """Lets the relays of federated domains call, and nobody else."""

    def __init__(self, policy: MeshPolicy) -> None:
        super().__init__({method: ["svc/relay"] for method in METHODS})
        self._policy = policy

    def with_standard_services(self, *, anyone: bool) -> "AuthorizationTable":
        """Add nothing: strangers learn neither health nor reflection here."""
        del anyone
        return self

    def check(self, method: str, caller: SpiffeId | None, trust_domain: str) -> None:
        """Pass, or refuse a call; see `AuthorizationTable.check`."""
        del trust_domain
        if method.lstrip("/") not in METHODS:
            raise PermissionDeniedError("method_not_authorized", f"no rule lets anyone call {method}")
        if caller is None:
            raise UnauthenticatedError("client_certificate_required", f"{method} needs a proven identity")
        domain = self._policy.require().federated.get(caller.trust_domain)
        if domain is None or caller != domain.relay:
            raise PermissionDeniedError("domain_not_federated", f"{caller} is no relay of a federated domain")


def all_roots(domains: Iterable[FederatedDomain]) -> bytes:
    """Return the roots of all domains as one PEM file."""
    return b"\n".join(domain.trust_bundle_pem for domain in domains)


def proven_domain(context: Any, policy: MeshPolicy) -> FederatedDomain:  # noqa: ANN401 - gRPC's context
    """Return the domain whose relay calls, after checking whose authority issued its certificate.

    Raises:
        PermissionDeniedError: `domain_not_federated`.
    """
    identity = caller(context)
    domain = policy.require().federated.get(identity.trust_domain)
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    if domain is None or identity != domain.relay or not _issued_under(pem, domain.trust_bundle_pem):
        raise PermissionDeniedError(
            "domain_not_federated", f"the certificate of {identity} was not issued by its own trust domain"
        )
    return domain


def _issued_under(leaf_pem: bytes, roots_pem: bytes) -> bool:
    # Directly: an intermediate authority of a federated domain would have to be named as its root.
    leaf = x509.load_pem_x509_certificate(leaf_pem)
    for root in x509.load_pem_x509_certificates(roots_pem):
        try:
            leaf.verify_directly_issued_by(root)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False
