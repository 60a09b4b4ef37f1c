"""For tests of whatever uses the mesh: an authority that signs statements, and agents that are ready to talk.

Everything here runs the real code on real files; only the controller is replaced.
"""

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kars_sdk.mesh import identity, primitives
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import PeerName, peer_name
from kars_sdk.mesh.prekeys import Bundle, Prekeys
from kars_sdk.mesh.sessions import Me, Sessions
from kars_sdk.mesh.statements import SignedStatement, TrustKey, TrustKeys
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.trust import Edge, TrustPolicy

EVERYBODY = "spiffe://kars.test/ns/*/sandbox/*"
OPEN = TrustPolicy(
    edges=(Edge(source=EVERYBODY, target=EVERYBODY, score=600),),
    knocks_per_minute=100_000,
    knocks_per_minute_per_peer=100_000,
)
"""Everybody of the test's trust domain may knock, and is trusted with 600."""


def name(sandbox: str, *, namespace: str = "team", domain: str = "kars.test") -> PeerName:
    """Return a peer's name."""
    return peer_name(f"spiffe://{domain}/ns/{namespace}/sandbox/{sandbox}")


class Authority:
    """Stands in for the controller: binds names to keys."""

    def __init__(self, domain: str = "kars.test") -> None:
        self.domain = domain
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    @property
    def trust(self) -> TrustKeys:
        """The keys that a sandbox would find mounted."""
        return TrustKeys([TrustKey(public_key=self.public, trust_domain=self.domain)])

    def trust_json(self) -> bytes:
        """The same, as the mounted file."""
        key = base64.urlsafe_b64encode(self.public).rstrip(b"=").decode()
        entry = {"keyId": identity.key_id(self.public), "publicKey": key, "trustDomain": self.domain}
        return json.dumps({"keys": [entry]}).encode()

    def statement(
        self,
        peer: str,
        identity_key: bytes,
        *,
        not_before: float | None = None,
        not_after: float | None = None,
        serial: int = 1,
    ) -> SignedStatement:
        """Sign that a name has a key; valid from an hour ago for a day when no times are given."""
        now = time.time()
        document = {
            "identityKey": base64.urlsafe_b64encode(identity_key).rstrip(b"=").decode(),
            "notAfter": _time(now + 86400 if not_after is None else not_after),
            "notBefore": _time(now - 3600 if not_before is None else not_before),
            "peer": peer,
            "serial": serial,
        }
        return self.sign(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())

    def sign(self, statement: bytes) -> SignedStatement:
        """Sign whatever bytes a test wants to have signed."""
        signature = self._key.sign(primitives.IDENTITY_LABEL + statement)
        return SignedStatement(statement=statement, signature=signature, key_id=identity.key_id(self.public))


@dataclass(kw_only=True)
class Agent:
    """One agent with its state on disk; `restart` is what a crash leaves."""

    name: PeerName
    authority: Authority
    identity: IdentityKey
    statement: SignedStatement
    folder: Path
    key: bytes
    policy: TrustPolicy
    clock: Callable[[], float]
    kem: bool
    store: Store
    prekeys: Prekeys
    sessions: Sessions

    @classmethod
    def create(
        cls,
        sandbox: str,
        authority: Authority,
        folder: Path,
        *,
        policy: TrustPolicy = OPEN,
        clock: Callable[[], float] = time.time,
        kem: bool = True,
    ) -> "Agent":
        """Make an agent with fresh state in a folder of its own."""
        peer, key = name(sandbox, domain=authority.domain), os.urandom(32)
        identity_key = IdentityKey.generate()
        statement = authority.statement(peer, identity_key.public)
        path = folder / sandbox
        store = Store(path, key)
        prekeys = Prekeys(store, identity_key, clock=clock, kem=kem)
        me = Me(name=peer, identity=identity_key, statement=statement, trust=authority.trust)
        return cls(
            name=peer, authority=authority, identity=identity_key, statement=statement, folder=path, key=key,
            policy=policy, clock=clock, kem=kem, store=store, prekeys=prekeys,
            sessions=Sessions(me, store, prekeys, policy, clock=clock),
        )  # fmt: skip

    def restart(self) -> None:
        """Forget everything that is not on disk."""
        self.store.close()
        self.store = Store(self.folder, self.key)
        self.prekeys = Prekeys(self.store, self.identity, clock=self.clock, kem=self.kem)
        me = Me(name=self.name, identity=self.identity, statement=self.statement, trust=self.authority.trust)
        self.sessions = Sessions(me, self.store, self.prekeys, self.policy, clock=self.clock)

    def bundle(self, *, one_time: bool = True) -> Bundle:
        """Return what an honest registry would hand out next."""
        current = self.prekeys.renew()
        if current.signed_prekey is None:
            raise AssertionError("there is always a signed prekey")
        more = self.prekeys.more(int(one_time), int(one_time and self.kem))
        return Bundle(
            identity=self.statement,
            signed_prekey=current.signed_prekey,
            one_time_prekey=more.one_time_prekeys[0] if one_time else None,
            kem_prekey=more.one_time_kem_prekeys[0]
            if one_time and self.kem
            else current.last_resort_kem_prekey,
            kem_is_last_resort=not one_time,
        )


def _time(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
