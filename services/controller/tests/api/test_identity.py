"""Identities over the real listeners: one proof, one identity, and no way around it."""

from datetime import timedelta
from typing import Any

import pytest
from kars.identity.v1 import identity_pb2, identity_pb2_grpc
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.errors import (
    InvalidInputError,
    KarsError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from kars_common.identity import create_csr
from kars_common.rpc import mapped_errors
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority
from kars_controller import authorization, testing

Harness = Any
OWN = SpiffeId.sandbox("kars.local", "default", "agent")


def token(harness: Harness, identity: SpiffeId = OWN) -> str:
    return str(harness.controller.identities.join_token(identity, timedelta(minutes=1)))


async def attest(harness: Harness, join_token: str, csr: str | None = None) -> identity_pb2.AttestResponse:
    stranger = harness.channel(harness.svid(SpiffeId.operator("kars.local", "x")), bootstrap=True)
    stub = stranger.stub(identity_pb2_grpc.WorkloadIdentityStub)
    request = identity_pb2.AttestRequest(csr_pem=csr or create_csr()[1].decode(), join_token=join_token)
    with mapped_errors():
        answer: identity_pb2.AttestResponse = await stub.Attest(request)
    return answer


async def test_a_token_buys_its_own_identity_once(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    join_token = token(harness)
    answer = await attest(harness, join_token)
    assert answer.svid.spiffe_id == str(OWN)
    with pytest.raises(UnauthenticatedError) as refusal:
        await attest(harness, join_token)
    assert refusal.value.reason == "attestation_failed"


async def test_a_bad_request_does_not_spend_the_token(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    join_token = token(harness)
    with pytest.raises(InvalidInputError):
        await attest(harness, join_token, "no csr")
    assert (await attest(harness, join_token)).svid.spiffe_id == str(OWN)


async def test_a_token_of_a_deleted_sandbox_is_worthless(harness: Harness) -> None:
    with pytest.raises(PermissionDeniedError) as refusal:
        await attest(harness, token(harness))
    assert refusal.value.reason == "workload_gone"


@pytest.mark.parametrize("guess", ["", "A" * 43, "\x00" * 32])
async def test_guessed_tokens_fail_and_are_on_record(harness: Harness, guess: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await attest(harness, guess)
    refused = [item for item in harness.controller.audit.records(0) if item["type"] == "identity.refused"]
    assert refused
    assert guess == "" or guess not in str(refused)


async def test_renewal_is_for_oneself_and_ends_with_the_sandbox(harness: Harness) -> None:
    await harness.apply(testing.sandbox())
    stub = harness.router().stub(identity_pb2_grpc.WorkloadIdentityStub)
    request = identity_pb2.RenewRequest(csr_pem=create_csr()[1].decode())
    assert (await stub.Renew(request)).svid.spiffe_id == str(OWN)
    gone = harness.router("ghost").stub(identity_pb2_grpc.WorkloadIdentityStub)
    with pytest.raises(PermissionDeniedError) as refusal, mapped_errors():
        await gone.Renew(request)
    assert refusal.value.reason == "workload_gone"


async def test_an_operator_cannot_make_its_identity_immortal(harness: Harness) -> None:
    stub = harness.operator().stub(identity_pb2_grpc.WorkloadIdentityStub)
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.Renew(identity_pb2.RenewRequest(csr_pem=create_csr()[1].decode()))


async def test_nothing_but_attestation_is_open_without_a_certificate(harness: Harness) -> None:
    stranger = harness.channel(harness.svid(SpiffeId.operator("kars.local", "ann")), bootstrap=True)
    with pytest.raises(KarsError), mapped_errors():
        await stranger.stub(resource_pb2_grpc.ResourcesStub).ListKinds(resource_pb2.ListKindsRequest())
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stranger.stub(identity_pb2_grpc.WorkloadIdentityStub).GetTrustBundle(
            identity_pb2.GetTrustBundleRequest()
        )


@pytest.mark.parametrize("trust_domain", ["kars.local", "evil.local"])
async def test_certificates_of_another_authority_open_nothing(harness: Harness, trust_domain: str) -> None:
    forged = MemoryAuthority(trust_domain).operator("ann")
    mixed = type(forged)(
        **{**vars(forged), "trust_bundle_pem": harness.controller.authority.trust_bundle_pem.encode()}
    )
    stub = harness.channel(mixed).stub(resource_pb2_grpc.ResourcesStub)
    with pytest.raises(KarsError), mapped_errors():
        await stub.ListKinds(resource_pb2.ListKindsRequest(), timeout=3)


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    from kars.audit.v1 import audit_pb2
    from kars.governance.v1 import governance_pb2
    from kars.mesh.v1 import identity_pb2 as mesh_identity_pb2
    from kars.policy.v1 import policy_pb2
    from kars.sandbox.v1 import sandbox_pb2

    served = {
        f"{service.full_name}/{method.name}"
        for module, names in (
            (identity_pb2, ("WorkloadIdentity",)),
            (resource_pb2, ("Resources",)),
            (mesh_identity_pb2, ("MeshIdentity",)),
            (policy_pb2, ("PolicyDiscovery",)),
            (governance_pb2, ("Approvals",)),
            (sandbox_pb2, ("Sandboxes",)),
            (audit_pb2, ("AuditLog", "AuditWitness")),
        )
        for name, service in module.DESCRIPTOR.services_by_name.items()
        if name in names
        for method in service.methods
    }
    assert served == authorization.MAIN.methods | authorization.BOOTSTRAP.methods
    assert authorization.MAIN.methods.isdisjoint(authorization.BOOTSTRAP.methods)
