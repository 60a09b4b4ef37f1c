"""SIGKILL amid 200 concurrent calls, three times: nothing acknowledged is lost, nothing refunded."""

import asyncio
import threading
from pathlib import Path

import orjson
import pytest
from kars_router_testkit import FakeProvider, Reply, RouterProcess, bundle, completion, sse_completion

CALLS = 200
ACKNOWLEDGED_BEFORE_KILL = 60
COST = 15


class Crowd:
    """Many callers at once; remembers who got a whole answer."""

    def __init__(self, port: int, generation: int) -> None:
        self._port = port
        self._generation = generation
        self.acknowledged: set[str] = set()
        self.enough = asyncio.Event()

    async def one(self, number: int) -> None:
        trace = f"call-{self._generation}-{number}"
        streamed = number % 2 == 1
        body = orjson.dumps({"messages": [{"role": "user", "content": "x"}], "stream": streamed})
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"x-kars-trace-id: {trace}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
        except OSError:
            return
        whole = b"[DONE]" in answer if streamed else b'"total_tokens"' in answer
        if answer.startswith(b"HTTP/1.1 200 ") and whole:
            self.acknowledged.add(trace)
        if len(self.acknowledged) >= ACKNOWLEDGED_BEFORE_KILL:
            self.enough.set()

    async def all_until_killed(self, router: RouterProcess) -> None:
        tasks = [asyncio.create_task(self.one(number)) for number in range(CALLS)]
        async with asyncio.timeout(30):
            await self.enough.wait()
            router.kill()
            await asyncio.gather(*tasks)


def used_today(router: RouterProcess) -> int:
    line = next(router.metric('kars_budget_used_tokens{sandbox="team/agent",window="day"}'))
    return int(float(line.split()[-1]))


@pytest.mark.timeout(120)
def test_kill_9_amid_200_calls_three_times(provider: FakeProvider, tmp_path: Path) -> None:
    # Every third call hangs at the provider until the router is dead, every fifth breaks off: the kill meets
    # calls in every state, however fast the router is.
    served = 0
    dead = threading.Event()

    def reply(body: dict[str, object]) -> Reply:
        nonlocal served
        served += 1
        answer = sse_completion(["a", "b"]) if body.get("stream") else completion()
        parts = [*answer.parts[:-1], b" " * 10, answer.parts[-1]]
        if served % 3 == 0:
            return Reply(parts=parts, content_type=answer.content_type, gate=dead)
        if served % 5 == 0:
            return Reply(parts=parts, content_type=answer.content_type, cut=True)
        return answer

    provider.default = reply
    policy = bundle(budget={"dailyTokens": "1000000000"})
    router = RouterProcess(directory=tmp_path, providers=[("main", provider.base_url)], policy=policy)
    router.prepare()
    acknowledged: set[str] = set()
    try:
        for generation in range(3):
            router.start()
            before = used_today(router)
            crowd = Crowd(router.port, generation)
            dead.clear()
            asyncio.run(crowd.all_until_killed(router))
            dead.set()
            acknowledged |= crowd.acknowledged
            assert router.verified()
            settled = {
                record["trace"]: record for record in router.records("call.settled") if "trace" in record
            }
            assert acknowledged <= settled.keys()
            assert all(settled[trace]["charged"] == COST for trace in acknowledged)
            # Every call that the provider saw was admitted on disk before it was sent.
            assert len(router.records("call.admitted")) >= len(provider.received)
            assert before <= sum(record["charged"] for record in router.records("call.settled"))
        router.start()
        assert router.verified()
        admitted = {record["call"]: record["reserved"] for record in router.records("call.admitted")}
        charges = {record["call"]: record["charged"] for record in router.records("call.settled")}
        assert admitted.keys() == charges.keys()
        abandoned = [record for record in router.records("call.settled") if record["ending"] == "abandoned"]
        assert abandoned
        assert all(record["charged"] == admitted[record["call"]] for record in abandoned)
        assert used_today(router) == sum(charges.values()) >= len(provider.received) * COST
        sequence = [record["seq"] for record in router.records()]
        assert sequence == list(range(len(sequence)))
    finally:
        dead.set()
        router.stop()


def test_budgets_refuse_after_a_restart_as_before(provider: FakeProvider, tmp_path: Path) -> None:
    policy = bundle(budget={"dailyTokens": "200"})
    router = RouterProcess(directory=tmp_path, providers=[("main", provider.base_url)], policy=policy)
    router.prepare()
    router.start()
    provider.reply(completion(usage=(100, 90)))
    assert router.chat(max_tokens=150).status == 200
    assert router.chat(max_tokens=50).code == "budget_exceeded"
    for end in (router.kill, router.stop):
        end()
        router.start()
        assert used_today(router) == 190
        assert router.chat(max_tokens=50).code == "budget_exceeded"
    router.stop()
    assert len(provider.received) == 1


def test_a_damaged_snapshot_is_replaced_by_the_journal(provider: FakeProvider, tmp_path: Path) -> None:
    router = RouterProcess(directory=tmp_path, providers=[("main", provider.base_url)])
    router.prepare()
    router.start()
    router.chat()
    router.stop()
    snapshot = router.state / "ledger" / "snapshot.json"
    assert snapshot.exists()
    for damage in (
        b"",
        b"{",
        b'{"v":1,"seq":99999999,"doors":{}}',
        b'{"v":1,"seq":1,"doors":{"team/agent":{}}}',
        b"[]",
    ):
        snapshot.write_bytes(damage)
        router.start()
        assert used_today(router) == COST
        router.kill()


def test_a_second_router_on_the_same_state_refuses_to_start(provider: FakeProvider, tmp_path: Path) -> None:
    first = RouterProcess(directory=tmp_path, providers=[("main", provider.base_url)])
    first.prepare()
    first.start()
    second = RouterProcess(directory=tmp_path, providers=first.providers)
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(20) == 1
    assert b"audit_log_locked" in first.log_file.read_bytes()
    first.stop()
