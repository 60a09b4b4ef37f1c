"""Requests that are almost right, by the hundred: each is answered, and none breaks the gateway."""

import json
import random
from typing import Any

import httpx
from kars_a2a_gateway.operations.dispatch import METHODS
from kars_a2a_gateway_testkit.stand import Stand
from kars_a2a_gateway_testkit.wire import VERSION, message, rpc

REQUESTS = 600
NAMES = [
    "id",
    "message",
    "parts",
    "text",
    "raw",
    "url",
    "data",
    "metadata",
    "messageId",
    "taskId",
    "contextId",
    "role",
    "configuration",
    "token",
    "status",
    "tenant",
    "taskPushNotificationConfig",
    "authentication",
    "scheme",
    "credentials",
    "historyLength",
    "pageSize",
    "pageToken",
    "extensions",
    "referenceTaskIds",
    "ap2",
    "skillId",
    "filename",
    "mediaType",
    "includeArtifacts",
    "statusTimestampAfter",
    "returnImmediately",
]
SCALARS: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 1.5, 1e308, 100, 101),
    *("", "a", "\u0000", "x" * 300, "é", "\U0001f600", "AAAA", "../.."),
    *("TASK_STATE_WORKING", "ROLE_USER", "2024-01-01T00:00:00Z", "http://127.0.0.1:9/x"),
]


class Mutator:
    """Makes wrong documents of right ones; the same every time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self._random.random()
        if depth > 3 or kind < 0.5:
            return self._random.choice(SCALARS)
        if kind < 0.7:
            return [self.value(depth + 1) for _ in range(self._random.randint(0, 3))]
        return {self._random.choice(NAMES): self.value(depth + 1) for _ in range(self._random.randint(0, 5))}

    def mutate(self, document: Any) -> Any:
        if isinstance(document, dict):
            changed = {k: self._or_any(v) for k, v in document.items()}
            return changed | (
                {self._random.choice(NAMES): self.value()} if self._random.random() < 0.2 else {}
            )
        if isinstance(document, list):
            return [self._or_any(item) for item in document]
        return self._or_any(None) if self._random.random() < 0.2 else document

    def _or_any(self, value: Any) -> Any:
        return self.value() if self._random.random() < 0.15 else self.mutate(value)

    def choose(self, options: list[Any]) -> Any:
        return self._random.choice(options)


def test_almost_right_requests_are_answered(stand: Stand) -> None:
    with httpx.Client(headers=VERSION, timeout=20) as client:
        sent = client.post(stand.url, json=rpc("SendMessage", message("ask"))).json()
        task_id = sent["result"]["task"]["id"]
        push = {"taskId": task_id, "id": "c", "url": "http://127.0.0.1:9/x", "token": "t"}
        right: dict[str, Any] = {
            "SendMessage": message("echo x"),
            "SendStreamingMessage": message("echo x"),
            "GetTask": {"id": task_id, "historyLength": 1},
            "ListTasks": {"pageSize": 3},
            "CreateTaskPushNotificationConfig": push | {"authentication": {"scheme": "Bearer"}},
            "GetTaskPushNotificationConfig": {"taskId": task_id, "id": "c"},
            "ListTaskPushNotificationConfigs": {"taskId": task_id},
        }
        mutator = Mutator(20261124)
        for number in range(REQUESTS):
            method = mutator.choose(list(METHODS))
            params = mutator.mutate(right.get(method, {"id": "x"}))
            body = rpc(method, params) if number % 10 else mutator.mutate(rpc(method, params))
            answer = client.post(
                stand.url, content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert answer.status_code < 500, body
            assert b"-32603" not in answer.content, body
        still = client.post(stand.url, json=rpc("GetTask", {"id": task_id})).json()
    assert still["result"]["id"] == task_id
