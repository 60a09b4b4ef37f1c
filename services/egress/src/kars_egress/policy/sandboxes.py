"""What holds for one sandbox: its allowlist, what was approved on top, and whether it is learning.

Values only; a change is a new value. Times are seconds since the epoch: approvals are compared with wall
clocks of several processes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from kars_common.errors import InvalidInputError

from kars_egress.policy.entries import Entry, HostPattern

MAX_ENTRIES = 2000
MAX_APPROVALS = 64
MAX_APPROVAL_ENTRIES = 16
MAX_REASON_CHARS = 512

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"(/[A-Za-z0-9._-]+){1,16}")


@dataclass(frozen=True, slots=True, order=True)
class SandboxId:
    """Namespace and name."""

    namespace: str
    name: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.namespace) or not _ID.fullmatch(self.name):
            raise InvalidInputError("sandbox_invalid", "namespace and name must be DNS-1123 labels")

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `namespace/name`.

        Raises:
            InvalidInputError: `sandbox_invalid`.
        """
        namespace, _, name = text.partition("/")
        return cls(namespace, name)


@dataclass(frozen=True, slots=True)
class Approval:
    """What was allowed on top, until when, and by whom."""

    id: str
    entries: tuple[Entry, ...]
    expires_s: float
    reason: str
    granted_by: str

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise InvalidInputError("approval_invalid", "an approval's id is at most 63 of a-z 0-9 -")
        if not 1 <= len(self.entries) <= MAX_APPROVAL_ENTRIES:
            raise InvalidInputError(
                "approval_invalid", f"an approval names 1 to {MAX_APPROVAL_ENTRIES} targets"
            )
        if not 1 <= len(self.reason) <= MAX_REASON_CHARS or not self.reason.isprintable():
            raise InvalidInputError(
                "approval_invalid", f"a reason has 1 to {MAX_REASON_CHARS} printable characters"
            )


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """Everything that decides for one sandbox, the blocklist apart."""

    sandbox: SandboxId
    entries: tuple[Entry, ...] = ()
    approvals: tuple[Approval, ...] = ()
    learning_until_s: float = 0.0
    network_namespace: str = ""
    """Where the door is opened; empty for a gateway."""
    allowlist_generation: int = 0
    """Of the signed allowlist in force; an older one is refused. 0: none."""
    generation: int = 0
    """Moves on when something was taken away: open tunnels of an older one are closed."""

    def __post_init__(self) -> None:
        if len(self.entries) > MAX_ENTRIES:
            raise InvalidInputError("egress_policy_invalid", f"at most {MAX_ENTRIES} entries")
        if len(self.approvals) > MAX_APPROVALS:
            raise InvalidInputError("egress_policy_invalid", f"at most {MAX_APPROVALS} approvals at once")
        if self.network_namespace and not _NAMESPACE.fullmatch(self.network_namespace):
            raise InvalidInputError("egress_policy_invalid", "network_namespace must be an absolute path")

    @property
    def digest(self) -> str:
        """SHA-256 of what was applied (allowlist and place), in one form."""
        applied = to_json(replace(self, approvals=(), learning_until_s=0.0, generation=0))
        return f"sha256:{hashlib.sha256(_canonical(applied)).hexdigest()}"

    def all_entries(self) -> Iterable[Entry]:
        """Yield what is allowed, for ever and for a while."""
        yield from self.entries
        for approval in self.approvals:
            yield from approval.entries

    def without_expired(self, now_s: float) -> Self:
        """Return it as it is at a moment; the generation moves on when something ended."""
        approvals = tuple(approval for approval in self.approvals if approval.expires_s > now_s)
        learning = self.learning_until_s if self.learning_until_s > now_s else 0.0
        if approvals == self.approvals and learning == self.learning_until_s:
            return self
        return replace(self, approvals=approvals, learning_until_s=learning, generation=self.generation + 1)

    def next_end_s(self) -> float | None:
        """The next moment at which something ends by itself."""
        ends = [approval.expires_s for approval in self.approvals]
        if self.learning_until_s:
            ends.append(self.learning_until_s)
        return min(ends, default=None)


def to_json(policy: SandboxPolicy) -> dict[str, Any]:
    """Return a policy as JSON values."""
    return {
        "sandbox": str(policy.sandbox),
        "entries": sorted((_entry(entry) for entry in policy.entries), key=_canonical),
        "approvals": [
            {
                "id": approval.id,
                "entries": [_entry(entry) for entry in approval.entries],
                "expires_s": approval.expires_s,
                "reason": approval.reason,
                "granted_by": approval.granted_by,
            }
            for approval in policy.approvals
        ],
        "learning_until_s": policy.learning_until_s,
        "network_namespace": policy.network_namespace,
        "allowlist_generation": policy.allowlist_generation,
        "generation": policy.generation,
    }


def from_json(value: Mapping[str, Any]) -> SandboxPolicy:
    """Return the policy that `to_json` wrote.

    Raises:
        InvalidInputError: it is no such thing.
    """
    try:
        return SandboxPolicy(
            sandbox=SandboxId.parse(value["sandbox"]),
            entries=_entries(value["entries"]),
            approvals=tuple(
                Approval(
                    id=item["id"],
                    entries=_entries(item["entries"]),
                    expires_s=float(item["expires_s"]),
                    reason=item["reason"],
                    granted_by=item["granted_by"],
                )
                for item in value["approvals"]
            ),
            learning_until_s=float(value["learning_until_s"]),
            network_namespace=value["network_namespace"],
            allowlist_generation=int(value["allowlist_generation"]),
            generation=int(value["generation"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidInputError("egress_state_invalid", "a kept policy cannot be read") from exc


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "host": str(entry.pattern),
        "port": entry.port,
        "scheme": entry.scheme,
        "methods": list(entry.methods),
        "paths": list(entry.paths),
        "upstream_tls": entry.upstream_tls,
        "credential": entry.credential,
    }


def _entries(items: Iterable[Mapping[str, Any]]) -> tuple[Entry, ...]:
    return tuple(
        Entry.build(
            item["host"],
            port=item["port"],
            scheme=item["scheme"],
            methods=tuple(item["methods"]),
            paths=tuple(item["paths"]),
            upstream_tls=item["upstream_tls"],
            credential=item["credential"],
        )
        for item in items
    )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


__all__ = ["Approval", "Entry", "HostPattern", "SandboxId", "SandboxPolicy", "from_json", "to_json"]
