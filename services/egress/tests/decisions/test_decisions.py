"""The record of decisions: any bytes are a decision or refused, no line is lost, room is bounded."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from kars_common.audit import AuditLog
from kars_common.errors import InvalidInputError, ResourceExhaustedError
from kars_egress.decisions import lines, recording, targets
from kars_egress.decisions.recording import DecisionRecorder
from kars_egress.decisions.spool import Spool

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "kind",
        "id",
        "host",
        "authority",
        "port",
        "sandbox",
        "peer",
        "reason",
        "status",
        "details",
        "sent",
        "time",
        "route",
    ]
)


@given(
    st.binary(max_size=200)
    | st.dictionaries(FIELDS, JSON, max_size=13).map(lambda value: json.dumps(value).encode())
)
def test_any_line_is_a_decision_or_refused(line: bytes) -> None:
    try:
        decision = lines.parse(line)
    except InvalidInputError as error:
        assert error.reason == "log_line_invalid"  # noqa: PT017 - refusing is one of two good ends
        return
    assert len(decision.host) <= 260
    assert decision.host.isprintable()
    assert decision.status >= 0
    assert len(json.dumps(decision.record())) < 8192


def line(number: int) -> bytes:
    fields = {
        "id": str(number),
        "host": f"h{number}.test",
        "route": "deny",
        "reason": "not_in_allowlist",
        "status": 403,
    }
    return json.dumps(fields).encode() + b"\n"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    opened = AuditLog.open(tmp_path / "audit", "spiffe://kars.local/svc/egress", Ed25519PrivateKey.generate())
    yield opened
    asyncio.run(opened.close())


def recorder(tmp_path: Path, log: AuditLog) -> DecisionRecorder:
    return DecisionRecorder(Spool(tmp_path / "requests.log", tmp_path / "cursor"), log, lambda: None)


def recorded(log: AuditLog) -> list[object]:
    return [record.get("stream") for record in log.records()]


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, log: AuditLog) -> None:
    file = tmp_path / "requests.log"
    file.write_bytes(line(0) + line(1))
    assert await recorder(tmp_path, log).read_once() == 2
    with file.open("ab") as writer:
        writer.write(line(2) + line(3)[:-10])
    assert await recorder(tmp_path, log).read_once() == 1
    with file.open("ab") as writer:
        writer.write(line(3)[-10:])
    assert await recorder(tmp_path, log).read_once() == 1
    assert recorded(log) == ["0", "1", "2", "3"]


async def test_a_crash_before_the_place_is_kept_repeats_and_does_not_lose(
    tmp_path: Path, log: AuditLog
) -> None:
    (tmp_path / "requests.log").write_bytes(line(0))
    spool = Spool(tmp_path / "requests.log", tmp_path / "cursor")
    assert list(spool.read()) == [line(0).strip()]
    assert await recorder(tmp_path, log).read_once() == 1


async def test_rotation_loses_nothing(tmp_path: Path, log: AuditLog) -> None:
    file = tmp_path / "requests.log"
    file.write_bytes(line(0))
    spool = Spool(file, tmp_path / "cursor")
    reader = DecisionRecorder(spool, log, lambda: None)
    await reader.read_once()
    assert not spool.rotate_if_large(lambda: None, limit=10_000)
    assert spool.rotate_if_large(lambda: None, limit=1)
    with (tmp_path / "requests.1").open("ab") as late:
        late.write(line(1))  # Envoy has not opened the new file yet
    await reader.read_once()
    file.write_bytes(line(2))
    await reader.read_once()
    await reader.read_once()
    assert recorded(log) == ["0", "1", "2"]
    assert not (tmp_path / "requests.1").exists(), "what was read to its end is removed"


async def test_a_line_that_is_not_understood_is_recorded_as_such(tmp_path: Path, log: AuditLog) -> None:
    (tmp_path / "requests.log").write_bytes(b"not json\n" + line(1))
    await recorder(tmp_path, log).read_once()
    assert [record["type"] for record in log.records()] == ["egress.unreadable", "egress.denied"]


async def test_a_watcher_that_falls_behind_is_told_how_many_it_missed(tmp_path: Path, log: AuditLog) -> None:
    count = recording.MAX_WATCH_BACKLOG + 5
    (tmp_path / "requests.log").write_bytes(b"".join(line(number) for number in range(count)))
    reader = recorder(tmp_path, log)
    with reader.watching() as watcher:
        await reader.read_once()
        decision, missed = await watcher.next()
        assert (decision.id, missed) == ("5", 5)
        assert (await watcher.next())[1] == 0


async def test_watchers_are_bounded(tmp_path: Path, log: AuditLog) -> None:
    reader = recorder(tmp_path, log)
    opened = [reader.watching() for _ in range(recording.MAX_WATCHERS)]
    for view in opened:
        view.__enter__()
    with pytest.raises(ResourceExhaustedError), reader.watching():
        pass
    for view in opened:
        view.__exit__(None, None, None)
    with reader.watching():
        pass


def test_one_sandbox_cannot_fill_the_table_of_another() -> None:
    table = targets.Targets()
    for number in range(targets.MAX_TARGETS + 10):
        table.note("team/loud", f"h{number}.test", 443, "not_in_allowlist", 1.0)
    table.note("team/quiet", "one.test", 443, "not_in_allowlist", 2.0)
    seen, left_out = table.most_frequent("team/loud", 5)
    assert (len(seen), left_out) == (5, 10)
    quiet, left_out = table.most_frequent("team/quiet", 5)
    assert ([item.host for item in quiet], left_out) == (["one.test"], 0)


def test_the_most_frequent_come_first() -> None:
    table = targets.Targets()
    for host, count in (("a.test", 1), ("b.test", 3), ("c.test", 2)):
        for moment in range(count):
            table.note("team/writer", host, 443, "learning", float(moment))
    seen, _ = table.most_frequent("team/writer", 10)
    assert [(item.host, item.count, item.last_s) for item in seen] == [
        ("b.test", 3, 2.0),
        ("c.test", 2, 1.0),
        ("a.test", 1, 0.0),
    ]
