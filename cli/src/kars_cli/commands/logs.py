"""`kars logs`: what a container of a sandbox printed."""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from kars.policy.v1 import policy_pb2
from kars.sandbox.v1 import sandbox_pb2

from kars_cli import options, stubs
from kars_cli.session import Session, command


class Container(StrEnum):
    """The two containers of a sandbox."""

    AGENT = "agent"
    ROUTER = "router"


def logs(
    name: options.SandboxName,
    namespace: options.Namespace = "default",
    container: Annotated[
        Container, typer.Option("--container", "-c", help="Which container.")
    ] = Container.AGENT,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing.")] = False,
    tail: Annotated[int, typer.Option("--tail", help="Lines from the end.", min=1, max=10_000)] = 100,
) -> None:
    """Print the log of a sandbox's agent or router."""
    _logs(policy_pb2.SandboxRef(namespace=namespace, name=name), container.value, follow=follow, tail=tail)


@command
async def _logs(sandbox: policy_pb2.SandboxRef, container: str, *, follow: bool, tail: int) -> None:
    async with Session.open() as session:
        stub = stubs.sandboxes(session)
        request = sandbox_pb2.StreamLogsRequest(
            sandbox=sandbox, container=container, tail_lines=tail, follow=follow
        )
        async for chunk in stub.StreamLogs(request):
            text = chunk.data.decode("utf-8", "replace")
            if sys.stdout.isatty():  # an agent's output must not drive the operator's terminal
                text = "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
            sys.stdout.write(text)
            sys.stdout.flush()
