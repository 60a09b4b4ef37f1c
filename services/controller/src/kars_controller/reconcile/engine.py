"""Runs the reconcilers: changes become keys, keys become plans, plans are carried out.

One failing resource waits by itself, with back-off; the others go on. A sandbox is worked on again when its
policies, its router's answer, its pod or the providers change; a policy when its sandboxes do.
"""

import asyncio
import logging

from kars_common.errors import KarsError, NotFoundError, OutOfRangeError
from kars_common.tasks import jittered

from kars_controller import references
from kars_controller.compile.mesh import RELAY_SUBJECT
from kars_controller.platforms.base import Platform, SandboxKey
from kars_controller.reconcile.mesh import MESH_KINDS, RELAY_KEY, MeshKeeper
from kars_controller.reconcile.observing import Observer
from kars_controller.reconcile.policies import reconcile_inference_policy, reconcile_tool_policy
from kars_controller.reconcile.queue import WorkQueue
from kars_controller.reconcile.recording import record
from kars_controller.reconcile.sandboxes import SandboxKeeper
from kars_controller.resources import (
    ChangeType,
    Document,
    EventLog,
    EventType,
    ResourceKey,
    ResourceStore,
    deleting,
    generation,
)

_LOG = logging.getLogger(__name__)
_WORKERS = 4
_KINDS = ("KarsSandbox", "InferencePolicy", "ToolPolicy", *MESH_KINDS)
_POLICIES = {"InferencePolicy": reconcile_inference_policy, "ToolPolicy": reconcile_tool_policy}


class Engine:
    """Brings what is in line with what is wanted, for ever."""

    def __init__(
        self,
        store: ResourceStore,
        events: EventLog,
        observer: Observer,
        sandboxes: SandboxKeeper,
        platform: Platform,
        *,
        mesh: MeshKeeper,
    ) -> None:
        self._store = store
        self._events = events
        self._observer = observer
        self._sandboxes = sandboxes
        self._platform = platform
        self._mesh = mesh
        self._queue: WorkQueue[ResourceKey] = WorkQueue()
        self._seen: dict[ResourceKey, tuple[str, int, bool]] = {}

    async def run(self) -> None:
        """Watch and work until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in _KINDS:
                    tasks.create_task(self._watch(kind), name=f"watch {kind}")
                tasks.create_task(self._watch_pods(), name="watch pods")
                for number in range(_WORKERS):
                    tasks.create_task(self._work(), name=f"reconcile {number}")
        finally:
            self._queue.close()

    def touch(self, sandbox: SandboxKey) -> None:
        """Say that something about a sandbox changed that no resource shows."""
        if sandbox == RELAY_SUBJECT:
            self._add_all("TrustGraph")
            return
        key = ResourceKey("KarsSandbox", sandbox.namespace, sandbox.name)
        self._queue.add(key)
        document = self._store.find(key)
        if document is not None:
            self._add_policies(document)

    def touch_all(self) -> None:
        """Say that something about every sandbox changed."""
        self._add_all("KarsSandbox")

    def touch_mesh(self) -> None:
        """Say that something about the mesh changed that no resource shows."""
        self._queue.add(RELAY_KEY)

    def _add_all(self, kind: str) -> None:
        for document in self._store.list_kind(kind):
            self._queue.add(ResourceKey.of(document))

    async def _watch(self, kind: str) -> None:
        while True:
            try:
                async for change in self._store.watch(kind):
                    self._changed(change.type, change.document)
            except OutOfRangeError:
                _LOG.warning("watch fell behind, listing again", extra={"kind": kind})

    def _changed(self, change: ChangeType, document: Document) -> None:
        """Queue what a change concerns; writes of status alone concern nobody."""
        key = ResourceKey.of(document)
        state = (document["metadata"]["uid"], generation(document), deleting(document))
        if change is ChangeType.DELETED:
            self._seen.pop(key, None)
        elif self._seen.get(key) == state:
            return
        else:
            self._seen[key] = state
        self._queue.add(key)
        if key.kind in ("KarsSandbox", *MESH_KINDS):
            self._queue.add(RELAY_KEY)
        if key.kind == "KarsSandbox":
            self._add_policies(document)
        elif key.kind not in MESH_KINDS:
            self._add_sandboxes(key)

    def _add_policies(self, sandbox: Document) -> None:
        for reference in references.references_of(sandbox):
            for candidate in reference.candidates:
                self._queue.add(candidate)

    def _add_sandboxes(self, policy: ResourceKey) -> None:
        for sandbox in self._store.list_kind("KarsSandbox"):
            if any(policy in reference.candidates for reference in references.references_of(sandbox)):
                self._queue.add(ResourceKey.of(sandbox))

    async def _watch_pods(self) -> None:
        async for sandbox in self._platform.changes():
            self._queue.add(ResourceKey("KarsSandbox", sandbox.namespace, sandbox.name))

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._reconcile(key)
                self._queue.succeeded(key)
            except NotFoundError:
                self._queue.succeeded(key)  # deleted or replaced meanwhile; its own change is queued
            except Exception as exc:  # noqa: BLE001 - the boundary between resources: one must not stop all
                self._failed(key, exc)
            finally:
                self._queue.done(key)

    async def _reconcile(self, key: ResourceKey) -> None:
        if key == RELAY_KEY:
            self._publish_mesh()
            return
        document = self._store.find(key)
        if document is None:
            return
        if key.kind == "KarsSandbox":
            requeue_s = await self._sandboxes.reconcile(document)
        else:
            if key.kind in MESH_KINDS:
                plan = self._mesh.reconcile(document)
            else:
                plan = _POLICIES[key.kind](document, self._observer.policy(document))
            record(self._store, self._events, document, plan)
            requeue_s = plan.requeue_s
        if requeue_s is not None:
            self._queue.add(key, jittered(requeue_s, 0.2))

    def _publish_mesh(self) -> None:
        changed, requeue_s = self._mesh.publish()
        if changed:
            # Their own parts are cut from the same edges.
            self._add_all("KarsSandbox")
            self._add_all("TrustGraph")
        self._queue.add(RELAY_KEY, requeue_s)

    def _failed(self, key: ResourceKey, error: Exception) -> None:
        wait_s = self._queue.failed(key)
        reason = error.reason if isinstance(error, KarsError) else "internal"
        _LOG.error(
            "reconcile failed",
            exc_info=error,
            extra={"key": str(key), "reason": reason, "retry_s": round(wait_s, 1)},
        )
        document = self._store.find(key)
        if document is not None:
            message = error.message if isinstance(error, KarsError) else "the controller failed; see its log"
            self._events.record(document, EventType.WARNING, "ReconcileFailed", message)
