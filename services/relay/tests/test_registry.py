"""The registry: nobody is entered, drained, seen or rated against policy, and it cannot tell two stories."""

import hashlib
import json
from typing import Self

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.mesh.v1 import registry_pb2, registry_pb2_grpc
from kars_common.audit import open_checkpoint, parse_verifier_key
from kars_common.audit.merkle import leaf_hash, verify_consistency, verify_inclusion
from kars_relay_testkit import TestPeer, channel, edges
from kars_relay_testkit.house import House, make_house, reason


class Desk:
    """A peer's calls to the registry."""

    def __init__(self, house: House, peer: TestPeer) -> None:
        self.peer = peer
        self.channel = channel(peer.svid, house.port, house.world.trust_domain)
        self.stub = registry_pb2_grpc.RegistryStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close(None)

    async def register(self, *capabilities: str, visible: bool = False) -> registry_pb2.Registration:
        answer: registry_pb2.RegisterResponse = await self.stub.Register(
            registry_pb2.RegisterRequest(
                identity=self.peer.statement, capabilities=capabilities, presence_visible=visible
            ),
            timeout=5,
        )
        return answer.registration

    async def publish(
        self, first: int = 1, count: int = 5, **more: object
    ) -> registry_pb2.PublishPrekeysResponse:
        numbers = range(first, first + count)
        request = registry_pb2.PublishPrekeysRequest(
            signed_prekey=self.peer.signed_prekey(),
            last_resort_kem_prekey=self.peer.kem_prekey(7),
            one_time_prekeys=self.peer.one_time_prekeys(numbers),
            one_time_kem_prekeys=[self.peer.kem_prekey(number) for number in numbers],
        )
        for name, value in more.items():
            getattr(request, name).CopyFrom(value)
        return await self.stub.PublishPrekeys(request, timeout=5)

    async def take(self, peer: object) -> registry_pb2.TakePrekeysResponse:
        request = registry_pb2.TakePrekeysRequest(peer=str(peer))
        return await self.stub.TakePrekeys(request, timeout=5)

    async def lookup(self, peer: object) -> registry_pb2.LookupResponse:
        return await self.stub.Lookup(registry_pb2.LookupRequest(peer=str(peer)), timeout=5)

    async def rate(self, peer: object, score: int) -> registry_pb2.Reputation:
        request = registry_pb2.RatePeerRequest(peer=str(peer), score=score)
        return (await self.stub.RatePeer(request, timeout=5)).reputation


async def refusal(call: object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call  # type: ignore[misc]
    return reason(failure.value)[0]


async def test_a_registration_is_what_the_controller_signed(house: House) -> None:
    async with Desk(house, house.world.peer("reg-a")) as alice, Desk(house, house.world.peer("reg-b")) as bob:
        await alice.register("chat", "chat", "files")
        await bob.register()
        found = await bob.lookup(alice.peer)

        assert found.registration.identity == alice.peer.statement
        assert list(found.registration.capabilities) == ["chat", "files"]
        assert (found.may_write, found.may_receive, found.edge_score) == (True, True, 500)
        assert found.reputation.score == 0


async def test_forged_registrations_are_refused(house: House) -> None:
    alice, mallory = house.world.peer("forge-a"), house.world.peer("forge-m")
    other = Ed25519PrivateKey.generate()
    async with Desk(house, mallory) as desk:
        mallory.statement = alice.statement
        assert await refusal(desk.register()) == "peer_mismatch"
        honest = house.world.statement(mallory.name, mallory.identity)
        for forged in (
            type(honest)(
                statement=honest.statement, signature=other.sign(honest.statement), key_id=honest.key_id
            ),
            type(honest)(statement=honest.statement + b" ", signature=honest.signature, key_id=honest.key_id),
            type(honest)(statement=honest.statement, signature=honest.signature, key_id="x" * 16),
        ):
            mallory.statement = forged
            assert await refusal(desk.register()) == "identity_statement_invalid"
        fields = json.loads(honest.statement)
        low_order = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        for change in (
            {"extra": 1}, {"serial": 0}, {"serial": "9"}, {"serial": True}, {"notAfter": "tomorrow"},
            {"peer": "spiffe://kars.local/svc/controller"}, {"identityKey": "short"}, {"identityKey":
            low_order},
        ):  # fmt: skip
            mallory.statement = house.world.sign_statement(fields | change)
            assert await refusal(desk.register()) == "identity_statement_invalid", change
        mallory.statement = house.world.statement(mallory.name, mallory.identity)
        assert await refusal(desk.register("Not A Capability")) == "capability_invalid"


async def test_a_key_changes_by_rotation_only_and_never_back(house: House) -> None:
    first = house.world.peer("rot")
    old_statement = first.statement
    async with Desk(house, first) as desk, Desk(house, house.world.peer("rot-b")) as bob:
        await bob.register()
        await desk.register()
        await desk.publish()
        old, new = first.identity, Ed25519PrivateKey.generate()
        first.statement = house.world.statement(first.name, new)
        assert await refusal(desk.register()) == "key_change_needs_rotate"
        rotate = registry_pb2.RotateRequest(identity=first.statement, continuity_proof=new.sign(b"x"))
        assert await refusal(desk.stub.Rotate(rotate, timeout=5)) == "continuity_proof_invalid"
        rotate.continuity_proof = old.sign(b"kars-mesh-rotate-v1\0" + first.statement.statement)
        answer = await desk.stub.Rotate(rotate, timeout=5)
        assert answer.registration.continuous
        assert await refusal(bob.take(first)) == "prekeys_not_published"
        first.statement = old_statement
        assert await refusal(desk.register()) == "key_change_needs_rotate"
        back = registry_pb2.RotateRequest(identity=old_statement)
        assert await refusal(desk.stub.Rotate(back, timeout=5)) == "statement_rollback"
        first.statement = house.world.statement(first.name, old)
        lost = await desk.stub.Rotate(registry_pb2.RotateRequest(identity=first.statement), timeout=5)
        assert not lost.registration.continuous


async def test_an_old_statement_does_not_come_back_after_a_peer_left(house: House) -> None:
    peer = house.world.peer("gone")
    async with Desk(house, peer) as desk:
        await desk.register()
        await desk.stub.Deregister(registry_pb2.DeregisterRequest(), timeout=5)
        assert await refusal(desk.register()) == "statement_rollback"
        peer.statement = house.world.statement(peer.name, peer.identity)
        await desk.register()


async def test_prekeys_must_be_signed_by_the_registered_key(house: House) -> None:
    peer, mallory = house.world.peer("sig"), house.world.peer("sig-m")
    async with Desk(house, peer) as desk:
        assert await refusal(desk.publish()) == "peer_not_found"
        await desk.register()
        assert (
            await refusal(desk.publish(signed_prekey=mallory.signed_prekey())) == "prekey_signature_invalid"
        )
        assert (
            await refusal(desk.publish(last_resort_kem_prekey=mallory.kem_prekey(1)))
            == "prekey_signature_invalid"
        )
        low = registry_pb2.SignedPrekey(key_id=1, public_key=bytes(32))
        low.signature = peer.identity.sign(b"kars-mesh-spk-v1\0" + low.public_key)
        assert await refusal(desk.publish(signed_prekey=low)) == "prekey_invalid"
        bare = registry_pb2.PublishPrekeysRequest(one_time_prekeys=peer.one_time_prekeys([1]))
        assert await refusal(desk.stub.PublishPrekeys(bare, timeout=5)) == "signed_prekey_missing"
        counts = await desk.publish(first=1, count=100)
        assert (counts.one_time_left, counts.one_time_kem_left) == (100, 100)
        assert await refusal(desk.publish(first=101, count=1)) == "too_many_prekeys"
        assert await refusal(desk.publish(first=50, count=1)) == "prekey_invalid"


async def test_mesh_08_a_take_gives_one_key_once_and_works_without_one(house: House) -> None:
    target = house.world.peer("take-t")
    async with Desk(house, target) as desk:
        await desk.register()
        await desk.publish(count=2)
        given = []
        for name in ("take-a", "take-b", "take-c"):
            async with Desk(house, house.world.peer(name)) as caller:
                given.append(await caller.take(target))
        assert [bundle.one_time_prekey.key_id for bundle in given] == [1, 2, 0]
        assert [bundle.kem_is_last_resort for bundle in given] == [False, False, True]
        assert given[2].kem_prekey.key_id == 7
        assert not given[2].HasField("one_time_prekey")
        assert given[2].registration.identity == target.statement
        counts = await desk.stub.GetPrekeyCounts(registry_pb2.GetPrekeyCountsRequest(), timeout=5)
        assert (counts.one_time_left, counts.signed_prekey_id) == (0, 1)


async def test_mesh_08_and_d6_a_thousand_takes_by_one_peer_drain_one_key(house: House) -> None:
    target = house.world.peer("drain-t")
    async with Desk(house, target) as desk, Desk(house, house.world.peer("drain-m")) as mallory:
        await desk.register()
        await desk.publish(count=10)
        answers, refused = [], set()
        for _ in range(1000):
            try:
                answers.append(await mallory.take(target))
            except grpc.aio.AioRpcError as failure:
                refused.add(reason(failure)[0])
        assert sum(bundle.HasField("one_time_prekey") for bundle in answers) == 1
        assert refused == {"prekey_rate_exceeded"}
        assert 30 <= len(answers) <= 40
        counts = await desk.stub.GetPrekeyCounts(registry_pb2.GetPrekeyCountsRequest(), timeout=5)
        assert (counts.one_time_left, counts.one_time_kem_left) == (9, 9)


async def test_a_peer_hears_that_its_prekeys_run_low(house: House) -> None:
    target = house.world.peer("low")
    async with Desk(house, target) as desk, house.stream(target) as stream:
        await desk.register()
        await desk.publish(count=3)
        async with Desk(house, house.world.peer("low-a")) as caller:
            await caller.take(target)
        await stream.submit(target, [b"to myself: refused"])
        await stream.decide()
        assert stream.notices[0].prekeys_low.one_time_left == 2


async def test_who_is_not_related_does_not_exist(house: House) -> None:
    hidden = house.world.peer("hidden", namespace="closed")
    alice = house.world.peer("curious")
    async with Desk(house, hidden) as inside, Desk(house, alice) as desk:
        await inside.register("secret-work", visible=True)
        await inside.publish()
        await desk.register()
        nobody = "spiffe://kars.local/ns/closed/sandbox/nobody"
        for call in (desk.lookup, desk.take):
            with pytest.raises(grpc.aio.AioRpcError) as exists:
                await call(hidden)
            with pytest.raises(grpc.aio.AioRpcError) as absent:
                await call(nobody)
            assert reason(exists.value) == reason(absent.value) == ("peer_not_found", "")
            assert (exists.value.details() or "").replace("hidden", "nobody") == absent.value.details()
        presence = registry_pb2.GetPresenceRequest(peer=str(hidden))
        assert await refusal(desk.stub.GetPresence(presence, timeout=5)) == "peer_not_found"
        discover = registry_pb2.DiscoverRequest(capability="secret-work")
        assert not (await desk.stub.Discover(discover, timeout=5)).peers
        assert await refusal(desk.rate(hidden, 0)) == "peer_not_found"


async def test_discovery_finds_by_capability_in_pages(house: House) -> None:
    names = [f"disc-{number}" for number in range(5)]
    for name in names:
        async with Desk(house, house.world.peer(name)) as desk:
            await desk.register("disc:test")
    async with Desk(house, house.world.peer("disc-x")) as desk:
        found: list[str] = []
        while True:
            request = registry_pb2.DiscoverRequest(
                capability="disc:test", page_size=2, after=found[-1] if found else ""
            )
            page = (await desk.stub.Discover(request, timeout=5)).peers
            if not page:
                break
            found += [peer.peer for peer in page]
        assert found == [f"spiffe://kars.local/ns/team/sandbox/{name}" for name in names]


async def test_presence_is_coarse_and_only_of_peers_that_want_it(house: House) -> None:
    shy, open_ = house.world.peer("shy"), house.world.peer("open")
    async with Desk(house, house.world.peer("asker")) as asker:
        for peer, visible in ((shy, False), (open_, True)):
            async with Desk(house, peer) as desk:
                await desk.register(visible=visible)

        async def presence(peer: TestPeer) -> int:
            request = registry_pb2.GetPresenceRequest(peer=str(peer))
            return (await asker.stub.GetPresence(request, timeout=5)).presence

        assert await presence(open_) == registry_pb2.PRESENCE_AWAY
        async with house.stream(shy), house.stream(open_):
            assert await presence(open_) == registry_pb2.PRESENCE_ATTACHED
            assert await presence(shy) == registry_pb2.PRESENCE_UNSPECIFIED
        async with house.stream(house.world.peer("open")):  # the first is detached for certain by now
            pass


async def test_mesh_13_and_b10_new_peers_are_below_every_threshold_and_a_crowd_moves_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("reputation")
    for house in make_house(directory):
        world = house.world
        house.relay.stop()
        target, trusted = world.peer("target"), world.peer("trusted")
        crowd = [world.peer(f"sybil-{number}") for number in range(10)]
        anyone = "spiffe://kars.local/ns/team/sandbox/*"
        rules = world.rules([*edges((anyone, anyone), score=0), *edges((trusted, target), score=800)])
        world.write_relay(directory, rules)
        house.relay.start()
        async with Desk(house, target) as desk, Desk(house, trusted) as friend:
            await desk.register()
            assert (await friend.lookup(target)).reputation.score == 0
            for sybil in crowd:
                async with Desk(house, sybil) as one:
                    assert await refusal(one.rate(target, 1000)) == "rating_not_allowed"
            assert await refusal(desk.rate(target, 1000)) == "rating_not_allowed"
            assert await refusal(friend.rate(target, 1001)) == "score_out_of_range"
            assert (await friend.rate(target, 900)).score == 400  # 800*900 / (800+1000)
            assert (await friend.rate(target, 0)).score == 0
            assert (await friend.rate(target, 900)).raters == 1


async def test_registrations_are_proven_by_a_log_that_only_grows(house: House) -> None:
    async with Desk(house, house.world.peer("log-a")) as desk:
        first = await desk.register()
        old = await desk.stub.GetTreeHead(registry_pb2.GetTreeHeadRequest(), timeout=5)
        name, key = parse_verifier_key(old.verifier_key)
        old_head = open_checkpoint(old.signed_note, key, name)
        for number in range(3):
            async with Desk(house, house.world.peer(f"log-{number}")) as other:
                await other.register()
        new = await desk.stub.GetTreeHead(registry_pb2.GetTreeHeadRequest(), timeout=5)
        head = open_checkpoint(new.signed_note, key, name)
        assert name == "kars.local/mesh-registrations"
        assert head.size == old_head.size + 3

        entry = first.log_entry
        record = json.loads(entry.record)
        assert record["type"] == "mesh.registered"
        assert record["statement_sha256"] == hashlib.sha256(desk.peer.statement.statement).hexdigest()
        assert record["peer_sha256"] == hashlib.sha256(str(desk.peer).encode()).hexdigest()
        assert record["identity_key"] == desk.peer.identity.public_key().public_bytes_raw().hex()
        proof = await desk.stub.GetInclusionProof(
            registry_pb2.GetInclusionProofRequest(index=entry.index, tree_size=head.size), timeout=5
        )
        assert proof.record == entry.record
        assert verify_inclusion(leaf_hash(entry.record), entry.index, head.size, proof.hashes, head.root)
        assert not verify_inclusion(leaf_hash(b"x"), entry.index, head.size, proof.hashes, head.root)
        grown = await desk.stub.GetConsistencyProof(
            registry_pb2.GetConsistencyProofRequest(old_size=old_head.size, new_size=head.size), timeout=5
        )
        assert verify_consistency(old_head.size, old_head.root, head.size, head.root, grown.hashes)
        assert not verify_consistency(old_head.size, b"\0" * 32, head.size, head.root, grown.hashes)


async def test_mesh_07_registrations_and_prekeys_survive_a_kill(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for house in make_house(tmp_path_factory.mktemp("kept")):
        peer = house.world.peer("kept")
        async with Desk(house, peer) as desk:
            before = await desk.register("kept")
            await desk.publish(count=3)
            async with Desk(house, house.world.peer("taker")) as taker:
                assert (await taker.take(peer)).one_time_prekey.key_id == 1
        house.relay.kill()
        house.relay.start()
        async with Desk(house, house.world.peer("taker2")) as taker:
            found = await taker.lookup(peer)
            assert found.registration == before
            assert (await taker.take(peer)).one_time_prekey.key_id == 2
