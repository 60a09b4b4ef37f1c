"""One connected Envoy: what it asked for, what it has, what it refused.

The delta protocol as a state machine without input or output: requests go in, responses come out of
`next_response`. A response is always complete in itself, and one writer sends them in order. Lessons kept: a
second subscription to a name is answered even when its version is known; a refusal leaves the last good
version in force and is remembered.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any
from kars.egress.envoy import discovery_pb2
from kars_common.errors import ResourceExhaustedError, clean_text

from kars_egress.policy.sandboxes import SandboxId
from kars_egress.xds import types
from kars_egress.xds.snapshot import Snapshot

MAX_NAMES = 200_000
_MAX_IN_FLIGHT = 64
_WILDCARD = "*"


@dataclass(slots=True)
class _Kind:
    """What one Envoy knows of one type."""

    names: set[str] = field(default_factory=set)
    wildcard: bool = False
    asked: bool = False
    known: dict[str, str] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    answer_due: bool = False
    acknowledged: dict[str, str] = field(default_factory=dict)


class Subscription:
    """The state of one delta stream."""

    def __init__(self, snapshot: Snapshot, scope: SandboxId | None, wake: Callable[[], None]) -> None:
        self._snapshot = snapshot
        self._scope = scope
        self._wake = wake
        self._kinds: dict[str, _Kind] = {}
        self._in_flight: dict[str, tuple[str, dict[str, str]]] = {}
        self._nonce = 0
        self.refusals: dict[tuple[str, str], str] = {}
        """What was refused and why, until a newer version is acknowledged."""

    @property
    def scope(self) -> SandboxId | None:
        """Whose resources this Envoy gets; None for all."""
        return self._scope

    def changed(self, kind: str, name: str) -> None:
        """A resource is new, different or gone."""
        state = self._kinds.get(kind)
        if state is not None and (state.wildcard or name in state.names):
            state.pending.add(name)
            self._wake()

    def request(self, message: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Take one request.

        Raises:
            ResourceExhaustedError: `xds_too_many_names`.
        """
        if message.type_url not in types.ORDER:
            return  # a type that we have nothing of: never answered, as the protocol wants it
        self._settle(message)
        state = self._kinds.setdefault(message.type_url, _Kind())
        state.known.update(message.initial_resource_versions)
        subscribed = list(message.resource_names_subscribe)
        first, state.asked = not state.asked, True
        if first and not subscribed:
            subscribed = [_WILDCARD]
        for name in message.resource_names_unsubscribe:
            state.names.discard(name)
            state.known.pop(name, None)
        self._subscribe(message.type_url, state, subscribed, first=first)

    def next_response(self) -> discovery_pb2.DeltaDiscoveryResponse | None:
        """Return what is to be sent next, or None when Envoy has everything."""
        for kind in types.ORDER:
            state = self._kinds.get(kind)
            if state is not None and (state.pending or state.answer_due):
                response = self._respond(kind, state)
                if response is not None:
                    return response
        return None

    def acknowledged(self, kind: str, name: str) -> str | None:
        """Return the version of a resource that this Envoy said it took."""
        state = self._kinds.get(kind)
        return None if state is None else state.acknowledged.get(name)

    def _subscribe(self, kind: str, state: _Kind, names: Sequence[str], *, first: bool) -> None:
        wanted = {name for name in names if name != _WILDCARD}
        if len(state.names) + len(wanted) > MAX_NAMES:
            raise ResourceExhaustedError("xds_too_many_names", f"at most {MAX_NAMES} names a type")
        state.names |= wanted
        if not first:
            for name in wanted:
                state.known.pop(name, None)
        if _WILDCARD in names:
            state.wildcard = True
            wanted.update(self._snapshot.names(kind, self._scope))
            # What it has from before and we no longer have.
            wanted.update(name for name in state.known if self._snapshot.get(kind, name, self._scope) is None)
        state.pending |= wanted
        state.answer_due = state.answer_due or first
        if state.pending or state.answer_due:
            self._wake()

    def _respond(self, kind: str, state: _Kind) -> discovery_pb2.DeltaDiscoveryResponse | None:
        response = discovery_pb2.DeltaDiscoveryResponse(type_url=kind)
        sent: dict[str, str] = {}
        for name in sorted(state.pending):
            resource = self._snapshot.get(kind, name, self._scope)
            if resource is None:
                if name in state.known or name in state.names:
                    response.removed_resources.append(name)
                    state.known.pop(name, None)
            elif state.known.get(name) != resource.version:
                response.resources.add(
                    name=name, version=resource.version, resource=Any(type_url=kind, value=resource.data)
                )
                state.known[name] = sent[name] = resource.version
        state.pending.clear()
        due, state.answer_due = state.answer_due, False
        if not (due or response.resources or response.removed_resources):
            return None
        self._nonce += 1
        response.nonce = str(self._nonce)
        if len(self._in_flight) >= _MAX_IN_FLIGHT:  # an Envoy that never answers: forget the oldest
            self._in_flight.pop(next(iter(self._in_flight)))
        self._in_flight[response.nonce] = (kind, sent)
        return response

    def _settle(self, message: discovery_pb2.DeltaDiscoveryRequest) -> None:
        kind, sent = self._in_flight.pop(message.response_nonce, ("", {}))
        if not kind:
            return
        if message.HasField("error_detail"):
            why = clean_text(message.error_detail.message, 512)
            for name in sent:
                self.refusals[kind, name] = why
            return
        acknowledged = self._kinds[kind].acknowledged
        acknowledged.update(sent)
        for name in sent:
            self.refusals.pop((kind, name), None)


class Subscriptions:
    """Every connected Envoy."""

    def __init__(self) -> None:
        self._open: set[Subscription] = set()

    def add(self, subscription: Subscription) -> None:
        """An Envoy connected."""
        self._open.add(subscription)

    def discard(self, subscription: Subscription) -> None:
        """It is gone."""
        self._open.discard(subscription)

    def serving(self, sandbox: SandboxId | None) -> Iterable[Subscription]:
        """Return those that get a sandbox's resources."""
        return [item for item in self._open if item.scope is None or item.scope == sandbox]
