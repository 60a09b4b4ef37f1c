"""One organisation for the length of a test: authority, controller's keys, peers, policy."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from kars.mesh.v1 import identity_pb2, policy_pb2, registry_pb2
from kars.policy.v1 import policy_pb2 as bundle_pb2
from kars_common import files
from kars_common.policy import canonical_payload, dump_keys, key_id, sign
from kars_common.spiffe import SpiffeId
from kars_common.svid import Svid
from kars_common.testing import MemoryAuthority, StaticSvidSource
from kars_relay.identity.statements import PREFIX


@dataclass(kw_only=True)
class TestPeer:
    """One agent with its router's certificate."""

    __test__ = False

    name: SpiffeId
    svid: Svid
    identity: Ed25519PrivateKey
    statement: identity_pb2.SignedStatement

    @property
    def source(self) -> StaticSvidSource:
        """Where a channel gets the certificate."""
        return StaticSvidSource(self.svid)

    def __str__(self) -> str:
        return str(self.name)

    def signed_prekey(self, number: int = 1) -> registry_pb2.SignedPrekey:
        """Return a fresh signed prekey."""
        public = X25519PrivateKey.generate().public_key().public_bytes_raw()
        signature = self.identity.sign(b"kars-mesh-spk-v1\0" + public)
        return registry_pb2.SignedPrekey(key_id=number, public_key=public, signature=signature)

    def one_time_prekeys(self, numbers: Iterable[int]) -> list[registry_pb2.OneTimePrekey]:
        """Return fresh one-time prekeys."""
        return [
            registry_pb2.OneTimePrekey(
                key_id=number, public_key=X25519PrivateKey.generate().public_key().public_bytes_raw()
            )
            for number in numbers
        ]

    def kem_prekey(self, number: int) -> registry_pb2.KemPrekey:
        """Return a KEM prekey of the right shape; tests of a registry need no real one."""
        algorithm = registry_pb2.KEM_ALGORITHM_ML_KEM_768
        public = number.to_bytes(4, "big") * 296
        signature = self.identity.sign(b"kars-mesh-kem-v1\0" + bytes((algorithm,)) + public)
        return registry_pb2.KemPrekey(
            key_id=number, algorithm=algorithm, public_key=public, signature=signature
        )


@dataclass(kw_only=True)
class MeshWorld:
    """An organisation."""

    trust_domain: str = "kars.local"
    namespace: str = "team"
    authority: MemoryAuthority = field(init=False)
    statement_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    policy_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    serial: int = 0
    version: int = 0

    def __post_init__(self) -> None:
        self.authority = MemoryAuthority(self.trust_domain)

    def peer(
        self, name: str, *, identity: Ed25519PrivateKey | None = None, namespace: str | None = None
    ) -> TestPeer:
        """Return a peer with a fresh statement."""
        namespace = namespace or self.namespace
        spiffe_id = SpiffeId.sandbox(self.trust_domain, namespace, name)
        identity = identity or Ed25519PrivateKey.generate()
        svid = self.authority.sandbox(namespace, name)
        return TestPeer(
            name=spiffe_id, svid=svid, identity=identity, statement=self.statement(spiffe_id, identity)
        )

    def statement(
        self,
        name: SpiffeId,
        identity: Ed25519PrivateKey,
        *,
        lifetime: timedelta = timedelta(hours=1),
        serial: int | None = None,
    ) -> identity_pb2.SignedStatement:
        """Say, as the controller, that a key belongs to a name."""
        if serial is None:
            self.serial += 1
            serial = self.serial
        now = datetime.now(UTC)
        raw = identity.public_key().public_bytes_raw()
        return self.sign_statement(
            {
                "identityKey": base64.urlsafe_b64encode(raw).decode().rstrip("="),
                "notAfter": _moment(now + lifetime),
                "notBefore": _moment(now - timedelta(minutes=1)),
                "peer": str(name),
                "serial": serial,
            }
        )

    def sign_statement(self, fields: dict[str, object]) -> identity_pb2.SignedStatement:
        """Sign any statement."""
        statement = rfc8785.dumps(fields)  # type: ignore[arg-type]  # JSON values
        return identity_pb2.SignedStatement(
            statement=statement,
            signature=self.statement_key.sign(PREFIX + statement),
            key_id=key_id(self.statement_key.public_key()),
        )

    @property
    def statement_key_message(self) -> identity_pb2.StatementKey:
        """The statement key as policy names it."""
        public = self.statement_key.public_key()
        return identity_pb2.StatementKey(
            key_id=key_id(public), public_key=public.public_bytes_raw(), trust_domain=self.trust_domain
        )

    def rules(
        self,
        allowed: Iterable[policy_pb2.MeshEdge],
        *,
        quota: policy_pb2.MeshQuota | None = None,
        **more: object,
    ) -> policy_pb2.MeshRules:
        """Return mesh rules with these edges."""
        return policy_pb2.MeshRules(
            edges=allowed,
            default_quota=quota or policy_pb2.MeshQuota(),
            statement_keys=[self.statement_key_message],
            **more,  # type: ignore[arg-type]  # fields of MeshRules, checked by protobuf
        )

    def bundle(self, rules: policy_pb2.MeshRules) -> bundle_pb2.SignedBundle:
        """Return a signed bundle for the relay, of the next version."""
        self.version += 1
        bundle = bundle_pb2.PolicyBundle(
            sandbox=bundle_pb2.SandboxRef(namespace="svc", name="relay"), version=self.version, mesh=rules
        )
        bundle.issued_at.FromDatetime(datetime.now(UTC))
        return sign(canonical_payload(bundle), self.policy_key)

    def write_relay(self, directory: Path, rules: policy_pb2.MeshRules | None) -> None:
        """Write what a relay process needs to start: identity, policy keys, and policy as if kept earlier."""
        svid = self.authority.service("relay")
        identity = directory / "identity"
        files.replace(identity / "tls.crt", svid.certificate_chain_pem)
        files.replace(identity / "tls.key", svid.private_key_pem)
        files.replace(identity / "ca.crt", svid.trust_bundle_pem)
        public = self.policy_key.public_key()
        files.replace(directory / "policy-keys.json", dump_keys({key_id(public): public}))
        if rules is not None:
            kept = directory / "state" / "policy" / "last-good.pb"
            files.replace(kept, self.bundle(rules).SerializeToString())


def edges(*pairs: tuple[object, object], score: int = 500) -> list[policy_pb2.MeshEdge]:
    """Return edges between peers or patterns."""
    return [policy_pb2.MeshEdge(sender=str(a), recipient=str(b), score=score) for a, b in pairs]


def everybody(world: MeshWorld, score: int = 500) -> Sequence[policy_pb2.MeshEdge]:
    """Return one edge that lets all sandboxes of a world write to one another."""
    anyone = f"spiffe://{world.trust_domain}/ns/*/sandbox/*"
    return edges((anyone, anyone), score=score)


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
