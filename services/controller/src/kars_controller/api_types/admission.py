"""Decides whether a document may be stored, and in which form.

All that is wrong is reported at once, each with its field path, what was found and what is allowed.
What comes out is complete: defaults filled in, nulls gone, nothing that the kind does not know.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kars_common.errors import FieldViolation, InvalidInputError
from pydantic import ValidationError

from kars_controller.api_types import cel_rules, registry, violations
from kars_controller.api_types.base import (
    API_VERSION,
    RESERVED_NAMESPACES,
    Kind,
    Violation,
    is_label,
    is_subdomain,
)
from kars_controller.raw import Raw
from kars_controller.resources.keys import Document

_TOP_LEVEL = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA = (
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "resourceVersion",
    # Owned by the server; accepted because read documents carry them, and ignored.
    "uid",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
)


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A document fit to be stored, and remarks for whoever sent it."""

    kind: Kind
    document: Document
    warnings: tuple[str, ...]


def admit(raw: Mapping[str, Any]) -> Admitted:
    """Check a document of a served kind and complete it.

    Raises:
        InvalidInputError: `kind_not_served`; `schema_invalid` with one field violation for each thing
            that is wrong.
    """
    named = raw.get("kind")
    kind = registry.kind_named(named) if isinstance(named, str) else None
    if kind is not None:
        registry.check_served(kind)
    return validate(raw)


def check_change(wanted: Admitted, current: Document | None) -> None:
    """Refuse a creation or an update that the kind's transition rules do not allow.

    Args:
        wanted: What is to be stored.
        current: What is stored under its name; None when nothing is.

    Raises:
        InvalidInputError: `schema_invalid`.
    """
    old = None if current is None else current["spec"]
    found = list(cel_rules.transitions(wanted.kind.spec, wanted.document["spec"], old))
    if found:
        raise refused(wanted.document, found)


def validate(raw: Mapping[str, Any]) -> Admitted:
    """Check a document of any kind and complete it, as an API server with our schemas does.

    Raises:
        InvalidInputError: `schema_invalid` with one field violation for each thing that is wrong.
    """
    found = list(_envelope(raw))
    kind = registry.kind_named(raw["kind"]) if isinstance(raw.get("kind"), str) else None
    metadata = raw.get("metadata")
    if kind is not None:
        found += _name_rules(kind, metadata if isinstance(metadata, Mapping) else {})
    warnings: list[str] = []
    spec: dict[str, Any] = {}
    if kind is not None and isinstance(raw.get("spec"), Mapping):
        spec, wrong = _spec(kind, raw["spec"], warnings)
        found += wrong
    if found or kind is None or not isinstance(metadata, Mapping):
        raise refused(raw, found)
    kept = {name: value for name, value in metadata.items() if kind.namespaced or name != "namespace"}
    document: Document = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": kept, "spec": spec}
    return Admitted(kind=kind, document=document, warnings=tuple(warnings))


def parse_spec(document: Document) -> Raw:
    """Return the typed spec of a stored document.

    Raises:
        InvalidInputError: `schema_invalid`: stored by an older version whose schema this one no longer takes.
    """
    kind = registry.find_kind(document["kind"])
    try:
        return kind.spec.model_validate(document["spec"])
    except ValidationError as exc:
        raise refused(document, list(violations.of(exc, kind.spec))) from exc


def refused(raw: Mapping[str, Any], found: Iterable[Violation]) -> InvalidInputError:
    """Return the error that reports violations."""
    listed = [FieldViolation(item.field, item.description) for item in found]
    metadata = raw.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, Mapping) else ""
    what = f"{raw.get('kind', 'document')} {name}".strip()[:200]
    first = "; ".join(f"{item.field}: {item.description}" for item in listed[:3])
    more = f" (and {len(listed) - 3} more)" if len(listed) > 3 else ""
    return InvalidInputError("schema_invalid", f"{what} is not valid: {first}{more}", violations=listed)


def _spec(
    kind: Kind, given: Mapping[str, Any], warnings: list[str]
) -> tuple[dict[str, Any], list[Violation]]:
    raw = without_nulls(kind.normalise(dict(given), warnings))
    found = list(kind.rules(raw))
    try:
        parsed = kind.spec.model_validate(raw)
    except ValidationError as exc:
        found = [*violations.of(exc, kind.spec), *found]
        seen: set[str] = set()
        # A missing field may be named by the schema and by a rule; once is enough.
        return {}, [item for item in found if not (item.field in seen or seen.add(item.field))]  # type: ignore[func-returns-value]
    spec = parsed.model_dump(mode="json", by_alias=True, exclude_none=True)
    found += [item for item in cel_rules.violations(kind.spec, spec) if not _is_told(item.field, found)]
    if found:
        return {}, found
    warnings.extend(kind.remarks(parsed))
    return spec, []


def _is_told(field: str, found: Iterable[Violation]) -> bool:
    """Tell whether a field, or one inside it, is reported already, in better words than a rule's."""
    return any(item.field == field or item.field.startswith((f"{field}.", f"{field}[")) for item in found)


def without_nulls(value: Raw) -> Raw:
    """Return a copy without null members: null means absent, as it does for an API server."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _envelope(raw: Mapping[str, Any]) -> Iterator[Violation]:
    for name in raw:
        if name not in _TOP_LEVEL:
            yield Violation(
                str(name),
                f"unknown field{registry.suggest(str(name), _TOP_LEVEL)}; allowed: {', '.join(_TOP_LEVEL)}",
            )
    if raw.get("apiVersion") != API_VERSION:
        yield Violation(
            "apiVersion", f"got {violations.shown(raw.get('apiVersion'))}, allowed: {API_VERSION}"
        )
    kind = raw.get("kind")
    if not isinstance(kind, str) or registry.kind_named(kind) is None:
        near = registry.suggest(kind, (item.name for item in registry.KINDS)) if isinstance(kind, str) else ""
        yield Violation("kind", f"got {violations.shown(kind)}{near}; {registry.served()}")
    for name in ("metadata", "spec"):
        if not isinstance(raw.get(name), Mapping):
            yield Violation(name, f"got {violations.shown(raw.get(name))}, allowed: an object")


def _name_rules(kind: Kind, metadata: Mapping[str, Any]) -> Iterator[Violation]:
    for field in metadata:
        if field not in _METADATA:
            yield Violation(f"metadata.{field}", f"unknown field{registry.suggest(str(field), _METADATA)}")
    name = metadata.get("name")
    sandbox_like = kind.max_name_length < 253
    fits = isinstance(name, str) and (
        is_label(name, kind.max_name_length) if sandbox_like else is_subdomain(name)
    )
    if not fits:
        form = "a DNS-1123 label" if sandbox_like else "a DNS-1123 subdomain"
        yield Violation(
            "metadata.name",
            f"got {violations.shown(name)}, allowed: {form} of at most {kind.max_name_length} characters",
        )
    elif kind.fixed_name and name != kind.fixed_name:
        yield Violation(
            "metadata.name",
            f"got {violations.shown(name)}, allowed: {kind.fixed_name} (there is one {kind.name})",
        )
    namespace = metadata.get("namespace")
    if kind.namespaced and not (isinstance(namespace, str) and is_label(namespace)):
        yield Violation(
            "metadata.namespace",
            f"got {violations.shown(namespace)}, allowed: a DNS-1123 label of at most 63 characters",
        )
    elif kind.namespaced and namespace in RESERVED_NAMESPACES:
        yield Violation(
            "metadata.namespace", f"got {violations.shown(namespace)}, allowed: any other (services own it)"
        )
    for field in ("labels", "annotations"):
        yield from _strings(field, metadata.get(field))
    finalizers = metadata.get("finalizers")
    if finalizers is not None and not (
        isinstance(finalizers, list) and all(isinstance(item, str) and item for item in finalizers)
    ):
        yield Violation("metadata.finalizers", "allowed: a list of names")
    version = metadata.get("resourceVersion")
    if version is not None and not isinstance(version, str):
        yield Violation("metadata.resourceVersion", f"got {violations.shown(version)}, allowed: a string")


def _strings(field: str, value: Raw) -> Iterator[Violation]:
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield Violation(f"metadata.{field}", f"got {violations.shown(value)}, allowed: an object of strings")
        return
    for key, item in value.items():
        if not isinstance(item, str):
            yield Violation(f"metadata.{field}.{key}", f"got {violations.shown(item)}, allowed: a string")
