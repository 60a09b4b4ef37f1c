"""Writes that a person asks for: admitted, cross-checked, stored, and on record before they are answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kars_common.audit import AuditLog
from kars_common.errors import UnavailableError
from kars_common.spiffe import SpiffeId

from kars_controller import api_types, references
from kars_controller.resources import Document, Outcome, ResourceKey, ResourceStore, generation


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What became of an apply."""

    outcome: Outcome
    document: Document
    warnings: tuple[str, ...]


class Administration:
    """Changes resources on behalf of an operator; every attempt leaves an audit record."""

    def __init__(self, store: ResourceStore, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit

    async def apply(self, raw: Mapping[str, Any], operator: SpiffeId, *, dry_run: bool = False) -> Applied:
        """Create or update a resource.

        Raises:
            InvalidInputError: `schema_invalid`.
            ConflictError: `conflict`, `resource_deleting`.
            UnavailableError: `audit_unavailable`.
        """
        self._check_audit()
        admitted = api_types.admit(raw)
        api_types.check_change(admitted, self._store.find(ResourceKey.of(admitted.document)))
        warnings = (*admitted.warnings, *references.missing(admitted.document, self._store))
        outcome, document = self._store.apply(admitted.document, dry_run=dry_run)
        if not dry_run and outcome is not Outcome.UNCHANGED:
            await self._record(f"resource.{outcome.value}", document, operator)
        return Applied(outcome=outcome, document=document, warnings=warnings)

    async def delete(self, key: ResourceKey, operator: SpiffeId) -> Document:
        """Ask for deletion.

        Raises:
            NotFoundError: `resource_not_found`.
            UnavailableError: `audit_unavailable`.
        """
        self._check_audit()
        document = self._store.delete(key)
        await self._record("resource.deleted", document, operator)
        return document

    def _check_audit(self) -> None:
        # What cannot be put on record is not done.
        if self._audit.failed:
            raise UnavailableError(
                "audit_unavailable", "the audit log failed; no changes until it is repaired"
            )

    async def _record(self, event: str, document: Document, operator: SpiffeId) -> None:
        key = ResourceKey.of(document)
        fields = {
            "operator": str(operator),
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "uid": document["metadata"]["uid"],
            "generation": generation(document),
            "resource_version": document["metadata"]["resourceVersion"],
        }
        await self._audit.durable(self._audit.append(event, fields))
