"""KNOCK: who may start a session, and that nobody can pretend."""

import dataclasses
import time
from pathlib import Path

import pytest
from kars_sdk.mesh import knock as knocks
from kars_sdk.mesh import primitives, trust
from kars_sdk.mesh.codec import Reader, Writer
from kars_sdk.mesh.errors import (
    ForgedError,
    HandshakeError,
    IdentityError,
    KnockRefusedError,
    MalformedError,
    MeshError,
    NoSessionError,
    ReplayedError,
)
from kars_sdk.mesh.identity import IdentityKey, fingerprint
from kars_sdk.mesh.prekeys import Bundle
from kars_sdk.mesh.sessions import Opened, Rejected
from kars_sdk.mesh.testing import EVERYBODY, OPEN, Agent, Authority, name
from kars_sdk.mesh.trust import Edge, TrustPolicy, decide

NOW = 1_800_000_000.0
ALICE, BOB = name("alice"), name("bob")


def split(payload: bytes) -> tuple[bytes, bytes, bytes]:
    reader = Reader(payload[1:], what="payload", max_bytes=1 << 20)
    return reader.variable(1 << 16), reader.raw(64), reader.rest()


def joined(signed: bytes, signature: bytes, message: bytes) -> bytes:
    return b"\x01" + Writer().variable(signed).raw(signature).raw(message).bytes()


def restricted(agent: Agent, policy: TrustPolicy) -> Agent:
    agent.sessions.policy = policy
    return agent


def test_defect_5_a_knock_whose_parts_were_changed_is_refused(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    signed, signature, message = split(payload)
    session_id = message[:16]
    for at in range(0, len(signed), 61):
        changed = signed[:at] + bytes((signed[at] ^ 1,)) + signed[at + 1 :]
        forged = joined(changed, signature, knocks.knock_id(changed) + message[16:])
        with pytest.raises(MeshError):
            bob.sessions.open(forged, sender=alice.name)
    assert not bob.sessions.has_session(alice.name)
    assert session_id == knocks.knock_id(signed)
    assert isinstance(bob.sessions.open(payload, sender=alice.name), Opened)


def test_defect_5_a_knock_in_the_name_of_another_is_refused(
    alice: Agent, bob: Agent, authority: Authority
) -> None:
    mallory = IdentityKey.generate()
    alice.sessions.me = dataclasses.replace(alice.sessions.me, identity=mallory)
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    with pytest.raises(ForgedError) as refused:
        bob.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == "knock_forged"


def test_a_knock_that_another_delivers_is_refused(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    with pytest.raises(IdentityError) as refused:
        bob.sessions.open(payload, sender=name("mallory"))
    assert refused.value.reason == "knock_sender_mismatch"
    assert isinstance(bob.sessions.open(payload, sender=None), Opened)  # sealed: the KNOCK itself says who


def test_a_knock_for_another_receiver_is_refused(
    alice: Agent, bob: Agent, authority: Authority, tmp_path: Path
) -> None:
    carol = Agent.create("carol", authority, tmp_path)
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    with pytest.raises(HandshakeError) as refused:
        carol.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == "knock_not_for_us"
    carol.store.close()


@pytest.mark.parametrize(
    ("shift", "reason"),
    [(-8 * 86400, "knock_stale"), (400, "knock_from_the_future"), (2 * 86400, "statement_expired")],
)
def test_a_knock_out_of_its_time_is_refused(
    shift: float, reason: str, authority: Authority, tmp_path: Path
) -> None:
    alice = Agent.create("alice", authority, tmp_path, clock=lambda: time.time() + shift)
    bob = Agent.create("bob", authority, tmp_path)
    wide = authority.statement(alice.name, alice.identity.public, not_before=0, not_after=4e9)
    bundle = dataclasses.replace(
        bob.bundle(), identity=authority.statement(bob.name, bob.identity.public, not_before=0, not_after=4e9)
    )
    if reason != "statement_expired":
        alice.sessions.me = dataclasses.replace(alice.sessions.me, statement=wide)
    payload = alice.sessions.start(bundle, bob.name, b"hello")
    if reason == "statement_expired":
        bob.clock = alice.clock
        bob.restart()
    with pytest.raises(MeshError) as refused:
        bob.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == reason
    alice.store.close()
    bob.store.close()


def test_a_refusal_is_signed_and_ends_the_pending_session(alice: Agent, bob: Agent) -> None:
    restricted(bob, TrustPolicy())
    payload = alice.sessions.start(bob.bundle(), bob.name, b"secret that must not be read")
    with pytest.raises(KnockRefusedError) as refused:
        bob.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == "edge_missing"
    assert not bob.sessions.has_session(alice.name)

    answer = alice.sessions.open(refused.value.rejection, sender=bob.name)
    assert answer == Rejected(peer=bob.name, reason="edge_missing", retry_after_s=0)
    with pytest.raises(NoSessionError):
        alice.sessions.seal(bob.name, b"more")


def test_a_forged_rejection_is_ignored(
    alice: Agent, bob: Agent, authority: Authority, tmp_path: Path
) -> None:
    mallory = Agent.create("mallory", authority, tmp_path)
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    knock = knocks.read(*split(payload)[:2])
    for own, key in ((bob.name, mallory.identity), (mallory.name, mallory.identity)):
        forged = knocks.reject(key, own=own, knock=knock, reason="go_away", retry_after_s=0, at_ms=0)
        for sender in (bob.name, mallory.name):
            with pytest.raises(MeshError):
                alice.sessions.open(b"\x03" + forged, sender=sender)
    assert isinstance(bob.sessions.open(payload, sender=alice.name), Opened)
    alice.sessions.open(bob.sessions.seal(alice.name, b"welcome"), sender=bob.name)
    mallory.store.close()


def test_a_rejection_cannot_end_a_session_that_was_answered(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    bob.sessions.open(payload, sender=alice.name)
    alice.sessions.open(bob.sessions.seal(alice.name, b"welcome"), sender=bob.name)
    late = knocks.reject(
        bob.identity, own=bob.name, knock=knocks.read(*split(payload)[:2]), reason="late",
        retry_after_s=0, at_ms=0,
    )  # fmt: skip
    with pytest.raises(ReplayedError):
        alice.sessions.open(b"\x03" + late, sender=bob.name)
    assert alice.sessions.has_session(bob.name)


def test_a_knock_delivered_twice_opens_once_and_changes_nothing(alice: Agent, bob: Agent) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello")
    bob.sessions.open(payload, sender=alice.name)
    before = bob.sessions.of(alice.name)[0].dump()
    with pytest.raises(ReplayedError):
        bob.sessions.open(payload, sender=alice.name)
    assert bob.sessions.of(alice.name)[0].dump() == before


def test_a_flood_of_knocks_is_cut_off_and_told_when_to_come_back(alice: Agent, bob: Agent) -> None:
    restricted(bob, dataclasses.replace(OPEN, knocks_per_minute_per_peer=2))
    reasons = []
    for _ in range(4):
        try:
            bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
        except KnockRefusedError as exc:
            reasons.append((exc.reason, exc.retry_after_s))
    assert reasons == [("knock_rate_exceeded", 60)] * 2


@pytest.mark.parametrize("purpose", ["pairing", "anything"])
def test_a_purpose_that_policy_does_not_name_is_refused(alice: Agent, bob: Agent, purpose: str) -> None:
    payload = alice.sessions.start(bob.bundle(), bob.name, b"hello", purpose=purpose)
    with pytest.raises(KnockRefusedError) as refused:
        bob.sessions.open(payload, sender=alice.name)
    assert refused.value.reason == "purpose_not_allowed"


def test_downgrade_to_classic_is_refused_on_both_sides(alice: Agent, bob: Agent) -> None:
    stripped = dataclasses.replace(bob.bundle(), kem_prekey=None)
    with pytest.raises(HandshakeError) as refused:
        alice.sessions.start(stripped, bob.name, b"hello")
    assert refused.value.reason == "kem_missing"

    restricted(alice, dataclasses.replace(OPEN, allow_classic=True))
    restricted(bob, dataclasses.replace(OPEN, allow_classic=True))
    payload = alice.sessions.start(stripped, bob.name, b"hello")  # a registry that hides the KEM key ...
    with pytest.raises(HandshakeError) as refused:
        bob.sessions.open(payload, sender=alice.name)  # ... is found out by the one who published it
    assert refused.value.reason == "downgrade_refused"


def test_a_peer_that_had_a_kem_key_never_loses_it(alice: Agent, bob: Agent) -> None:
    alice.sessions.start(bob.bundle(), bob.name, b"hello")
    restricted(alice, dataclasses.replace(OPEN, allow_classic=True))
    with pytest.raises(HandshakeError) as refused:
        alice.sessions.start(dataclasses.replace(bob.bundle(), kem_prekey=None), bob.name, b"hello")
    assert refused.value.reason == "downgrade_refused"


def test_classic_sessions_work_where_both_policies_allow_them(authority: Authority, tmp_path: Path) -> None:
    policy = dataclasses.replace(OPEN, allow_classic=True)
    alice = Agent.create("alice", authority, tmp_path, policy=policy)
    bob = Agent.create("bob", authority, tmp_path, policy=policy, kem=False)
    result = bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    assert isinstance(result, Opened)
    assert not bob.sessions.of(alice.name)[0].post_quantum
    alice.store.close()
    bob.store.close()


def swapped(bundle: Bundle, **changes: object) -> Bundle:
    return dataclasses.replace(bundle, **changes)  # type: ignore[arg-type]


def test_defect_4_keys_that_a_registry_put_in_place_of_the_peers_are_refused(
    alice: Agent, bob: Agent, authority: Authority, tmp_path: Path
) -> None:
    mallory = Agent.create("mallory", authority, tmp_path)
    own, theirs = bob.bundle(), mallory.bundle()
    rogue = Authority()  # signs, but nobody mounted its key
    cases = {
        "statement_other_peer": theirs,
        "prekey_forged": swapped(own, signed_prekey=theirs.signed_prekey),
        "statement_signer_unknown": swapped(
            theirs, identity=rogue.statement(bob.name, mallory.identity.public)
        ),
        "statement_forged": swapped(
            own, identity=dataclasses.replace(own.identity, statement=own.identity.statement + b" ")
        ),
    }
    for reason, bundle in cases.items():
        with pytest.raises(MeshError) as refused:
            alice.sessions.start(bundle, bob.name, b"hello")
        assert refused.value.reason == reason
    with pytest.raises(HandshakeError) as forged:
        alice.sessions.start(swapped(own, kem_prekey=theirs.kem_prekey), bob.name, b"hello")
    assert forged.value.reason == "prekey_forged"
    assert not alice.sessions.has_session(bob.name)
    mallory.store.close()


def test_plaintext_has_no_form(alice: Agent, bob: Agent) -> None:
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    for kind in (0, 2, 4, 255):
        with pytest.raises((MalformedError, NoSessionError)):
            bob.sessions.open(bytes((kind,)) + b'{"plaintext": true, "text": "do it"}' * 8, sender=alice.name)


def test_defect_12_identities_are_random_and_cannot_be_derived_from_a_name(
    authority: Authority, tmp_path: Path
) -> None:
    first = Agent.create("alice", authority, tmp_path / "1")
    second = Agent.create("alice", authority, tmp_path / "2")
    assert first.name == second.name
    assert first.identity.seed != second.identity.seed
    for agent in (first, second):
        assert agent.identity.seed != primitives.sha256(agent.name.encode())
        agent.store.close()


def test_proofs_are_bound_to_their_purpose_relay_and_stream(alice: Agent) -> None:
    proof = alice.identity.connect_proof(
        nonce=b"n" * 32, relay="spiffe://kars.test/svc/relay", peer=alice.name
    )
    key = alice.identity.public
    message = b"n" * 32 + b"spiffe://kars.test/svc/relay\0" + alice.name.encode()
    assert primitives.verify(key, proof, primitives.CONNECT_LABEL, message)
    assert not primitives.verify(key, proof, primitives.CONNECT_LABEL, b"m" + message[1:])
    assert not primitives.verify(key, proof, primitives.POSSESSION_LABEL, message)


EDGE = Edge(source=ALICE, target=BOB)
BACK = Edge(source=BOB, target=ALICE, score=700)
WILD = (Edge(source=EVERYBODY, target=EVERYBODY),)


@pytest.mark.parametrize(
    ("policy", "reputation", "reason"),
    [
        (TrustPolicy(), 1000, "edge_missing"),
        (TrustPolicy(edges=(EDGE,)), None, "trust_unknown"),
        (TrustPolicy(edges=(EDGE,)), 0, "trust_below_threshold"),
        (TrustPolicy(edges=(EDGE,), threshold=1), 0, "trust_below_threshold"),
        (TrustPolicy(edges=(EDGE,), threshold=0), 0, "accepted"),
        (TrustPolicy(edges=(EDGE,), threshold=0), None, "accepted"),
        (TrustPolicy(edges=(EDGE,)), 500, "accepted"),
        (TrustPolicy(edges=(EDGE, BACK)), None, "accepted"),
        (TrustPolicy(edges=(EDGE, dataclasses.replace(BACK, score=499))), 1000, "trust_below_threshold"),
        (TrustPolicy(edges=(BACK,)), 1000, "edge_missing"),
        (TrustPolicy(edges=(dataclasses.replace(EDGE, not_after=NOW), BACK)), 1000, "edge_missing"),
        (TrustPolicy(edges=(EDGE, dataclasses.replace(BACK, not_after=NOW - 1))), None, "trust_unknown"),
        (TrustPolicy(edges=(EDGE, BACK), denied_peers=frozenset({ALICE})), 1000, "peer_denied"),
        (TrustPolicy(threshold=0, require_edge=False), None, "accepted"),
        (TrustPolicy(threshold=500, require_edge=False), 499, "trust_below_threshold"),
        (TrustPolicy(edges=WILD, threshold=0), None, "accepted"),
    ],
)
def test_decisions(policy: TrustPolicy, reputation: int | None, reason: str) -> None:
    decision = decide(policy, sender=ALICE, receiver=BOB, purpose="session", now=NOW, reputation=reputation)
    assert (decision.reason, decision.accepted) == (reason, reason == "accepted")


def test_defect_9_an_unknown_peer_is_below_every_threshold_above_zero() -> None:
    for threshold in (1, 2, 499, 500, 1000):
        policy = TrustPolicy(edges=WILD, threshold=threshold)
        for reputation in (None, 0):
            assert not decide(
                policy, sender=ALICE, receiver=BOB, purpose="session", now=NOW, reputation=reputation
            ).accepted


@pytest.mark.parametrize(
    ("pattern", "peer", "fits"),
    [
        ("spiffe://kars.test/ns/team/sandbox/*", ALICE, True),
        ("spiffe://kars.test/ns/*/sandbox/alice", ALICE, True),
        ("spiffe://kars.test/ns/other/sandbox/*", ALICE, False),
        ("spiffe://evil.test/ns/*/sandbox/*", ALICE, False),
    ],
)
def test_wildcards_stand_for_one_segment(pattern: str, peer: str, fits: bool) -> None:
    edge = Edge(source=pattern, target=EVERYBODY)
    assert edge.fits(name(peer.rpartition("/")[2]), BOB, NOW) is fits


def test_a_wildcard_never_means_oneself() -> None:
    assert not WILD[0].fits(ALICE, ALICE, NOW)
    assert Edge(source=ALICE, target=ALICE).fits(ALICE, ALICE, NOW)


def test_the_policy_file_is_read_strictly() -> None:
    text = b"""{"threshold": 300, "edges": [{"from": "spiffe://kars.test/ns/team/sandbox/*",
        "to": "spiffe://kars.test/ns/team/sandbox/bob", "score": 400, "notAfter": 1900000000}],
        "knocksPerMinute": 5, "allowClassic": false}"""
    policy = TrustPolicy.from_json(text)
    assert policy.threshold == 300
    assert policy.edges[0].not_after == 1900000000
    assert policy.require_edge
    for bad in (
        b"", b"[]", b"{", b'{"treshold": 0}', b'{"threshold": true}', b'{"threshold": -1}',
        b'{"threshold": 1001}',
        b'{"edges": [{"from": "*", "to": "*"}]}', b'{"requireEdge": "no"}', b"\xff", b"[" * 100_000,
        b'{"edges": [{"from": "spiffe://*/ns/a/sandbox/b", "to": "spiffe://a/ns/a/sandbox/b"}]}',
    ):  # fmt: skip
        with pytest.raises(IdentityError):
            TrustPolicy.from_json(bad)


def test_the_limiter_refills_and_forgets_whom_it_must() -> None:
    now = [0.0]
    limiter = trust.KnockLimiter(lambda: now[0], max_peers=8)
    policy = TrustPolicy(knocks_per_minute=600, knocks_per_minute_per_peer=2)
    assert [limiter.allow(ALICE, policy) for _ in range(3)] == [True, True, False]
    now[0] += 30
    assert [limiter.allow(ALICE, policy) for _ in range(2)] == [True, False]
    for number in range(100):
        limiter.allow(name(f"peer-{number}"), policy)
    assert len(limiter._buckets) <= 8


def test_safety_numbers_agree_and_notice_a_swapped_key(alice: Agent, bob: Agent) -> None:
    ours = fingerprint(
        own=alice.name, own_key=alice.identity.public, peer=bob.name, peer_key=bob.identity.public
    )
    theirs = fingerprint(
        own=bob.name, own_key=bob.identity.public, peer=alice.name, peer_key=alice.identity.public
    )
    swapped_key = fingerprint(
        own=alice.name, own_key=alice.identity.public, peer=bob.name, peer_key=IdentityKey.generate().public
    )
    assert ours == theirs != swapped_key
    assert len(ours.split()) == 12
    assert all(len(group) == 5 and group.isdecimal() for group in ours.split())


def test_a_key_that_a_person_verified_does_not_change_quietly(
    alice: Agent, bob: Agent, authority: Authority, tmp_path: Path
) -> None:
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    renewed = Agent.create("alice", authority, tmp_path / "renewed")
    renewed.statement = authority.statement(alice.name, renewed.identity.public, serial=2)
    renewed.restart()
    number = bob.sessions.fingerprint(alice.name)
    bob.sessions.set_verified(alice.name, verified=True)
    with pytest.raises(IdentityError) as refused:
        bob.sessions.open(renewed.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    assert refused.value.reason == "identity_key_changed"

    bob.sessions.set_verified(alice.name, verified=False)
    bob.sessions.open(renewed.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    assert bob.sessions.fingerprint(alice.name) != number
    with pytest.raises(IdentityError) as old:
        bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    assert old.value.reason == "statement_rollback"
    renewed.store.close()


def test_an_edge_that_is_withdrawn_ends_the_session_it_once_allowed(alice: Agent, bob: Agent) -> None:
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    restricted(bob, TrustPolicy(edges=(Edge(source=name("carol"), target=bob.name),)))
    late = alice.sessions.seal(bob.name, b"still here")
    with pytest.raises(KnockRefusedError) as refused:
        bob.sessions.open(late, sender=alice.name)
    assert (refused.value.reason, refused.value.rejection) == ("edge_missing", b"")
    restricted(bob, OPEN)
    assert isinstance(bob.sessions.open(late, sender=alice.name), Opened)


def test_an_edge_that_expires_ends_the_session_too(authority: Authority, tmp_path: Path) -> None:
    now = [time.time()]
    until = TrustPolicy(edges=(Edge(source=EVERYBODY, target=EVERYBODY, score=600, not_after=now[0] + 600),))
    alice = Agent.create("alice", authority, tmp_path)
    bob = Agent.create("bob", authority, tmp_path, policy=until, clock=lambda: now[0])
    bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    now[0] += 601
    with pytest.raises(KnockRefusedError):
        bob.sessions.open(alice.sessions.seal(bob.name, b"late"), sender=alice.name)
    alice.store.close()
    bob.store.close()


def test_the_memory_for_knocks_is_bounded_and_then_refuses(
    alice: Agent, bob: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_sdk.mesh.sessions.MAX_REMEMBERED_KNOCKS", 2)
    for _ in range(2):
        bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    with pytest.raises(KnockRefusedError) as refused:
        bob.sessions.open(alice.sessions.start(bob.bundle(), bob.name, b"hello"), sender=alice.name)
    assert refused.value.reason == "knock_rate_exceeded"


def test_defect_2_a_handshake_names_its_prekeys_and_survives_their_rotation(
    authority: Authority, tmp_path: Path
) -> None:
    now = [time.time()]
    alice = Agent.create("alice", authority, tmp_path)
    bob = Agent.create("bob", authority, tmp_path, clock=lambda: now[0])
    bundle = bob.bundle(one_time=False)
    payload = alice.sessions.start(bundle, bob.name, b"hello")
    now[0] += 8 * 86400
    assert bob.bundle().signed_prekey.key_id != bundle.signed_prekey.key_id
    now[0] -= 8 * 86400 - 60
    assert isinstance(bob.sessions.open(payload, sender=alice.name), Opened)
    alice.store.close()
    bob.store.close()
