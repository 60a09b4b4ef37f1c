"""Keeps every sandbox's policy, in memory, on disk and in the snapshot that Envoy follows.

A change is checked, kept on disk, compiled, and only then visible; what does not compile changes nothing.
What ends by itself ends in Envoy at that moment; here it is taken away a moment later, which also closes open
tunnels.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import orjson
from kars.egress.v1 import egress_pb2
from kars_common import files
from kars_common.errors import InvalidInputError, NotFoundError
from kars_common.spiffe import SpiffeId

from kars_egress.credentials import Lookup
from kars_egress.names.serving import NameServers
from kars_egress.policy.deciding import Listed
from kars_egress.policy.entries import Entry
from kars_egress.policy.hosts import Host, HostKind
from kars_egress.policy.sandboxes import Approval, SandboxId, SandboxPolicy, from_json, to_json
from kars_egress.xds import encoding, routes, topology, types
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscriptions

_LOG = logging.getLogger(__name__)
_MAX_STATE_BYTES = 4 * 1024 * 1024
OFFLINE = egress_pb2.DISTRIBUTION_OFFLINE
PENDING = egress_pb2.DISTRIBUTION_PENDING
ACTIVE = egress_pb2.DISTRIBUTION_ACTIVE
REFUSED = egress_pb2.DISTRIBUTION_REFUSED


class Enforcement:
    """All sandboxes of one service."""

    def __init__(
        self,
        snapshot: Snapshot,
        place: topology.Place,
        *,
        trust_domain: str,
        directory: Path | None,
        clock_s: Callable[[], float],
        names: NameServers,
        credential: Lookup,
    ) -> None:
        """Build it empty; `load` reads what was kept.

        Args:
            snapshot: where compiled resources go.
            place: where Envoy runs.
            trust_domain: of the identities by which a gateway knows sandboxes.
            directory: where policies are kept; None keeps nothing.
            clock_s: the wall clock.
            names: serves each sandbox that has a namespace.
            credential: the header that a credential's name stands for.
        """
        self._names = names
        self._snapshot = snapshot
        self._place = place
        self._trust_domain = trust_domain
        self._directory = directory
        self._clock_s = clock_s
        self._view = routes.View(credential=credential)
        self._policies: dict[SandboxId, SandboxPolicy] = {}
        self._changed = asyncio.Event()
        for name, cluster in topology.shared_clusters(place).items():
            snapshot.put(types.CLUSTER, name, encoding.cluster(cluster))
        for name, listener in topology.shared_listeners(place).items():
            snapshot.put(types.LISTENER, name, encoding.listener(listener))

    @property
    def policies(self) -> Mapping[SandboxId, SandboxPolicy]:
        """What holds for each sandbox."""
        return self._policies

    def get(self, sandbox: SandboxId) -> SandboxPolicy:
        """Return what holds for a sandbox.

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        found = self._policies.get(sandbox)
        if found is None:
            raise NotFoundError("sandbox_not_found", f"egress knows no sandbox {sandbox}")
        return found.without_expired(self._clock_s())

    def load(self) -> None:
        """Put in force what was kept; a file that cannot be read leaves its sandbox closed."""
        if self._directory is None or not self._directory.is_dir():
            return
        for file in sorted(self._directory.glob("*.json")):
            try:
                with file.open("rb") as reader:
                    policy = from_json(orjson.loads(reader.read(_MAX_STATE_BYTES)))
                self._enforce(policy.without_expired(self._clock_s()))
            except (OSError, ValueError, InvalidInputError):
                _LOG.exception(
                    "a kept policy cannot be used: its sandbox is closed", extra={"file": file.name}
                )

    def use_blocklist(self, listed: Listed) -> None:
        """Compile anew what names a host that is listed now or was before."""
        before = self._view.listed
        self._view = replace(self._view, listed=listed)
        for policy in list(self._policies.values()):
            hosts = {Host(entry.pattern.suffix, HostKind.NAME) for entry in policy.all_entries()}
            if any((before(host) is None) != (listed(host) is None) for host in hosts):
                self._set(replace(policy, generation=policy.generation + 1))

    def credentials_changed(self, names: set[str]) -> None:
        """Compile anew what uses these credentials."""
        for policy in list(self._policies.values()):
            if any(entry.credential in names for entry in policy.all_entries()):
                self._enforce(policy)

    def apply(
        self,
        sandbox: SandboxId,
        entries: Iterable[Entry],
        network_namespace: str,
        allowlist_generation: int = 0,
    ) -> SandboxPolicy:
        """Replace allowlist and place; approvals and learning stay."""
        known = self._policies.get(sandbox, SandboxPolicy(sandbox))
        fresh = replace(
            known.without_expired(self._clock_s()),
            entries=tuple(dict.fromkeys(entries)),
            network_namespace=network_namespace,
            # Unsigned in between does not make an old signature good again.
            allowlist_generation=max(allowlist_generation, known.allowlist_generation),
        )
        if fresh == self._policies.get(sandbox):
            return fresh  # controllers say the same thing often
        if set(known.entries) - set(fresh.entries):
            fresh = replace(fresh, generation=fresh.generation + 1)
        return self._set(fresh)

    def remove(self, sandbox: SandboxId) -> None:
        """Forget a sandbox; its doors close. Idempotent."""
        policy = self._policies.pop(sandbox, None)
        if policy is None:
            return
        self._names.remove(sandbox)
        for name in topology.doors(policy, self._place):
            self._snapshot.remove(types.LISTENER, name)
        for name in topology.door_clusters(policy):
            self._snapshot.remove(types.CLUSTER, name)
        self._snapshot.remove(types.SCOPE, f"scope/{sandbox}")
        # Envoy keeps routes that are merely gone: it is told that nothing is allowed first.
        closed = SandboxPolicy(sandbox, generation=policy.generation + 1)
        self._snapshot.put(
            types.ROUTES,
            routes.routes_name(policy),
            routes.compile_routes(closed, self._clock_s(), self._view),
            sandbox,
        )
        if self._directory is not None:
            self._file(sandbox).unlink(missing_ok=True)

    def grant(self, sandbox: SandboxId, approval: Approval) -> SandboxPolicy:
        """Add or replace an approval.

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        policy = self.get(sandbox)
        others = tuple(item for item in policy.approvals if item.id != approval.id)
        return self._set(replace(policy, approvals=(*others, approval)))

    def revoke(self, sandbox: SandboxId, approval_id: str) -> SandboxPolicy:
        """End an approval and what runs on it. Idempotent.

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        policy = self.get(sandbox)
        others = tuple(item for item in policy.approvals if item.id != approval_id)
        if others == policy.approvals:
            return policy
        return self._set(replace(policy, approvals=others, generation=policy.generation + 1))

    def learn(self, sandbox: SandboxId, until_s: float) -> SandboxPolicy:
        """Let a sandbox learn until a moment; 0 ends it now.

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        policy = self.get(sandbox)
        ended = bool(policy.learning_until_s) and not until_s
        return self._set(
            replace(policy, learning_until_s=until_s, generation=policy.generation + (1 if ended else 0))
        )

    def distribution(self, sandbox: SandboxId, subscriptions: Subscriptions) -> tuple[int, str]:
        """Return how far the sandbox's routes have come, and what Envoy said when it refused."""
        return distribution(self._snapshot, subscriptions, types.ROUTES, f"sandbox/{sandbox}", sandbox)

    async def run(self) -> None:
        """Take away what ended, when it ends, for ever."""
        while True:
            now_s = self._clock_s()
            ends = [end for policy in self._policies.values() if (end := policy.next_end_s()) is not None]
            wait_s = max(0.0, min(ends) - now_s) if ends else None
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                self._expire()

    def _expire(self) -> None:
        now_s = self._clock_s()
        for policy in list(self._policies.values()):
            current = policy.without_expired(now_s)
            if current is not policy:
                _LOG.info("an approval ended", extra={"sandbox": str(policy.sandbox)})
                self._set(current)

    def _set(self, policy: SandboxPolicy) -> SandboxPolicy:
        if self._directory is not None:
            files.replace(self._file(policy.sandbox), orjson.dumps(to_json(policy)))
        self._enforce(policy)
        return policy

    def _enforce(self, policy: SandboxPolicy) -> None:
        sandbox = policy.sandbox
        compiled = routes.compile_routes(policy, self._clock_s(), self._view)
        doors: dict[str, bytes] = {}
        known = self._policies.get(sandbox)
        placed = known is None or (known.generation, known.network_namespace) != (
            policy.generation,
            policy.network_namespace,
        )
        self._names.place(sandbox, policy.network_namespace)
        if policy.network_namespace and placed:
            doors = {
                name: encoding.listener(door) for name, door in topology.doors(policy, self._place).items()
            }
            for name, cluster in topology.door_clusters(policy).items():
                self._snapshot.put(types.CLUSTER, name, encoding.cluster(cluster), sandbox)
        elif not policy.network_namespace and placed:
            identity = str(SpiffeId.sandbox(self._trust_domain, sandbox.namespace, sandbox.name))
            self._snapshot.put(
                types.SCOPE, f"scope/{sandbox}", routes.compile_scope(policy, identity), sandbox
            )
        self._snapshot.put(types.ROUTES, routes.routes_name(policy), compiled, sandbox)
        for name, data in doors.items():
            self._snapshot.put(types.LISTENER, name, data, sandbox)
        self._policies[sandbox] = policy
        self._changed.set()

    def _file(self, sandbox: SandboxId) -> Path:
        if self._directory is None:
            raise RuntimeError("nothing is kept")
        # A hash keeps the longest names within what file systems take.
        name = hashlib.sha256(str(sandbox).encode()).hexdigest()[:32]
        return self._directory / f"{name}.json"


def distribution(
    snapshot: Snapshot, subscriptions: Subscriptions, kind: str, name: str, sandbox: SandboxId | None
) -> tuple[int, str]:
    """Return how far one resource has come, and what Envoy said when it refused."""
    serving = list(subscriptions.serving(sandbox))
    resource = snapshot.get(kind, name)
    if not serving or resource is None:
        return OFFLINE, ""
    for subscription in serving:
        refusal = subscription.refusals.get((kind, name))
        if refusal is not None:
            return REFUSED, refusal
    if all(item.acknowledged(kind, name) == resource.version for item in serving):
        return ACTIVE, ""
    return PENDING, ""
