"""The controller's part of the mesh over real mTLS: statements about keys, and edges in signed bundles."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from kars.mesh.v1 import identity_pb2, identity_pb2_grpc
from kars.policy.v1 import policy_pb2, policy_pb2_grpc
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.errors import (
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from kars_common.policy import parse_payload
from kars_common.rpc import PeerChannel, mapped_errors
from kars_common.spiffe import SpiffeId
from kars_controller import testing

Harness = Any
OWN = "spiffe://kars.local/ns/default/sandbox/agent"
RELAY = policy_pb2.SandboxRef(namespace="svc", name="relay")


def proof(key: Ed25519PrivateKey, name: str = OWN) -> bytes:
    return key.sign(b"kars-mesh-possession-v1\0" + name.encode())


async def issue(
    channel: PeerChannel, key: Ed25519PrivateKey, *, raw: bytes | None = None, name: str = OWN
) -> identity_pb2.SignedStatement:
    request = identity_pb2.IssueStatementRequest(
        identity_key=key.public_key().public_bytes_raw() if raw is None else raw,
        possession_proof=proof(key, name),
    )
    with mapped_errors():
        stub = channel.stub(identity_pb2_grpc.MeshIdentityStub)
        answer: identity_pb2.IssueStatementResponse = await stub.IssueStatement(request)
    return answer.statement


async def test_a_statement_binds_the_callers_name_to_its_key_and_verifies(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    key, channel = Ed25519PrivateKey.generate(), harness.router()
    signed = await issue(channel, key)
    statement = json.loads(signed.statement)
    assert statement["peer"] == OWN
    assert statement["identityKey"] == testing.b64u(key.public_key().public_bytes_raw())
    assert list(statement) == ["identityKey", "notAfter", "notBefore", "peer", "serial"]
    keys = await channel.stub(identity_pb2_grpc.MeshIdentityStub).GetStatementKeys(
        identity_pb2.GetStatementKeysRequest()
    )
    (trusted,) = [item for item in keys.keys if item.key_id == signed.key_id]
    assert trusted.trust_domain == "kars.local"
    Ed25519PublicKey.from_public_bytes(trusted.public_key).verify(
        signed.signature, b"kars-mesh-identity-v1\0" + signed.statement
    )
    file = json.loads((harness.controller.settings.mesh_dir / "trust-keys.json").read_bytes())
    assert [item["keyId"] for item in file["keys"]] == [trusted.key_id]


async def test_serials_only_rise_and_a_new_key_is_on_record(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    channel, one, two = harness.router(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    serials = [json.loads((await issue(channel, key)).statement)["serial"] for key in (one, one, two)]
    assert serials[0] < serials[1] < serials[2]
    issued = [r for r in harness.controller.audit.records(0) if r["type"] == "mesh.statement_issued"]
    assert [r["key_changed"] for r in issued] == [False, False, True]


async def test_a_proof_of_another_name_or_key_is_refused_and_on_record(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    channel, key = harness.router(), Ed25519PrivateKey.generate()
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for arguments in ({"name": OWN + "x"}, {"raw": other}):
        with pytest.raises(UnauthenticatedError) as refusal:
            await issue(channel, key, **arguments)
        assert refusal.value.reason == "possession_proof_invalid"
    refused = [r for r in harness.controller.audit.records(0) if r["type"] == "mesh.statement_refused"]
    assert {r["peer"] for r in refused} == {OWN}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1" * 31,
        b"\0" * 32,
        b"\1" + b"\0" * 31,
        b"\xec" + b"\xff" * 30 + b"\x7f",
        b"\xed" + b"\xff" * 30 + b"\x7f",
        b"\xee" + b"\xff" * 30 + b"\xff",
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ],
)
async def test_a_key_that_proves_nothing_is_refused(harness: Harness, raw: bytes) -> None:
    await harness.apply(testing.sandbox())
    with pytest.raises(InvalidInputError) as refusal:
        await issue(harness.router(), Ed25519PrivateKey.generate(), raw=raw)
    assert refusal.value.reason == "identity_key_invalid"


async def test_a_sandbox_that_is_gone_and_callers_that_are_no_sandbox_get_none(harness: Harness) -> None:
    key = Ed25519PrivateKey.generate()
    with pytest.raises(PermissionDeniedError) as refusal:
        await issue(harness.router(), key)
    assert refusal.value.reason == "workload_gone"
    with pytest.raises(PermissionDeniedError):
        await issue(harness.operator(), key)


async def test_statements_are_limited_a_caller(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    channel, key = harness.router(), Ed25519PrivateKey.generate()
    for _ in range(10):
        await issue(channel, key)
    with pytest.raises(ResourceExhaustedError) as refusal:
        await issue(channel, key)
    assert refusal.value.reason == "identity_rate_exceeded"


@contextlib.asynccontextmanager
async def watching(
    channel: PeerChannel, subject: policy_pb2.SandboxRef
) -> AsyncIterator["asyncio.Queue[policy_pb2.PolicyBundle]"]:
    """Follow the bundles of a subject, acknowledging each."""
    stub, bundles = (
        channel.stub(policy_pb2_grpc.PolicyDiscoveryStub),
        asyncio.Queue[policy_pb2.PolicyBundle](),
    )
    answers: asyncio.Queue[policy_pb2.WatchRequest] = asyncio.Queue()
    answers.put_nowait(policy_pb2.WatchRequest(subscribe=policy_pb2.Subscribe(sandbox=subject)))

    async def requests() -> AsyncIterator[policy_pb2.WatchRequest]:
        while True:
            yield await answers.get()

    async def follow() -> None:
        async for response in stub.Watch(requests()):
            bundle = parse_payload(response.bundle.payload)
            ack = policy_pb2.Ack(version=bundle.version, digest=response.bundle.digest)
            answers.put_nowait(policy_pb2.WatchRequest(ack=ack))
            bundles.put_nowait(bundle)

    task = asyncio.create_task(follow())
    try:
        yield bundles
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def first(bundles: "asyncio.Queue[policy_pb2.PolicyBundle]", edges: int) -> policy_pb2.PolicyBundle:
    """Wait for a bundle with so many edges."""
    async with asyncio.timeout(5):
        while True:
            bundle = await bundles.get()
            found = bundle.mesh.edges or bundle.mesh_access.edges
            if len(found) == edges and (bundle.HasField("mesh") or bundle.HasField("mesh_access")):
                return bundle


async def test_an_edge_reaches_relay_and_sandbox_and_leaves_them_when_it_is_taken_back(
    harness: Harness,
) -> None:
    agent, reader = testing.Vertex("agent"), testing.Vertex("reader")
    await harness.apply(
        testing.inference_policy(), testing.tool_policy(), testing.sandbox(), testing.sandbox("reader")
    )
    relay = harness.channel(harness.svid(SpiffeId.service("kars.local", "relay")))
    own = policy_pb2.SandboxRef(namespace="default", name="agent")
    async with watching(relay, RELAY) as at_relay, watching(harness.router(), own) as at_router:
        await first(at_relay, 0)
        await harness.apply(
            testing.trust_graph((agent, reader), [agent.trusts("reader"), reader.trusts("agent")])
        )
        bundle = await first(at_relay, 2)
        assert [key.key_id for key in bundle.mesh.statement_keys] == [
            key.key_id for key in harness.controller.statement_keys.messages()
        ]
        access = (await first(at_router, 2)).mesh_access
        assert (access.peer, access.trust_threshold) == (OWN, 500)
        assert access.relay_endpoint == "relay.example:7443"
        assert {edge.sender for edge in access.edges} == {OWN, OWN.replace("agent", "reader")}

        async def phase() -> bool:
            stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
            key = resource_pb2.ResourceKey(kind="TrustGraph", name="team")
            document = json.loads(
                (await stub.GetResource(resource_pb2.GetResourceRequest(key=key))).document_json
            )
            return bool(document.get("status", {}).get("phase") == "Ready")

        await harness.until(phase)
        await harness.apply(testing.trust_graph((agent, reader), [agent.trusts("reader")]))
        await first(at_relay, 1)
        await first(at_router, 1)


async def test_a_graph_is_found_whatever_namespace_one_looks_in(harness: Harness) -> None:
    agent, reader = testing.Vertex("agent"), testing.Vertex("reader")
    await harness.apply(testing.trust_graph((agent, reader), [agent.trusts("reader")]))
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    for namespace in ("", "default", "team"):
        request = resource_pb2.ListResourcesRequest(kind="tg", namespace=namespace)
        assert len((await stub.ListResources(request)).documents_json) == 1


async def test_a_bad_edge_is_left_out_and_said(harness: Harness) -> None:
    agent, reader = testing.Vertex("agent"), testing.Vertex("reader")
    forged = {**agent.trusts("reader"), "score": 1000}
    await harness.apply(testing.trust_graph((agent, reader), [forged]))
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)

    async def status() -> Any:
        key = resource_pb2.ResourceKey(kind="TrustGraph", name="team")
        document = json.loads(
            (await stub.GetResource(resource_pb2.GetResourceRequest(key=key))).document_json
        )
        return document.get("status")

    found = await harness.until(status)
    assert (found["phase"], found["validEdges"], found["invalidEdges"]) == ("Degraded", 0, 1)
    assert "1 signature_mismatch" in found["conditions"][0]["message"]


async def test_nobody_but_the_relay_gets_the_relays_policy(harness: Harness) -> None:
    refused = 0
    for channel in (
        harness.router(),
        harness.channel(harness.svid(SpiffeId.service("kars.local", "egress"))),
    ):
        stub = channel.stub(policy_pb2_grpc.PolicyDiscoveryStub)
        request = policy_pb2.WatchRequest(subscribe=policy_pb2.Subscribe(sandbox=RELAY))

        async def requests(
            message: policy_pb2.WatchRequest = request,
        ) -> AsyncIterator[policy_pb2.WatchRequest]:
            yield message

        got = []
        # Which error the client sees, depends on whether its own write or the refusal comes first.
        try:
            with mapped_errors():
                async for response in stub.Watch(requests()):
                    got.append(response)  # noqa: PERF401 - what came before the error counts
        except KarsError:
            refused += 1
        assert got == []
    assert refused == 2
