"""The verifier finds every attack on a log's files, and says where."""

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_common.audit import (
    AuditLog,
    MemoryWitnessStore,
    Problem,
    VerifyReport,
    Witness,
    WitnessedLog,
    verify_directory,
)
from kars_common.audit import witness as witness_module

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"
WITNESS = "kars.local/witness"


@dataclass(frozen=True)
class Sample:
    """A finished log of several segments, witnessed in the middle and at its end."""

    directory: Path
    key: Ed25519PublicKey
    witness_key: Ed25519PublicKey
    witnessed_note: bytes
    records: int

    def verify(self, directory: Path) -> VerifyReport:
        return verify_directory(directory, self.key, self.witness_key)


async def build(directory: Path, key: Ed25519PrivateKey, records: int) -> Sample:
    witness = Witness(WITNESS, Ed25519PrivateKey.generate(), MemoryWitnessStore())

    async def submit(s: witness_module.Submission) -> bytes:
        return witness.cosign(ORIGIN, s.old_size, s.proof, s.signed_note, s.log_public_key)

    log = AuditLog.open(directory, ORIGIN, key, max_segment_bytes=2500)
    witnessed = WitnessedLog(log, submit, WITNESS, witness.public_key)
    for i in range(records):
        log.append("call.settled", {"model": "gpt-4o", "tokens": i, "note": "ünïcode"})
        if i == records // 2:
            await log.durable(i)
            await witnessed.witness_once()
    await log.durable(records - 1)
    await witnessed.witness_once()
    await log.close()
    head = witness.witnessed(ORIGIN)
    assert head is not None
    return Sample(directory, key.public_key(), witness.public_key, head.signed_note, records)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey) -> Sample:
    return asyncio.run(build(tmp_path_factory.mktemp("verify") / "audit", key, 41))


@pytest.fixture
def copy(sample: Sample, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample.directory, tmp_path / "copy"))


def segments_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def test_whole_log_verifies(sample: Sample) -> None:
    report = sample.verify(sample.directory)
    assert report.ok, report.finding
    assert (report.size, report.signed_size, report.witnessed_size) == (41, 41, 41)
    assert report.origin == ORIGIN


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "copy"


@settings(max_examples=300)
@given(data=st.data())
def test_one_flipped_byte_anywhere_is_found_and_located(
    sample: Sample, scratch: Path, data: st.DataObject
) -> None:
    files = sorted(p.name for p in sample.directory.iterdir() if p.stat().st_size)
    name = data.draw(st.sampled_from(files), "file")
    content = bytearray((sample.directory / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "offset")
    content[place] ^= data.draw(st.integers(1, 255), "flip")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sample.directory, scratch)
    (scratch / name).write_bytes(content)
    finding = sample.verify(scratch).finding
    assert finding is not None
    if name == segments_of(sample.directory)[0].name and finding.problem is Problem.KEY_MISMATCH:
        return  # the first record's origin was changed, and the key file contradicted it
    assert finding.file == name
    if name.endswith(".jsonl"):
        original = (sample.directory / name).read_bytes()
        line = original.count(b"\n", 0, place)
        assert finding.line == line + 1
        assert finding.offset == (original.rfind(b"\n", 0, place) + 1)


@given(data=st.data())
def test_removed_lines_are_found(sample: Sample, scratch: Path, data: st.DataObject) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sample.directory, scratch)
    segment = data.draw(st.sampled_from(segments_of(scratch)))
    lines = segment.read_bytes().splitlines(keepends=True)
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, len(lines)))
    segment.write_bytes(b"".join(lines[:start] + lines[end:]))
    assert not sample.verify(scratch).ok


@given(data=st.data())
def test_swapped_and_repeated_lines_are_found(sample: Sample, scratch: Path, data: st.DataObject) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sample.directory, scratch)
    segment = data.draw(st.sampled_from(segments_of(scratch)))
    lines = segment.read_bytes().splitlines(keepends=True)
    first = data.draw(st.integers(0, len(lines) - 1))
    second = data.draw(st.integers(0, len(lines) - 1).filter(lambda i: i != first))
    if data.draw(st.booleans()):
        lines[first], lines[second] = lines[second], lines[first]
    else:
        lines.insert(second, lines[first])
    segment.write_bytes(b"".join(lines))
    assert not sample.verify(scratch).ok


def test_missing_segment_is_named(sample: Sample, copy: Path) -> None:
    middle = segments_of(copy)[2]
    middle.unlink()
    finding = sample.verify(copy).finding
    assert finding is not None
    assert (finding.problem, finding.file) == (Problem.MISSING_SEGMENT, segments_of(copy)[2].name)


def test_missing_first_segment_is_not_taken_for_pruning(sample: Sample, copy: Path) -> None:
    segments_of(copy)[0].unlink()
    finding = sample.verify(copy).finding
    assert finding is not None
    assert finding.problem is Problem.MISSING_SEGMENT


def test_cut_tail_is_found_by_the_heads(sample: Sample, copy: Path) -> None:
    last = segments_of(copy)[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    finding = sample.verify(copy).finding
    assert finding is not None
    assert (finding.problem, finding.seq) == (Problem.TRUNCATED, 40)
    assert finding.offset == last.stat().st_size


def test_tail_cut_together_with_all_its_heads_is_found_by_the_witness(sample: Sample, copy: Path) -> None:
    for name in ("checkpoint", "witnessed", "tree"):
        (copy / name).unlink()
    for path in [
        *segments_of(copy)[2:],
        *sorted(copy.glob("*.checkpoint"))[1:],
        *sorted(copy.glob("*.edge"))[1:],
    ]:
        path.unlink()
    assert sample.verify(copy).ok, "without the witness nothing tells"
    report = verify_directory(copy, sample.key, sample.witness_key, witnessed_note=sample.witnessed_note)
    assert report.finding is not None
    assert report.finding.problem is Problem.TRUNCATED
    assert "41 records" in report.finding.detail


def test_log_rewritten_by_the_holder_of_the_key_is_found_by_the_witness(
    sample: Sample, tmp_path: Path, key: Ed25519PrivateKey
) -> None:
    forged = asyncio.run(build(tmp_path / "forged", key, 40)).directory
    for name in ("witnessed",):
        (forged / name).unlink()
    assert sample.verify(forged).ok
    report = verify_directory(forged, sample.key, sample.witness_key, witnessed_note=sample.witnessed_note)
    assert not report.ok


def test_rewritten_chain_without_the_key_is_found(sample: Sample, copy: Path, tmp_path: Path) -> None:
    """The attacker recomputes every hash after the change, but cannot sign."""
    other = Ed25519PrivateKey.generate()
    forged = asyncio.run(build(tmp_path / "forged", other, 41)).directory
    for path in [*segments_of(forged), forged / "tree", *forged.glob("*.edge")]:
        shutil.copy(path, copy)
    finding = sample.verify(copy).finding
    assert finding is not None
    assert finding.problem in {Problem.EDGE_MISMATCH, Problem.HASH_MISMATCH}


def test_wrong_key_is_told(sample: Sample) -> None:
    report = verify_directory(sample.directory, Ed25519PrivateKey.generate().public_key())
    assert report.finding is not None
    assert report.finding.problem is Problem.KEY_MISMATCH


def test_other_origin_is_told(sample: Sample) -> None:
    report = verify_directory(sample.directory, sample.key, origin="kars.local/ns/team-b/sandbox/x")
    assert not report.ok


def test_missing_cosignature_is_told(sample: Sample, copy: Path) -> None:
    note = (copy / "witnessed").read_text()
    (copy / "witnessed").write_text(re.sub(r"— kars.local/witness .*\n", "", note))
    finding = sample.verify(copy).finding
    assert finding is not None
    assert (finding.problem, finding.file) == (Problem.COSIGNATURE, "witnessed")


def test_torn_tail_is_told_apart_from_tampering(sample: Sample, copy: Path) -> None:
    last = segments_of(copy)[-1]
    size = last.stat().st_size
    with last.open("ab") as file:
        file.write(b'{"half')
    finding = sample.verify(copy).finding
    assert finding is not None
    assert (finding.problem, finding.offset) == (Problem.TORN_RECORD, size)


@pytest.mark.parametrize("where", [0, 2, -1])
def test_endless_line_hides_nothing_behind_it(sample: Sample, copy: Path, where: int) -> None:
    segment = segments_of(copy)[where]
    for name in ("checkpoint", "witnessed"):
        (copy / name).unlink()
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:2], b"x" * 3_000_000, *lines[2:]]))
    finding = sample.verify(copy).finding
    assert finding is not None
    assert (finding.file, finding.line) == (segment.name, 3)


@pytest.mark.parametrize("present", [False, True])
def test_nothing_there_is_a_finding(tmp_path: Path, sample: Sample, present: bool) -> None:
    directory = tmp_path / "empty"
    if present:
        directory.mkdir()
    report = verify_directory(directory, sample.key)
    assert report.finding is not None
    assert report.finding.problem is (Problem.EMPTY if present else Problem.UNREADABLE)


@given(st.binary(max_size=200))
def test_garbage_never_crashes_the_verifier(sample: Sample, scratch: Path, garbage: bytes) -> None:
    for name in ("checkpoint", "witnessed", "key", f"{0:020d}.jsonl"):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(sample.directory, scratch)
        (scratch / name).write_bytes(garbage)
        assert not sample.verify(scratch).ok


def test_log_that_is_being_written_verifies_at_any_moment(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    writer = Path(__file__).with_name("writer.py")
    process = subprocess.Popen(
        [sys.executable, str(writer), str(tmp_path / "audit"), "written"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        sizes = []
        for _ in range(15):
            report = verify_directory(tmp_path / "audit", key.public_key())
            assert report.ok, report.finding
            sizes.append(report.size)
    finally:
        process.kill()
        process.wait(5)
        drain.join(5)
        process.stdout.close()
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
