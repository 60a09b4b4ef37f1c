"""The resources that Envoy should have now, each with a version made from its bytes.

Bytes that did not change are not sent again: the version is their hash. Whoever is connected hears of each
change once. Single-threaded, as its event loop.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kars_egress.policy.sandboxes import SandboxId

Changed = Callable[[str, str], None]
"""Called with type URL and name."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """One resource as it is sent."""

    version: str
    data: bytes
    sandbox: SandboxId | None
    """Whose it is; None for what every Envoy gets."""


class Snapshot:
    """Everything there is to send."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Versioned]] = {}
        self._listeners: set[Changed] = set()

    def put(self, kind: str, name: str, data: bytes, sandbox: SandboxId | None = None) -> str:
        """Set one resource; returns its version."""
        version = hashlib.blake2b(data, digest_size=8).hexdigest()
        named = self._resources.setdefault(kind, {})
        known = named.get(name)
        if known is None or known.version != version:
            named[name] = Versioned(version, data, sandbox)
            self._notify(kind, name)
        return version

    def remove(self, kind: str, name: str) -> None:
        """Take one resource away. Idempotent."""
        if self._resources.get(kind, {}).pop(name, None) is not None:
            self._notify(kind, name)

    def get(self, kind: str, name: str, scope: SandboxId | None = None) -> Versioned | None:
        """Return a resource if an Envoy of this scope may have it; scope None may have all."""
        found = self._resources.get(kind, {}).get(name)
        return found if found is not None and _visible(found, scope) else None

    def names(self, kind: str, scope: SandboxId | None = None) -> Iterable[str]:
        """Return the names of one kind that an Envoy of this scope may have."""
        named: Mapping[str, Versioned] = self._resources.get(kind, {})
        return [name for name, resource in named.items() if _visible(resource, scope)]

    def listen(self, changed: Changed) -> Callable[[], None]:
        """Hear of every change; returns the way to stop."""
        self._listeners.add(changed)
        return lambda: self._listeners.discard(changed)

    def _notify(self, kind: str, name: str) -> None:
        for changed in tuple(self._listeners):
            changed(kind, name)


def _visible(resource: Versioned, scope: SandboxId | None) -> bool:
    return scope is None or resource.sandbox is None or resource.sandbox == scope
