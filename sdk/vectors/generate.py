"""Writes `mesh-v1.json`: everything that another implementation needs to speak with this one.

    .venv/bin/python sdk/vectors/generate.py

All randomness comes from a counter, so the file is the same each time; a test holds it against the code.
"""
# ruff: noqa: INP001 - a script beside its data

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    MLKEM1024PrivateKey,
    MLKEM1024PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from kars_sdk.mesh import bundles, handshake, identity, padding, pq, primitives, ratchet_parts
from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.names import peer_name
from kars_sdk.mesh.prekeys import Bundle, KemPrekey, OneTimePrekey, PrivatePrekeys, SignedPrekey
from kars_sdk.mesh.session import Session
from kars_sdk.mesh.statements import SignedStatement, TrustKey, TrustKeys

FILE = Path(__file__).with_name("mesh-v1.json")
ALICE = peer_name("spiffe://kars.test/ns/team/sandbox/alice")
BOB = peer_name("spiffe://kars.test/ns/team/sandbox/bob")
NOW = 1_800_000_000.0
INTERVAL = 2
"""Messages an epoch in these vectors, so that a few messages show the post-quantum ratchet."""


def seed(label: str, length: int = 32) -> bytes:
    """Return bytes that stand in for randomness."""
    return hashlib.shake_256(b"kars-mesh-v1 vectors " + label.encode()).digest(length)


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Replace every source of randomness by a counter."""
    numbers = itertools.count()

    def take(length: int) -> bytes:
        return seed(f"random {next(numbers)}", length)

    def private() -> ratchet_parts.PrivateKey:
        return ratchet_parts.PrivateKey.of(take(32))

    def kem_pair(_cls: object = None) -> MLKEM768PrivateKey:
        return MLKEM768PrivateKey.from_seed_bytes(take(64))

    with (
        mock.patch.object(os, "urandom", take),
        mock.patch.object(secrets, "token_bytes", take),
        mock.patch.object(ratchet_parts.PrivateKey, "generate", private),
        mock.patch.object(pq, "new_kem_key", kem_pair),
    ):
        yield


def statement(authority: IdentityKey, peer: str, key: bytes) -> SignedStatement:
    """Sign a statement as the controller does."""
    document = {
        "identityKey": identity.base64url(key),
        "notAfter": "2027-02-01T00:00:00Z",
        "notBefore": "2027-01-01T00:00:00Z",
        "peer": peer,
        "serial": 7,
    }
    data = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    return SignedStatement(
        statement=data,
        signature=authority.sign(primitives.IDENTITY_LABEL, data),
        key_id=identity.key_id(authority.public),
    )


def generate() -> dict[str, object]:
    """Return the vectors."""
    authority, alice, bob = (IdentityKey(seed(name)) for name in ("authority", "alice", "bob"))
    return {
        "format": "kars-mesh-v1",
        "identity": _identity(authority, alice, bob),
        "derivations": _derivations(),
        "padding": {str(n): padding.padded_length(n) for n in (0, 256, 257, 1000, 4096, 65537, 1048576)},
        "session": _session(authority, alice, bob),
    }


def _identity(authority: IdentityKey, alice: IdentityKey, bob: IdentityKey) -> dict[str, object]:
    signed = statement(authority, ALICE, alice.public)
    return {
        "authority_public": authority.public.hex(),
        "key_id": identity.key_id(authority.public),
        "alice_seed": alice.seed.hex(),
        "alice_public": alice.public.hex(),
        "alice_x25519_private": alice.x25519_private.hex(),
        "alice_x25519_public": primitives.x25519_of_ed25519(alice.public).hex(),
        "bob_seed": bob.seed.hex(),
        "bob_public": bob.public.hex(),
        "statement": signed.statement.decode(),
        "statement_signature": signed.signature.hex(),
        "possession_proof": alice.possession_proof(ALICE).hex(),
        "connect_proof": alice.connect_proof(
            nonce=seed("nonce"), relay="spiffe://kars.test/svc/relay", peer=ALICE
        ).hex(),
        "connect_nonce": seed("nonce").hex(),
        "fingerprint": identity.fingerprint(own=ALICE, own_key=alice.public, peer=BOB, peer_key=bob.public),
    }


def _derivations() -> dict[str, object]:
    key, data = seed("kdf key"), seed("kdf data")
    return {
        "key": key.hex(),
        "data": data.hex(),
        "root": ratchet_parts.now(ratchet_parts.RootKDF.derive(key, data, 64)).hex(),
        "chain": ratchet_parts.now(ratchet_parts.ChainKDF.derive(key, b"\x02\x01", 64)).hex(),
        "epoch": pq.next_key(key, data, pq.Offer(1, seed("ek", 1184)), seed("ct", 1088)).hex(),
    }


def _session(authority: IdentityKey, alice: IdentityKey, bob: IdentityKey) -> dict[str, object]:
    signed, one_time = X25519PrivateKey.from_private_bytes(seed("spk")), seed("opk")
    kem = MLKEM1024PrivateKey.from_seed_bytes(seed("kem", 64))
    signed_public, kem_public = signed.public_key().public_bytes_raw(), kem.public_key().public_bytes_raw()
    signature = bob.sign(primitives.SIGNED_PREKEY_LABEL, signed_public)
    bundle = Bundle(
        identity=statement(authority, BOB, bob.public),
        signed_prekey=SignedPrekey(key_id=11, public_key=signed_public, signature=signature),
        one_time_prekey=OneTimePrekey(
            key_id=12,
            public_key=X25519PrivateKey.from_private_bytes(one_time).public_key().public_bytes_raw(),
        ),
        kem_prekey=KemPrekey(
            key_id=13,
            algorithm=primitives.KEM_1024,
            public_key=kem_public,
            signature=bob.sign(primitives.KEM_PREKEY_LABEL, bytes((primitives.KEM_1024,)) + kem_public),
        ),
    )
    trust = TrustKeys([TrustKey(public_key=authority.public, trust_domain="kars.test")])
    verified = bundles.verify(bundle, peer=BOB, trust=trust, now=NOW, allow_classic=False)
    # ML-KEM's encapsulation takes no randomness from outside; secret and ciphertext are in the file instead.
    previous = json.loads(FILE.read_text()) if FILE.exists() else None
    with counted(), _encapsulations(previous) as encapsulated:
        started = handshake.initiate(
            alice, own=ALICE, statement=statement(authority, ALICE, alice.public), verified=verified,
            purpose="session", now=NOW,
        )  # fmt: skip
        messages: list[dict[str, str]] = []
        ours, first = Session.initiate(
            peer=BOB, peer_key=bob.public, keys=started.keys, peer_ratchet_key=signed_public,
            payload=b"hello bob", created=NOW, post_quantum=True, interval=INTERVAL,
        )  # fmt: skip
        keys = handshake.accept(
            bob, knock=started.knock, statement=trust.verify(started.knock.identity, now=NOW),
            private=PrivatePrekeys(
                signed=signed.private_bytes_raw(), signed_signature=signature, one_time=one_time,
                kem_seed=seed("kem", 64), kem_public=kem_public,
            ),
        )  # fmt: skip
        theirs, payload = Session.accept(
            peer=ALICE, peer_key=alice.public, keys=keys, own_ratchet_key=signed.private_bytes_raw(),
            message=first, created=NOW, post_quantum=True, interval=INTERVAL,
        )  # fmt: skip
        messages.append({"from": "alice", "payload": payload.decode(), "message": first.hex()})
        for number in range(10):
            source, target, who = (theirs, ours, "bob") if number % 2 == 0 else (ours, theirs, "alice")
            message = source.encrypt(b"message %d" % number)
            text = target.decrypt(message).decode()
            messages.append({"from": who, "payload": text, "message": message.hex()})
    return {
        "now": int(NOW),
        "post_quantum_interval": INTERVAL,
        "signed_prekey": {
            "id": 11,
            "private": signed.private_bytes_raw().hex(),
            "signature": signature.hex(),
        },
        "one_time_prekey": {"id": 12, "private": one_time.hex()},
        "kem_prekey": {"id": 13, "seed": seed("kem", 64).hex()},
        "encapsulations": [[secret.hex(), ciphertext.hex()] for secret, ciphertext in encapsulated],
        "knock": started.knock.block.hex(),
        "session_id": keys.session_id.hex(),
        "root": keys.root.hex(),
        "epoch_root": keys.epoch_root.hex(),
        "initiator_header_key": keys.initiator_header_key.hex(),
        "responder_header_key": keys.responder_header_key.hex(),
        "associated_data": keys.associated_data.hex(),
        "rejection": knocks.reject(
            bob, own=BOB, knock=started.knock, reason="edge_missing", retry_after_s=0, at_ms=int(NOW * 1000)
        ).hex(),
        "messages": messages,
        "epochs": [ours.epoch, theirs.epoch],
    }


@contextlib.contextmanager
def _encapsulations(
    previous: dict[str, dict[str, list[list[str]]]] | None,
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Take secrets and ciphertexts from the last file where they fit, so that the file stays the same."""
    known = [] if previous is None else previous["session"]["encapsulations"]
    used: list[tuple[bytes, bytes]] = []

    def encapsulate(algorithm: int, public_key: bytes) -> tuple[bytes, bytes]:
        if len(used) < len(known):
            secret, ciphertext = (bytes.fromhex(text) for text in known[len(used)])
        elif algorithm == primitives.KEM_1024:
            secret, ciphertext = MLKEM1024PublicKey.from_public_bytes(public_key).encapsulate()
        else:
            secret, ciphertext = MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()
        used.append((secret, ciphertext))
        return used[-1]

    with mock.patch.object(primitives, "encapsulate", encapsulate):
        yield used


if __name__ == "__main__":
    FILE.write_text(json.dumps(generate(), indent=1) + "\n")
    sys.stderr.write(f"wrote {FILE}\n")
