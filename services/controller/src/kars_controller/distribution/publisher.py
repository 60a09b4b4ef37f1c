"""Gives bundles their versions and signatures, and keeps the newest of each sandbox.

A version rises only when the content changed, and never falls: not across restarts, not when a sandbox
is deleted and made again, and not below what a router says it already enforces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common import policy
from kars_common.policy import canonical_payload, parse_payload

from kars_controller.compile import bundle as bundles
from kars_controller.platforms.base import SandboxKey
from kars_controller.storage import Database

_MAX_VERSION = 2**62


@dataclass(frozen=True, kw_only=True)
class Published:
    """The bundle that a sandbox's enforcement points should have."""

    version: int
    content_digest: str
    signed: policy_pb2.SignedBundle

    @property
    def digest(self) -> str:
        """Digest of the payload: what an ACK must name."""
        return self.signed.digest


class PolicyPublisher:
    """Signs bundles; one row a sandbox."""

    def __init__(
        self,
        database: Database,
        key: Ed25519PrivateKey,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._key = key
        self._now = now

    @property
    def keys(self) -> dict[str, bytes]:
        """Raw public keys by key id."""
        public = self._key.public_key()
        return {policy.key_id(public): public.public_bytes_raw()}

    @property
    def keys_file(self) -> bytes:
        """The keys as the file that routers read."""
        public = self._key.public_key()
        return policy.dump_keys({policy.key_id(public): public})

    def current(self, sandbox: SandboxKey) -> Published | None:
        """Return the newest bundle of a sandbox; None when it has none."""
        row = self._database.row("SELECT * FROM bundles WHERE namespace = ? AND name = ?", sandbox)
        if row is None or not row["payload"]:
            return None
        signed = policy_pb2.SignedBundle(
            payload=row["payload"], digest=row["digest"], signature=row["signature"], key_id=row["key_id"]
        )
        return Published(version=row["version"], content_digest=row["content_digest"], signed=signed)

    def publish(self, content: policy_pb2.PolicyBundle) -> Published:
        """Return the published form of a bundle; a new version only if what it says is new.

        Raises:
            PolicyRefusedError: `too_large`.
        """
        sandbox = SandboxKey(content.sandbox.namespace, content.sandbox.name)
        digest = bundles.content_digest(content)
        current = self.current(sandbox)
        if current is not None and current.content_digest == digest and current.signed.key_id in self.keys:
            return current
        return self._issue(sandbox, content, digest, self._version(sandbox) + 1)

    def raise_floor(self, sandbox: SandboxKey, enforced_version: int, enforced_digest: str) -> None:
        """Publish again above a version that a router enforces and this database does not know.

        After a restored or lost database, versions would otherwise fall and every bundle be refused.
        """
        current = self.current(sandbox)
        known = self._version(sandbox)
        same = current is not None and (current.version, current.digest) == (
            enforced_version,
            enforced_digest,
        )
        if same or enforced_version < known or not 0 < enforced_version < _MAX_VERSION:
            return
        if current is not None:
            content = parse_payload(current.signed.payload)
            self._issue(sandbox, content, current.content_digest, enforced_version + 1)
        elif enforced_version > known:
            self._store(
                sandbox,
                Published(version=enforced_version, content_digest="", signed=policy_pb2.SignedBundle()),
            )

    def withdraw(self, sandbox: SandboxKey) -> None:
        """Forget the bundle of a sandbox that is gone; its version counter stays."""
        with self._database.transaction():
            self._database.execute(
                "UPDATE bundles SET payload = x'', signature = x'', digest = '', content_digest = ''"
                " WHERE namespace = ? AND name = ?",
                sandbox,
            )

    def _version(self, sandbox: SandboxKey) -> int:
        row = self._database.row("SELECT version FROM bundles WHERE namespace = ? AND name = ?", sandbox)
        return 0 if row is None else int(row["version"])

    def _issue(
        self, sandbox: SandboxKey, content: policy_pb2.PolicyBundle, content_digest: str, version: int
    ) -> Published:
        bundle = policy_pb2.PolicyBundle()
        bundle.CopyFrom(content)
        bundle.version = version
        bundle.issued_at.FromDatetime(self._now().replace(microsecond=0))
        signed = policy.sign(canonical_payload(bundle), self._key)
        published = Published(version=version, content_digest=content_digest, signed=signed)
        self._store(sandbox, published)
        return published

    def _store(self, sandbox: SandboxKey, published: Published) -> None:
        signed = published.signed
        with self._database.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO bundles"
                " (namespace, name, version, content_digest, digest, payload, signature, key_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *sandbox,
                    published.version,
                    published.content_digest,
                    signed.digest,
                    signed.payload,
                    signed.signature,
                    signed.key_id,
                ),
            )
