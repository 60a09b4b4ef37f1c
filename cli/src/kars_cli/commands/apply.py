"""`kars apply`: send manifests, say what became of each, wait until they are in force."""

import json
from typing import Annotated, Any

import grpc
import typer
from kars.resource.v1 import resource_pb2
from kars_common.errors import KarsError
from kars_common.rpc import from_rpc_error
from rich.console import Console
from rich.markup import escape

from kars_cli import manifests, options, output, reporting, stubs, waiting
from kars_cli.exits import HELP, Exit
from kars_cli.manifests import Manifest
from kars_cli.session import Session, command

_OUTCOMES = {
    resource_pb2.APPLY_OUTCOME_CREATED: "[green]created[/]",
    resource_pb2.APPLY_OUTCOME_CONFIGURED: "[yellow]configured[/]",
    resource_pb2.APPLY_OUTCOME_UNCHANGED: "unchanged",
}


def apply(
    filename: options.Files,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace of documents that name none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate, store nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until everything is ready.")] = False,
    timeout: options.Timeout = 120,
) -> None:
    """Create or update resources from manifests (several documents a file, whole folders)."""
    _apply(manifests.read(filename), namespace, dry_run=dry_run, wait_s=timeout if wait else None)


apply.__doc__ = f"{apply.__doc__}\n\n{HELP}"


@command
async def _apply(
    found: list[Manifest], namespace: str | None, *, dry_run: bool, wait_s: float | None
) -> None:
    out = output.console()
    failures: list[KarsError] = []
    applied: list[dict[str, Any]] = []
    async with Session.open() as session:
        stub = stubs.resources(session)
        for manifest in found:
            _set_namespace(manifest.document, namespace)
            request = resource_pb2.ApplyResourceRequest(
                document_json=json.dumps(manifest.document), dry_run=dry_run
            )
            try:
                answer = await stub.ApplyResource(request)
            except grpc.aio.AioRpcError as exc:
                error = from_rpc_error(exc)
                failures.append(error)
                console = reporting.errors_console()
                console.print(f"{escape(manifest.title)} ({escape(str(manifest.file))})")
                reporting.show(error, console, place=manifest.place)
                if reporting.exit_code(error) is Exit.UNREACHABLE:
                    break
                continue
            _print(out, manifest, answer, dry_run=dry_run)
            applied.append(json.loads(answer.document_json))
        if failures:
            raise typer.Exit(max(reporting.exit_code(error) for error in failures))
        if wait_s is not None and not dry_run:
            await waiting.until_ready(stub, applied, wait_s, reporting.errors_console())


def _set_namespace(document: dict[str, Any], namespace: str | None) -> None:
    """Give a document its namespace; a document that names one keeps it."""
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        metadata.setdefault("namespace", namespace or "default")


def _print(
    out: Console, manifest: Manifest, answer: resource_pb2.ApplyResourceResponse, *, dry_run: bool
) -> None:
    suffix = " (dry run)" if dry_run else ""
    out.print(f"{escape(manifest.title)} {_OUTCOMES.get(answer.outcome, 'applied')}{suffix}")
    for warning in answer.warnings:
        out.print(f"  [yellow]note[/]: {escape(warning)}", soft_wrap=True)
