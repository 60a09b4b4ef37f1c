"""Kill -9 of the gateway while it streams and while pushes wait: nothing is lost, nothing is out of order.

`make chaos-a2a` runs more rounds of the same (KARS_CHAOS_ROUNDS).
"""

import base64
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from kars_a2a_gateway_testkit.hook import Hook
from kars_a2a_gateway_testkit.stand import Stand, wait_until
from kars_a2a_gateway_testkit.wire import VERSION, message, rpc

ROUNDS = int(os.environ.get("KARS_CHAOS_ROUNDS", "2"))
TASKS = 4
PARTS = 12
RANDOM = random.Random(20261124)

pytestmark = pytest.mark.timeout(60 + 30 * ROUNDS)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A stand of its own: everything in it is killed."""
    stand = Stand(tmp_path_factory.mktemp("killed"))
    try:
        stand.start()
        yield stand
    finally:
        stand.stop()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.stop()


class Caller(threading.Thread):
    """Streams one task and, when the connection breaks, subscribes again until it has ended."""

    def __init__(self, stand: Stand, hook: Hook) -> None:
        super().__init__(daemon=True)
        self.stand, self.hook = stand, hook
        self.task_id = ""
        self.parts: list[str] = []
        self.final = ""
        self.breaks = 0

    def run(self) -> None:
        config = {"taskPushNotificationConfig": {"url": self.hook.url, "id": "hook"}}
        start = {**message(f"stream {PARTS} 0.05"), "configuration": config}
        self._read(rpc("SendStreamingMessage", start))
        deadline = time.monotonic() + 30
        while not self.final and self.task_id and time.monotonic() < deadline:
            self.breaks += 1
            time.sleep(0.05)
            self._read(rpc("SubscribeToTask", {"id": self.task_id}))

    def _read(self, request: dict[str, Any]) -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", self.stand.url, json=request, headers=VERSION, timeout=10) as response,
        ):
            if not response.headers["content-type"].startswith("text/event-stream"):
                self._ended(json.loads(response.read()))
                return
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self._note(json.loads(line[6:]))

    def _note(self, event: dict[str, Any]) -> None:
        result = event.get("result", {})
        if "task" in result:
            self.task_id = result["task"]["id"]
            self.parts = [p["text"] for a in result["task"].get("artifacts", ()) for p in a["parts"]]
            self._finish(result["task"]["status"]["state"])
        elif "artifactUpdate" in result:
            self.parts += [p["text"] for p in result["artifactUpdate"]["artifact"]["parts"]]
        elif "statusUpdate" in result:
            self._finish(result["statusUpdate"]["status"]["state"])

    def _ended(self, answer: dict[str, Any]) -> None:
        """The task ended while nobody was connected: it is read instead."""
        if answer.get("error", {}).get("code") == -32004:
            task = httpx.post(
                self.stand.url, json=rpc("GetTask", {"id": self.task_id}), headers=VERSION
            ).json()
            self._note({"result": {"task": task["result"]}})

    def _finish(self, state: str) -> None:
        if state in ("TASK_STATE_COMPLETED", "TASK_STATE_FAILED"):
            self.final = state


def pushes_of(hook: Hook, task_id: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (number, event) of each push of a task, in the order of arrival."""
    found = []
    for headers, body in list(hook.accepted):
        claims = headers["a2a-notification-signature"].split(".")[1]
        signed = json.loads(base64.urlsafe_b64decode(claims + "=="))
        if signed["taskId"] == task_id:
            found.append((int(signed["jti"].rpartition("-")[2]), json.loads(body)))
    return found


def check_pushes(hook: Hook, task_id: str) -> None:
    """Each push came; in order; twice only where the kill fell between delivery and its note."""
    pushes = pushes_of(hook, task_id)
    numbers = [number for number, _ in pushes]
    assert numbers == sorted(numbers), "pushes are in order"
    text: list[str] = []
    last = -1
    for number, event in pushes:
        if number == last:
            continue
        last = number
        if "task" in event:  # what was missed comes as the task itself
            text = [p["text"] for a in event["task"].get("artifacts", ()) for p in a["parts"]]
        elif "artifactUpdate" in event:
            text += [p["text"] for p in event["artifactUpdate"]["artifact"]["parts"]]
    assert text == [f"part {number}" for number in range(PARTS)], "no push is lost"
    final = pushes[-1][1]
    assert final.get("statusUpdate", final.get("task", {}))["status"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_kill_loses_no_task_and_no_push(stand: Stand, hook: Hook, round_: int) -> None:
    # Every other round the target is away as well, so that pushes are waiting when the gateway dies.
    hook.refuse = 1_000_000 if round_ % 2 else 0
    callers = [Caller(stand, hook) for _ in range(TASKS)]
    for caller in callers:
        caller.start()
    wait_until(lambda: all(caller.task_id for caller in callers), "all tasks to begin")
    time.sleep(RANDOM.uniform(0.0, 0.5))  # any moment of the stream

    stand.kill_gateway()
    hook.refuse = 0
    stand.start_gateway()

    for caller in callers:
        caller.join(40)
        assert not caller.is_alive(), "the caller has seen the end"
        assert caller.final == "TASK_STATE_COMPLETED"
        assert caller.parts == [f"part {number}" for number in range(PARTS)]

    def delivered(task_id: str) -> bool:
        pushes = pushes_of(hook, task_id)
        final = pushes[-1][1] if pushes else {}
        status = final.get("statusUpdate", final.get("task", {})).get("status", {})
        return bool(status.get("state") == "TASK_STATE_COMPLETED")

    for caller in callers:
        wait_until(lambda task_id=caller.task_id: delivered(task_id), "the last push", 20)  # type: ignore[misc]
        check_pushes(hook, caller.task_id)


def test_a_gateway_that_stops_in_good_order_loses_nothing_either(stand: Stand, hook: Hook) -> None:
    caller = Caller(stand, hook)
    caller.start()
    wait_until(lambda: bool(caller.task_id), "the task to begin")

    assert stand.stop_gateway() == 0
    stand.start_gateway()

    caller.join(40)
    assert caller.final == "TASK_STATE_COMPLETED"
    wait_until(
        lambda: (
            bool(pushes_of(hook, caller.task_id))
            and "COMPLETED" in json.dumps(pushes_of(hook, caller.task_id)[-1][1])
        ),
        "the last push",
        20,
    )
    check_pushes(hook, caller.task_id)


def test_the_agents_door_may_break_too(stand: Stand) -> None:
    """The gateway tells the owner of a task that its agent forgot it, instead of waiting for ever."""
    answer = httpx.post(
        stand.url,
        json=rpc("SendMessage", {**message("slow 30"), "configuration": {"returnImmediately": True}}),
        headers=VERSION,
    ).json()
    task_id = answer["result"]["task"]["id"]

    stand.kill_inside()
    away = httpx.post(stand.url, json=rpc("GetTask", {"id": task_id}), headers=VERSION).json()
    assert away["result"]["id"] == task_id, "a task is known while its agent is away"
    refused = httpx.post(f"{stand.url}/message:send", json=message("echo"), headers=VERSION, timeout=20)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    stand._inside_settings |= {  # the same ports: the policy names them
        "agent_port": stand.inside_ports["agent"],
        "door_port": stand.inside_ports["door"],
    }
    stand.start_inside()

    def state() -> str:
        task = httpx.post(stand.url, json=rpc("GetTask", {"id": task_id}), headers=VERSION).json()
        found: str = task["result"]["status"]["state"]
        return found

    wait_until(lambda: state() == "TASK_STATE_FAILED", "the task to be given up", 40)
