"""The fourteen ways in which a ratchet built on these packages goes wrong, each attacked here."""

import copy
import dataclasses
import hmac
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
import xeddsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from kars_sdk.mesh import primitives, ratchet, ratchet_parts
from kars_sdk.mesh.errors import (
    CloneSuspectedError,
    ForgedError,
    HandshakeError,
    ReplayedError,
    SkippedTooFarError,
    StoreError,
)
from kars_sdk.mesh.session import Session
from kars_sdk.mesh.sessions import Opened
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import Agent, Authority


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def pair(alice: Agent, bob: Agent) -> tuple[Session, Session]:
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    alice.sessions.open(bob.sessions.seal(alice.name, b"welcome"), sender=bob.name)
    return alice.sessions.of(bob.name)[0], bob.sessions.of(alice.name)[0]


def test_pitfall_1_one_time_keys_outlive_a_first_message_that_does_not_authenticate(
    alice: Agent, bob: Agent
) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    with pytest.raises(ForgedError):
        bob.sessions.open(flipped(payload, len(payload) - 1), sender=alice.name)
    assert isinstance(bob.sessions.open(payload, sender=alice.name), Opened)


def test_pitfall_1_one_time_keys_are_gone_after_the_first_message_authenticated(
    alice: Agent, bob: Agent, authority: Authority, tmp_path: Path
) -> None:
    bundle = bob.bundle()
    carol = Agent.create("carol", authority, tmp_path)
    bob.sessions.open(alice.sessions.start(bundle, bob.name, b"hello"), sender=alice.name)

    with pytest.raises(HandshakeError, match="one-time prekey") as refused:
        bob.sessions.open(carol.sessions.start(bundle, bob.name, b"hello"), sender=carol.name)
    assert refused.value.reason == "one_time_prekey_used"
    carol.store.close()


def test_pitfall_2_a_handshake_costs_the_same_with_many_one_time_keys(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob.prekeys.more(100, 0)
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    derived: list[bytes] = []
    real = xeddsa.priv_to_curve25519_pub

    def counted(key: bytes) -> bytes:
        derived.append(key)
        return real(key)

    monkeypatch.setattr("x3dh.pre_key_pair.xeddsa.priv_to_curve25519_pub", counted)
    bob.sessions.open(payload, sender=alice.name)
    assert len(derived) <= 12


def test_pitfall_3_the_handshake_uses_the_one_time_key_that_was_handed_out(alice: Agent, bob: Agent) -> None:
    bob.prekeys.more(20, 0)
    bundle = bob.bundle()
    alice.sessions.start(bundle, bob.name, b"hello")
    block = alice.sessions.of(bob.name)[0].knock
    assert bundle.one_time_prekey is not None
    assert bundle.one_time_prekey.key_id.to_bytes(4, "big") in block


def test_pitfall_4_encrypting_derives_no_public_key(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair(alice, bob)
    ours.encrypt(b"the first of a chain may")
    monkeypatch.setattr(X25519PrivateKey, "public_key", refuse, raising=False)
    monkeypatch.setattr(ratchet_parts.Hellman, "_derive_pub", refuse)
    assert theirs.decrypt(ours.encrypt(b"more")) == b"more"


def refuse(*_: object) -> bytes:
    raise AssertionError("a step that must not happen happened")


def test_pitfall_5_decrypting_in_order_copies_nothing_however_many_keys_are_kept(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair(alice, bob)
    for _ in range(200):
        ours.encrypt(b"lost")
    assert theirs.decrypt(ours.encrypt(b"after the gap")) == b"after the gap"
    assert theirs.skipped_count == 200
    monkeypatch.setattr(copy, "deepcopy", refuse)
    assert theirs.decrypt(ours.encrypt(b"in order")) == b"in order"


def test_pitfall_5_kept_keys_are_bounded(alice: Agent, bob: Agent) -> None:
    ours, theirs = pair(alice, bob)
    for _ in range(3):
        for _ in range(200):
            ours.encrypt(b"lost")
        theirs.decrypt(ours.encrypt(b"after the gap"))
    assert theirs.skipped_count == ratchet_parts.MAX_SKIP


def test_pitfall_6_the_cipher_is_aes_gcm_and_a_failure_leaves_the_state_as_it_was(
    alice: Agent, bob: Agent
) -> None:
    ours, theirs = pair(alice, bob)
    state = ours._ratchet._DoubleRatchet__diffie_hellman_ratchet
    chain = state._DiffieHellmanRatchet__symmetric_key_ratchet._SymmetricKeyRatchet__sending_chain
    assert chain is not None
    message_key = hmac.digest(chain._KDFChain__key, b"\x01", "sha256")
    message = ours._ratchet.encrypt(b"body", b"ad")
    key = hmac.digest(ours._pq.sending_key, message_key, "sha256")
    assert (
        AESGCM(key).decrypt(message.ciphertext[:12], message.ciphertext[12:], b"ad" + message.header)
        == b"body"
    )

    before = theirs.dump()
    with pytest.raises(ForgedError):
        theirs.decrypt(flipped(ours.encrypt(b"good"), -1))
    assert theirs.dump() == before


def test_pitfall_7_chain_steps_are_in_signals_order() -> None:
    key = bytes(range(32))
    derived = ratchet_parts.now(ratchet_parts.ChainKDF.derive(key, b"\x02\x01", 64))
    assert derived[:32] == hmac.digest(key, b"\x02", "sha256")  # the next chain key
    assert derived[32:] == hmac.digest(key, b"\x01", "sha256")  # the message key


def test_pitfall_8_a_plug_that_suspends_is_refused() -> None:
    class Suspends:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def plug() -> bytes:
        await Suspends()
        return b""

    with pytest.raises(RuntimeError, match="suspended"):
        ratchet_parts.now(plug())


def test_pitfall_9_state_is_small_and_sealed(alice: Agent, bob: Agent) -> None:
    ours, theirs = pair(alice, bob)
    for _ in range(250):
        ours.encrypt(b"lost")
    bob.sessions.open(b"\x02" + ours.encrypt(b"after the gap"), sender=alice.name)
    state = bob.sessions.of(alice.name)[0].dump()
    assert len(state) < 24 * 1024

    on_disk = b"".join(path.read_bytes() for path in bob.folder.iterdir() if path.name.startswith("state"))
    secrets = (theirs._send_header_key, theirs._pq.sending_key, bob.identity.seed, alice.name.encode())
    assert not any(secret in on_disk for secret in secrets)


def test_pitfall_10_a_state_that_was_put_back_is_refused(alice: Agent, bob: Agent, tmp_path: Path) -> None:
    pair(alice, bob)
    alice.store.close()
    old = {path.name: path.read_bytes() for path in alice.folder.iterdir() if path.name.startswith("state")}
    alice.store = Store(alice.folder, alice.key)
    alice.restart()
    alice.sessions.seal(bob.name, b"newer")
    alice.store.close()
    for path in alice.folder.iterdir():
        if path.name.startswith("state"):
            path.unlink()
    for file, data in old.items():
        (alice.folder / file).write_bytes(data)

    with pytest.raises(StoreError) as refused:
        Store(alice.folder, alice.key)
    assert refused.value.reason == "state_rolled_back"
    (alice.folder / "anchor").unlink()
    with pytest.raises(StoreError, match="anchor"):
        Store(alice.folder, alice.key)
    alice.folder = tmp_path / "fresh"
    alice.store = Store(alice.folder, alice.key)


def test_pitfall_10_a_copied_sender_reuses_no_nonce_and_is_noticed(alice: Agent, bob: Agent) -> None:
    ours, theirs = pair(alice, bob)
    clone = Session.load(ours.dump())
    first, second = ours.encrypt(b"one"), clone.encrypt(b"two")
    nonces = {message[76:88] for message in (first, second)}
    assert len(nonces) == 2

    assert theirs.decrypt(first) == b"one"
    with pytest.raises(CloneSuspectedError):
        theirs.decrypt(second)
    with pytest.raises(ReplayedError):
        theirs.decrypt(first)


def test_pitfall_11_a_forged_header_costs_one_tag_and_no_key_is_derived(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair(alice, bob)
    message = ours.encrypt(b"good")
    monkeypatch.setattr(ratchet, "digest", refuse)
    monkeypatch.setattr(ratchet_parts, "digest", refuse)
    for at in (20, 60, 70, 75, len(message) - 1):  # the header's parts, and the tag it is bound to
        with pytest.raises(ForgedError, match="header"):
            theirs.decrypt(flipped(message, at))
    monkeypatch.undo()
    assert theirs.decrypt(message) == b"good"


def test_pitfall_12_what_the_package_only_warns_of_does_not_stop_the_session(
    alice: Agent, bob: Agent
) -> None:
    ours, theirs = pair(alice, bob)
    lost = [ours.encrypt(b"lost") for _ in range(ratchet_parts.MAX_SKIP + 20)]
    ours.decrypt(theirs.encrypt(b"turn"))
    ours.decrypt(theirs.encrypt(b"turn"))
    theirs.decrypt(lost[0])
    ours.decrypt(theirs.encrypt(b"new chain"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert theirs.decrypt(ours.encrypt(b"recovered")) == b"recovered"
    before = theirs.dump()
    with pytest.raises((ReplayedError, ForgedError)):
        theirs.decrypt(lost[5])
    assert theirs.dump() == before


def test_pitfall_12_too_large_a_gap_is_refused_with_a_reason(alice: Agent, bob: Agent) -> None:
    ours, theirs = pair(alice, bob)
    messages = [ours.encrypt(b"%d" % number) for number in range(ratchet_parts.MAX_SKIP + 2)]
    before = theirs.dump()
    with pytest.raises(SkippedTooFarError):
        theirs.decrypt(messages[-1])
    assert theirs.dump() == before
    assert theirs.decrypt(messages[-2]) == b"%d" % ratchet_parts.MAX_SKIP


def test_pitfall_12_mail_sent_with_the_signed_key_of_last_week_still_opens(
    alice: Agent, authority: Authority, tmp_path: Path
) -> None:
    now = [1_000_000_000.0]
    bob = Agent.create("bob", authority, tmp_path, clock=lambda: now[0])
    carol = Agent.create("carol", authority, tmp_path, clock=lambda: now[0])
    for agent in (bob, carol):
        agent.statement = authority.statement(agent.name, agent.identity.public, not_before=0, not_after=3e9)
        agent.restart()
    payload = carol.sessions.start(bob.bundle(), bob.name, b"hello")
    now[0] += 8 * 86400
    first = bob.bundle()
    now[0] -= 1.5 * 86400  # the KNOCK itself is younger than a relay keeps mail
    assert isinstance(bob.sessions.open(payload, sender=carol.name), Opened)
    now[0] += 40 * 86400
    bob.prekeys.renew()
    with pytest.raises(HandshakeError) as refused:
        bob.prekeys.private(signed_id=1, one_time_id=None, kem_id=None)
    assert refused.value.reason == "signed_prekey_unknown"
    assert first.signed_prekey.key_id != 1
    bob.store.close()
    carol.store.close()


def test_pitfall_13_a_first_message_without_one_time_key_opens_once(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(one_time=False), bob.name, b"pay 100")
    assert isinstance(bob.sessions.open(payload, sender=alice.name), Opened)
    with pytest.raises(ReplayedError):
        bob.sessions.open(payload, sender=alice.name)
    bob.sessions.forget(alice.name)
    bob.restart()
    with pytest.raises(ReplayedError) as refused:
        bob.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == "knock_replayed"


def test_pitfall_14_there_is_one_identity_key_and_plain_ed25519_verifies_its_prekeys(bob: Agent) -> None:
    bundle = bob.bundle()
    key = Ed25519PublicKey.from_public_bytes(bob.identity.public)
    key.verify(
        bundle.signed_prekey.signature, primitives.SIGNED_PREKEY_LABEL + bundle.signed_prekey.public_key
    )
    image = primitives.x25519_of_ed25519(bob.identity.public)
    own = X25519PrivateKey.from_private_bytes(bob.identity.x25519_private)
    assert own.public_key() == X25519PublicKey.from_public_bytes(image)


def test_short_paths_do_what_the_package_does(alice: Agent, bob: Agent) -> None:
    """Both shortcuts of `ratchet` against the package's own methods, from the same state."""
    ours, theirs = pair(alice, bob)
    theirs.decrypt(ours.encrypt(b"turn"))  # a turn makes a random key, so the comparison begins after one
    package, short = ratchet.Ratchet.load(ours._ratchet.dump()), ratchet.Ratchet.load(ours._ratchet.dump())
    receiver, slow = (ratchet.Ratchet.load(theirs._ratchet.dump()) for _ in range(2))
    for number in range(5):
        theirs_way = ratchet_parts.now(package.encrypt_message(b"%d" % number, b"ad"))
        message = short.encrypt(b"%d" % number, b"ad")
        assert ratchet._HEADER.pack(*theirs_way.header) == message.header
        assert short.dump() == package.dump()
        assert receiver.decrypt(message, b"ad") == b"%d" % number
        assert ratchet_parts.now(slow.decrypt_message(theirs_way, b"ad")) == b"%d" % number
        assert receiver.dump() == slow.dump()


LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
EVERY_LOW_ORDER = LOW_ORDER + [point[:31] + bytes((point[31] | 0x80,)) for point in LOW_ORDER]


@pytest.mark.parametrize(
    "point", EVERY_LOW_ORDER, ids=[point.hex()[:8] + point.hex()[-2:] for point in EVERY_LOW_ORDER]
)
def test_defect_3_points_of_low_order_are_refused(point: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        X25519PrivateKey.generate().exchange(
            X25519PublicKey.from_public_bytes(point)
        )  # they are what they seem
    with pytest.raises(HandshakeError) as refused:
        primitives.check_x25519(point, "a key")
    assert refused.value.reason == "low_order_point"


def test_defect_3_a_bundle_with_a_low_order_point_is_refused(alice: Agent, bob: Agent) -> None:
    bundle = bob.bundle()
    point = LOW_ORDER[2]
    signature = bob.identity.sign(primitives.SIGNED_PREKEY_LABEL, point)
    signed = dataclasses.replace(bundle.signed_prekey, public_key=point, signature=signature)
    assert bundle.one_time_prekey is not None
    for bad in (
        dataclasses.replace(bundle, signed_prekey=signed),
        dataclasses.replace(
            bundle, one_time_prekey=dataclasses.replace(bundle.one_time_prekey, public_key=point)
        ),
    ):
        with pytest.raises(HandshakeError) as refused:
            alice.sessions.start(bad, bob.name, b"hello")
        assert refused.value.reason == "low_order_point"


def test_a_forged_message_costs_no_read_from_disk(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = pair(alice, bob)
    message = b"\x02" + ours.encrypt(b"good")
    monkeypatch.setattr(Session, "load", refuse)
    for at in (30, len(message) - 1):
        with pytest.raises(ForgedError):
            bob.sessions.open(flipped(message, at), sender=alice.name)
    result = bob.sessions.open(message, sender=alice.name)
    assert isinstance(result, Opened)
    with pytest.raises(ReplayedError):
        bob.sessions.open(message, sender=alice.name)


def test_a_disk_that_fails_releases_nothing_and_the_message_can_be_read_later(
    alice: Agent, bob: Agent
) -> None:
    ours, _ = pair(alice, bob)
    message = b"\x02" + ours.encrypt(b"good")
    before = bob.sessions.of(alice.name)[0].dump()
    bob.store._database.execute("PRAGMA query_only = ON")
    for work in (
        lambda: bob.sessions.open(message, sender=alice.name),
        lambda: bob.sessions.seal(alice.name, b"not released"),
    ):
        with pytest.raises(StoreError):
            work()
    assert bob.sessions.of(alice.name)[0].dump() == before
    bob.store._database.execute("PRAGMA query_only = OFF")
    assert isinstance(bob.sessions.open(message, sender=alice.name), Opened)
