"""Compile MeshRules into what the relay asks, and keep one compiled set in force.

Everything a bundle says is checked here, once; a bundle that has a wrong part is refused as a whole and the
one in force stays. Without any, `MeshPolicy.require` refuses: nothing is bridged by default.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from kars.mesh.v1 import policy_pb2 as mesh_policy_pb2
from kars.policy.v1 import policy_pb2
from kars_common.errors import InvalidInputError, PermissionDeniedError
from kars_common.policy import digest, key_id
from kars_common.spiffe import SpiffeId

from kars_relay.identity.statements import TrustedKey
from kars_relay.policy.edges import Edge, EdgeIndex, Pattern

MAX_EDGES = 100_000
MAX_PEER_QUOTAS = 10_000
_MIB = 1024 * 1024
_DEFAULT_TTL_S = 259_200


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Bounds of one peer; see MeshQuota."""

    send_rate: int = 200
    send_burst: int = 1000
    send_bytes_rate: int = 8 * _MIB
    send_bytes_burst: int = 32 * _MIB
    mailbox_envelopes: int = 10_000
    mailbox_bytes: int = 128 * _MIB
    sender_share_percent: int = 50

    @classmethod
    def of(cls, message: mesh_policy_pb2.MeshQuota) -> "Quota":
        """Read a message; 0 means the default.

        Raises:
            InvalidInputError: `quota_invalid`.
        """
        given = {name: value for name in cls.__slots__ if (value := getattr(message, name))}
        quota = cls(**given)
        if quota.sender_share_percent > 100:
            raise InvalidInputError("quota_invalid", "sender_share_percent must be 1 to 100")
        return quota


@dataclass(frozen=True, kw_only=True)
class FederatedDomain:
    """Another organisation's mesh."""

    trust_domain: str
    endpoint: str
    trust_bundle_pem: bytes
    quota: Quota

    @property
    def relay(self) -> SpiffeId:
        """The identity of its relay."""
        return SpiffeId.service(self.trust_domain, "relay")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One compiled bundle."""

    version: int
    digest: str
    edges: EdgeIndex
    default_quota: Quota
    peer_quotas: Mapping[str, Quota]
    statement_keys: Mapping[str, TrustedKey]
    sealed_recipients: tuple[Pattern, ...]
    federated: Mapping[str, FederatedDomain]
    max_ttl_s: int

    def quota(self, peer: SpiffeId) -> Quota:
        """Return the bounds of a peer."""
        return self.peer_quotas.get(str(peer), self.default_quota)

    def edge(self, source: SpiffeId, target: SpiffeId) -> Edge | None:
        """Return the permission of one peer to write to another, if there is one now."""
        return self.edges.find(source, target, time.time())

    def related(self, one: SpiffeId, other: SpiffeId) -> bool:
        """Tell whether either may write to the other, or they are the same."""
        return one == other or self.edge(one, other) is not None or self.edge(other, one) is not None

    def accepts_sealed(self, recipient: SpiffeId) -> bool:
        """Tell whether a recipient may accept senders that say no name."""
        return any(pattern.fits(recipient) for pattern in self.sealed_recipients)


@dataclass
class MeshPolicy:
    """The rules in force. `epoch` rises with every change, for whoever remembers an answer."""

    trust_domain: str
    rules: Rules | None = None
    epoch: int = 0
    on_change: list[Callable[[Rules], None]] = field(default_factory=list)

    def require(self) -> Rules:
        """Return the rules in force.

        Raises:
            PermissionDeniedError: `no_policy_in_force`.
        """
        if self.rules is None:
            raise PermissionDeniedError(
                "no_policy_in_force", "the relay has no policy yet, and bridges nothing without one"
            )
        return self.rules

    def apply(self, bundle: policy_pb2.PolicyBundle, payload: bytes) -> None:
        """Compile a verified bundle and put it in force (`kars_common.policy.Apply`).

        Raises:
            InvalidInputError: a part of it is wrong; the rules in force stay.
        """
        rules = compile_rules(bundle, self.trust_domain, digest(payload))
        self.rules = rules
        self.epoch += 1
        for told in self.on_change:
            told(rules)


def compile_rules(bundle: policy_pb2.PolicyBundle, trust_domain: str, bundle_digest: str) -> Rules:
    """Return a bundle's rules.

    Raises:
        InvalidInputError: `mesh_rules_missing`, `mesh_rules_invalid`, `pattern_invalid` or `quota_invalid`.
    """
    if not bundle.HasField("mesh"):
        raise InvalidInputError("mesh_rules_missing", "this bundle has no mesh rules; it is not for a relay")
    mesh = bundle.mesh
    if len(mesh.edges) > MAX_EDGES or len(mesh.peer_quotas) > MAX_PEER_QUOTAS:
        raise _wrong(f"at most {MAX_EDGES} edges and {MAX_PEER_QUOTAS} peer quotas")
    if not mesh.HasField("default_quota"):
        raise _wrong("default_quota is required")
    if mesh.max_ttl_s and not 60 <= mesh.max_ttl_s <= 604_800:
        raise _wrong("max_ttl_s must be 60 to 604800")
    quotas = {str(SpiffeId.parse(item.peer)): Quota.of(item.quota) for item in mesh.peer_quotas}
    if len(quotas) != len(mesh.peer_quotas):
        raise _wrong("a peer has two quotas")
    return Rules(
        version=bundle.version,
        digest=bundle_digest,
        edges=EdgeIndex(_edge(edge) for edge in mesh.edges),
        default_quota=Quota.of(mesh.default_quota),
        peer_quotas=quotas,
        statement_keys=_statement_keys(mesh),
        sealed_recipients=tuple(Pattern.parse(text) for text in mesh.sealed_recipients),
        federated=_federated(mesh, trust_domain),
        max_ttl_s=mesh.max_ttl_s or _DEFAULT_TTL_S,
    )


def _edge(edge: mesh_policy_pb2.MeshEdge) -> tuple[str, str, Edge]:
    if edge.score > 1000:
        raise _wrong("an edge's score must be 0 to 1000")
    end = edge.not_after.seconds + edge.not_after.nanos / 1e9 if edge.HasField("not_after") else None
    return edge.sender, edge.recipient, Edge(edge.score, end)


def _statement_keys(mesh: mesh_policy_pb2.MeshRules) -> dict[str, TrustedKey]:
    keys: dict[str, TrustedKey] = {}
    for item in mesh.statement_keys:
        try:
            key = Ed25519PublicKey.from_public_bytes(item.public_key)
        except ValueError as exc:
            raise _wrong("a statement key is not 32 bytes") from exc
        if key_id(key) != item.key_id or item.key_id in keys:
            raise _wrong(f"statement key {item.key_id[:32]!r} is named twice or does not fit its name")
        SpiffeId(item.trust_domain, ())  # a trust domain, or refused
        keys[item.key_id] = TrustedKey(key=key, trust_domain=item.trust_domain)
    return keys


def _federated(mesh: mesh_policy_pb2.MeshRules, trust_domain: str) -> dict[str, FederatedDomain]:
    domains: dict[str, FederatedDomain] = {}
    for item in mesh.federated_domains:
        name = SpiffeId(item.trust_domain, ()).trust_domain
        if name == trust_domain or name in domains:
            raise _wrong(f"federated domain {name} is the relay's own or named twice")
        try:
            roots = x509.load_pem_x509_certificates(item.trust_bundle_pem.encode())
        except ValueError as exc:
            raise _wrong(f"federated domain {name} has no PEM roots") from exc
        if not roots:
            raise _wrong(f"federated domain {name} has no PEM roots")
        domains[name] = FederatedDomain(
            trust_domain=name,
            endpoint=item.endpoint,
            trust_bundle_pem=item.trust_bundle_pem.encode(),
            quota=Quota.of(item.quota),
        )
    return domains


def _wrong(what: str) -> InvalidInputError:
    return InvalidInputError("mesh_rules_invalid", f"mesh rules refused: {what}")
