"""The log keeps what it acknowledged: across restarts, kills, rotation, full disks and many writers."""

import asyncio
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars_common.audit import AuditLog, merkle, open_checkpoint, segments, verify_directory
from kars_common.audit.writing import SegmentWriter
from kars_common.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidInputError,
    OutOfRangeError,
    UnavailableError,
)

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"
OpenLog = Callable[..., AuditLog]


async def test_records_carry_the_chain_and_their_fields(open_log: OpenLog) -> None:
    log = open_log(clock_s=lambda: 1764000000.5)
    assert [log.append("call.admitted", {"model": "m", "tokens": 5}), log.append("call.settled", {})] == [
        0,
        1,
    ]
    await log.close()
    first, second = log.records()
    assert first == {
        "v": 1, "seq": 0, "time": "2025-11-24T16:00:00.500Z", "origin": ORIGIN, "type": "call.admitted",
        "prev": "0" * 64, "model": "m", "tokens": 5,
    }  # fmt: skip
    line = next(log.lines(0))
    assert second["prev"] == merkle.leaf_hash(line).hex()
    assert line == json.dumps(first, sort_keys=True, separators=(",", ":")).encode()


async def test_router_register_52_sequence_and_chain_continue_over_restarts_and_segments(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    for start in range(0, 300, 30):
        log = open_log(max_segment_bytes=3000)
        assert log.size == start
        for i in range(30):
            assert log.append("call.settled", {"n": i, "bar": "a|b|c"}) == start + i
        await log.close()
    assert len(list(directory.glob("*.jsonl"))) > 10
    report = verify_directory(directory, key.public_key())
    assert report.ok, report.finding
    assert (report.size, report.signed_size) == (300, 300)
    log = open_log()
    assert [r["seq"] for r in log.records(17, 290)] == list(range(17, 290))
    await log.close()


@pytest.mark.parametrize("restarted", [False, True])
async def test_reading_may_begin_anywhere(open_log: OpenLog, restarted: bool) -> None:
    log = open_log(max_segment_bytes=150_000)
    for i in range(1500):
        log.append("a", {"n": i})
    if restarted:
        await log.close()
        log = open_log(max_segment_bytes=150_000)
    assert len(log._marks) > 1
    for start in (*range(0, 1500, 37), *(seq + d for seq, _ in log._marks for d in (-1, 0, 1)), 1499, 1500):
        assert [r["n"] for r in log.records(start, start + 3)] == list(range(start, min(start + 3, 1500)))
    await log.close()


async def test_age_ends_a_segment_also_when_the_process_restarted(open_log: OpenLog, directory: Path) -> None:
    now = [1764000000.0]
    log = open_log(max_segment_age_s=60.0, clock_s=lambda: now[0])
    log.append("a", {})
    now[0] += 59
    log.append("a", {})
    await log.close()
    assert len(list(directory.glob("*.jsonl"))) == 1
    log = open_log(max_segment_age_s=60.0, clock_s=lambda: now[0])
    now[0] += 1
    log.append("a", {})
    await log.close()
    assert len(list(directory.glob("*.jsonl"))) == 2


@pytest.mark.parametrize("mode", ["durable", "written", "staged"])
def test_kill_9_loses_no_acknowledged_record(directory: Path, key: Ed25519PrivateKey, mode: str) -> None:
    acknowledged = 0
    for lines in (1, 40, 7, 150, 3, 90, 25, 60) * 2:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("writer.py")), str(directory), mode],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
        process.wait(5)
        process.stdout.close()
        acknowledged = int([line for line in seen if line.endswith(b"\n")][-1])
        log = AuditLog.open(directory, ORIGIN, key)
        assert log.size > acknowledged
        assert sum(1 for _ in log.records()) == log.size
        asyncio.run(log.close())
        report = verify_directory(directory, key.public_key())
        assert report.ok, report.finding
    assert acknowledged > 300


async def test_a_staged_record_reaches_the_kernel_with_the_next_one_or_the_sync(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log()
    file = segments.list_segments(directory)[0].path
    log.append("a", {"n": 0}, staged=True)
    log.append("a", {"n": 1}, staged=True)
    assert file.stat().st_size == 0
    log.append("a", {"n": 2})
    assert [json.loads(line)["n"] for line in file.read_bytes().splitlines()] == [0, 1, 2]
    seq = log.append("a", {"n": 3}, staged=True)
    await log.durable(seq)
    assert len(file.read_bytes().splitlines()) == 4
    log.append("a", {"n": 4}, staged=True)
    assert [record["n"] for record in log.records()] == [0, 1, 2, 3, 4], "a reader sees what was appended"
    log.append("a", {"n": 5}, staged=True)
    await log.close()
    report = verify_directory(directory, key.public_key())
    assert report.ok, report.finding
    assert (report.size, report.signed_size) == (6, 6)


async def test_staged_records_stay_together_over_rotations(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log(max_segment_bytes=700)
    waits = [asyncio.create_task(log.durable(log.append("a", {"n": n}, staged=n % 3 > 0))) for n in range(60)]
    await asyncio.gather(*waits)
    assert [record["n"] for record in log.records()] == list(range(60))
    await log.close()
    assert len(list(directory.glob("*.jsonl"))) > 10
    report = verify_directory(directory, key.public_key())
    assert report.ok, report.finding


async def test_a_staged_record_that_cannot_be_written_is_never_durable(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    seq = log.append("a", {}, staged=True)

    def full(_fd: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UnavailableError) as raised:
            await log.durable(seq)
    assert raised.value.reason == "audit_unavailable"
    assert log.failed
    with pytest.raises(UnavailableError):
        log.append("a", {})
    with pytest.raises(UnavailableError):
        await log.durable(seq)
    await log.close()


class CrashError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(4))
async def test_crash_at_any_step_of_a_rotation_leaves_a_log_that_goes_on(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    log = open_log(max_segment_bytes=500)
    log.append("a", {"pad": "x" * 600})
    crash = itertools.count()
    with monkeypatch.context() as patch:
        for owner, name in (
            (segments, "replace_file"),
            (SegmentWriter, "turn_to"),
            (segments, "sync_directory"),
        ):
            patch.setattr(owner, name, _crashing(getattr(owner, name), crash, step))
        with pytest.raises(CrashError):
            log.append("a", {"n": 1})
    log._release()  # as the kernel does for a dead process
    for expected in (1, 2):
        log = open_log(max_segment_bytes=500)
        assert log.append("a", {"n": expected}) == expected
        await log.close()
    report = verify_directory(directory, key.public_key())
    assert report.ok, report.finding


def _crashing(real: Callable[..., None], count: Iterator[int], step: int) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        if next(count) == step:
            raise CrashError
        real(*args, **kwargs)

    return call


async def test_torn_last_line_is_cut_and_recorded(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log()
    log.append("a", {})
    await log.close()
    segment = directory / f"{0:020d}.jsonl"
    whole = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b'{"half":"a rec')
    log = open_log()
    await log.close()
    assert segment.read_bytes()[whole : whole + 10] == b'{"bytes":1'
    recovered = list(log.records())[1]
    assert (recovered["type"], recovered["bytes"], recovered["offset"]) == ("log.recovered", 14, whole)
    assert verify_directory(directory, key.public_key()).ok


async def test_bad_line_in_the_middle_is_refused_with_its_place(open_log: OpenLog, directory: Path) -> None:
    log = open_log()
    for i in range(5):
        log.append("a", {"n": i})
    await log.close()
    segment = directory / f"{0:020d}.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:2], lines[2].replace(b'"n":2', b'"n":7'), *lines[3:]]))
    with pytest.raises(FailedPreconditionError) as caught:
        open_log()
    assert caught.value.reason == "audit_log_damaged"
    assert caught.value.metadata["line"] == "4"


async def test_log_shorter_than_its_signed_head_is_refused(open_log: OpenLog, directory: Path) -> None:
    log = open_log()
    for i in range(5):
        log.append("a", {"n": i})
    await log.close()
    segment = directory / f"{0:020d}.jsonl"
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(FailedPreconditionError) as caught:
        open_log()
    assert caught.value.reason == "audit_log_truncated"


async def test_another_key_cannot_continue_a_log(open_log: OpenLog, directory: Path) -> None:
    log = open_log()
    log.append("a", {})
    await log.close()
    with pytest.raises(FailedPreconditionError) as caught:
        AuditLog.open(directory, ORIGIN, Ed25519PrivateKey.generate())
    assert caught.value.reason == "audit_key_mismatch"


async def test_second_writer_is_refused(open_log: OpenLog) -> None:
    log = open_log()
    with pytest.raises(ConflictError) as caught:
        open_log()
    assert caught.value.reason == "audit_log_locked"
    await log.close()
    await open_log().close()


async def test_lost_or_damaged_tree_file_is_derived_again(open_log: OpenLog, directory: Path) -> None:
    log = open_log(max_segment_bytes=2000)
    for i in range(100):
        log.append("a", {"n": i})
    await log.close()
    tree = (directory / "tree").read_bytes()
    for damage in (b"", tree[:700], bytes(len(tree))):
        (directory / "tree").write_bytes(damage)
        log = open_log()
        proof = log.inclusion_proof(3, 100)
        await log.close()
        assert (directory / "tree").read_bytes() == tree
        leaf = merkle.leaf_hash(next(log.lines(3)))
        assert merkle.verify_inclusion(leaf, 3, 100, proof, merkle.CompactRange(100, log._edge.edge).root())


async def test_proofs_lead_to_the_signed_head(open_log: OpenLog, key: Ed25519PrivateKey) -> None:
    log = open_log(max_segment_bytes=2000)
    for i in range(50):
        log.append("a", {"n": i})
    await log.durable(49)
    old_root = log.root_at(50)
    for i in range(30):
        log.append("a", {"n": i})
    await log.durable(79)
    head = open_checkpoint(log.checkpoint(), key.public_key(), ORIGIN)
    assert (head.size, head.root) == (80, log.root_at(80))
    for seq in (0, 33, 49, 50, 79):
        leaf = merkle.leaf_hash(next(log.lines(seq)))
        assert merkle.verify_inclusion(leaf, seq, 80, log.inclusion_proof(seq), head.root)
    assert merkle.verify_consistency(50, old_root, 80, head.root, log.consistency_proof(50))
    for call in (lambda: log.inclusion_proof(80), lambda: log.consistency_proof(81), lambda: log.root_at(81)):
        with pytest.raises(OutOfRangeError):
            call()
    await log.close()


async def test_head_covers_durable_records_only(open_log: OpenLog, key: Ed25519PrivateKey) -> None:
    log = open_log()
    log.append("a", {})
    await log.durable(0)
    log.append("a", {})
    assert open_checkpoint(log.checkpoint(), key.public_key()).size == 1
    await log.close()


async def test_many_waiters_share_syncs(open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log()
    syncs = 0
    real = os.fdatasync

    def counted(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)

    async def call(number: int) -> None:
        for _ in range(10):
            await log.durable(log.append("call.settled", {"n": number}))

    await asyncio.gather(*(call(n) for n in range(100)))
    assert log.durable_size == 1000
    assert syncs <= 100, "ten records a sync is the least that sharing must give"
    await log.close()


async def test_cancelled_waiter_does_not_stop_the_others(open_log: OpenLog) -> None:
    log = open_log()
    tasks = [asyncio.create_task(log.durable(log.append("a", {}))) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [
        asyncio.CancelledError,
        type(None),
        asyncio.CancelledError,
        type(None),
    ]
    await log.close()


async def test_failed_sync_refuses_everything_for_ever(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    seq = log.append("a", {})

    def failing(fd: int) -> None:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        outcomes = await asyncio.gather(*(log.durable(seq) for _ in range(3)), return_exceptions=True)
    assert [getattr(o, "reason", None) for o in outcomes] == ["audit_unavailable"] * 3
    with pytest.raises(UnavailableError) as caught:
        log.append("a", {})
    assert caught.value.reason == "audit_unavailable"
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(log.durable(seq), 5)
    assert caught.value.reason == "audit_unavailable"
    await log.close()


def test_full_disk_refuses_for_ever_and_leaves_a_whole_log(directory: Path, key: Ed25519PrivateKey) -> None:
    directory.mkdir()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _fill(directory, key)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    log = AuditLog.open(directory, ORIGIN, key)
    assert log.size > 10
    asyncio.run(log.close())
    assert verify_directory(directory, key.public_key()).ok


def _append_for_ever(log: AuditLog) -> None:
    for i in itertools.count():
        log.append("a", {"n": i, "pad": "x" * 100})


def _fill(directory: Path, key: Ed25519PrivateKey) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    log = AuditLog.open(directory, ORIGIN, key)
    reasons = []
    for i in range(100):
        try:
            log.append("a", {"n": i, "pad": "x" * 100})
        except UnavailableError as exc:
            reasons.append(exc.reason)
    return 0 if set(reasons) == {"audit_unavailable"} and log.failed and log.size + len(reasons) == 100 else 2


@pytest.mark.root
def test_full_file_system_refuses_for_ever_and_leaves_a_whole_log(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("the kernel lets us mount no tmpfs here")
    try:
        log = AuditLog.open(disk / "audit", ORIGIN, key)
        with pytest.raises(UnavailableError):
            _append_for_ever(log)
        with pytest.raises(UnavailableError):
            log.append("a", {})
        whole = log.size
        asyncio.run(log.close())
        assert whole > 100
        report = verify_directory(disk / "audit", key.public_key())
        assert report.ok, report.finding
        assert report.size == whole
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("Call", {}, "audit_type_invalid"),
        ("a\nb", {}, "audit_type_invalid"),
        ("call", {"seq": 7}, "audit_field_reserved"),
        ("call", {"prev": ""}, "audit_field_reserved"),
        ("call", {"x": 1.5}, "audit_field_invalid"),
        ("call", {"x": 2**60}, "audit_field_invalid"),
        ("call", {str(i): "x" * 8000 for i in range(10)}, "audit_record_too_large"),
    ],
)
async def test_bad_record_is_refused_and_leaves_no_trace(
    open_log: OpenLog, kind: str, fields: dict[str, object], reason: str
) -> None:
    log = open_log()
    with pytest.raises(InvalidInputError) as caught:
        log.append(kind, fields)
    assert caught.value.reason == reason
    assert log.append("call", {"fine": True}) == 0
    await log.close()


async def test_secrets_are_not_in_the_files(open_log: OpenLog, directory: Path) -> None:
    log = open_log()
    log.redactor.register("provider-key-canary")
    log.append("call", {"arg": "use provider-key-canary now", "nested": {"h": ["Bearer abcdef012345678"]}})
    log.append("call", {"arg": "sk-canary0123456789abcdef\ud800", "password": "hunter2"})
    await log.close()
    everything = b"".join(path.read_bytes() for path in directory.iterdir())
    for secret in (b"canary", b"abcdef012345678", b"hunter2"):
        assert secret not in everything


async def test_router_register_52_agent_text_cannot_break_out_of_its_field(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log()
    log.append("call", {"arg": '\n{"type":"forged"}\n\r\x00\u2028"|\ud800' + "y" * 20_000})
    await log.close()
    assert len(list(log.records())) == 1
    assert len(str(next(log.records())["arg"])) < 8300
    assert verify_directory(directory, key.public_key()).ok


async def test_pruned_log_verifies_and_goes_on(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log(max_segment_bytes=2000)
    for i in range(200):
        log.append("a", {"n": i})
    archived: list[str] = []
    first = await log.prune(150, archive=lambda path: archived.append(path.name))
    assert 100 < first <= 150
    assert archived
    await log.close()
    (directory / "tree").unlink()
    log = open_log()
    assert log.first_seq == first
    with pytest.raises(OutOfRangeError):
        log.lines(first - 1)
    leaf = merkle.leaf_hash(next(log.lines(first)))
    size = log.durable_size
    assert merkle.verify_inclusion(leaf, first, size, log.inclusion_proof(first), log.root_at(size))
    assert await log.prune(10**9) < log.size - 1
    await log.close()
    report = verify_directory(directory, key.public_key())
    assert report.ok, report.finding
    assert report.first_seq > first


async def test_run_signs_new_heads_until_cancelled(
    open_log: OpenLog, directory: Path, key: Ed25519PrivateKey
) -> None:
    log = open_log(checkpoint_interval_s=0.01)
    task = asyncio.create_task(log.run())
    log.append("a", {})
    await asyncio.wait_for(log.wait_durable_beyond(0), 5)
    async with asyncio.timeout(5):
        while open_checkpoint((directory / "checkpoint").read_bytes(), key.public_key()).size != 1:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.close()


async def test_router_register_1_unwritable_directory_stops_the_start(
    tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UnavailableError) as caught:
        AuditLog.open(blocked / "audit", ORIGIN, key)
    assert caught.value.reason == "audit_unavailable"
