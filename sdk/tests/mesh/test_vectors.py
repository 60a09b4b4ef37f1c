"""Published vectors are reproduced, and ours are what the code does."""

import hmac
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import xeddsa
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from kars_sdk.mesh import handshake, identity, padding, pq, primitives, ratchet, ratchet_parts
from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh.codec import Reader
from kars_sdk.mesh.identity import IdentityKey
from kars_sdk.mesh.prekeys import PrivatePrekeys
from kars_sdk.mesh.session import Session
from kars_sdk.mesh.statements import SignedStatement, TrustKey, TrustKeys

FOLDER = Path(__file__).resolve().parents[2] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "mesh-v1.json").read_text())


def hexed(path: str) -> bytes:
    value: Any = VECTORS
    for key in path.split("."):
        value = value[key]
    return bytes.fromhex(value)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mesh_vectors", FOLDER / "generate.py")
    if spec is None or spec.loader is None:
        raise AssertionError("the generator is checked in")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_published_file_is_what_the_generator_writes() -> None:
    assert generator().generate() == VECTORS


@pytest.mark.parametrize(
    ("private", "public", "secret"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
        ),
    ],
    ids=["5.2", "6.1"],
)
def test_rfc_7748(private: str, public: str, secret: str) -> None:
    """Both implementations that a session uses: the ratchet's and the key agreement's."""
    key, peer = bytes.fromhex(private), bytes.fromhex(public)
    assert ratchet_parts.Hellman._perform_diffie_hellman(key, peer).hex() == secret
    assert xeddsa.x25519(key, peer).hex() == secret


@pytest.mark.parametrize(
    ("ikm", "salt", "info", "okm"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["A.1", "A.3"],
)
def test_rfc_5869(ikm: str, salt: str, info: str, okm: str) -> None:
    derived = primitives.hkdf(
        bytes.fromhex(ikm), salt=bytes.fromhex(salt), info=bytes.fromhex(info), length=len(okm) // 2
    )
    assert derived.hex() == okm


def test_ed25519_to_x25519_conversion_of_libsodium() -> None:
    key = IdentityKey(bytes.fromhex("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee"))
    assert primitives.x25519_of_ed25519(key.public).hex() == (
        "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"
    )
    assert key.x25519_private.hex() == "8052030376d47112be7f73ed7a019293dd12ad910b654455798b4667d73de166"


def test_the_root_chain_is_hkdf_sha256() -> None:
    key, data = hexed("derivations.key"), hexed("derivations.data")
    assert HKDF(hashes.SHA256(), 64, key, b"kars-mesh-v1 root").derive(data) == hexed("derivations.root")


def test_pitfall_7_the_message_chain_is_signals() -> None:
    key, chain = hexed("derivations.key"), hexed("derivations.chain")
    assert chain[:32] == hmac.digest(key, b"\x02", "sha256")
    assert chain[32:] == hmac.digest(key, b"\x01", "sha256")


@pytest.mark.parametrize(
    ("algorithm", "kind", "public", "ciphertext"),
    [(1, MLKEM768PrivateKey, 1184, 1088), (2, MLKEM1024PrivateKey, 1568, 1568)],
)
def test_fips_203_sizes_determinism_and_implicit_rejection(
    algorithm: int, kind: type[MLKEM768PrivateKey] | type[MLKEM1024PrivateKey], public: int, ciphertext: int
) -> None:
    seed = bytes(range(64))
    key = kind.from_seed_bytes(seed).public_key().public_bytes_raw()
    secret, sealed = primitives.encapsulate(algorithm, key)
    assert (len(key), len(sealed), len(secret)) == (public, ciphertext, 32)
    assert primitives.decapsulate(algorithm, seed, sealed) == secret
    changed = bytes((sealed[0] ^ 1,)) + sealed[1:]
    rejected = primitives.decapsulate(algorithm, seed, changed)
    assert rejected not in (secret, b"")
    assert rejected == primitives.decapsulate(algorithm, seed, changed)


def test_the_key_agreement_is_x3dh_as_its_specification_computes_it() -> None:
    """From the private keys and plain X25519, without the package."""

    def exchange(private: bytes, public: bytes) -> bytes:
        return X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )

    knock = knocks.read(*block())
    alice = primitives.x25519_of_ed25519(hexed("identity.alice_public"))
    bob = IdentityKey(hexed("identity.bob_seed"))
    signed, one_time = hexed("session.signed_prekey.private"), hexed("session.one_time_prekey.private")
    ephemeral = knock.handshake.ephemeral_key
    agreed = b"".join(
        (
            exchange(signed, alice),
            exchange(bob.x25519_private, ephemeral),
            exchange(signed, ephemeral),
            exchange(one_time, ephemeral),
        )
    )
    secret = HKDF(hashes.SHA256(), 32, bytes(32), b"kars-mesh-v1 X3DH").derive(b"\xff" * 32 + agreed)

    pair = b"".join(b"kars-mesh-ik-v1\0" + hexed(f"identity.{who}_public") for who in ("alice", "bob"))
    signed_public = X25519PrivateKey.from_private_bytes(signed).public_key().public_bytes_raw()
    kem = MLKEM1024PrivateKey.from_seed_bytes(hexed("session.kem_prekey.seed"))
    kem_secret = kem.decapsulate(knock.handshake.kem_ciphertext)
    keys = handshake.session_keys(
        knock, secret=secret, kem_secret=kem_secret, pair=pair, signed_prekey=signed_public,
        kem_public=kem.public_key().public_bytes_raw(),
    )  # fmt: skip
    assert (keys.root, keys.epoch_root) == (hexed("session.root"), hexed("session.epoch_root"))
    assert keys.initiator_header_key == hexed("session.initiator_header_key")
    assert keys.associated_data == hexed("session.associated_data")


def block() -> tuple[bytes, bytes]:
    reader = Reader(hexed("session.knock"), what="block", max_bytes=1 << 16)
    signed, signature = reader.variable(1 << 16), reader.raw(64)
    reader.end()
    return signed, signature


def test_a_receiver_reads_the_published_session() -> None:
    trust = TrustKeys([TrustKey(public_key=hexed("identity.authority_public"), trust_domain="kars.test")])
    bob = IdentityKey(hexed("identity.bob_seed"))
    knock = knocks.read(*block())
    statement = knocks.verify(
        knock, own=knock.recipient, own_key=bob.public, trust=trust, now=VECTORS["session"]["now"],
        transport_sender=knock.sender,
    )  # fmt: skip
    signed = hexed("session.signed_prekey.private")
    kem_seed = hexed("session.kem_prekey.seed")
    keys = handshake.accept(
        bob,
        knock=knock,
        statement=statement,
        private=PrivatePrekeys(
            signed=signed,
            signed_signature=hexed("session.signed_prekey.signature"),
            one_time=hexed("session.one_time_prekey.private"),
            kem_seed=kem_seed,
            kem_public=MLKEM1024PrivateKey.from_seed_bytes(kem_seed).public_key().public_bytes_raw(),
        ),
    )
    assert keys.root == hexed("session.root")
    first = VECTORS["session"]["messages"][0]
    _, payload = Session.accept(
        peer=knock.sender, peer_key=statement.identity_key, keys=keys, own_ratchet_key=signed,
        message=bytes.fromhex(first["message"]), created=0, post_quantum=True,
    )  # fmt: skip
    assert payload == b"hello bob"


def test_published_proofs_and_names_of_keys() -> None:
    alice = IdentityKey(hexed("identity.alice_seed"))
    given = VECTORS["identity"]
    peer = knocks.read(*block()).sender
    assert alice.possession_proof(peer).hex() == given["possession_proof"]
    assert primitives.x25519_of_ed25519(alice.public) == hexed("identity.alice_x25519_public")
    signed = SignedStatement(
        statement=given["statement"].encode(),
        signature=hexed("identity.statement_signature"),
        key_id=given["key_id"],
    )
    trust = TrustKeys([TrustKey(public_key=hexed("identity.authority_public"), trust_domain="kars.test")])
    assert trust.verify(signed, now=1.8e9, peer=peer, key=alice.public).serial == 7
    assert identity.key_id(hexed("identity.authority_public")) == given["key_id"]
    assert {n: padding.padded_length(int(n)) for n in VECTORS["padding"]} == VECTORS["padding"]


def test_the_epoch_derivation_is_as_published() -> None:
    make = generator()
    offer = pq.Offer(1, make.seed("ek", 1184))
    derived = pq.next_key(hexed("derivations.key"), hexed("derivations.data"), offer, make.seed("ct", 1088))
    assert derived == hexed("derivations.epoch")


def test_the_header_is_sealed_as_documented() -> None:
    message = bytes.fromhex(VECTORS["session"]["messages"][0]["message"])
    header = AESGCM(hexed("session.initiator_header_key")).decrypt(
        message[76:88], message[16:76], message[:16] + message[-16:]
    )
    assert header[32:] == bytes(12)  # previous length 0, number 0, epoch 0
    assert ratchet.HEADER_BYTES == 40
