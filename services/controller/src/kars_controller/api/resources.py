"""The Resources service: what `kars apply`, `get`, `watch` and `delete` call."""

from collections.abc import AsyncIterator
from typing import Any

from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.errors import InvalidInputError
from kars_common.rpc import caller

from kars_controller import api_types
from kars_controller.administration import Administration
from kars_controller.api import documents
from kars_controller.resources import ChangeType, EventLog, Outcome, ResourceKey, ResourceStore

_OUTCOMES = {
    Outcome.CREATED: resource_pb2.APPLY_OUTCOME_CREATED,
    Outcome.CONFIGURED: resource_pb2.APPLY_OUTCOME_CONFIGURED,
    Outcome.UNCHANGED: resource_pb2.APPLY_OUTCOME_UNCHANGED,
}
_CHANGES = {
    ChangeType.ADDED: resource_pb2.CHANGE_TYPE_ADDED,
    ChangeType.MODIFIED: resource_pb2.CHANGE_TYPE_MODIFIED,
    ChangeType.DELETED: resource_pb2.CHANGE_TYPE_DELETED,
}

Context = Any
"""grpc.aio.ServicerContext; it is generic over types that no one here looks at."""


class ResourcesServicer(resource_pb2_grpc.ResourcesServicer):
    """Serves the store; writes go through `Administration`, which audits them."""

    def __init__(self, store: ResourceStore, events: EventLog, administration: Administration) -> None:
        self._store = store
        self._events = events
        self._administration = administration

    async def ApplyResource(  # noqa: N802 - named by the contract
        self, request: resource_pb2.ApplyResourceRequest, context: Context
    ) -> resource_pb2.ApplyResourceResponse:
        """Create or update one resource."""
        raw = documents.load(request.document_json)
        applied = await self._administration.apply(raw, caller(context), dry_run=request.dry_run)
        return resource_pb2.ApplyResourceResponse(
            outcome=_OUTCOMES[applied.outcome],
            document_json=documents.dump(applied.document),
            warnings=applied.warnings,
        )

    async def GetResource(  # noqa: N802 - named by the contract
        self, request: resource_pb2.GetResourceRequest, _context: Context
    ) -> resource_pb2.GetResourceResponse:
        """Return one resource."""
        document = self._store.get(key_of(request.key))
        return resource_pb2.GetResourceResponse(document_json=documents.dump(document))

    async def ListResources(  # noqa: N802 - named by the contract
        self, request: resource_pb2.ListResourcesRequest, _context: Context
    ) -> resource_pb2.ListResourcesResponse:
        """Return the resources of one kind."""
        kind = api_types.find_kind(request.kind)
        listed = self._store.list_kind(kind.name, _namespace(kind, request.namespace))
        return resource_pb2.ListResourcesResponse(
            documents_json=[documents.dump(document) for document in listed],
            resource_version=self._store.resource_version,
        )

    async def WatchResources(  # noqa: N802 - named by the contract
        self, request: resource_pb2.WatchResourcesRequest, _context: Context
    ) -> AsyncIterator[resource_pb2.WatchResourcesResponse]:
        """Stream changes."""
        kind = api_types.find_kind(request.kind)
        if request.resource_version < 0:
            raise InvalidInputError("resource_version_invalid", "resource_version must be at least 0")
        async for change in self._store.watch(
            kind.name, _namespace(kind, request.namespace), request.resource_version
        ):
            yield resource_pb2.WatchResourcesResponse(
                type=_CHANGES[change.type],
                document_json=documents.dump(change.document),
                resource_version=change.resource_version,
            )

    async def DeleteResource(  # noqa: N802 - named by the contract
        self, request: resource_pb2.DeleteResourceRequest, context: Context
    ) -> resource_pb2.DeleteResourceResponse:
        """Ask for deletion of one resource."""
        document = await self._administration.delete(key_of(request.key), caller(context))
        return resource_pb2.DeleteResourceResponse(document_json=documents.dump(document))

    async def ListEvents(  # noqa: N802 - named by the contract
        self, request: resource_pb2.ListEventsRequest, _context: Context
    ) -> resource_pb2.ListEventsResponse:
        """Return the events about one resource."""
        events = self._events.list_of(key_of(request.key))
        return resource_pb2.ListEventsResponse(documents_json=[documents.dump(event) for event in events])

    async def ListKinds(  # noqa: N802 - named by the contract
        self, _request: resource_pb2.ListKindsRequest, _context: Context
    ) -> resource_pb2.ListKindsResponse:
        """Return the kinds that are served."""
        return resource_pb2.ListKindsResponse(kinds=[_kind_info(kind) for kind in api_types.KINDS])


def key_of(key: resource_pb2.ResourceKey) -> ResourceKey:
    """Return the key that a request names, its kind in canonical spelling.

    Raises:
        InvalidInputError: `kind_unknown`, `resource_key_invalid`.
    """
    kind = api_types.find_kind(key.kind)
    if not key.name or (kind.namespaced and not key.namespace):
        raise InvalidInputError("resource_key_invalid", f"{kind.name} is named by namespace and name")
    return ResourceKey(kind.name, key.namespace if kind.namespaced else "", key.name)


def _namespace(kind: api_types.Kind, asked: str) -> str:
    """Return which namespace to look in; cluster-wide kinds are in every one that somebody looks at."""
    return asked if kind.namespaced else ""


def _kind_info(kind: api_types.Kind) -> resource_pb2.KindInfo:
    return resource_pb2.KindInfo(
        kind=kind.name,
        plural=kind.plural,
        short_names=kind.short_names,
        namespaced=kind.namespaced,
        columns=[
            resource_pb2.PrinterColumn(
                name=column.name, json_path=column.json_path, priority=column.priority, type=column.type
            )
            for column in kind.columns
        ],
    )
