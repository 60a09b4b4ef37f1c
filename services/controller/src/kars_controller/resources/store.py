"""The resource store: what a Kubernetes API server keeps, in SQLite.

Every write takes the next resource version and leaves a change behind, in one transaction. A change of
spec raises the generation; a change of status does not; a write that changes nothing writes nothing.
Documents arrive validated and defaulted: this module knows metadata, not kinds.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from kars_common.errors import ConflictError, NotFoundError, OutOfRangeError

from kars_controller.resources.keys import Document, ResourceKey, deleting
from kars_controller.resources.timestamps import rfc3339
from kars_controller.storage import Database

_HISTORY = 5000
_PRUNE_EVERY = 256
_WATCH_BATCH = 200
_USER_METADATA = ("labels", "annotations")


class Outcome(StrEnum):
    """What an apply did."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"


class ChangeType(StrEnum):
    """What a watch reports."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change, with the document as it was then."""

    type: ChangeType
    document: Document
    resource_version: int


class ResourceStore:
    """Resources with optimistic concurrency, finalizers and a watchable history."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._now = now
        self._waiters: set[asyncio.Event] = set()

    # Reading

    def find(self, key: ResourceKey) -> Document | None:
        """Return a resource, or None."""
        row = self._database.row(
            "SELECT document FROM resources WHERE kind = ? AND namespace = ? AND name = ?",
            (key.kind, key.namespace, key.name),
        )
        return None if row is None else json.loads(row["document"])

    def get(self, key: ResourceKey) -> Document:
        """Return a resource.

        Raises:
            NotFoundError: `resource_not_found`.
        """
        document = self.find(key)
        if document is None:
            raise NotFoundError("resource_not_found", f"{key} does not exist")
        return document

    def list_kind(self, kind: str, namespace: str = "") -> list[Document]:
        """Return the resources of a kind, sorted by namespace and name; all namespaces when empty."""
        rows = self._database.rows(
            "SELECT document FROM resources WHERE kind = ? AND (? = '' OR namespace = ?)"
            " ORDER BY namespace, name",
            (kind, namespace, namespace),
        )
        return [json.loads(row["document"]) for row in rows]

    @property
    def resource_version(self) -> int:
        """The newest resource version; 0 in an empty store."""
        row = self._database.row("SELECT seq FROM sqlite_sequence WHERE name = 'changes'")
        return 0 if row is None else int(row["seq"])

    # Writing

    def apply(self, wanted: Document, *, dry_run: bool = False) -> tuple[Outcome, Document]:
        """Create or update by key; status and server-owned metadata in `wanted` are ignored.

        Raises:
            ConflictError: `conflict`, `wanted` carries a resourceVersion that is not the current one;
                `resource_deleting`, the old one's finalizers still run.
        """
        key = ResourceKey.of(wanted)
        current = self.find(key)
        _check_version(key, wanted["metadata"].get("resourceVersion"), current)
        if current is None:
            created = self._new(wanted)
            return Outcome.CREATED, created if dry_run else self._write(ChangeType.ADDED, created)
        if deleting(current):
            raise ConflictError(
                "resource_deleting", f"{key} is being deleted; apply it again when it is gone"
            )
        updated = _merged(current, wanted)
        if updated == current:
            return Outcome.UNCHANGED, current
        return Outcome.CONFIGURED, updated if dry_run else self._write(ChangeType.MODIFIED, updated)

    def update_status(self, key: ResourceKey, uid: str, status: Mapping[str, Any]) -> Document:
        """Replace the status of the resource with this uid; spec and generation stay.

        Raises:
            NotFoundError: `resource_not_found`, also when another resource took the name.
        """
        current = self._same(key, uid)
        if current.get("status") == status:
            return current
        return self._write(ChangeType.MODIFIED, {**current, "status": dict(status)})

    def add_finalizer(self, key: ResourceKey, uid: str, finalizer: str) -> Document:
        """Make deletion wait for `remove_finalizer`. Idempotent.

        Raises:
            NotFoundError: `resource_not_found`.
            ConflictError: `resource_deleting`, too late.
        """
        current = self._same(key, uid)
        finalizers = current["metadata"].get("finalizers", [])
        if finalizer in finalizers:
            return current
        if deleting(current):
            raise ConflictError("resource_deleting", f"{key} is being deleted")
        metadata = {**current["metadata"], "finalizers": [*finalizers, finalizer]}
        return self._write(ChangeType.MODIFIED, {**current, "metadata": metadata})

    def remove_finalizer(self, key: ResourceKey, uid: str, finalizer: str) -> Document:
        """Take a finalizer off; the last one of a resource being deleted removes it. Idempotent.

        Raises:
            NotFoundError: `resource_not_found`.
        """
        current = self._same(key, uid)
        left = [name for name in current["metadata"].get("finalizers", []) if name != finalizer]
        if left == current["metadata"].get("finalizers", []):
            return current
        metadata = {**current["metadata"], "finalizers": left}
        if not left:
            del metadata["finalizers"]
        updated = {**current, "metadata": metadata}
        gone = deleting(updated) and not left
        return self._write(ChangeType.DELETED if gone else ChangeType.MODIFIED, updated)

    def delete(self, key: ResourceKey) -> Document:
        """Remove a resource, or mark it while it has finalizers. Idempotent while marked.

        Raises:
            NotFoundError: `resource_not_found`.
        """
        current = self.get(key)
        if deleting(current):
            return current
        if not current["metadata"].get("finalizers"):
            return self._write(ChangeType.DELETED, current)
        metadata = {**current["metadata"], "deletionTimestamp": rfc3339(self._now())}
        return self._write(ChangeType.MODIFIED, {**current, "metadata": metadata})

    # Watching

    async def watch(self, kind: str, namespace: str = "", resource_version: int = 0) -> AsyncIterator[Change]:
        """Yield changes after a version, for ever; from 0 on, the present state first as ADDED.

        A slow reader holds nothing in memory: it reads the history table at its own pace.

        Raises:
            OutOfRangeError: `resource_version_expired`, the history does not reach back that far (or
                the version was never issued): list again.
        """
        grown = asyncio.Event()
        self._waiters.add(grown)
        try:
            position = resource_version
            if position == 0:
                position = self.resource_version
                for document in self.list_kind(kind, namespace):
                    version = int(document["metadata"]["resourceVersion"])
                    yield Change(type=ChangeType.ADDED, document=document, resource_version=version)
            while True:
                grown.clear()
                changes, position = self._changes(kind, namespace, position)
                for change in changes:
                    yield change
                if not changes:
                    await grown.wait()
        finally:
            self._waiters.discard(grown)

    def _changes(self, kind: str, namespace: str, after: int) -> tuple[list[Change], int]:
        newest = self.resource_version
        oldest = self._database.row("SELECT min(resource_version) AS oldest FROM changes")
        first = oldest["oldest"] if oldest is not None and oldest["oldest"] is not None else newest + 1
        if after > newest or after < first - 1:
            raise OutOfRangeError(
                "resource_version_expired",
                f"version {after} is not in the history ({first - 1} to {newest}); list again",
                {"oldest": str(first - 1), "newest": str(newest)},
            )
        rows = self._database.rows(
            "SELECT * FROM changes WHERE resource_version > ? AND kind = ? AND (? = '' OR namespace = ?)"
            " ORDER BY resource_version LIMIT ?",
            (after, kind, namespace, namespace, _WATCH_BATCH),
        )
        changes = [
            Change(
                type=ChangeType(row["type"]),
                document=json.loads(row["document"]),
                resource_version=row["resource_version"],
            )
            for row in rows
        ]
        return changes, changes[-1].resource_version if len(changes) == _WATCH_BATCH else newest

    # Inside

    def _same(self, key: ResourceKey, uid: str) -> Document:
        current = self.get(key)
        if current["metadata"]["uid"] != uid:
            raise NotFoundError("resource_not_found", f"{key} was replaced by another resource of this name")
        return current

    def _new(self, wanted: Document) -> Document:
        given = wanted["metadata"]
        metadata: dict[str, Any] = {"name": given["name"]}
        if given.get("namespace"):
            metadata["namespace"] = given["namespace"]
        metadata |= {field: given[field] for field in _USER_METADATA if given.get(field)}
        if given.get("finalizers"):
            metadata["finalizers"] = list(given["finalizers"])
        metadata["uid"] = str(uuid.uuid4())
        metadata["generation"] = 1
        metadata["creationTimestamp"] = rfc3339(self._now())
        document = {name: wanted[name] for name in ("apiVersion", "kind")}
        return {**document, "metadata": metadata, "spec": wanted["spec"]}

    def _write(self, change: ChangeType, document: Document) -> Document:
        key = ResourceKey.of(document)
        with self._database.transaction():
            cursor = self._database.execute(
                "INSERT INTO changes (kind, namespace, type, document) VALUES (?, ?, ?, '')",
                (key.kind, key.namespace, change.value),
            )
            version = int(cursor.lastrowid or 0)
            metadata = {**document["metadata"], "resourceVersion": str(version)}
            document = {**document, "metadata": metadata}
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
            self._database.execute(
                "UPDATE changes SET document = ? WHERE resource_version = ?", (text, version)
            )
            if change is ChangeType.DELETED:
                self._database.execute(
                    "DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?",
                    (key.kind, key.namespace, key.name),
                )
            else:
                self._database.execute(
                    "INSERT OR REPLACE INTO resources"
                    " (kind, namespace, name, uid, resource_version, document) VALUES (?, ?, ?, ?, ?, ?)",
                    (key.kind, key.namespace, key.name, metadata["uid"], version, text),
                )
            if version % _PRUNE_EVERY == 0:
                self._database.execute(
                    "DELETE FROM changes WHERE resource_version <= ?", (version - _HISTORY,)
                )
        for grown in self._waiters:
            grown.set()
        return document


def _check_version(key: ResourceKey, wanted: str | None, current: Document | None) -> None:
    actual = None if current is None else current["metadata"]["resourceVersion"]
    if wanted and wanted != actual:
        have = f"it is at {actual}" if actual else "it does not exist"
        raise ConflictError("conflict", f"{key} was read at resourceVersion {wanted}, {have}; read it again")


def _merged(current: Document, wanted: Document) -> Document:
    metadata = dict(current["metadata"])
    for name in _USER_METADATA:
        metadata.pop(name, None)
        if wanted["metadata"].get(name):
            metadata[name] = wanted["metadata"][name]
    if wanted["spec"] != current["spec"]:
        metadata["generation"] += 1
    # Key order carries no meaning in JSON, and dict comparison ignores it.
    return {**current, "metadata": metadata, "spec": wanted["spec"]}
