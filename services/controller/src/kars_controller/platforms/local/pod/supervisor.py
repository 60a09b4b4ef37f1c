"""One pod: its network, its workspace, its two containers, and what order they come and go in.

Start: workspace, network with the door, router; when the router says that it is ready, the agent. Stop:
agent, router. A router crash leaves the agent running: its connections wait in the door's backlog. Holds
no thread and no lock.
"""

import os
from collections.abc import Callable

from kars_controller.platforms.base import ContainerState, PodPhase, PodStatus
from kars_controller.platforms.local import layout, leftovers
from kars_controller.platforms.local.isolation import cgroups, container, quota
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.pod import blueprints, containment, workspace
from kars_controller.platforms.local.pod.logs import RotatingLog
from kars_controller.platforms.local.pod.loop import Loop, Timer
from kars_controller.platforms.local.pod.network import PodNetwork
from kars_controller.platforms.local.pod.readiness import Prober
from kars_controller.platforms.local.pod.runner import Notices, Runner
from kars_controller.platforms.local.spec import PodSpec

_NETWORK_RETRY_S = 1.0
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0


class Supervisor:
    """The pod, as planned and as it is."""

    def __init__(
        self,
        loop: Loop,
        directory: layout.PodDirectory,
        spec: PodSpec,
        *,
        changed: Callable[[], None],
        output: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._spec = spec
        self._changed = changed
        self._rootless = containment.rootless()
        self._network: PodNetwork | None = None
        self._retry_s = _FIRST_RETRY_S
        self._retrying: Timer | None = None
        self._prober: Prober | None = None
        self._decided: containment.Containment | None = None
        self._terminating = False
        self._stopping = False
        """An orderly stop is under way, whose end will start what the spec says then."""
        self._router_outdated = False
        self._problem = ""
        self._router = Runner(
            loop,
            layout.ROUTER,
            self._launch_router,
            RotatingLog(directory.log(layout.ROUTER)),
            Notices(
                changed=changed,
                output=lambda: output(layout.ROUTER),
                running=self._router_running,
                ended=self._router_ended,
            ),
        )
        self._router.restart_completed = True
        self._agent = Runner(
            loop,
            layout.AGENT,
            self._launch_agent,
            RotatingLog(directory.log(layout.AGENT)),
            Notices(
                changed=changed,
                output=lambda: output(layout.AGENT),
                running=lambda: self._agent.ready(ready=True),
            ),
            oom_kills=lambda: self._decided.group.oom_kills() if self._decided else 0,
        )

    @property
    def network(self) -> PodNetwork | None:
        """The pod's network, while there is one."""
        return self._network

    def start(self) -> None:
        """Bring the pod to what the spec says."""
        if self._terminating:
            return
        if self._spec.suspended:
            self._suspended()
            return
        try:
            self._prepare()
        except (OSError, IsolationError) as error:
            reason = error.reason if isinstance(error, IsolationError) else "isolation_failed"
            self._problem = f"{reason}: {error}"
            for runner in (self._router, self._agent):
                runner.hold("IsolationFailed", self._problem)
            if self._retrying is not None:
                self._retrying.cancel()
            self._retrying = self._loop.call_later(self._retry_s, self._retry)
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)
            return
        self._problem = ""
        self._retry_s = _FIRST_RETRY_S
        self._agent.restart_completed = self._spec.agent.restart_completed
        self._agent.hold("RouterNotReady", "the router has not answered yet")
        self._router.start()

    def _retry(self) -> None:
        """Try again what could not be prepared: a full disk or a busy device may have passed."""
        if self._problem and not self._stopping:
            self.start()

    def apply(self, spec: PodSpec) -> None:
        """Take a new spec: restart what it changed, suspend or resume.

        While containers are being stopped for an earlier spec, the newest one is what will be started.
        """
        old, self._spec = self._spec, spec
        agent_changed = old.agent_digest != spec.agent_digest
        router_changed = old.router_digest != spec.router_digest
        self._changed()
        if self._stopping:
            self._router_outdated |= router_changed
        elif spec.suspended or self._problem or (agent_changed and router_changed):
            self._stop_containers(self.start)
        elif agent_changed:
            self._stopping = True
            self._agent.stop(spec.termination_grace_s, self._agent_stopped_for_change)
        elif router_changed:
            self._router.stop(spec.termination_grace_s, self._router.start)
        elif old.suspended:
            self.start()

    def _agent_stopped_for_change(self) -> None:
        self._stopping = False
        self._release_group()
        if self._spec.suspended:
            self._stop_containers(self.start)
            return
        self.start()
        if self._router_outdated:
            self._router_outdated = False
            self._router.stop(self._spec.termination_grace_s, self._router.start)
        elif self._router.status.ready:
            self._agent.start()

    def stop(self, then: Callable[[], None]) -> None:
        """End both containers and let go of network, cgroup and workspace; then call back."""
        self._terminating = True
        self._changed()

        def down() -> None:
            self._release()
            then()

        self._stop_containers(down)

    def status(self) -> PodStatus:
        """Say how the pod is."""
        return PodStatus(
            key=self._spec.key,
            uid=self._spec.uid,
            plan_digest=self._spec.digest,
            phase=self._phase(),
            agent=self._agent.status,
            router=self._router.status,
            isolation=self._decided.controls if self._decided else (),
        )

    def _phase(self) -> PodPhase:
        agent = self._agent.status
        if self._terminating:
            return PodPhase.TERMINATING
        if self._spec.suspended:
            return PodPhase.SUSPENDED
        if (
            self._problem
            or agent.reason == "IsolationFailed"
            or self._router.status.reason == "IsolationFailed"
        ):
            return PodPhase.FAILED
        if agent.state is ContainerState.TERMINATED:
            return PodPhase.SUCCEEDED if agent.exit_code == 0 else PodPhase.FAILED
        if agent.state is ContainerState.RUNNING and self._router.status.ready:
            return PodPhase.RUNNING
        return PodPhase.PENDING

    # -- coming up

    def _prepare(self) -> None:
        limits = self._spec.agent.limits
        quota_problem = quota.unavailable()
        if self._decided is None:
            self._decided = self._decide(quota_problem)
        workspace.prepare(
            self._directory,
            size=limits.workspace_bytes,
            seed=self._spec.agent.workspace_seed,
            quota_problem=quota_problem,
        )
        if self._network is None:
            self._network = PodNetwork(
                self._loop,
                rootless=self._rootless,
                on_lost=self._network_lost,
            )
            self._prober = Prober(self._loop, self._network, self._probed)

    def _decide(self, quota_problem: str) -> containment.Containment:
        group = self._make_group()
        try:
            return containment.decide(
                self._spec.agent,
                group=group,
                quota_problem=quota_problem,
                rootless=self._rootless,
            )
        except IsolationError:
            group.remove()
            raise

    def _make_group(self) -> cgroups.Group:
        limits = self._spec.agent.limits
        ceilings = cgroups.Ceilings(
            memory_bytes=limits.memory_bytes, pids=limits.pids, cpu_millis=limits.cpu_millis
        )
        leftovers.clear(self._directory)
        cgroups.sweep()
        # The supervisor's pid keeps two pods of the same name (two homes on one machine) apart.
        name = f"{cgroups.NAME_PREFIX}{self._spec.key.namespace}-{self._spec.key.name}-{os.getpid()}"
        group = cgroups.create(name, ceilings)
        leftovers.remember(self._directory, group)
        return group

    def _launch_router(self) -> container.Started:
        assert self._network is not None
        spec = blueprints.router(self._spec, state=self._directory.router_state, rootless=self._rootless)
        return container.start(spec, network=None, inherited=(self._network.door,), admit=lambda _: None)

    def _launch_agent(self) -> container.Started:
        assert self._network is not None
        assert self._decided is not None
        spec = blueprints.agent(
            self._spec,
            self._decided,
            workspace=self._directory.workspace,
            rootless=self._rootless,
        )
        return container.start(spec, network=self._network.namespaces, admit=self._decided.group.add)

    def _router_running(self) -> None:
        if self._prober is not None:
            self._prober.start()

    def _router_ended(self) -> None:
        if self._prober is not None:
            self._prober.stop()

    def _probed(self, ready: bool, message: str) -> None:
        reason = "" if ready else "RouterNotReady"
        before = self._router.status
        if (before.ready, before.message) != (ready, message):
            self._router.ready(ready=ready, reason=reason, message=message)
        if ready:
            self._agent.start()
        else:
            self._agent.hold("RouterNotReady", message)

    def _network_lost(self) -> None:
        """Start the whole pod over: without the holder there is nowhere to put a container."""
        self._network = None
        if not self._terminating:
            self._stop_containers(self._start_later)

    def _start_later(self) -> None:
        self._loop.call_later(_NETWORK_RETRY_S, self.start)

    # -- going down

    def _suspended(self) -> None:
        for runner in (self._agent, self._router):
            runner.stop(0)

    def _stop_containers(self, then: Callable[[], None]) -> None:
        def router_down() -> None:
            self._stopping = False
            self._router_outdated = False
            self._release_group()
            then()

        def agent_down() -> None:
            self._router.stop(self._spec.termination_grace_s, router_down)

        self._stopping = True
        if self._prober is not None:
            self._prober.stop()
        self._agent.stop(self._spec.termination_grace_s, agent_down)

    def _release_group(self) -> None:
        if self._decided is not None:
            self._decided.group.kill()
            self._decided.group.remove()
            self._decided = None

    def _release(self) -> None:
        if self._network is not None:
            self._network.close()
            self._network = None
        workspace.release(self._directory)
