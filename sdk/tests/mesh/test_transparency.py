"""The registration log: a registry that changes its story is found out, whichever way it tries."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars.mesh.v1 import registry_pb2
from kars_common.audit import merkle
from kars_sdk.mesh import transparency
from kars_sdk.mesh.directory import Directory
from kars_sdk.mesh.errors import IdentityError, MeshError
from kars_sdk.mesh.store import Store
from kars_sdk.mesh.testing import OPEN, Authority, name
from kars_sdk.mesh.testing_log import TreeLog
from kars_sdk.mesh.testing_mesh import MemoryMesh
from kars_sdk.mesh.transparency import Head, consistent, included
from kars_sdk.mesh.trust import TrustPolicy
from kars_sdk.mesh.upkeep import Membership

ALICE, BOB = name("alice"), name("bob")
ORIGIN = "kars.test/mesh-registrations"


def log_of(size: int) -> TreeLog:
    log = TreeLog(ORIGIN)
    for number in range(size):
        log.append(number=number)
    return log


def head_of(log: TreeLog, size: int) -> Head:
    return Head(size=size, root=log.root(0, size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64])
def test_true_proofs_are_accepted_and_changed_ones_are_not(size: int) -> None:
    log = log_of(size)
    head = head_of(log, size)
    for index in range(size):
        leaf = merkle.leaf_hash(log.leaves[index])
        path = log.inclusion(index, 0, size)
        assert included(leaf, index, head, path)
        assert not included(merkle.leaf_hash(b"other"), index, head, path)
        assert not included(leaf, index, Head(size=size, root=bytes(32)), path)
        assert not included(leaf, index, head, [*path, bytes(32)])
        if path:
            assert not included(leaf, index, head, path[:-1])
            assert not included(leaf, index ^ 1, head, path)
    for old in range(size):
        path = log.consistency(old, 0, size) if old else []
        assert consistent(head_of(log, old), head, path)
        if old:
            assert not consistent(Head(size=old, root=bytes(32)), head, path)
            assert not consistent(head_of(log, old), Head(size=size, root=bytes(32)), path)
            assert not consistent(head, head_of(log, old), path)


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8), st.integers(0, 40), st.integers(0, 40))
def test_random_proofs_prove_nothing(path: list[bytes], index: int, size: int) -> None:
    head = Head(size=size, root=bytes(32))
    assert not included(bytes(32), index, head, path)
    if 0 < index < size:
        assert not consistent(Head(size=index, root=bytes(range(32))), head, path)


@given(st.binary(max_size=300))
def test_notes_and_keys_of_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        transparency.open_note(data, bytes(32), ORIGIN)
    with contextlib.suppress(IdentityError):
        transparency.read_verifier_key(data.decode(errors="replace"), ORIGIN)


def test_a_head_is_read_only_when_its_log_signed_it() -> None:
    log, other = log_of(3), log_of(3)
    key = transparency.read_verifier_key(log.verifier_key, ORIGIN)
    assert transparency.open_note(log.head(), key, ORIGIN) == head_of(log, 3)
    for note in (other.head(), log.head().replace(b"\n3\n", b"\n4\n"), log.head()[:-20], b""):
        with pytest.raises(IdentityError):
            transparency.open_note(note, key, ORIGIN)
    with pytest.raises(IdentityError):
        transparency.open_note(log.head(), key, "elsewhere.test/mesh-registrations")


@contextlib.asynccontextmanager
async def joined(mesh: MemoryMesh, peer: str, folder: Path) -> AsyncIterator[Membership]:
    async def current() -> TrustPolicy:
        return OPEN

    endpoint = mesh.endpoint(name(peer))
    store = Store(folder / peer, bytes(32))
    membership = Membership(
        name=name(peer), store=store, directory=Directory(endpoint), trust=lambda: mesh.authority.trust,
        policy=current,
    )  # fmt: skip
    await membership.ready()
    try:
        yield membership
    finally:
        store.close()


async def refused(membership: Membership) -> str:
    with pytest.raises(MeshError) as error:
        await membership.take_bundle(BOB)
    return error.value.reason


async def test_a_registration_that_is_not_in_the_log_is_refused(tmp_path: Path) -> None:
    mesh = MemoryMesh(Authority())
    async with joined(mesh, "alice", tmp_path) as alice, joined(mesh, "bob", tmp_path):
        assert (await alice.take_bundle(BOB)).signed_prekey.key_id
        honest = mesh.registrations[BOB]
        hidden = registry_pb2.Registration()
        hidden.CopyFrom(honest)
        hidden.ClearField("log_entry")
        mesh.registrations[BOB] = hidden
        assert await refused(alice) == "log_entry_wrong"

        lie = registry_pb2.Registration()
        lie.CopyFrom(honest)
        second = mesh.authority.statement(BOB, alice.identity.public, serial=99)  # a controller made to lie
        lie.identity.statement, lie.identity.signature = second.statement, second.signature
        mesh.registrations[BOB] = lie
        assert await refused(alice) == "log_entry_wrong"
        leaf = json.loads(honest.log_entry.record)
        leaf["statement_sha256"] = hashlib.sha256(second.statement).hexdigest()
        leaf["identity_key"] = alice.identity.public.hex()
        lie.log_entry.record = json.dumps(leaf).encode()
        assert await refused(alice) == "log_inclusion_wrong"


async def test_a_registry_that_rewrites_its_log_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transparency, "_HEAD_WAIT_S", 0)
    mesh = MemoryMesh(Authority())
    async with joined(mesh, "alice", tmp_path) as alice, joined(mesh, "bob", tmp_path):
        await alice.take_bundle(BOB)
        honest = list(mesh.log.leaves)
        mesh.log.leaves[0] = b"{}"
        for _ in range(3):
            mesh.log.append(type="other")
        assert await refused(alice) == "log_forked"
        mesh.log.leaves[:] = honest[:1]
        assert await refused(alice) in {"log_head_behind", "log_forked"}
        mesh.log.leaves[:] = honest
        assert (await alice.take_bundle(BOB)).signed_prekey.key_id
        mesh.log = TreeLog(ORIGIN)
        mesh.log.leaves[:] = honest
        assert await refused(alice) == "log_key_changed"
