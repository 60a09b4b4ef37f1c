"""How one resource is named, and what its document is."""

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
"""A Kubernetes-shaped JSON object: apiVersion, kind, metadata, spec, status."""


@dataclass(frozen=True, slots=True, order=True)
class ResourceKey:
    """Kind (its canonical spelling), namespace (empty for cluster scope) and name."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, document: Document) -> "ResourceKey":
        """Return the key of a stored document."""
        metadata = document["metadata"]
        return cls(document["kind"], metadata.get("namespace", ""), metadata["name"])

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


def deleting(document: Document) -> bool:
    """Tell whether deletion was asked for and finalizers are still running."""
    return "deletionTimestamp" in document["metadata"]


def generation(document: Document) -> int:
    """Return metadata.generation."""
    return int(document["metadata"]["generation"])
