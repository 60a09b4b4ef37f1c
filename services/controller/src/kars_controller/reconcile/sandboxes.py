"""Carries out the plans of sandboxes: finalizer, bundle, pod, status; and their end.

A plan may change what it was made from (a bundle gets published, a pod applied), so the status is judged
again on what is observed afterwards; two passes always suffice.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kars_common.errors import KarsError

from kars_controller.code_sources import CodeStore, GitSource
from kars_controller.distribution import PolicyPublisher, PolicySessions
from kars_controller.platforms.base import Platform, PodPlan, SandboxKey
from kars_controller.reconcile import pod, sandbox
from kars_controller.reconcile.observing import Observer
from kars_controller.reconcile.plan import SandboxObserved
from kars_controller.reconcile.recording import record
from kars_controller.resources import Document, EventLog, EventType, ResourceKey, ResourceStore, deleting

_LOG = logging.getLogger(__name__)
FINALIZER = "kars.azure.com/sandbox-cleanup"
_REJOIN_AFTER_S = 60.0


@dataclass(frozen=True, kw_only=True)
class JoinTokenIssuer:
    """Hands out and takes back the one-time tokens of routers."""

    issue: Callable[[SandboxKey], str]
    revoke: Callable[[SandboxKey], None]


class SandboxKeeper:
    """Reconciles one sandbox at a time; the engine keeps two workers off the same one."""

    def __init__(
        self,
        *,
        store: ResourceStore,
        events: EventLog,
        observer: Observer,
        publisher: PolicyPublisher,
        sessions: PolicySessions,
        platform: Platform,
        tokens: JoinTokenIssuer,
        code: CodeStore,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._events = events
        self._observer = observer
        self._publisher = publisher
        self._sessions = sessions
        self._platform = platform
        self._tokens = tokens
        self._code = code
        self._monotonic_s = monotonic_s
        self._started_s = monotonic_s()
        self._joined_s: dict[SandboxKey, float] = {}
        self._apply_errors: dict[SandboxKey, KarsError] = {}

    async def reconcile(self, document: Document) -> float | None:
        """Bring one sandbox in line; return when to look again, None when it is gone.

        Raises:
            KarsError: something outside failed; try again later.
        """
        key = SandboxKey(document["metadata"]["namespace"], document["metadata"]["name"])
        if deleting(document):
            await self._delete(document, key)
            return None
        document = self._store.add_finalizer(ResourceKey.of(document), document["metadata"]["uid"], FINALIZER)
        observed = await self._observer.sandbox(document, None)
        plan = sandbox.reconcile(document, observed)
        if plan.bundle is not None:
            published = self._publisher.publish(plan.bundle)
            if observed.published is None or published.digest != observed.published.digest:
                self._sessions.notify(key)
        if plan.pod is not None:
            await self._apply(key, plan.pod, plan.code, observed)
        else:
            self._apply_errors.pop(key, None)
        after = await self._observer.sandbox(document, self._apply_errors.get(key))
        final = sandbox.reconcile(document, after)
        record(self._store, self._events, document, final)
        return final.requeue_s

    async def _apply(
        self, key: SandboxKey, plan: PodPlan, code: GitSource | None, observed: SandboxObserved
    ) -> None:
        current = observed.pod
        unchanged = (
            current is not None
            and current.plan_digest == plan.digest
            and current.uid == plan.uid
            and (current.phase.value == "Suspended") == plan.suspended
        )
        if unchanged and not self._must_rejoin(key, observed):
            self._apply_errors.pop(key, None)
            return
        try:
            if code is not None:
                await self._code.ensure(code)
            if not plan.suspended:
                plan = pod.with_join_token(plan, self._tokens.issue(key))
                self._joined_s[key] = self._monotonic_s()
            await self._platform.apply(plan)
        except KarsError as exc:
            _LOG.warning("pod not applied", extra={"sandbox": str(key), "reason": exc.reason})
            self._apply_errors[key] = exc
        else:
            self._apply_errors.pop(key, None)

    def _must_rejoin(self, key: SandboxKey, observed: SandboxObserved) -> bool:
        """Tell whether a router stayed away so long that its identity may have expired."""
        if observed.answer.connected:
            return False
        waited_s = self._monotonic_s() - self._joined_s.get(key, self._started_s)
        return waited_s > _REJOIN_AFTER_S

    async def _delete(self, document: Document, key: SandboxKey) -> None:
        resource, uid = ResourceKey.of(document), document["metadata"]["uid"]
        if FINALIZER not in document["metadata"].get("finalizers", ()):
            return
        status = {**document.get("status", {}), "phase": "Terminating"}
        self._store.update_status(resource, uid, status)
        self._tokens.revoke(key)
        await self._platform.delete(key)
        await self._code.forget(uid)
        self._publisher.withdraw(key)
        self._sessions.forget(key)
        self._joined_s.pop(key, None)
        self._apply_errors.pop(key, None)
        self._events.record(document, EventType.NORMAL, "Deleted", "pod and workspace are gone")
        self._store.remove_finalizer(resource, uid, FINALIZER)
