"""Versions rise with content, never fall, and every bundle verifies."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.policy.v1 import policy_pb2
from kars_common import policy
from kars_controller.distribution import PolicyPublisher, PolicySessions, Refused
from kars_controller.platforms.base import SandboxKey
from kars_controller.storage import Database

KEY = SandboxKey("default", "agent")


def content(threshold: int = 500) -> policy_pb2.PolicyBundle:
    bundle = policy_pb2.PolicyBundle()
    bundle.sandbox.namespace, bundle.sandbox.name = KEY
    bundle.governance.trust_threshold = threshold
    return bundle


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "resources.db")
    yield database
    database.close()


def test_a_new_version_only_for_new_content(database: Database) -> None:
    key = Ed25519PrivateKey.generate()
    publisher = PolicyPublisher(database, key)
    first = publisher.publish(content())
    assert publisher.publish(content()) == first
    second = publisher.publish(content(1))
    assert (first.version, second.version) == (1, 2)
    assert PolicyPublisher(database, key).publish(content(1)) == second
    verified = policy.verify(second.signed, {policy.key_id(key.public_key()): key.public_key()}, KEY, 1)
    assert verified.governance.trust_threshold == 1


def test_a_new_signing_key_signs_again_under_a_new_version(database: Database) -> None:
    PolicyPublisher(database, Ed25519PrivateKey.generate()).publish(content())
    key = Ed25519PrivateKey.generate()
    again = PolicyPublisher(database, key).publish(content())
    assert (again.version, again.signed.key_id) == (2, policy.key_id(key.public_key()))


def test_versions_go_on_after_a_sandbox_was_deleted_and_made_again(database: Database) -> None:
    publisher = PolicyPublisher(database, Ed25519PrivateKey.generate())
    publisher.publish(content())
    publisher.publish(content(1))
    publisher.withdraw(KEY)
    assert publisher.current(KEY) is None
    assert publisher.publish(content()).version == 3


def test_a_lost_database_does_not_roll_versions_back(database: Database) -> None:
    publisher = PolicyPublisher(database, Ed25519PrivateKey.generate())
    publisher.publish(content())
    publisher.raise_floor(KEY, 41, "sha256:of-before")
    current = publisher.current(KEY)
    assert current is not None
    assert current.version == 42
    publisher.raise_floor(KEY, 42, current.digest)
    assert publisher.current(KEY) == current
    publisher.raise_floor(KEY, 42, "sha256:same-version-other-content")
    raised = publisher.current(KEY)
    assert raised is not None
    assert raised.version == 43


def test_a_floor_is_kept_before_there_is_a_bundle(database: Database) -> None:
    publisher = PolicyPublisher(database, Ed25519PrivateKey.generate())
    publisher.raise_floor(KEY, 7, "sha256:x")
    assert publisher.current(KEY) is None
    assert publisher.publish(content()).version == 8


@pytest.mark.parametrize("claimed", [-1, 0, 2**62, 2**63 - 1])
def test_absurd_floors_are_ignored(database: Database, claimed: int) -> None:
    publisher = PolicyPublisher(database, Ed25519PrivateKey.generate())
    publisher.publish(content())
    publisher.raise_floor(KEY, claimed, "sha256:x")
    assert publisher.publish(content(2)).version == 2


async def test_the_last_stream_of_a_sandbox_decides_on_connected() -> None:
    heard: list[SandboxKey] = []
    sessions = PolicySessions(heard.append)
    with sessions.open(KEY, version=1, digest="d1", admin_endpoint="a:1"):
        with sessions.open(KEY, version=1, digest="d1", admin_endpoint="a:1") as second:
            sessions.refused(second, Refused(version=2, digest="d2", reason="compile_failed", message=""))
        answer = sessions.answer(KEY)
        assert (answer.connected, answer.digest) == (True, "d1")
        assert answer.refused is not None
    assert sessions.answer(KEY).connected is False
    assert heard
