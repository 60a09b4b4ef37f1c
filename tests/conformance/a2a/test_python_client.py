"""The official Python client, unmodified, in all three bindings."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import httpx
import jwt
import pytest
from a2a.client import A2ACardResolver, Client, ClientConfig, ClientFactory
from a2a.types import (
    AgentCard,
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    StreamResponse,
    SubscribeToTaskRequest,
    Task,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import (
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a.utils.signing import InvalidSignaturesError, create_signature_verifier
from kars_a2a_gateway_testkit.stand import Stand

BINDINGS = ["JSONRPC", "HTTP+JSON", "GRPC"]


def message(text: str, *, task_id: str = "", context_id: str = "") -> SendMessageRequest:
    return SendMessageRequest(
        message=Message(
            message_id=str(uuid.uuid4()),
            role=Role.ROLE_USER,
            parts=[Part(text=text)],
            task_id=task_id,
            context_id=context_id,
        )
    )


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20) as client:
        yield client


async def read_card(stand: Stand, http: httpx.AsyncClient) -> AgentCard:
    return await A2ACardResolver(http, stand.url).get_agent_card()


@pytest.fixture(params=BINDINGS)
async def client(
    stand: Stand, http: httpx.AsyncClient, request: pytest.FixtureRequest
) -> AsyncIterator[Client]:
    card = await read_card(stand, http)
    config = ClientConfig(
        httpx_client=http,
        grpc_channel_factory=grpc.aio.insecure_channel,
        supported_protocol_bindings=[request.param],
    )
    client = ClientFactory(config).create(card)
    yield client
    if request.param == "GRPC":
        await client.close()


@pytest.fixture
async def polling(stand: Stand, http: httpx.AsyncClient) -> Client:
    """A client that does not stream: SendMessage itself."""
    card = await read_card(stand, http)
    return ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)


async def events(client: Client, request: SendMessageRequest) -> list[StreamResponse]:
    async with asyncio.timeout(10):
        return [event async for event in client.send_message(request)]


async def begun(client: Client, text: str) -> Task:
    """Send a message that takes a while; return its task and leave the stream."""
    stream = client.send_message(message(text))
    async with asyncio.timeout(10):
        first = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # a generator, at run time
    return first.task


async def test_stream_has_every_event_in_order_and_ends(client: Client) -> None:
    found = await events(client, message("stream 5"))

    assert [event.WhichOneof("payload") for event in found] == [
        "task",
        "status_update",
        *["artifact_update"] * 5,
        "status_update",
    ]
    texts = [event.artifact_update.artifact.parts[0].text for event in found[2:7]]
    assert texts == [f"part {number}" for number in range(5)]
    assert found[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
    assert len({event.status_update.task_id for event in found if event.HasField("status_update")}) == 1


async def test_message_only_answer(client: Client) -> None:
    [event] = await events(client, message("message good day"))

    assert event.message.parts[0].text == "good day"


async def test_task_is_found_again_whole(client: Client) -> None:
    task_id = (await events(client, message("stream 3")))[0].task.id

    task = await client.get_task(GetTaskRequest(id=task_id))

    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    assert [part.text for part in task.artifacts[0].parts] == ["part 0", "part 1", "part 2"]
    assert task.history[0].parts[0].text == "stream 3"


async def test_history_length_is_honoured(client: Client) -> None:
    task_id = (await events(client, message("echo hi")))[0].task.id

    assert not (await client.get_task(GetTaskRequest(id=task_id, history_length=0))).history
    assert len((await client.get_task(GetTaskRequest(id=task_id, history_length=1))).history) == 1
    with pytest.raises(InvalidParamsError):
        await client.get_task(GetTaskRequest(id=task_id, history_length=-1))


async def test_subscribe_after_disconnect_sees_the_rest(client: Client) -> None:
    task = await begun(client, "stream 20 0.05")

    async with asyncio.timeout(10):
        found = [event async for event in client.subscribe(SubscribeToTaskRequest(id=task.id))]

    assert found[0].task.id == task.id
    parts = [part.text for artifact in found[0].task.artifacts for part in artifact.parts]
    parts += [e.artifact_update.artifact.parts[0].text for e in found if e.HasField("artifact_update")]
    assert parts == [f"part {number}" for number in range(20)]
    assert found[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED


async def test_two_subscribers_see_the_same(client: Client) -> None:
    task = await begun(client, "stream 10 0.05")

    async def follow() -> list[StreamResponse]:
        return [event async for event in client.subscribe(SubscribeToTaskRequest(id=task.id))]

    async with asyncio.timeout(10):
        one, other = await asyncio.gather(follow(), follow())

    assert one[-6:] == other[-6:]


async def test_cancel_ends_a_running_task(client: Client) -> None:
    task = await begun(client, "slow 30")

    canceled = await client.cancel_task(CancelTaskRequest(id=task.id))

    assert canceled.status.state == TaskState.TASK_STATE_CANCELED
    with pytest.raises(TaskNotCancelableError):
        await client.cancel_task(CancelTaskRequest(id=task.id))
    with pytest.raises(UnsupportedOperationError):
        await anext(client.subscribe(SubscribeToTaskRequest(id=task.id)))


async def test_input_is_asked_for_and_given(client: Client) -> None:
    stream = client.send_message(message("ask"))
    async with asyncio.timeout(10):
        async for event in stream:
            if event.HasField("task"):
                task = event.task
            if event.HasField("status_update") and (
                event.status_update.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
            ):
                break
    await stream.aclose()  # type: ignore[attr-defined]  # a generator, at run time

    found = await events(client, message("the red one", task_id=task.id, context_id=task.context_id))

    assert found[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
    whole = await client.get_task(GetTaskRequest(id=task.id))
    assert whole.artifacts[0].parts[0].text == "the red one"
    assert [m.parts[0].text for m in whole.history if m.role == Role.ROLE_USER] == ["ask", "the red one"]


async def test_unknown_ids_are_not_found(client: Client) -> None:
    with pytest.raises(TaskNotFoundError):
        await client.get_task(GetTaskRequest(id="nobody"))
    with pytest.raises(TaskNotFoundError):
        await client.cancel_task(CancelTaskRequest(id="nobody"))
    with pytest.raises(TaskNotFoundError):
        await anext(client.subscribe(SubscribeToTaskRequest(id="nobody")))
    with pytest.raises(TaskNotFoundError):
        await events(client, message("echo", task_id="nobody"))


async def test_context_of_another_task_is_refused(client: Client) -> None:
    first = (await events(client, message("ask")))[0].task
    with pytest.raises(InvalidParamsError):
        await events(client, message("x", task_id=first.id, context_id="elsewhere"))


async def test_missing_parts_are_invalid(client: Client) -> None:
    request = SendMessageRequest(message=Message(message_id="m", role=Role.ROLE_USER))
    with pytest.raises(InvalidParamsError):
        await events(client, request)


async def test_lists_pages_of_a_context(client: Client) -> None:
    context = str(uuid.uuid4())
    ids = [(await events(client, message(f"echo {n}", context_id=context)))[0].task.id for n in range(5)]

    first = await client.list_tasks(ListTasksRequest(context_id=context, page_size=3))
    second = await client.list_tasks(
        ListTasksRequest(context_id=context, page_size=3, page_token=first.next_page_token)
    )

    assert [task.id for task in (*first.tasks, *second.tasks)] == ids[::-1]
    assert (first.total_size, first.page_size, second.next_page_token) == (5, 3, "")
    assert not first.tasks[0].artifacts
    with_artifacts = await client.list_tasks(ListTasksRequest(context_id=context, include_artifacts=True))
    assert with_artifacts.tasks[0].artifacts[0].parts[0].text == "4"
    completed = await client.list_tasks(
        ListTasksRequest(context_id=context, status=TaskState.TASK_STATE_COMPLETED)
    )
    assert completed.total_size == 5
    for wrong in ({"page_size": 0}, {"page_size": 101}, {"page_token": "bm9uc2Vuc2U"}):
        with pytest.raises(InvalidParamsError):
            await client.list_tasks(ListTasksRequest(context_id=context, **wrong))


async def test_push_configurations_are_kept_without_showing_secrets(client: Client) -> None:
    task = await begun(client, "slow 30")
    created = await client.create_task_push_notification_config(
        TaskPushNotificationConfig(task_id=task.id, url="http://127.0.0.1:9/hook", token="s3cret-token")
    )

    got = await client.get_task_push_notification_config(
        GetTaskPushNotificationConfigRequest(task_id=task.id, id=created.id)
    )
    listed = await client.list_task_push_notification_configs(
        ListTaskPushNotificationConfigsRequest(task_id=task.id)
    )

    assert created.id == got.id == listed.configs[0].id
    assert got.url == "http://127.0.0.1:9/hook"
    assert "s3cret" not in f"{created}{got}{listed}"
    for _ in range(2):  # deleting twice is no error
        await client.delete_task_push_notification_config(
            DeleteTaskPushNotificationConfigRequest(task_id=task.id, id=created.id)
        )
    with pytest.raises(TaskNotFoundError):
        await client.get_task_push_notification_config(
            GetTaskPushNotificationConfigRequest(task_id=task.id, id=created.id)
        )
    await client.cancel_task(CancelTaskRequest(id=task.id))


async def test_extended_card_is_the_agents_with_our_addresses(client: Client, stand: Stand) -> None:
    card = await client.get_extended_agent_card(GetExtendedAgentCardRequest())

    assert "extra" in [skill.id for skill in card.skills]
    assert {interface.url for interface in card.supported_interfaces} == {stand.url, stand.grpc_target}
    assert card.signatures


async def test_blocking_send_waits_until_the_task_rests(polling: Client) -> None:
    [done] = await events(polling, message("slow 0.2"))
    [asked] = await events(polling, message("ask"))

    assert done.task.status.state == TaskState.TASK_STATE_COMPLETED
    assert asked.task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED


async def test_immediate_send_returns_a_running_task(polling: Client) -> None:
    request = message("slow 20")
    request.configuration.CopyFrom(SendMessageConfiguration(return_immediately=True))

    [event] = await events(polling, request)

    assert event.task.status.state in (TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING)
    await polling.cancel_task(CancelTaskRequest(id=event.task.id))


async def test_card_verifies_with_the_official_verifier_and_not_when_changed(
    stand: Stand, http: httpx.AsyncClient
) -> None:
    card = await read_card(stand, http)
    keys = {key["kid"]: key for key in (await http.get(f"{stand.root}/.well-known/jwks.json")).json()["keys"]}

    def provide(kid: str | None, jku: str | None) -> jwt.PyJWK:
        assert jku == f"{stand.root}/.well-known/jwks.json"
        return jwt.PyJWK(keys[kid or ""])

    verify = create_signature_verifier(provide, ["ES256"])
    verify(card)
    card.supported_interfaces[0].url = "https://attacker.example"
    with pytest.raises(InvalidSignaturesError):
        verify(card)
