"""Push notifications: what arrives, in which order, signed, and what happens when it does not."""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
from kars_a2a_gateway_testkit.hook import Hook
from kars_a2a_gateway_testkit.stand import Stand, wait_until
from kars_a2a_gateway_testkit.wire import VERSION, message, rpc


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.stop()


def call(stand: Stand, method: str, params: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(stand.url, json=rpc(method, params), headers=VERSION, timeout=20).json()
    found: dict[str, Any] = answer.get("result", answer)
    return found


def send_with_push(stand: Stand, hook: Hook, text: str, **config: Any) -> dict[str, Any]:
    configuration = {
        "returnImmediately": True,
        "taskPushNotificationConfig": {"url": hook.url, **config},
    }
    task: dict[str, Any] = call(stand, "SendMessage", {**message(text), "configuration": configuration})[
        "task"
    ]
    return task


def test_every_event_arrives_once_in_order_with_its_secrets(stand: Stand, hook: Hook) -> None:
    auth = {"scheme": "Bearer", "credentials": "the-credential"}
    task = send_with_push(stand, hook, "stream 5 0.01", token="the-token", authentication=auth)

    wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push")

    assert hook.states() == [
        "TASK_STATE_SUBMITTED",
        "TASK_STATE_WORKING",
        *["artifact"] * 5,
        "TASK_STATE_COMPLETED",
    ]
    for headers, body in hook.accepted:
        assert headers["content-type"] == "application/a2a+json"
        assert headers["authorization"] == "Bearer the-credential"
        assert headers["x-a2a-notification-token"] == "the-token"
        assert task["id"] in body.decode()
    texts = [
        json.loads(body)["artifactUpdate"]["artifact"]["parts"][0]["text"]
        for _, body in hook.accepted
        if b"artifactUpdate" in body
    ]
    assert texts == [f"part {number}" for number in range(5)]


def test_pushes_are_signed_with_a_published_key(stand: Stand, hook: Hook) -> None:
    task = send_with_push(stand, hook, "echo")
    wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push")
    keys = {key["kid"]: key for key in httpx.get(f"{stand.root}/.well-known/jwks.json").json()["keys"]}

    seen = set()
    for headers, body in hook.accepted:
        signature = headers["a2a-notification-signature"]
        key = jwt.PyJWK(keys[jwt.get_unverified_header(signature)["kid"]])
        claims = jwt.decode(signature, key, algorithms=["ES256"])
        assert claims["bodySha256"] == hashlib.sha256(body).hexdigest()
        assert claims["taskId"] == task["id"]
        seen.add(claims["jti"])
    assert len(seen) == len(hook.accepted), "each push has a name of its own, so that a replay is noticed"


def test_a_refusing_target_is_tried_again_and_the_order_kept(stand: Stand, hook: Hook) -> None:
    hook.refuse = 3
    send_with_push(stand, hook, "stream 3")

    wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push", 20)

    assert hook.states() == [
        "TASK_STATE_SUBMITTED",
        "TASK_STATE_WORKING",
        *["artifact"] * 3,
        "TASK_STATE_COMPLETED",
    ]


def test_a_redirect_is_not_followed(stand: Stand, hook: Hook) -> None:
    inside = Hook()
    try:
        hook.refuse, hook.status, hook.location = 1, 307, inside.url
        send_with_push(stand, hook, "echo")
        wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push")
        assert inside.accepted == []
    finally:
        inside.stop()


def test_a_configuration_made_later_gets_what_comes_then(stand: Stand, hook: Hook) -> None:
    task = call(
        stand, "SendMessage", {**message("stream 20 0.05"), "configuration": {"returnImmediately": True}}
    )["task"]
    created = call(stand, "CreateTaskPushNotificationConfig", {"taskId": task["id"], "url": hook.url})
    assert created["id"]

    wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push")

    assert 0 < hook.states().count("artifact") <= 20


def test_a_deleted_configuration_gets_nothing_more(stand: Stand, hook: Hook) -> None:
    config_id = str(uuid.uuid4())
    hook.refuse = 1_000_000
    task = send_with_push(stand, hook, "slow 0.3", id=config_id)
    call(stand, "DeleteTaskPushNotificationConfig", {"taskId": task["id"], "id": config_id})
    hook.refuse = 0

    wait_until(
        lambda: call(stand, "GetTask", {"id": task["id"]})["status"]["state"] == "TASK_STATE_COMPLETED",
        "the task",
    )
    quiet_until = time.monotonic() + 0.4
    wait_until(lambda: time.monotonic() > quiet_until, "a while in which a push would come")
    assert hook.accepted == []


def test_a_task_has_a_bounded_number_of_configurations(stand: Stand) -> None:
    task = call(stand, "SendMessage", message("ask"))["task"]
    for number in range(8):
        params = {"taskId": task["id"], "id": f"c{number}", "url": "http://127.0.0.1:9/x"}
        assert call(stand, "CreateTaskPushNotificationConfig", params)["id"] == f"c{number}"
    answer = call(
        stand,
        "CreateTaskPushNotificationConfig",
        {"taskId": task["id"], "id": "c8", "url": "http://127.0.0.1:9/x"},
    )
    assert answer["error"]["data"][0]["reason"] == "QUOTA_EXCEEDED"


def test_pushes_are_in_the_audit_log_without_their_targets(stand: Stand, hook: Hook) -> None:
    task = send_with_push(stand, hook, "echo", token="the-token")
    wait_until(lambda: "TASK_STATE_COMPLETED" in hook.states(), "the last push")

    def delivered() -> list[dict[str, Any]]:
        return [r for r in stand.audit() if r["type"] == "a2a.push_delivered" and r["task"] == task["id"]]

    wait_until(lambda: len(delivered()) == len(hook.accepted), "the records")
    assert hook.url not in json.dumps(delivered())
    assert "the-token" not in json.dumps(list(stand.audit()))
