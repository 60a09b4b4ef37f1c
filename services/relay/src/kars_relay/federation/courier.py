"""Carries mail to federated relays: one courier a domain, out of an outbox that is a mailbox like any other.

What was handed over and answered is acknowledged in the outbox; everything else is carried again after a
failure, and the other side drops what it has already. The order within a domain is kept. What the other side
refuses is recorded and dropped: its policy is its own.
"""

import asyncio
import logging
from collections.abc import Sequence

from kars.mesh.v1 import federation_pb2, relay_pb2
from kars_common.errors import KarsError
from kars_common.rpc import mapped_errors
from kars_common.tasks import Backoff

from kars_relay.federation.channels import FederationChannels
from kars_relay.mailbox import MailboxStore, StoredRun
from kars_relay.policy import FederatedDomain, MeshPolicy, Rules
from kars_relay.recorder import Recorder

_LOG = logging.getLogger(__name__)
_MAX_ENVELOPES = 256
_MAX_BYTES = 1024 * 1024


class Couriers:
    """Runs a courier for each domain that policy names an endpoint of."""

    def __init__(
        self, policy: MeshPolicy, store: MailboxStore, channels: FederationChannels, recorder: Recorder
    ) -> None:
        self._policy = policy
        self._store = store
        self._channels = channels
        self._recorder = recorder
        self._changed = asyncio.Event()
        policy.on_change.append(self._policy_changed)

    async def run(self) -> None:
        """Follow policy for ever."""
        running: dict[str, tuple[FederatedDomain, asyncio.Task[None]]] = {}
        try:
            while True:
                self._changed.clear()
                rules = self._policy.rules
                wanted = rules.federated if rules is not None else {}
                for name, (domain, task) in list(running.items()):
                    if wanted.get(name) != domain:
                        task.cancel()
                        await asyncio.gather(task, return_exceptions=True)
                        del running[name]
                for name, domain in wanted.items():
                    if name not in running and domain.endpoint:
                        task = asyncio.create_task(self._carry(domain), name=f"courier to {name}")
                        running[name] = (domain, task)
                await self._changed.wait()
        finally:
            tasks = [task for _, task in running.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _policy_changed(self, _rules: Rules) -> None:
        self._changed.set()

    async def _carry(self, domain: FederatedDomain) -> None:
        backoff = Backoff()
        outbox = f"spiffe://{domain.trust_domain}"
        await self._store.ensure(outbox, 0)
        while True:
            try:
                await self._carry_until_failure(domain, outbox, backoff)
            except KarsError as error:
                _LOG.warning(
                    "federated relay not reached",
                    extra={"domain": domain.trust_domain, "reason": error.reason},
                )
                self._recorder.refused("mesh.federation_failed", error.reason, str(domain.relay))
            except asyncio.CancelledError:
                raise
            except Exception:  # noqa: BLE001  # the boundary of this task: one courier's bug must not stop the relay
                _LOG.exception("courier failed", extra={"domain": domain.trust_domain})
            await backoff.wait()

    async def _carry_until_failure(self, domain: FederatedDomain, outbox: str, backoff: Backoff) -> None:
        wake = asyncio.Event()
        reader = await self._store.reader(outbox, wake.set)
        try:
            while True:
                wake.clear()
                runs = reader.take(_MAX_ENVELOPES, _MAX_BYTES)
                if not runs:
                    await wake.wait()
                    continue
                await self._hand_over(domain, runs)
                self._store.ack(outbox, runs[-1].last_seq)
                backoff.reset()
        finally:
            reader.close()

    async def _hand_over(self, domain: FederatedDomain, runs: Sequence[StoredRun]) -> None:
        stub = await self._channels.stub(domain)
        request = federation_pb2.ForwardRequest(submissions=[_submission(run) for run in runs])
        with mapped_errors():
            answer = await stub.Forward(request)
        for refusal in answer.refusals:
            name = relay_pb2.RefusalReason.Name(refusal.reason).removeprefix("REFUSAL_REASON_").lower()
            self._recorder.refused(
                "mesh.remote_refused", name, str(domain.relay), count=min(refusal.count, 1_000_000)
            )


def _submission(run: StoredRun) -> federation_pb2.ForwardedSubmission:
    # A run's body is the `envelopes` fields of a Submission; it was checked when it came in.
    submission = relay_pb2.Submission.FromString(run.body)
    submission.to = run.to
    return federation_pb2.ForwardedSubmission(sender=run.sender, submission=submission)
