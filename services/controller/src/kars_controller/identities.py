"""Who gets which identity: tokens are exchanged once, holders renew for themselves, all is on record."""

from collections.abc import Callable
from datetime import timedelta

from kars_common.audit import AuditLog
from kars_common.errors import KarsError, PermissionDeniedError
from kars_common.spiffe import SpiffeId

from kars_controller.ca import CertificateAuthority, IssuedCertificate, JoinTokens


class Identities:
    """Issues SVIDs after a proof."""

    def __init__(
        self,
        authority: CertificateAuthority,
        tokens: JoinTokens,
        audit: AuditLog,
        exists: Callable[[SpiffeId], bool],
    ) -> None:
        """Create one.

        Args:
            authority: signs.
            tokens: one-time proofs.
            audit: where issues and refusals go.
            exists: tells whether the workload behind an identity is still wanted; a deleted sandbox must
                not live on by renewing.
        """
        self._authority = authority
        self._tokens = tokens
        self._audit = audit
        self._exists = exists

    @property
    def trust_bundle_pem(self) -> str:
        """The roots, PEM."""
        return self._authority.trust_bundle_pem

    def join_token(self, identity: SpiffeId, lifetime: timedelta) -> str:
        """Return a one-time token for a workload that is about to start."""
        token = self._tokens.issue(identity, lifetime)
        self._audit.append("identity.token_issued", {"spiffe_id": str(identity)})
        return token

    def revoke(self, identity: SpiffeId) -> None:
        """Forget the tokens of a workload that is gone."""
        self._tokens.revoke(identity)

    async def attest(self, token: str, csr_pem: str) -> IssuedCertificate:
        """Exchange a token for an SVID. A wrong request does not spend the token.

        Raises:
            UnauthenticatedError: `attestation_failed`.
            InvalidInputError: `csr_invalid`.
        """
        try:
            identity = self._tokens.identity_of(token)
            self._check_exists(identity)
            issued = self._authority.issue(csr_pem, identity)
            self._tokens.spend(token)
        except KarsError as exc:
            await self._audit.durable(
                self._audit.append("identity.refused", {"via": "join_token", "reason": exc.reason})
            )
            raise
        await self._issued(issued, "join_token")
        return issued

    async def renew(self, identity: SpiffeId, csr_pem: str) -> IssuedCertificate:
        """Issue a fresh SVID to a holder of one.

        Raises:
            PermissionDeniedError: `workload_gone`.
            InvalidInputError: `csr_invalid`.
        """
        try:
            self._check_exists(identity)
            issued = self._authority.issue(csr_pem, identity)
        except KarsError as exc:
            fields = {"via": "renewal", "spiffe_id": str(identity), "reason": exc.reason}
            await self._audit.durable(self._audit.append("identity.refused", fields))
            raise
        await self._issued(issued, "renewal")
        return issued

    def _check_exists(self, identity: SpiffeId) -> None:
        if not self._exists(identity):
            raise PermissionDeniedError("workload_gone", f"{identity.path} is no workload of this platform")

    async def _issued(self, issued: IssuedCertificate, via: str) -> None:
        fields = {
            "spiffe_id": str(issued.spiffe_id),
            "via": via,
            "serial": issued.serial,
            "expires_at": issued.expires_at.isoformat(),
        }
        await self._audit.durable(self._audit.append("identity.issued", fields))
