"""Which resources a resource names, and which of those are there.

The one place that knows how references resolve; apply (as warnings) and reconcile (as conditions) ask it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from kars_controller.api_types import SYSTEM_NAMESPACE
from kars_controller.api_types.base import dig
from kars_controller.resources import Document, ResourceKey, ResourceStore

DEFAULT_TOOL_POLICY = "kars-default"


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference: the field it stands in and the keys it may resolve to, best first."""

    field: str
    candidates: tuple[ResourceKey, ...]

    @property
    def target(self) -> ResourceKey:
        """What is named, before any fall-back."""
        return self.candidates[0]


def inference_policy_of(sandbox: Document) -> Reference:
    """Return the reference to the sandbox's InferencePolicy."""
    name = dig(sandbox, "spec", "inferenceRef", "name")
    key = ResourceKey("InferencePolicy", sandbox["metadata"]["namespace"], name)
    return Reference("spec.inferenceRef.name", (key,))


def tool_policy_of(sandbox: Document) -> Reference | None:
    """Return the reference to the sandbox's ToolPolicy; None when governance is switched off.

    Without a governance block the shipped `kars-default` governs. By name, `kars-default` means the one in
    the sandbox's namespace if there is one, else the shipped one.
    """
    governance = dig(sandbox, "spec", "governance")
    shipped = ResourceKey("ToolPolicy", SYSTEM_NAMESPACE, DEFAULT_TOOL_POLICY)
    if governance is None:
        return Reference("spec.governance", (shipped,))
    if not governance.get("enabled"):
        return None
    name = dig(governance, "toolPolicyRef", "name")
    own = ResourceKey("ToolPolicy", sandbox["metadata"]["namespace"], name)
    candidates = (own, shipped) if name == DEFAULT_TOOL_POLICY and own != shipped else (own,)
    return Reference("spec.governance.toolPolicyRef.name", candidates)


def references_of(document: Document) -> Iterator[Reference]:
    """Yield the references that a resource holds to kinds served here."""
    if document["kind"] == "KarsSandbox":
        yield inference_policy_of(document)
        tool_policy = tool_policy_of(document)
        if tool_policy is not None:
            yield tool_policy


def resolve(reference: Reference, store: ResourceStore) -> Document | None:
    """Return the resource that a reference means, or None when there is none."""
    found = (store.find(key) for key in reference.candidates)
    return next((document for document in found if document is not None), None)


def missing(document: Document, store: ResourceStore) -> Iterator[str]:
    """Yield one warning for each reference to nothing: which, where, and what exists."""
    for reference in references_of(document):
        if resolve(reference, store) is None:
            yield f"{reference.field}: {not_found(reference, store)}; it is used as soon as it is applied"


def not_found(reference: Reference, store: ResourceStore) -> str:
    """Return a sentence that says what is missing and what is there instead."""
    target = reference.target
    names = [item["metadata"]["name"] for item in store.list_kind(target.kind, target.namespace)]
    close = get_close_matches(target.name, names, n=1, cutoff=0.6)
    near = f" (did you mean {close[0]}?)" if close else ""
    there = f"there are: {', '.join(names[:10])}" if names else "there is none"
    where = f"namespace {target.namespace}"
    return f"no {target.kind} named {target.name} in {where}{near}; {there}"
