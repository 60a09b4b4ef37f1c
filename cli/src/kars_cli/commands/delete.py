"""`kars delete`: by kind and name, or everything in manifests; asks first, unless told not to."""

import json
from pathlib import Path
from typing import Annotated

import typer
from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.errors import InvalidInputError, NotFoundError
from kars_common.rpc import mapped_errors
from rich.markup import escape

from kars_cli import kinds, manifests, options, output, reporting, stubs
from kars_cli.exits import Exit
from kars_cli.session import Session, command


def delete(
    kind: Annotated[str | None, typer.Argument(help="Kind, plural or short name.")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Names.")] = None,
    filename: Annotated[
        list[Path] | None,
        typer.Option("--filename", "-f", help="Everything in these manifests.", exists=True),
    ] = None,
    namespace: options.Namespace = "default",
    yes: options.Yes = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is gone.")] = True,
    timeout: options.Timeout = 60,
) -> None:
    """Delete resources; a sandbox goes with its workspace."""
    targets: list[tuple[str, str, str]] = []
    if filename:
        if kind or names:
            raise typer.BadParameter("give either --filename or KIND NAME")
        for manifest in reversed(manifests.read(filename)):
            metadata = manifest.document.get("metadata") or {}
            where = metadata.get("namespace") or namespace
            targets.append((str(manifest.document.get("kind")), where, str(metadata.get("name"))))
    elif kind and names:
        targets = [(kind, namespace, name) for name in names]
    else:
        raise typer.BadParameter("give KIND NAME, or --filename")
    if not yes:
        _confirm(targets)
    _delete(targets, timeout if wait else None)


def _confirm(targets: list[tuple[str, str, str]]) -> None:
    listed = ", ".join(f"{kind.lower()} {namespace}/{name}" for kind, namespace, name in targets)
    if not reporting.interactive():
        raise InvalidInputError("confirmation_needed", f"would delete {listed}; say --yes to do it")
    if not typer.confirm(f"Delete {listed}?"):
        raise typer.Exit(Exit.REFUSED)


@command
async def _delete(targets: list[tuple[str, str, str]], wait_s: float | None) -> None:
    out = output.console()
    async with Session.open() as session:
        stub = stubs.resources(session)
        served = (await stub.ListKinds(resource_pb2.ListKindsRequest())).kinds
        for kind_name, namespace, name in targets:
            kind = kinds.find(served, kind_name)
            key = resource_pb2.ResourceKey(kind=kind.kind, namespace=namespace, name=name)
            answer = await stub.DeleteResource(resource_pb2.DeleteResourceRequest(key=key))
            if wait_s is not None:
                await _until_gone(stub, key, json.loads(answer.document_json), wait_s)
            out.print(f"{escape(kind.kind.lower())}/{escape(name)} [red]deleted[/]")


async def _until_gone(
    stub: "resource_pb2_grpc.ResourcesAsyncStub",
    key: resource_pb2.ResourceKey,
    marked: dict[str, dict[str, str]],
    wait_s: float,
) -> None:
    """Wait for the DELETED event; the finalizers stop the pod first."""
    try:
        with mapped_errors():
            await stub.GetResource(resource_pb2.GetResourceRequest(key=key))
    except NotFoundError:
        return
    request = resource_pb2.WatchResourcesRequest(
        kind=key.kind, namespace=key.namespace, resource_version=int(marked["metadata"]["resourceVersion"])
    )
    async for change in stub.WatchResources(request, timeout=wait_s):
        gone = change.type == resource_pb2.CHANGE_TYPE_DELETED
        if gone and json.loads(change.document_json)["metadata"]["name"] == key.name:
            return
