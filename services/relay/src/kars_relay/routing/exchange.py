"""Decide about submissions: policy, bounds, mailbox; refuse with a reason, or hand to the store.

Order of decisions, cheapest and least revealing first: policy in force, payload size, edge, recipient
known, sender's rate, mailbox (duplicates, share, bounds). An edge that policy forbids is answered the same
whether the recipient exists or not. What is decided here is decided before anything is stored; nothing is
read of content.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kars.mesh.v1 import relay_pb2
from kars_common.errors import InvalidInputError
from kars_common.spiffe import SpiffeId

from kars_relay.frames import Run
from kars_relay.mailbox import MailboxStore, NewRun, Refused
from kars_relay.metrics import RelayMetrics
from kars_relay.policy import MeshPolicy, Quota, Rules
from kars_relay.quota import SenderQuota
from kars_relay.recorder import Recorder

MAX_PAYLOAD_BYTES = 1024 * 1024 + 64 * 1024
"""A padded message of 1 MiB with its ratchet header fits."""
_ENVELOPE_HEAD = 32
"""More than tags, lengths and id of an envelope around a payload of that size."""
_MAX_ROUTES = 4096
_MAX_QUOTAS = 100_000

_FORBIDDEN = relay_pb2.REFUSAL_REASON_EDGE_FORBIDDEN
_UNKNOWN = relay_pb2.REFUSAL_REASON_RECIPIENT_UNKNOWN
_RATE = relay_pb2.REFUSAL_REASON_SENDER_RATE
_TOO_LARGE = relay_pb2.REFUSAL_REASON_PAYLOAD_TOO_LARGE
_NO_POLICY = relay_pb2.REFUSAL_REASON_NO_POLICY
_NOT_FEDERATED = relay_pb2.REFUSAL_REASON_NOT_FEDERATED


@dataclass(frozen=True, slots=True, order=True)
class Refusal:
    """Envelopes that were refused, by their number."""

    number: int
    count: int
    reason: int
    retry_after_ms: int = 0


@dataclass(slots=True)
class Route:
    """What was decided about one (sender, recipient); good for one policy epoch."""

    epoch: int
    reason: int
    """0 when mail may pass."""
    mailbox: str = ""
    to: str = ""
    quota: Quota | None = None
    expires_s: float = 0.0


@dataclass(slots=True)
class Sender:
    """One sender as the exchange knows it; lives as long as its connection."""

    name: str
    """What recipients are told; empty for a sealed sender."""
    identity: SpiffeId | None
    quota: SenderQuota
    routes: dict[bytes, Route] = field(default_factory=dict)


@dataclass(slots=True)
class Accepted:
    """What became of some runs: refused at once, and stored when the future is done."""

    refusals: list[Refusal] = field(default_factory=list)
    runs: list[NewRun] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Number of the first envelope of each stored run."""
    stored: "asyncio.Future[list[list[Refused]]] | None" = None

    def stored_refusals(self) -> list[Refusal]:
        """Return what the store refused; only when `stored` is done.

        Raises:
            UnavailableError: `store_unavailable`.
        """
        found: list[Refusal] = []
        if self.stored is not None:
            for number, refused in zip(self.numbers, self.stored.result(), strict=True):
                found += [Refusal(number + r.start, r.count, r.reason, r.retry_after_ms) for r in refused]
        return found


class Exchange:
    """Accepts envelopes into mailboxes."""

    def __init__(
        self,
        policy: MeshPolicy,
        store: MailboxStore,
        recorder: Recorder,
        metrics: RelayMetrics,
        *,
        clock_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._policy = policy
        self._recorder = recorder
        self._metrics = metrics
        self._clock_s = clock_s
        self._monotonic_s = monotonic_s
        self._quotas: dict[str, SenderQuota] = {}
        policy.on_change.append(self._policy_changed)

    def sender(self, identity: SpiffeId) -> Sender:
        """Return a sender whose name its connection proved.

        Raises:
            PermissionDeniedError: `no_policy_in_force`.
        """
        quota = self._policy.require().quota(identity)
        return Sender(str(identity), identity, self._quota(str(identity), quota))

    def sealed(self, recipient: SpiffeId) -> Sender:
        """Return the sender behind a delivery token: no name, one quota for each recipient.

        Raises:
            PermissionDeniedError: `no_policy_in_force`.
        """
        return Sender("", None, self._quota(f"sealed {recipient}", self._policy.require().quota(recipient)))

    def foreign(self, identity: SpiffeId, domain: str, quota: Quota) -> Sender:
        """Return a sender of a federated domain; all of a domain share its quota."""
        return Sender(str(identity), identity, self._quota(f"domain {domain}", quota))

    async def accept(self, sender: Sender, runs: Sequence[Run], first_number: int) -> Accepted:
        """Decide about runs, in order, and begin to store what may pass.

        Args:
            sender: whose they are.
            runs: what one frame brought.
            first_number: number of the first envelope.
        """
        accepted = Accepted()
        number = first_number
        for run in runs:
            route = sender.routes.get(run.to)
            if route is None or route.epoch != self._policy.epoch or route.expires_s <= self._clock_s():
                route = await self._decide(sender, run.to)
            count = len(run.ids)
            if route.reason:
                accepted.refusals.append(self._refuse(sender, run.to, Refusal(number, count, route.reason)))
            elif run.largest > MAX_PAYLOAD_BYTES:
                self._split(accepted, sender, run, route, number)
            else:
                self._admit(accepted, sender, run, route, number)
            number += count
        if accepted.runs:
            accepted.stored = self.store.append(accepted.runs)
        return accepted

    def count(self, sender: Sender, refusals: Sequence[Refusal], target: str = "") -> None:
        """Record refusals that the store made."""
        for refusal in refusals:
            self._metrics.refused(refusal.reason, refusal.count)
            self._recorder.refused(
                "mesh.refused", reason_name(refusal.reason), sender.name or "sealed", target, refusal.count
            )

    def _admit(self, accepted: Accepted, sender: Sender, run: Run, route: Route, number: int) -> None:
        """Charge the sender and hand what its rate allows to the store."""
        quota = route.quota
        assert quota is not None
        ids, ends, body = run.ids, run.ends, run.body
        count = sender.quota.take(ends)
        if count < len(ids):
            size = ends[count] - (ends[count - 1] if count else 0)
            refusal = Refusal(number + count, len(ids) - count, _RATE, sender.quota.retry_after_ms(size))
            accepted.refusals.append(self._refuse(sender, run.to, refusal))
            if count == 0:
                return
            ids, ends, body = ids[:count], ends[:count], body[: ends[count - 1]]
        ttl_s = self._policy.require().max_ttl_s
        accepted.runs.append(
            NewRun(
                mailbox=route.mailbox,
                sender=sender.name,
                to=route.to,
                ids=ids,
                ends=ends,
                body=body,
                expires_at_s=int(self._clock_s()) + (min(run.ttl_s, ttl_s) if run.ttl_s else ttl_s),
                max_envelopes=quota.mailbox_envelopes,
                max_bytes=quota.mailbox_bytes,
                share_percent=quota.sender_share_percent,
            )
        )
        accepted.numbers.append(number)

    def _split(self, accepted: Accepted, sender: Sender, run: Run, route: Route, number: int) -> None:
        """Refuse the envelopes that are too large and admit the others, each on its own."""
        start = 0
        for place, end in enumerate(run.ends):
            size = end - start
            if size > MAX_PAYLOAD_BYTES + _ENVELOPE_HEAD:
                refusal = Refusal(number + place, 1, _TOO_LARGE)
                accepted.refusals.append(self._refuse(sender, run.to, refusal))
            else:
                one = Run(run.to, run.body[start:end], [run.ids[place]], [size], run.ttl_s, size)
                self._admit(accepted, sender, one, route, number + place)
            start = end

    async def _decide(self, sender: Sender, to: bytes) -> Route:
        route = await self._route(sender, to)
        if len(sender.routes) >= _MAX_ROUTES:
            sender.routes.clear()
        if route.reason != _UNKNOWN:  # who is not known yet may be a moment later
            sender.routes[to] = route
        return route

    async def _route(self, sender: Sender, to: bytes) -> Route:
        epoch, rules = self._policy.epoch, self._policy.rules
        if rules is None:
            return Route(epoch, _NO_POLICY)
        never = self._clock_s() + 3600
        try:
            recipient = SpiffeId.parse(to.decode("ascii"))
        except (InvalidInputError, UnicodeDecodeError):
            return Route(epoch, _FORBIDDEN, expires_s=never)
        if sender.identity is not None:
            edge = rules.edge(sender.identity, recipient)
            if edge is None:
                return Route(epoch, _FORBIDDEN, expires_s=self._clock_s() + 1)
            if edge.not_after_s is not None:
                never = min(never, edge.not_after_s)
        return await self._mailbox(epoch, rules, recipient, never)

    async def _mailbox(self, epoch: int, rules: Rules, recipient: SpiffeId, expires_s: float) -> Route:
        name = str(recipient)
        quota = rules.quota(recipient)
        if recipient.trust_domain != self._policy.trust_domain:
            domain = rules.federated.get(recipient.trust_domain)
            if domain is None:
                return Route(epoch, _NOT_FEDERATED, expires_s=expires_s)
            outbox = f"spiffe://{recipient.trust_domain}"
            await self.store.ensure(outbox, 0)
            return Route(epoch, 0, outbox, name, domain.quota, expires_s)
        if not await self.store.knows(name):
            return Route(epoch, _UNKNOWN)
        return Route(epoch, 0, name, name, quota, expires_s)

    def _refuse(self, sender: Sender, to: bytes, refusal: Refusal) -> Refusal:
        self._metrics.refused(refusal.reason, refusal.count)
        name, target = reason_name(refusal.reason), to.decode("ascii", "replace")
        self._recorder.refused("mesh.refused", name, sender.name or "sealed", target, refusal.count)
        return refusal

    def _quota(self, name: str, quota: Quota) -> SenderQuota:
        held = self._quotas.get(name)
        if held is None:
            if len(self._quotas) >= _MAX_QUOTAS:
                self._quotas.pop(next(iter(self._quotas)))
            held = self._quotas[name] = SenderQuota(quota, self._monotonic_s)
        else:
            held.resize(quota)
        return held

    def _policy_changed(self, rules: Rules) -> None:
        for name, held in self._quotas.items():
            if name.startswith("spiffe://"):
                held.resize(rules.quota(SpiffeId.parse(name)))


def reason_name(reason: int) -> str:
    """Return the stable name of a RefusalReason."""
    name = relay_pb2.RefusalReason.Name(reason)  # type: ignore[arg-type]  # a number from the enum
    return name.removeprefix("REFUSAL_REASON_").lower()
