"""Learning is a person's decision for a while: what it lets through is recorded, and nothing is lifted."""

import functools
import time

import pytest
from kars.egress.v1 import egress_pb2
from kars_common.errors import KarsError
from kars_common.rpc import mapped_errors
from kars_common.svid import Svid
from kars_egress_testkit.running import Scene, wait
from kars_egress_testkit.service import SANDBOX
from kars_egress_testkit.world import PUBLIC

REF = egress_pb2.SandboxRef(namespace="team", name="writer")


@pytest.fixture
def learning(stage: Scene) -> Scene:
    stage.change(lambda: stage.egress.app.enforcement.learn(SANDBOX, time.time() + 60))
    return stage


def test_what_policy_does_not_name_is_reached_and_recorded(learning: Scene) -> None:
    assert learning.agent.http("learn.test").json()["address"] == PUBLIC
    assert learning.agent.https("learn.test").status == 200
    record = learning.recorded(("egress.allowed",), host="learn.test", reason="learning", method="CONNECT")
    assert record["sandbox"] == "team/writer"
    seen, _ = learning.egress.app.decisions.learned.most_frequent("team/writer", 10)
    assert {(item.host, item.port) for item in seen} >= {("learn.test", 80), ("learn.test", 443)}


@pytest.mark.parametrize("host", ["evil.test", "EVIL.test", "Sub.EVIL.test.", "sub.evil.test"])
def test_the_blocklist_holds_while_learning(learning: Scene, host: str) -> None:
    assert learning.agent.http(host).reason == "blocklist"
    assert learning.agent.https(host).reason == "blocklist"
    assert learning.names.asked_for("evil.test") == 0


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("203.0.113.10", "address_not_allowed"),
        ("[2001:db8::10]", "address_not_allowed"),
        ("169.254.169.254", "address_not_allowed"),
        ("2130706433", "host_invalid"),
        ("0x7f.1", "host_invalid"),
        ("free.tk", "high_risk_tld"),
        ("a.b.top", "high_risk_tld"),
    ],
)
def test_addresses_and_high_risk_domains_are_refused_while_learning(
    learning: Scene, host: str, reason: str
) -> None:
    for answer in (learning.agent.http(host), learning.agent.https(host)):
        assert (answer.status, answer.reason) == (403, reason)
    assert learning.denied(reason="learning_refused")


def test_only_the_usual_ports_are_learned(learning: Scene) -> None:
    assert learning.agent.https("learn.test", 8443).reason == "port_not_learned"
    assert learning.agent.http("learn.test:8080").reason == "port_not_learned"


def test_names_that_lead_inside_are_refused_while_learning(learning: Scene) -> None:
    assert learning.agent.http("rebind-learn.test").status == 200
    assert learning.agent.http("ten.wild.test").reason == "address_not_allowed"


def test_learning_ends_by_itself(stage: Scene) -> None:
    stage.change(lambda: stage.egress.app.enforcement.learn(SANDBOX, time.time() + 1.5))
    assert stage.agent.http("learn.test").status == 200
    wait(lambda: stage.agent.http("learn.test").status == 403, "learning ends")


def test_only_an_operator_can_start_it(stage: Scene) -> None:
    authority = stage.egress.authority
    request = egress_pb2.StartLearningRequest(sandbox=REF)
    request.ttl.FromSeconds(60)

    async def start(svid: Svid) -> None:
        channel, stub = stage.egress.control_as(svid)
        try:
            with mapped_errors():
                await stub.StartLearning(request)
        finally:
            await channel.close()

    for svid in (
        authority.sandbox("team", "writer"),
        authority.service("controller"),
        authority.service("router"),
    ):
        with pytest.raises(KarsError) as refused:
            stage.call(functools.partial(start, svid))
        assert refused.value.reason == "caller_not_authorized"
    stage.call(lambda: start(authority.operator("olga")))
    assert stage.recorded(("egress.learning.started",), caller="spiffe://kars.local/operator/olga")
    stage.change(lambda: stage.egress.app.enforcement.learn(SANDBOX, 0))
    assert stage.agent.http("learn.test").status == 403
