"""`kars describe`: one resource with its conditions, what runs for it, and its events."""

# ruff: noqa: ANN401  # values of JSON and YAML documents

import json
from typing import Annotated, Any

import typer
import yaml
from kars.policy.v1 import policy_pb2
from kars.resource.v1 import resource_pb2
from kars.sandbox.v1 import sandbox_pb2
from kars_common.errors import KarsError
from kars_common.rpc import mapped_errors
from rich.markup import escape

from kars_cli import isolation, kinds, options, output, stubs
from kars_cli.session import Session, command


def describe(
    kind: Annotated[str, typer.Argument(help="Kind, plural or short name.")],
    name: Annotated[str, typer.Argument(help="Name.")],
    namespace: options.Namespace = "default",
) -> None:
    """Show everything about one resource: spec, conditions, containers, isolation, events."""
    _describe(kind, name, namespace)


@command
async def _describe(kind_name: str, name: str, namespace: str) -> None:
    async with Session.open() as session:
        stub = stubs.resources(session)
        served = (await stub.ListKinds(resource_pb2.ListKindsRequest())).kinds
        kind = kinds.find(served, kind_name)
        key = resource_pb2.ResourceKey(kind=kind.kind, namespace=namespace, name=name)
        answer = await stub.GetResource(resource_pb2.GetResourceRequest(key=key))
        document = json.loads(answer.document_json)
        events = await stub.ListEvents(resource_pb2.ListEventsRequest(key=key))
        _resource(document)
        if kind.kind == "KarsSandbox":
            await _pod(session, policy_pb2.SandboxRef(namespace=namespace, name=name))
        _events([json.loads(text) for text in events.documents_json])


def _resource(document: dict[str, Any]) -> None:
    out, metadata = output.console(), document["metadata"]
    status = dict(document.get("status") or {})
    conditions = status.pop("conditions", None) or []
    out.print(
        f"[bold]{escape(document['kind'])}[/] {escape(metadata.get('namespace', ''))}/{metadata['name']}"
    )
    shown = ("uid", "generation", "resourceVersion", "creationTimestamp", "labels", "deletionTimestamp")
    _yaml({name: metadata[name] for name in shown if name in metadata})
    out.print("\n[bold]Spec[/]")
    _yaml(document.get("spec") or {})
    out.print("\n[bold]Status[/]")
    _yaml(status)
    if conditions:
        out.print("\n[bold]Conditions[/]")
        rows = [
            (
                item.get("type", ""),
                item.get("status", ""),
                output.age(item.get("lastTransitionTime")),
                item.get("reason", ""),
                item.get("message", ""),
            )
            for item in conditions
        ]
        output.table(("Type", "Status", "Since", "Reason", "Message"), rows)


async def _pod(session: Session, sandbox: policy_pb2.SandboxRef) -> None:
    stub = stubs.sandboxes(session)
    out = output.console()
    try:
        with mapped_errors():
            found = await stub.GetSandbox(sandbox_pb2.GetSandboxRequest(sandbox=sandbox))
    except KarsError as exc:
        out.print(f"\n[bold]Containers[/]\nnone ({escape(exc.message)})")
        return
    out.print("\n[bold]Containers[/]")
    rows = [
        (
            item.name,
            sandbox_pb2.ContainerState.Name(item.state).removeprefix("CONTAINER_STATE_").capitalize(),
            "true" if item.ready else "false",
            str(item.restart_count),
            item.reason,
            item.message,
        )
        for item in found.containers
    ]
    output.table(("Name", "State", "Ready", "Restarts", "Reason", "Message"), rows)
    if found.router_endpoint:
        out.print(f"router endpoint: {escape(found.router_endpoint)}")
    if found.controls:
        out.print("\n[bold]Isolation[/]")
        isolation.table(found.controls)


def _events(events: list[dict[str, Any]]) -> None:
    out = output.console()
    out.print("\n[bold]Events[/]")
    if not events:
        out.print("none")
        return
    rows = [
        (
            output.age(event.get("lastTimestamp")),
            str(event.get("type", "")),
            str(event.get("reason", "")),
            str(event.get("count", 1)),
            str(event.get("message", "")),
        )
        for event in events
    ]
    output.table(("Age", "Type", "Reason", "Count", "Message"), rows)


def _yaml(value: Any) -> None:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True) if value else "none\n"
    print("".join(f"  {output.clean(line)}\n" for line in text.splitlines()), end="")
