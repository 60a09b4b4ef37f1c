"""A log through any life: grown, restarted, torn, pruned, its tree lost; always whole, always provable."""

import asyncio
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_common.audit import AuditLog, merkle, open_checkpoint, verify_directory

ORIGIN = "kars.local/ns/team-a/sandbox/quickstart"

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.sampled_from(["restart", "kill", "tear", "lose tree"]), st.just(0)),
        st.tuples(st.just("prune"), st.integers(0, 100)),
    ),
    max_size=12,
)


class Life:
    """One log and what must be true of it."""

    def __init__(self, directory: Path, key: Ed25519PrivateKey) -> None:
        self.directory = directory
        self.key = key
        self.heads: dict[int, bytes] = {}
        self.open()

    def open(self) -> None:
        self.log = AuditLog.open(self.directory, ORIGIN, self.key, max_segment_bytes=1500)

    async def step(self, what: str, number: int) -> None:
        if what == "append":
            for i in range(number):
                self.log.append("a", {"n": i})
            await self.log.durable(self.log.size - 1)
            self.heads[self.log.size] = self.log.root_at(self.log.size)
        elif what == "prune":
            await self.log.prune(self.log.size * number // 100)
        else:
            if what == "restart":
                await self.log.close()
            else:
                await self.log._commit.close()
                self.log._release()
            if what == "tear":
                with max(self.directory.glob("*.jsonl")).open("ab") as file:
                    file.write(b'{"a":')
            if what == "lose tree":
                (self.directory / "tree").unlink()
            self.open()

    def check(self) -> None:
        log = self.log
        size = log.durable_size
        head = open_checkpoint(log.checkpoint(), self.key.public_key(), ORIGIN)
        assert head.size == size
        first = log.first_seq
        assert [r["seq"] for r in log.records(first)] == list(range(first, log.size))
        for seq in {first, (first + size) // 2, size - 1} if size > first else set():
            leaf = merkle.leaf_hash(next(log.lines(seq)))
            assert merkle.verify_inclusion(leaf, seq, size, log.inclusion_proof(seq), head.root)
        for old, root in self.heads.items():
            if first <= old <= size:
                proof = log.consistency_proof(old)
                assert merkle.verify_consistency(old, root, size, head.root, proof)


@settings(max_examples=60)
@given(STEPS)
def test_whatever_happens_the_log_verifies_and_proves(steps: list[tuple[str, int]]) -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"log key for tests, 32 bytes long")

    async def live(directory: Path) -> None:
        life = Life(directory, key)
        life.log.append("a", {})
        for what, number in steps:
            await life.step(what, number)
            life.check()
        await life.log.close()
        report = verify_directory(directory, key.public_key())
        assert report.ok, report.finding
        assert report.size == report.signed_size == life.log.size

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(live(Path(name) / "audit"))
