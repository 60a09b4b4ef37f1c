"""`kars connect`: talk with an agent, from a terminal, a pipe, or with one message."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated

import typer
from kars.policy.v1 import policy_pb2
from kars_common.errors import KarsError
from kars_common.rpc import mapped_errors
from rich.markup import escape

from kars_cli import options, output, reporting
from kars_cli.chat import ChatClient
from kars_cli.exits import Exit
from kars_cli.session import Session, command


class ChatFormat(StrEnum):
    """How the agent's events are printed."""

    TEXT = "text"
    JSON = "json"


def connect(
    name: options.SandboxName,
    namespace: options.Namespace = "default",
    message: Annotated[
        list[str] | None, typer.Option("--message", "-m", help="Say this and end; may be given again.")
    ] = None,
    session: Annotated[str, typer.Option("--session", help="Name of a conversation to go on with.")] = "",
    port: Annotated[int, typer.Option("--port", help="Port in the sandbox; 0: chat.", min=0, max=65535)] = 0,
    wait_s: Annotated[
        float, typer.Option("--timeout", help="Seconds to wait for the agent to serve chat.", min=0)
    ] = 20,
    form: Annotated[ChatFormat, typer.Option("--output", "-o", help="How to print.")] = ChatFormat.TEXT,
) -> None:
    """Chat with an agent. Reads lines from standard input unless --message is given."""
    sandbox = policy_pb2.SandboxRef(namespace=namespace, name=name)
    if not _connect(sandbox, message or [], session, port, form, wait_s):
        raise typer.Exit(Exit.REFUSED)


@command
async def _connect(
    sandbox: policy_pb2.SandboxRef, messages: list[str], name: str, port: int, form: ChatFormat, wait_s: float
) -> bool:
    """Return whether every turn was completed."""
    complete = True
    async with Session.open() as session:
        client = await opened(session, sandbox, port, wait_s)
        try:
            if not messages and reporting.interactive():
                agent, runtime = client.hello.get("agent"), client.hello.get("runtime")
                said = output.clean(f"{agent} ({runtime})")
                output.console().print(f"[dim]{escape(said)}; end with Ctrl-D[/]")
            async for text in _lines(messages):
                complete = await _turn(client, text, name, form) and complete
        finally:
            await client.close()
    return complete


async def opened(session: Session, sandbox: policy_pb2.SandboxRef, port: int, wait_s: float) -> ChatClient:
    """Return an open conversation; an agent that has just started may still be loading its framework."""
    deadline = time.monotonic() + wait_s
    while True:
        client = ChatClient(session, sandbox, port)
        try:
            with mapped_errors():
                await client.open()
        except KarsError as exc:
            await client.close()
            if exc.reason not in reporting.CHAT_NOT_SERVED or time.monotonic() >= deadline:
                raise
            await asyncio.sleep(0.25)
        else:
            return client


async def _lines(messages: list[str]) -> AsyncIterator[str]:
    """Yield what to say. Reading blocks the loop, which has nothing else to do then."""
    if messages:
        for message in messages:
            yield message
        return
    ask = reporting.interactive()
    while True:
        try:
            line = input("you> ") if ask else sys.stdin.readline()  # noqa: ASYNC250 - nothing else to do
        except EOFError:
            return
        if not ask and not line:
            return
        if line.strip():
            yield line.strip()


async def _turn(client: ChatClient, text: str, name: str, form: ChatFormat) -> bool:
    errors = reporting.errors_console()
    async for event in client.say(text, name):
        kind = event.get("type")
        if form is ChatFormat.JSON:
            print(json.dumps(event), flush=True)
        elif kind == "delta":
            print(output.clean(str(event.get("text", ""))), end="", flush=True)
        elif kind == "tool_call":
            errors.print(f"[dim]· {escape(output.clean(str(event.get('name'))))}[/]")
        elif kind == "done":
            print(flush=True)
        elif kind == "error":
            reason, why = (output.clean(str(event.get(name))) for name in ("reason", "message"))
            errors.print(
                f"[bold red]refused[/]: {escape(why)} [dim]\\[{escape(reason)}][/]",
                soft_wrap=True,
            )
        if kind == "error":
            return False
    return True
