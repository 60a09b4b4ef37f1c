"""Waits until resources are ready, showing which condition keeps each from it."""

import asyncio
import json
from typing import Any

from kars.resource.v1 import resource_pb2, resource_pb2_grpc
from kars_common.errors import DeadlineExceededError, FailedPreconditionError
from rich.console import Console
from rich.markup import escape

Document = dict[str, Any]
_Key = tuple[str, str, str]


def key_of(document: Document) -> _Key:
    """Return kind, namespace and name."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def ready(document: Document) -> bool:
    """Whether the newest generation is ready (a sandbox whose agent has ended with success, too)."""
    status = document.get("status") or {}
    if status.get("observedGeneration", 0) < document["metadata"].get("generation", 0):
        return False
    condition = _condition(document, "Ready")
    return condition.get("status") == "True" or status.get("phase") in ("Succeeded", "Suspended")


def failed(document: Document) -> str:
    """Return why waiting is useless; empty while there is hope."""
    status = document.get("status") or {}
    if status.get("observedGeneration", 0) < document["metadata"].get("generation", 0):
        return ""
    if status.get("phase") != "Failed":
        return ""
    condition = _condition(document, "Degraded")
    return f"{condition.get('reason', 'Failed')}: {condition.get('message', '')}"


async def until_ready(
    stub: "resource_pb2_grpc.ResourcesAsyncStub", documents: list[Document], timeout_s: float, out: Console
) -> None:
    """Wait for sandboxes; a policy is ready when a sandbox enforces it, so policies are not waited for.

    Raises:
        DeadlineExceededError: `not_ready_in_time`, with what each waits for.
        FailedPreconditionError: `sandbox_failed`.
    """
    missing = {key_of(document): document for document in documents if document["kind"] == "KarsSandbox"}
    if not missing:
        return
    said: dict[_Key, str] = {}
    try:
        async with asyncio.timeout(timeout_s):
            request = resource_pb2.WatchResourcesRequest(kind="KarsSandbox")
            async for change in stub.WatchResources(request):
                document = json.loads(change.document_json)
                key = key_of(document)
                if key not in missing:
                    continue
                missing[key] = document
                _progress(document, said, out)
                if failed(document):
                    raise FailedPreconditionError(
                        "sandbox_failed", f"{'/'.join(key[1:])}: {failed(document)}"
                    )
                if ready(document):
                    del missing[key]
                if not missing:
                    return
    except TimeoutError:
        waits = "; ".join(f"{key[1]}/{key[2]}: {_why(document)}" for key, document in missing.items())
        raise DeadlineExceededError(
            "not_ready_in_time", f"not ready after {timeout_s:g} s: {waits}"
        ) from None


def _progress(document: Document, said: dict[_Key, str], out: Console) -> None:
    key, why = key_of(document), _why(document)
    if said.get(key) != why:
        said[key] = why
        mark = "[green]✓[/]" if ready(document) else "…"
        out.print(f"  {mark} {escape(f'{key[1]}/{key[2]}')}: {escape(why)}", soft_wrap=True)


def _why(document: Document) -> str:
    phase = (document.get("status") or {}).get("phase") or "Pending"
    if ready(document):
        return str(phase)
    for name in ("Degraded", "Progressing", "Ready"):
        condition = _condition(document, name)
        if condition and condition.get("status") == ("False" if name == "Ready" else "True"):
            return f"{phase}: {condition.get('reason', '')} {condition.get('message', '')}".rstrip()
    return str(phase)


def _condition(document: Document, name: str) -> dict[str, Any]:
    for condition in (document.get("status") or {}).get("conditions") or ():
        if isinstance(condition, dict) and condition.get("type") == name:
            return condition
    return {}
