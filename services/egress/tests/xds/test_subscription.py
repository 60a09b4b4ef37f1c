"""The delta protocol: whatever Envoy asks and whatever changes, it ends with exactly what there is."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from kars.egress.envoy import discovery_pb2
from kars_egress.policy.sandboxes import SandboxId
from kars_egress.xds import types
from kars_egress.xds.snapshot import Snapshot
from kars_egress.xds.subscription import Subscription

ONE, TWO = SandboxId("team", "one"), SandboxId("team", "two")
NAMES = st.sampled_from(["a", "b", "c"])
KINDS = st.sampled_from([types.LISTENER, types.ROUTES])


def request(kind: str, **fields: object) -> discovery_pb2.DeltaDiscoveryRequest:
    return discovery_pb2.DeltaDiscoveryRequest(type_url=kind, **fields)  # type: ignore[arg-type]


class Envoy(RuleBasedStateMachine):
    """A model of the other side: listeners by wildcard, routes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot = Snapshot()
        self.woken = 0
        self.subscription = Subscription(self.snapshot, None, self._wake)
        self.snapshot.listen(self.subscription.changed)
        self.has: dict[str, dict[str, bytes]] = {types.LISTENER: {}, types.ROUTES: {}}
        self.wanted: set[str] = set()
        self.subscription.request(request(types.LISTENER))
        self.drain()

    def _wake(self) -> None:
        self.woken += 1

    @rule(kind=KINDS, name=NAMES, data=st.binary(max_size=3))
    def put(self, kind: str, name: str, data: bytes) -> None:
        self.snapshot.put(kind, name, data)

    @rule(kind=KINDS, name=NAMES)
    def remove(self, kind: str, name: str) -> None:
        self.snapshot.remove(kind, name)

    @rule(name=NAMES)
    def subscribe(self, name: str) -> None:
        self.wanted.add(name)
        self.subscription.request(request(types.ROUTES, resource_names_subscribe=[name]))

    @rule(name=NAMES)
    def unsubscribe(self, name: str) -> None:
        self.wanted.discard(name)
        self.has[types.ROUTES].pop(name, None)
        self.subscription.request(request(types.ROUTES, resource_names_unsubscribe=[name]))

    @rule()
    def drain(self) -> None:
        while (response := self.subscription.next_response()) is not None:
            for resource in response.resources:
                self.has[response.type_url][resource.name] = resource.resource.value
            for name in response.removed_resources:
                self.has[response.type_url].pop(name, None)
            self.subscription.request(request(response.type_url, response_nonce=response.nonce))

    @invariant()
    def after_draining_it_has_what_there_is(self) -> None:
        self.drain()
        for name in ("a", "b", "c"):
            listener = self.snapshot.get(types.LISTENER, name)
            assert self.has[types.LISTENER].get(name) == (None if listener is None else listener.data)
            routes = self.snapshot.get(types.ROUTES, name)
            if name in self.wanted:
                assert self.has[types.ROUTES].get(name) == (None if routes is None else routes.data)


TestEnvoy = Envoy.TestCase
TestEnvoy.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def connected(snapshot: Snapshot, scope: SandboxId | None = None) -> Subscription:
    subscription = Subscription(snapshot, scope, lambda: None)
    snapshot.listen(subscription.changed)
    return subscription


def test_a_sandboxs_own_envoy_gets_nothing_of_another() -> None:
    snapshot = Snapshot()
    snapshot.put(types.LISTENER, "shared", b"s")
    snapshot.put(types.LISTENER, "one", b"1", ONE)
    snapshot.put(types.LISTENER, "two", b"2", TWO)
    snapshot.put(types.ROUTES, "two", b"2", TWO)
    subscription = connected(snapshot, ONE)
    subscription.request(request(types.LISTENER))
    response = subscription.next_response()
    assert response is not None
    assert {resource.name for resource in response.resources} == {"shared", "one"}
    subscription.request(request(types.ROUTES, resource_names_subscribe=["two"]))
    answer = subscription.next_response()
    assert answer is not None
    assert not answer.resources


def test_a_second_subscription_is_answered_even_when_the_version_is_known() -> None:
    snapshot = Snapshot()
    snapshot.put(types.ROUTES, "a", b"1")
    subscription = connected(snapshot)
    for _ in range(2):
        subscription.request(request(types.ROUTES, resource_names_subscribe=["a"]))
        response = subscription.next_response()
        assert response is not None
        assert [resource.name for resource in response.resources] == ["a"]


def test_after_a_reconnect_only_what_differs_is_sent() -> None:
    snapshot = Snapshot()
    kept = snapshot.put(types.LISTENER, "kept", b"1")
    snapshot.put(types.LISTENER, "changed", b"new")
    subscription = connected(snapshot)
    subscription.request(
        request(
            types.LISTENER,
            resource_names_subscribe=["*"],
            initial_resource_versions={"kept": kept, "changed": "old", "gone": "x"},
        )
    )
    response = subscription.next_response()
    assert response is not None
    assert [resource.name for resource in response.resources] == ["changed"]
    assert list(response.removed_resources) == ["gone"]


def test_a_refusal_is_remembered_until_a_newer_version_is_taken() -> None:
    snapshot = Snapshot()
    snapshot.put(types.LISTENER, "a", b"bad")
    subscription = connected(snapshot)
    subscription.request(request(types.LISTENER))
    response = subscription.next_response()
    assert response is not None
    error = discovery_pb2.Status(code=3, message="no\nsuch filter")
    subscription.request(request(types.LISTENER, response_nonce=response.nonce, error_detail=error))
    assert subscription.refusals == {(types.LISTENER, "a"): "no such filter"}
    assert subscription.acknowledged(types.LISTENER, "a") is None
    version = snapshot.put(types.LISTENER, "a", b"good")
    response = subscription.next_response()
    assert response is not None
    subscription.request(request(types.LISTENER, response_nonce=response.nonce))
    assert subscription.refusals == {}
    assert subscription.acknowledged(types.LISTENER, "a") == version


def test_a_type_that_we_have_nothing_of_is_never_answered() -> None:
    subscription = connected(Snapshot())
    subscription.request(request("type.googleapis.com/envoy.service.runtime.v3.Runtime"))
    assert subscription.next_response() is None
