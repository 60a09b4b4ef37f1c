"""The store keeps Kubernetes' promises: versions, generations, finalizers, watch."""

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kars_common.errors import ConflictError, FailedPreconditionError, NotFoundError, OutOfRangeError
from kars_controller import testing
from kars_controller.resources import (
    Change,
    ChangeType,
    EventLog,
    EventType,
    Outcome,
    ResourceKey,
    ResourceStore,
    store,
)
from kars_controller.storage import Database

KEY = ResourceKey("InferencePolicy", "default", "models")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "resources.db")
    yield database
    database.close()


@pytest.fixture
def resources(database: Database) -> ResourceStore:
    return ResourceStore(database)


async def take(resources: ResourceStore, count: int, version: int = 0) -> list[Change]:
    found: list[Change] = []
    async with asyncio.timeout(5), aclosing(resources.watch("InferencePolicy", "", version)) as changes:  # type: ignore[type-var]
        async for change in changes:
            found.append(change)
            if len(found) == count:
                break
    return found


def test_only_a_change_of_spec_raises_the_generation(resources: ResourceStore) -> None:
    outcome, created = resources.apply(testing.inference_policy())
    assert (outcome, created["metadata"]["generation"]) == (Outcome.CREATED, 1)

    resources.update_status(KEY, created["metadata"]["uid"], {"phase": "Ready"})
    outcome, same = resources.apply(testing.inference_policy())
    assert (outcome, same["metadata"]["generation"], same["status"]) == (
        Outcome.UNCHANGED,
        1,
        {"phase": "Ready"},
    )

    labelled = testing.inference_policy()
    labelled["metadata"]["labels"] = {"team": "red"}
    outcome, document = resources.apply(labelled)
    assert (outcome, document["metadata"]["generation"]) == (Outcome.CONFIGURED, 1)

    outcome, document = resources.apply(testing.inference_policy(displayName="x"))
    assert (outcome, document["metadata"]["generation"]) == (Outcome.CONFIGURED, 2)
    assert document["status"] == {"phase": "Ready"}


def test_a_writer_with_an_old_version_is_refused(resources: ResourceStore) -> None:
    _, created = resources.apply(testing.inference_policy())
    resources.apply(testing.inference_policy(displayName="newer"))
    stale = testing.inference_policy(displayName="stale")
    stale["metadata"]["resourceVersion"] = created["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError) as refusal:
        resources.apply(stale)
    assert refusal.value.reason == "conflict"
    assert resources.get(KEY)["spec"]["displayName"] == "newer"


def test_dry_run_stores_nothing(resources: ResourceStore) -> None:
    outcome, _ = resources.apply(testing.inference_policy(), dry_run=True)
    assert outcome is Outcome.CREATED
    assert resources.find(KEY) is None
    assert resources.resource_version == 0


def test_deletion_waits_for_finalizers_and_refuses_an_apply_meanwhile(resources: ResourceStore) -> None:
    _, created = resources.apply(testing.inference_policy())
    uid = created["metadata"]["uid"]
    resources.add_finalizer(KEY, uid, "kars/test")
    marked = resources.delete(KEY)
    assert "deletionTimestamp" in marked["metadata"]
    assert resources.delete(KEY) == marked
    with pytest.raises(ConflictError) as refusal:
        resources.apply(testing.inference_policy(displayName="x"))
    assert refusal.value.reason == "resource_deleting"
    with pytest.raises(ConflictError):
        resources.add_finalizer(KEY, uid, "kars/late")
    resources.remove_finalizer(KEY, uid, "kars/test")
    with pytest.raises(NotFoundError):
        resources.get(KEY)


def test_a_status_for_the_predecessor_of_the_same_name_is_refused(resources: ResourceStore) -> None:
    _, first = resources.apply(testing.inference_policy())
    resources.delete(KEY)
    resources.apply(testing.inference_policy())
    with pytest.raises(NotFoundError):
        resources.update_status(KEY, first["metadata"]["uid"], {"phase": "Ready"})
    assert "status" not in resources.get(KEY)


async def test_watch_gives_present_state_then_every_change_in_order(resources: ResourceStore) -> None:
    resources.apply(testing.inference_policy())
    watching = asyncio.create_task(take(resources, 4))
    await asyncio.sleep(0)
    resources.apply(testing.sandbox())  # another kind: not seen
    resources.apply(testing.inference_policy(displayName="x"))
    resources.apply(testing.inference_policy("other"))
    resources.delete(KEY)
    changes = await watching
    assert [change.type for change in changes] == [
        ChangeType.ADDED,
        ChangeType.MODIFIED,
        ChangeType.ADDED,
        ChangeType.DELETED,
    ]
    versions = [change.resource_version for change in changes]
    assert versions == sorted(versions)


async def test_watch_resumes_after_a_version(resources: ResourceStore) -> None:
    _, created = resources.apply(testing.inference_policy())
    resources.apply(testing.inference_policy(displayName="x"))
    changes = await take(resources, 1, int(created["metadata"]["resourceVersion"]))
    assert changes[0].document["spec"]["displayName"] == "x"


async def test_watch_from_before_the_history_or_after_its_end_is_refused(
    resources: ResourceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_HISTORY", 5)
    monkeypatch.setattr(store, "_PRUNE_EVERY", 1)
    for number in range(20):
        resources.apply(testing.inference_policy(displayName=str(number)))
    for version in (3, 999):
        with pytest.raises(OutOfRangeError) as refusal:
            await take(resources, 1, version)
        assert refusal.value.reason == "resource_version_expired"
    assert len(await take(resources, 2, 18)) == 2


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "resources.db"
    first = Database(path)
    _, created = ResourceStore(first).apply(testing.inference_policy())
    first.close()
    second = Database(path)
    resources = ResourceStore(second)
    assert resources.get(KEY) == created
    _, changed = resources.apply(testing.inference_policy(displayName="x"))
    assert int(changed["metadata"]["resourceVersion"]) > int(created["metadata"]["resourceVersion"])
    second.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_database_of_a_newer_controller_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "resources.db")
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(FailedPreconditionError) as refusal:
        Database(tmp_path / "resources.db")
    assert refusal.value.reason == "storage_too_new"


def test_events_are_counted_and_bounded(database: Database, resources: ResourceStore) -> None:
    clock = testing.Clock()
    events = EventLog(database, clock)
    _, document = resources.apply(testing.inference_policy())
    for _ in range(3):
        clock.advance(1)
        events.record(document, EventType.WARNING, "Broken", "it broke")
    listed = events.list_of(KEY)
    assert [(event["reason"], event["count"]) for event in listed] == [("Broken", 3)]
    assert listed[0]["firstTimestamp"] < listed[0]["lastTimestamp"]
    for number in range(150):
        clock.advance(1)
        events.record(document, EventType.NORMAL, "Step", str(number))
    listed = events.list_of(KEY)
    assert len(listed) == 100
    assert listed[-1]["message"] == "149"


class StoreMachine(RuleBasedStateMachine):
    """Any order of writes keeps the model's specs, generations, and a history that rebuilds the state."""

    names = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.database = Database(Path(self.folder.name, "resources.db"))
        self.resources = ResourceStore(self.database)
        self.model: dict[str, dict[str, Any]] = {}

    @rule(name=names, display=st.sampled_from(["x", "y", "z"]))
    def apply(self, name: str, display: str) -> None:
        known = self.model.get(name)
        wanted = testing.inference_policy(name, displayName=display)
        if known is not None and known["deleting"]:
            with pytest.raises(ConflictError):
                self.resources.apply(wanted)
            return
        self.resources.apply(wanted)
        if known is None:
            self.model[name] = {"display": display, "generation": 1, "finalizers": set(), "deleting": False}
        elif known["display"] != display:
            known["display"] = display
            known["generation"] += 1

    @rule(name=names, finalizer=st.sampled_from(["f", "g"]), add=st.booleans())
    def finalize(self, name: str, finalizer: str, *, add: bool) -> None:
        known = self.model.get(name)
        if known is None or (add and known["deleting"]):
            return
        key = ResourceKey("InferencePolicy", "default", name)
        uid = self.resources.get(key)["metadata"]["uid"]
        if add:
            self.resources.add_finalizer(key, uid, finalizer)
            known["finalizers"].add(finalizer)
        else:
            had = finalizer in known["finalizers"]
            self.resources.remove_finalizer(key, uid, finalizer)
            known["finalizers"].discard(finalizer)
            if had and known["deleting"] and not known["finalizers"]:
                del self.model[name]

    @rule(name=names)
    def delete(self, name: str) -> None:
        known = self.model.get(name)
        if known is None:
            return
        self.resources.delete(ResourceKey("InferencePolicy", "default", name))
        if known["finalizers"]:
            known["deleting"] = True
        else:
            del self.model[name]

    @rule(name=names, phase=st.sampled_from(["Ready", "Compiled"]))
    def status(self, name: str, phase: str) -> None:
        if name in self.model:
            key = ResourceKey("InferencePolicy", "default", name)
            self.resources.update_status(key, self.resources.get(key)["metadata"]["uid"], {"phase": phase})

    @invariant()
    def state_matches_the_model(self) -> None:
        listed = {item["metadata"]["name"]: item for item in self.resources.list_kind("InferencePolicy")}
        assert {
            name: (item["spec"]["displayName"], item["metadata"]["generation"])
            for name, item in listed.items()
        } == {name: (item["display"], item["generation"]) for name, item in self.model.items()}

    @invariant()
    def history_rebuilds_the_state(self) -> None:
        rebuilt: dict[str, str] = {}
        for row in self.database.rows("SELECT * FROM changes ORDER BY resource_version"):
            found = json.loads(row["document"])
            name = found["metadata"]["name"]
            rebuilt[name] = row["document"]
            if row["type"] == "DELETED":
                del rebuilt[name]
        listed = self.resources.list_kind("InferencePolicy")
        assert {item["metadata"]["name"]: item for item in listed} == {
            name: json.loads(text) for name, text in rebuilt.items()
        }

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
