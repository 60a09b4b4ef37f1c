"""A sample agent on the official SDK.

What it does is the first word of the message:

echo TEXT         a task with one artifact        message TEXT   a message instead of a task stream N [S]
N parts of an artifact, S seconds apart        slow S   works for S seconds, can be canceled ask
asks for input, then completes   auth          asks for authentication, then completes fail
fails
"""

import asyncio
import contextlib
from pathlib import Path

import jwt
from a2a.helpers import new_task_from_user_message, new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentExtension,
    AgentInterface,
    AgentSkill,
    Part,
    TaskState,
)
from a2a.utils.signing import ProtectedHeader, create_agent_card_signer
from starlette.applications import Starlette

EXTENSION = "https://example.org/extensions/tone/v1"


class SampleExecutor(AgentExecutor):
    """Does what the message says."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Work on one message."""
        words = context.get_user_input().split()
        command = words[0] if words else "echo"
        if command == "message":
            await event_queue.enqueue_event(new_text_message(" ".join(words[1:]) or "hello"))
            return
        task = context.current_task
        if task is None:
            if context.message is None:
                return
            task = new_task_from_user_message(context.message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        if task.status.state in (TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED):
            await self._answer(updater, " ".join(words))
            return
        await updater.start_work()
        match command:
            case "ask":
                await updater.requires_input(updater.new_agent_message([Part(text="which one?")]))
            case "auth":
                await updater.requires_auth(updater.new_agent_message([Part(text="log in first")]))
            case "fail":
                await updater.failed(updater.new_agent_message([Part(text="it did not work")]))
            case "slow":
                await asyncio.sleep(float(words[1]))
                await updater.complete()
            case "stream":
                await self._stream(updater, int(words[1]), float(words[2]) if len(words) > 2 else 0.0)
            case _:
                await self._answer(updater, " ".join(words[1:] if command == "echo" else words))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Cancel."""
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").cancel()

    async def _answer(self, updater: TaskUpdater, text: str) -> None:
        await updater.add_artifact([Part(text=text or "nothing")], name="answer")
        await updater.complete()

    async def _stream(self, updater: TaskUpdater, parts: int, pause_s: float) -> None:
        for number in range(parts):
            await updater.add_artifact(
                [Part(text=f"part {number}")],
                artifact_id="streamed",
                append=number > 0,
                last_chunk=number == parts - 1,
            )
            await asyncio.sleep(pause_s)
        await updater.complete()


def sample_card(url: str, *, streaming: bool = True, required_extension: bool = False) -> AgentCard:
    """Return the sample agent's own card."""
    return AgentCard(
        name="Sample agent",
        description="Does what the first word of a message says",
        version="1.0.0",
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0"),
            AgentInterface(url=url, protocol_binding="HTTP+JSON", protocol_version="1.0"),
        ],
        capabilities=AgentCapabilities(
            streaming=streaming,
            push_notifications=False,
            extended_agent_card=True,
            extensions=[
                AgentExtension(uri=EXTENSION, description="How to speak", required=required_extension)
            ],
        ),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[
            AgentSkill(id="echo", name="Echo", description="Says it again", tags=["text"]),
            AgentSkill(id="transfer", name="Transfer", description="Moves money", tags=["money"]),
            AgentSkill(id="hidden", name="Hidden", description="Is not shown outside", tags=["internal"]),
        ],
    )


def sample_app(
    url: str, *, streaming: bool = True, required_extension: bool = False, card_key: Path | None = None
) -> Starlette:
    """Return the agent as an ASGI application."""
    card = sample_card(url, streaming=streaming, required_extension=required_extension)
    extended = AgentCard()
    extended.CopyFrom(card)
    extended.skills.append(
        AgentSkill(id="extra", name="Extra", description="Only in the extended card", tags=["extra"])
    )
    if card_key is not None:
        key = jwt.PyJWK.from_json(card_key.read_text())
        header = ProtectedHeader(alg="ES256", kid="agent-key", typ="JOSE", jku=None)
        for signed in (card, extended):
            create_agent_card_signer(key.key, header)(signed)
    handler = DefaultRequestHandler(
        agent_executor=SampleExecutor(),
        task_store=InMemoryTaskStore(),
        agent_card=card,
        extended_agent_card=extended,
    )
    routes = [
        *create_agent_card_routes(card),
        *create_jsonrpc_routes(handler, rpc_url="/"),
        *create_rest_routes(handler),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette):  # type: ignore[no-untyped-def]  # noqa: ANN202  # starlette's protocol
        yield
        await handler.aclose()

    return Starlette(routes=routes, lifespan=lifespan)
