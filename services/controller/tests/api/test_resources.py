"""The Resources service as the kars command meets it."""

import asyncio
import json
from typing import Any

import pytest
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.audit import AuditLog
from kars_common.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
)
from kars_common.rpc import mapped_errors
from kars_controller import testing

Harness = Any


def key(kind: str, name: str, namespace: str = "default") -> resource_pb2.ResourceKey:
    return resource_pb2.ResourceKey(kind=kind, namespace=namespace, name=name)


def records(log: AuditLog, kind: str) -> list[Any]:
    return [record for record in log.records(0) if record["type"] == kind]


async def test_apply_get_list_and_delete(harness: Harness) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    (created,) = await harness.apply(testing.inference_policy())
    assert created.outcome == resource_pb2.APPLY_OUTCOME_CREATED
    (again,) = await harness.apply(testing.inference_policy())
    assert again.outcome == resource_pb2.APPLY_OUTCOME_UNCHANGED
    for kind in ("InferencePolicy", "ip", "inferencepolicies", "INFERENCEPOLICY"):
        found = await stub.GetResource(resource_pb2.GetResourceRequest(key=key(kind, "models")))
        assert json.loads(found.document_json)["metadata"]["name"] == "models"
    listed = await stub.ListResources(resource_pb2.ListResourcesRequest(kind="ip"))
    assert len(listed.documents_json) == 1
    await stub.DeleteResource(resource_pb2.DeleteResourceRequest(key=key("ip", "models")))
    with pytest.raises(NotFoundError), mapped_errors():
        await stub.GetResource(resource_pb2.GetResourceRequest(key=key("ip", "models")))


async def test_every_change_by_a_person_is_on_record(harness: Harness) -> None:
    await harness.apply(testing.inference_policy())
    (record,) = records(harness.controller.audit, "resource.created")
    assert record["operator"] == "spiffe://kars.local/operator/ann"
    assert (record["kind"], record["name"]) == ("InferencePolicy", "models")


async def test_a_refusal_carries_all_violations_over_the_wire(harness: Harness) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        await harness.apply(testing.sandbox(sandbox={"isolation": "x"}, inferenceRef={}))
    assert refusal.value.reason == "schema_invalid"
    assert {item.field for item in refusal.value.violations} == {
        "spec.sandbox.isolation",
        "spec.inferenceRef.name",
    }


async def test_a_missing_reference_is_a_warning_that_says_what_exists(harness: Harness) -> None:
    await harness.apply(testing.inference_policy("model"), testing.tool_policy())
    (answer,) = await harness.apply(testing.sandbox())
    (warning,) = answer.warnings
    assert warning == (
        "spec.inferenceRef.name: no InferencePolicy named models in namespace default (did you mean model?); "
        "there are: model; it is used as soon as it is applied"
    )


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 2000, '{"a":' * 200 + "1" + "}" * 200, "null"],
)
async def test_text_that_is_no_document_is_refused(harness: Harness, text: str) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    with pytest.raises(InvalidInputError) as refusal, mapped_errors():
        await stub.ApplyResource(resource_pb2.ApplyResourceRequest(document_json=text))
    assert refusal.value.reason == "document_malformed"


async def test_dry_run_validates_and_stores_nothing(harness: Harness) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    request = resource_pb2.ApplyResourceRequest(
        document_json=json.dumps(testing.inference_policy()), dry_run=True
    )
    answer = await stub.ApplyResource(request)
    assert answer.outcome == resource_pb2.APPLY_OUTCOME_CREATED
    listed = await stub.ListResources(resource_pb2.ListResourcesRequest(kind="ip"))
    assert not listed.documents_json
    assert not records(harness.controller.audit, "resource.created")


async def test_a_stale_resource_version_is_a_conflict(harness: Harness) -> None:
    (created,) = await harness.apply(testing.inference_policy())
    document = json.loads(created.document_json)
    await harness.apply(testing.inference_policy(displayName="newer"))
    document["spec"]["displayName"] = "older"
    with pytest.raises(ConflictError):
        await harness.apply(document)


async def test_watch_streams_and_refuses_an_unknown_version(harness: Harness) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    call = stub.WatchResources(resource_pb2.WatchResourcesRequest(kind="ip"))
    await harness.apply(testing.inference_policy())
    async with asyncio.timeout(5):
        change = await call.read()
    assert change.type == resource_pb2.CHANGE_TYPE_ADDED
    call.cancel()
    with pytest.raises(OutOfRangeError), mapped_errors():
        await stub.WatchResources(
            resource_pb2.WatchResourcesRequest(kind="ip", resource_version=10_000)
        ).read()


async def test_kinds_are_listed_with_their_columns(harness: Harness) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    kinds = {kind.kind: kind for kind in (await stub.ListKinds(resource_pb2.ListKindsRequest())).kinds}
    assert kinds.keys() >= {"KarsSandbox", "InferencePolicy", "ToolPolicy"}
    assert list(kinds["KarsSandbox"].short_names) == ["cs"]
    assert "Phase" in [column.name for column in kinds["KarsSandbox"].columns]


async def test_an_unknown_kind_is_refused_with_the_closest(harness: Harness) -> None:
    stub = harness.operator().stub(resource_pb2_grpc.ResourcesStub)
    with pytest.raises(InvalidInputError, match="did you mean karssandbox"), mapped_errors():
        await stub.ListResources(resource_pb2.ListResourcesRequest(kind="karssandbx"))


async def test_a_router_may_not_touch_resources(harness: Harness) -> None:
    stub = harness.router().stub(resource_pb2_grpc.ResourcesStub)
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.ListResources(resource_pb2.ListResourcesRequest(kind="ip"))
    with pytest.raises(PermissionDeniedError), mapped_errors():
        await stub.ApplyResource(resource_pb2.ApplyResourceRequest(document_json="{}"))
