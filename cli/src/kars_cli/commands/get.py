"""`kars get`: resources as a table with their kind's columns, or as data."""

import json
from typing import Annotated, Any

import typer
from kars.resource.v1 import resource_pb2

from kars_cli import kinds, options, output, stubs
from kars_cli.output import Format
from kars_cli.session import Session, command


def get(
    kind: Annotated[str, typer.Argument(help="Kind, plural or short name: karssandbox, cs, ip, tp.")],
    name: Annotated[str | None, typer.Argument(help="Name; all when left out.")] = None,
    namespace: options.Namespace = "default",
    all_namespaces: options.AllNamespaces = False,
    form: options.Output = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on printing changes.")] = False,
) -> None:
    """Show resources."""
    _get(kind, name, "" if all_namespaces and name is None else namespace, form, watch=watch)


@command
async def _get(kind_name: str, name: str | None, namespace: str, form: Format, *, watch: bool) -> None:
    async with Session.open() as session:
        stub = stubs.resources(session)
        served = (await stub.ListKinds(resource_pb2.ListKindsRequest())).kinds
        kind = kinds.find(served, kind_name)
        if name is not None:
            key = resource_pb2.ResourceKey(kind=kind.kind, namespace=namespace, name=name)
            answer = await stub.GetResource(resource_pb2.GetResourceRequest(key=key))
            documents, version = [json.loads(answer.document_json)], 0
            version = int(documents[0]["metadata"]["resourceVersion"])
        else:
            request = resource_pb2.ListResourcesRequest(kind=kind.kind, namespace=namespace)
            listed = await stub.ListResources(request)
            documents = [json.loads(text) for text in listed.documents_json]
            version = listed.resource_version
        _print(kind, documents, form, namespaces=namespace == "", single=name is not None)
        if not watch:
            return
        follow = resource_pb2.WatchResourcesRequest(
            kind=kind.kind, namespace=namespace, resource_version=version
        )
        async for change in stub.WatchResources(follow):
            document = json.loads(change.document_json)
            if name is None or document["metadata"]["name"] == name:
                _print(kind, [document], form, namespaces=namespace == "", single=True)


def _print(
    kind: resource_pb2.KindInfo,
    documents: list[dict[str, Any]],
    form: Format,
    *,
    namespaces: bool,
    single: bool,
) -> None:
    if form is Format.NAME:
        for document in documents:
            print(f"{kind.kind.lower()}/{document['metadata']['name']}")
    elif form in (Format.JSON, Format.YAML):
        listed = {"apiVersion": "v1", "kind": "List", "items": documents}
        output.data(documents[0] if single else listed, form)
    elif not documents:
        output.console().print(f"no {kind.plural} here")
    else:
        wide = form is Format.WIDE
        rows = [kinds.row(kind, document, wide=wide, namespaces=namespaces) for document in documents]
        output.table(kinds.headings(kind, wide=wide, namespaces=namespaces), rows)
