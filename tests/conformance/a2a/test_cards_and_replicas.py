"""Signatures on intake, required extensions, replicas on one PostgreSQL, rotation of TLS files."""

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from a2a.types import GetTaskRequest, a2a_pb2_grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kars.a2a.v1 import policy_pb2
from kars_a2a_gateway_testkit.mandates import MandateKey
from kars_a2a_gateway_testkit.outsiders import CertificateAuthority
from kars_a2a_gateway_testkit.postgres import PostgresServer
from kars_a2a_gateway_testkit.stand import Stand, wait_until
from kars_a2a_gateway_testkit.wire import VERSION, message, reason, rpc
from kars_common.agent_cards import CardSigningKey

EXTENSION = "https://example.org/extensions/tone/v1"


def card_key() -> CardSigningKey:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return CardSigningKey.from_pem(pem, kid="agent-key")


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, CardSigningKey]]:
    """An agent that signs its card and requires an extension."""
    key = card_key()
    stand = Stand(tmp_path_factory.mktemp("signing"), required_extension=True)
    inside = stand.directory / "inside"
    inside.mkdir(parents=True)
    private = {**key.jwk.as_dict(private=True), "kid": "agent-key", "alg": "ES256"}
    (inside / "card-key.json").write_text(json.dumps(private))
    try:
        stand.start(CARD_MAX_AGE_S="0")
        yield stand, key
    finally:
        stand.stop()


def pinned(stand: Stand, key: CardSigningKey) -> policy_pb2.GatewayPolicy:
    jwk = json.dumps(key.public_jwk())
    return stand.open_policy(
        card_keys=[policy_pb2.CardKey(kid="agent-key", algorithm="ES256", jwk=jwk)], require_signed_card=True
    )


def test_a_card_with_the_pinned_signature_is_served_with_its_provenance(
    signing: tuple[Stand, CardSigningKey],
) -> None:
    stand, key = signing
    stand.controller.publish(pinned(stand, key))

    card = httpx.get(f"{stand.url}/.well-known/agent-card.json").json()

    provenance = [e for e in card["capabilities"]["extensions"] if "provenance" in e["uri"]]
    assert provenance[0]["params"]["agentKeyId"] == "agent-key"
    assert card["supportedInterfaces"][0]["url"] == stand.url


def test_a_card_with_another_signature_keeps_the_agent_out_of_reach(
    signing: tuple[Stand, CardSigningKey],
) -> None:
    stand, _ = signing
    stand.controller.publish(pinned(stand, card_key()))

    card = httpx.get(f"{stand.url}/.well-known/agent-card.json")
    call = httpx.post(stand.url, json=rpc("SendMessage", message("echo")), headers=VERSION)

    assert (card.status_code, call.status_code) == (503, 503)


def test_a_required_extension_is_required_in_all_bindings(signing: tuple[Stand, CardSigningKey]) -> None:
    stand, key = signing
    stand.controller.publish(pinned(stand, key))
    named = {**VERSION, "A2A-Extensions": EXTENSION}

    by_rpc = httpx.post(stand.url, json=rpc("SendMessage", message("echo")), headers=VERSION)
    by_rest = httpx.post(f"{stand.url}/message:send", json=message("echo"), headers=VERSION)
    accepted = httpx.post(stand.url, json=rpc("SendMessage", message("echo")), headers=named)

    assert by_rpc.json()["error"]["code"] == -32008
    assert (by_rest.status_code, reason(by_rest.json())) == (400, "EXTENSION_SUPPORT_REQUIRED")
    assert accepted.json()["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    assert accepted.headers["a2a-extensions"] == EXTENSION
    with grpc.insecure_channel(stand.grpc_target) as channel:
        stub = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        with pytest.raises(grpc.RpcError) as refusal:
            stub.GetTask(GetTaskRequest(id="x", tenant="team/writer"), timeout=10)
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_grpc_refuses_what_is_no_message_and_what_is_too_large(signing: tuple[Stand, CardSigningKey]) -> None:
    stand, _ = signing
    with grpc.insecure_channel(stand.grpc_target) as channel:
        call: Any = channel.unary_unary("/lf.a2a.v1.A2AService/GetTask")
        for body, metadata, codes in (
            (b"\xff\xff\xff", (), {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}),
            (b"\x00" * 5_000_000, (), {grpc.StatusCode.RESOURCE_EXHAUSTED}),
            (b"", (("x", "y" * 40_000),), {grpc.StatusCode.RESOURCE_EXHAUSTED}),
        ):
            with pytest.raises(grpc.RpcError) as refusal:
                call(body, metadata=metadata, timeout=10)
            assert refusal.value.code() in codes
        nothing: Any = channel.unary_unary("/lf.a2a.v1.A2AService/Nothing")
        with pytest.raises(grpc.RpcError) as unknown:
            nothing(b"", timeout=10)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_two_replicas_share_tasks_and_one_takes_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    first = Stand(tmp_path_factory.mktemp("first"))
    second = Stand(tmp_path_factory.mktemp("second"))
    with PostgresServer() as server:
        try:
            first.start(DATABASE_URL=server.url)
            # The other replica has its own state and the same agents, policy and identity.
            second.authority, second.controller = first.authority, first.controller
            second.inside_ports = first.inside_ports
            second.start_gateway(DATABASE_URL=server.url)
            wait_until(lambda: get(second, "x").get("error", {}).get("code") == -32001, "the policy")

            start = {**message("stream 40 0.1"), "configuration": {"returnImmediately": True}}
            answer = httpx.post(first.url, json=rpc("SendMessage", start), headers=VERSION).json()
            task_id = answer["result"]["task"]["id"]
            assert get(second, task_id)["result"]["id"] == task_id, "a task is known to both"

            first.kill_gateway()
            events = follow(second, task_id)

            assert events[0]["task"]["id"] == task_id
            assert events[-1]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"
            listed = httpx.get(f"{second.url}/tasks", headers=VERSION).json()
            assert listed["tasks"][0]["id"] == task_id
        finally:
            second.kill_gateway()
            first.stop()


def get(stand: Stand, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.post(
        stand.url, json=rpc("GetTask", {"id": task_id}), headers=VERSION
    ).json()
    return found


def follow(stand: Stand, task_id: str) -> list[dict[str, Any]]:
    request = rpc("SubscribeToTask", {"id": task_id})
    with httpx.stream("POST", stand.url, json=request, headers=VERSION, timeout=30) as response:
        return [json.loads(line[6:])["result"] for line in response.iter_lines() if line.startswith("data: ")]


def test_a_new_certificate_is_served_without_dropping_a_connection(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("tls")
    authority = CertificateAuthority(directory / "public")
    certificate, key, old = authority.issue("gateway", address="127.0.0.1")
    stand = Stand(directory / "stand")
    try:
        stand.start(TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
        context = ssl.create_default_context(cafile=str(authority.root_file))
        with httpx.Client(verify=context, headers=VERSION) as open_client:
            assert open_client.get(f"{stand.url}/tasks").status_code == 200
            time.sleep(0.01)  # file times have a grain
            assert served(stand) == old
            _, _, new = authority.issue("gateway", address="127.0.0.1")
            wait_until(lambda: served(stand) == new, "the new certificate", 15)
            assert open_client.get(f"{stand.url}/tasks").status_code == 200, "an open connection lives on"
        assert httpx.get(f"{stand.url}/tasks", headers=VERSION, verify=context).headers[
            "strict-transport-security"
        ]
    finally:
        stand.stop()


def served(stand: Stand) -> str:
    import hashlib

    pem = ssl.get_server_certificate(("127.0.0.1", stand.ports["http"]))
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def test_state_of_a_gateway_is_private(signing: tuple[Stand, CardSigningKey]) -> None:
    stand, _ = signing
    for name in ("tasks.sqlite", "card-key.pem", "audit.key"):
        path: Path = stand.state / name
        assert path.stat().st_mode & 0o077 == 0, name


def test_register_41_payments_are_required_and_remembered_across_a_kill(
    signing: tuple[Stand, CardSigningKey],
) -> None:
    stand, _ = signing
    bank = MandateKey("bank")
    stand.controller.publish(stand.open_policy(payments=bank.policy(required=True)))
    named = {**VERSION, "A2A-Extensions": EXTENSION}

    def pay(ap2: Any, **place: Any) -> dict[str, Any]:
        metadata = {"metadata": {"ap2": ap2}} if ap2 is not None else {}
        params = {**message("echo", **metadata), **place}
        answer: dict[str, Any] = httpx.post(
            stand.url, json=rpc("SendMessage", params), headers=named, timeout=20
        ).json()
        return answer

    def kind(answer: dict[str, Any]) -> str:
        assert answer["error"]["code"] == -32011
        found: str = answer["error"]["data"][0]["metadata"]["kind"]
        return found

    ap2 = bank.signed("anonymous", time.time())
    assert kind(pay(None)) == "commerceMandateRequired"
    assert kind(pay(None, metadata={"ap2": ap2})) == "mandateMisplaced"
    assert pay(ap2)["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"
    stand.kill_gateway()
    stand.start_gateway()
    wait_until(lambda: "result" in get_list(stand, named), "the policy")
    assert kind(pay(ap2)) == "nonceReused"
    assert "result" in pay(bank.signed("anonymous", time.time(), None, {"transferNonce": "n2"}))
    third = bank.signed("anonymous", time.time(), None, {"transferNonce": "n3", "amount": 1})
    assert kind(pay(third)) == "dailyCapExceeded"
    accepted = [record for record in stand.audit() if record["type"] == "a2a.payment_accepted"]
    assert [record["amount"] for record in accepted] == [500, 500]


def get_list(stand: Stand, headers: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = httpx.post(stand.url, json=rpc("ListTasks", {}), headers=headers).json()
    return found
