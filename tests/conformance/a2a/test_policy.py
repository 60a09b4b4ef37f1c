"""Policy: nothing without one, live, revocable, refused whole, and enforced while the controller is away."""

from collections.abc import Iterator

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from kars.a2a.v1 import policy_pb2
from kars_a2a_gateway_testkit.outsiders import TokenIssuer, api_key, token_rule
from kars_a2a_gateway_testkit.policies import bundle, exposure, in_hours
from kars_a2a_gateway_testkit.stand import Stand, generous, wait_until
from kars_a2a_gateway_testkit.wire import VERSION, message, reason, rpc
from kars_common.policy import canonical_payload, sign


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Everything runs and no policy was ever given."""
    stand = Stand(tmp_path_factory.mktemp("bare"))
    try:
        stand.controller.start()
        stand.start_inside()
        stand.start_gateway()
        yield stand
    finally:
        stand.stop()


def status(stand: Stand) -> int:
    return httpx.post(stand.url, json=rpc("GetTask", {"id": "x"}), headers=VERSION).status_code


def ready(stand: Stand) -> list[str]:
    answer = httpx.get(f"http://127.0.0.1:{stand.ports['health']}/readyz").json()
    missing: list[str] = answer["missing"]
    return missing


def test_the_life_of_a_policy(bare: Stand) -> None:
    """One story, because each step needs the one before: none, one, a change, a revocation, a bad one."""
    assert status(bare) == 404, "without a policy nothing exists"
    assert httpx.get(f"{bare.url}/.well-known/agent-card.json").status_code == 404
    assert ready(bare) == ["policy"]

    assert bare.controller.publish(bare.open_policy()).HasField("ack")  # type: ignore[union-attr]  # waited for
    assert status(bare) == 200
    assert ready(bare) == []

    issuer = TokenIssuer()
    closed = policy_pb2.GatewayPolicy(
        agents=[exposure(bare.door, callers=[token_rule(issuer)], limits=generous())],
        issuers=[issuer.policy()],
    )
    bare.controller.publish(closed)
    assert status(bare) == 401, "a live update needs no restart"

    for wrong in (
        policy_pb2.GatewayPolicy(agents=[exposure(bare.door, callers=[token_rule(issuer)])]),
        policy_pb2.GatewayPolicy(agents=[exposure(bare.door), exposure(bare.door)]),
        policy_pb2.GatewayPolicy(agents=[exposure("nowhere")]),
        policy_pb2.GatewayPolicy(agents=[exposure(bare.door, callers=[policy_pb2.CallerRequirement()])]),
        policy_pb2.GatewayPolicy(agents=[exposure(bare.door, require_signed_card=True)]),
        policy_pb2.GatewayPolicy(
            agents=[exposure(bare.door)],
            issuers=[
                policy_pb2.TokenIssuer(issuer="https://i", audiences=["a"], algorithms=["HS256"], jwks="{}")
            ],
        ),
        policy_pb2.GatewayPolicy(
            agents=[exposure(bare.door)], api_keys=[policy_pb2.ApiKey(id="abcdefgh1", sha256="0" * 64)]
        ),
    ):
        answer = bare.controller.publish(wrong)
        assert answer is not None
        assert answer.nack.reason == "compile_failed"
        assert answer.nack.message
        assert status(bare) == 401, "the policy in force stays"

    foreign = bundle(bare.controller.version + 1, bare.open_policy())
    forged = sign(canonical_payload(foreign), Ed25519PrivateKey.generate())
    answer = bare.controller.push(forged)
    assert answer is not None
    assert answer.nack.reason == "signature_invalid"
    assert status(bare) == 401

    revoked = bare.open_policy(enabled=False)
    bare.controller.publish(revoked)
    assert status(bare) == 404, "one field closes it"

    expiring = bare.open_policy()
    expiring.agents[0].expires_at.FromDatetime(in_hours(-1))
    bare.controller.publish(expiring)
    assert status(bare) == 404, "an exposure that has ended does not exist"


def test_the_last_policy_is_enforced_without_a_controller(bare: Stand) -> None:
    bare.controller.publish(bare.open_policy())
    bare.stop_gateway()
    bare.start_gateway(CONTROLLER_ENDPOINT="127.0.0.1:1")

    wait_until(lambda: status(bare) == 200, "the kept policy")
    answer = httpx.post(
        bare.url, json=rpc("SendMessage", message("echo")), headers=VERSION, timeout=20
    ).json()
    assert answer["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


def test_rates_streams_and_tasks_are_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    stand = Stand(tmp_path_factory.mktemp("limits"))
    try:
        key, known = api_key("limitkey01")
        rule = policy_pb2.CallerRequirement(api_key=policy_pb2.ApiKeyRule(key_ids=[known.id]))
        limits = policy_pb2.ExposureLimits(
            max_body_bytes=2048,
            caller_requests_per_minute=60,
            caller_burst=12,
            agent_requests_per_minute=6000,
            max_streams=2,
            max_open_tasks=3,
            max_stream_s=1,
        )
        stand.controller.start()
        stand.start_inside()
        stand.start_gateway()
        policy = policy_pb2.GatewayPolicy(
            agents=[exposure(stand.door, callers=[rule], limits=limits)], api_keys=[known]
        )
        stand.controller.publish(policy)
        with httpx.Client(headers={**VERSION, "X-API-Key": key}, timeout=20) as client:

            def send(text: str) -> httpx.Response:
                return client.post(stand.url, json=rpc("SendMessage", message(text)))

            assert send("echo " + "x" * 3000).status_code == 413
            streams = [
                client.stream("POST", stand.url, json=rpc("SendStreamingMessage", message("slow 20")))
                for _ in range(3)
            ]
            first, second = streams[0].__enter__(), streams[1].__enter__()
            third = streams[2].__enter__()
            third.read()
            assert (third.status_code, reason(third.json())) == (429, "QUOTA_EXCEEDED")
            assert b"".join(first.iter_bytes()), "a stream ends after its time, the task goes on"
            for stream in (second, first):
                stream.close()
            third.close()
            assert send("ask").status_code == 200
            refused = send("ask")
            assert (refused.status_code, reason(refused.json())) == (429, "QUOTA_EXCEEDED")
            answers = [send("message hi") for _ in range(12)]
            limited = [answer for answer in answers if reason_or_none(answer) == "RATE_LIMITED"]
            assert limited
            assert int(limited[0].headers["retry-after"]) >= 1
            assert limited[0].status_code == 429
    finally:
        stand.stop()


def reason_or_none(answer: httpx.Response) -> str:
    document = answer.json()
    return reason(document) if "error" in document else ""
