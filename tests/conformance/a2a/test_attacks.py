"""Two organisations that may call, and a third that forges: refused, and in the audit log."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import jwt
import orjson
import pytest
from a2a.types import GetTaskRequest, a2a_pb2_grpc
from kars.a2a.v1 import policy_pb2
from kars_a2a_gateway_testkit.outsiders import CertificateAuthority, TokenIssuer, api_key, token_rule
from kars_a2a_gateway_testkit.policies import exposure
from kars_a2a_gateway_testkit.stand import Stand, free_port, generous
from kars_a2a_gateway_testkit.wire import VERSION, message, reason, rpc, why

PARTNER = "spiffe://partner.example/agent/buyer"


class World:
    """A gateway with TLS, one agent, and everybody outside."""

    def __init__(self, stand: Stand, directory: Any) -> None:
        self.stand = stand
        self.public = CertificateAuthority(directory / "public")
        self.partners = CertificateAuthority(directory / "partners")
        self.strangers = CertificateAuthority(directory / "strangers")
        self.issuer = TokenIssuer()
        self.foreign_issuer = TokenIssuer("https://foreign.example")
        self.key, self.known_key = api_key("team00key1", scopes=("agent.call",))
        self.old_key, self.known_old_key = api_key("team00key2", hours=-1)
        self.partner_cert = self.partners.issue("buyer", uri=PARTNER)
        self.other_cert = self.partners.issue("seller", uri="spiffe://partner.example/agent/seller")
        self.forged_cert = self.strangers.issue("buyer", uri=PARTNER)

    def policy(self) -> policy_pb2.GatewayPolicy:
        certificate = policy_pb2.CallerRequirement(certificate=policy_pb2.CertificateRule(uris=[PARTNER]))
        keys = policy_pb2.CallerRequirement(
            api_key=policy_pb2.ApiKeyRule(key_ids=[self.known_key.id, self.known_old_key.id])
        )
        return policy_pb2.GatewayPolicy(
            agents=[
                exposure(
                    self.stand.door,
                    callers=[token_rule(self.issuer, "agent.call"), certificate, keys],
                    skills=["echo", "transfer"],
                    skill_rules=[
                        policy_pb2.SkillRule(skill="transfer", callers=[token_rule(self.issuer, "agent.pay")])
                    ],
                    limits=generous(),
                )
            ],
            issuers=[self.issuer.policy()],
            api_keys=[self.known_key, self.known_old_key],
        )

    def client(
        self,
        certificate: tuple[Any, Any, str] | None = None,
        *,
        api_key: str = "",
        headers: dict[str, str] | None = None,
    ) -> httpx.Client:
        import ssl

        context = ssl.create_default_context(cafile=str(self.public.root_file))
        if certificate is not None:
            context.load_cert_chain(certificate[0], certificate[1])
        presented = {"X-API-Key": api_key} if api_key else {}
        return httpx.Client(verify=context, headers={**VERSION, **presented, **(headers or {})}, timeout=20)

    def bearer(self, token: str, certificate: tuple[Any, Any, str] | None = None) -> httpx.Client:
        return self.client(certificate, headers={"Authorization": f"Bearer {token}"})

    def refusals(self) -> list[dict[str, Any]]:
        return [record for record in self.stand.audit() if record["type"] == "a2a.refused"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    stand = Stand(directory / "stand")
    world = World(stand, directory)
    certificate, key, _ = world.public.issue("gateway", address="127.0.0.1")
    mutual = free_port()
    try:
        stand.controller.start()
        stand.start_inside()
        stand.start_gateway(
            TLS_CERT_FILE=str(certificate),
            TLS_KEY_FILE=str(key),
            CLIENT_CA_FILE=str(world.partners.root_file),
            GRPC_MTLS_ADDRESS=f"127.0.0.1:{mutual}",
            ALLOW_LOOPBACK_TARGETS="false",
        )
        answer = stand.controller.publish(world.policy())
        assert answer is not None
        assert answer.HasField("ack"), answer
        yield world
    finally:
        stand.stop()


def send(client: httpx.Client, world: World, text: str = "echo hi", **fields: Any) -> httpx.Response:
    return client.post(world.stand.url, json=rpc("SendMessage", message(text, **fields)))


def task_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    found: str = response.json()["result"]["task"]["id"]
    return found


# The two who may.


def test_an_organisation_with_oauth_gets_its_task(world: World) -> None:
    with world.bearer(world.issuer.token()) as client:
        task_id = task_of(send(client, world))
        assert client.get(f"{world.stand.url}/tasks/{task_id}").json()["id"] == task_id


def test_an_organisation_with_a_certificate_gets_its_task(world: World) -> None:
    with world.client(world.partner_cert) as client:
        task_of(send(client, world))


def test_an_api_key_gets_its_task(world: World) -> None:
    with world.client(api_key=world.key) as client:
        task_of(send(client, world))


async def test_a_certificate_over_grpc(world: World) -> None:
    roots = world.public.root_pem
    cert_file, key_file, _ = world.partner_cert
    credentials = grpc.ssl_channel_credentials(roots, key_file.read_bytes(), cert_file.read_bytes())
    target = f"127.0.0.1:{world.stand.ports['grpc_mtls']}"
    async with grpc.aio.secure_channel(target, credentials) as channel:
        stub = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.GetTask(GetTaskRequest(id="nobody", tenant="team/writer"), timeout=10)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


# Those who may not.


def test_without_a_credential_comes_a_challenge(world: World) -> None:
    with world.client() as client:
        by_rpc = send(client, world)
        by_rest = client.get(f"{world.stand.url}/tasks")
        challenge = by_rpc.headers["www-authenticate"]
        metadata_url = challenge.split('resource_metadata="')[1].split('"')[0]
        metadata = client.get(metadata_url).json()
    assert by_rpc.status_code == by_rest.status_code == 401
    assert reason(by_rpc.json()) == reason(by_rest.json()) == "UNAUTHENTICATED"
    assert challenge.startswith("Bearer ")
    assert metadata["authorization_servers"] == [world.issuer.issuer]
    assert metadata["resource"] == world.stand.url


def test_register_39_identity_headers_are_ignored(world: World) -> None:
    forged = {
        "X-A2A-Agent-Subject": PARTNER,
        "X-Forwarded-Client-Cert": f"URI={PARTNER}",
        "X-Forwarded-User": "alice",
        "X-SSL-Client-Verify": "SUCCESS",
        "X-User-Id": "alice",
    }
    with world.client(headers=forged) as client:
        response = send(client, world)
    assert response.status_code == 401
    with world.client(world.partner_cert, headers={"X-A2A-Agent-Subject": "somebody-else"}) as client:
        task_id = task_of(send(client, world))
    created = [r for r in world.stand.audit() if r["type"] == "a2a.task_created" and r["task"] == task_id]
    assert created[0]["principal"] == f"certificate:{PARTNER}"


def unsigned(world: World) -> str:
    def encode(document: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(orjson.dumps(document)).rstrip(b"=").decode()

    claims = jwt.decode(world.issuer.token(), options={"verify_signature": False})
    return f"{encode({'alg': 'none', 'typ': 'JWT'})}.{encode(claims)}."


def symmetric(world: World) -> str:
    """The public key, known to everybody, taken for a shared secret."""
    claims = jwt.decode(world.issuer.token(), options={"verify_signature": False})
    head = {"alg": "HS256", "kid": "k1"}
    import hashlib
    import hmac

    def encode(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    signed = f"{encode(orjson.dumps(head))}.{encode(orjson.dumps(claims))}"
    tag = hmac.new(world.issuer.key_set().encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{encode(tag)}"


FORGERIES: dict[str, tuple[Any, str]] = {
    "alg none": (unsigned, "token_algorithm_not_accepted"),
    "public key as secret": (symmetric, "token_algorithm_not_accepted"),
    "wrong audience": (lambda w: w.issuer.token(aud="https://elsewhere.example"), "token_audience_wrong"),
    "no audience": (lambda w: w.issuer.token(aud=None), "token_audience_wrong"),
    "expired": (lambda w: w.issuer.token(exp=int(time.time()) - 3600), "token_expired"),
    "without an end": (lambda w: w.issuer.token(exp=None), "token_claims_invalid"),
    "not yet valid": (lambda w: w.issuer.token(nbf=int(time.time()) + 3600), "token_not_yet_valid"),
    "other kid": (lambda w: w.issuer.token(headers={"kid": "k2"}), "token_key_unknown"),
    "other key": (lambda w: w.issuer.token(key=w.foreign_issuer.key), "token_signature_invalid"),
    "unknown issuer": (lambda w: w.foreign_issuer.token(), "token_issuer_unknown"),
    "own key in the header": (
        lambda w: w.issuer.token(
            key=w.foreign_issuer.key, headers={"jwk": orjson.loads(w.foreign_issuer.key_set())["keys"][0]}
        ),
        "token_signature_invalid",
    ),
    "critical header": (lambda w: w.issuer.token(headers={"crit": ["b64"], "b64": True}), "token_malformed"),
    "unprintable subject": (lambda w: w.issuer.token(sub="a\x00b"), "token_claims_invalid"),
    "no token at all": (lambda _: "abc", "token_malformed"),
    "bound to a certificate": (
        lambda w: w.issuer.token(cnf={"x5t#S256": base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")}),
        "token_not_bound",
    ),
    "bound in an unknown way": (lambda w: w.issuer.token(cnf={"jkt": "x"}), "token_binding_not_understood"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tokens_are_refused_and_recorded(world: World, name: str) -> None:
    forge, wanted = FORGERIES[name]
    before = len(world.refusals())
    with world.bearer(forge(world)) as client:
        response = send(client, world)

    assert response.status_code == 401
    assert (reason(response.json()), why(response.json())) == ("UNAUTHENTICATED", wanted)
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    [record] = world.refusals()[before:]
    assert (record["reason"], record["why"], record["agent"]) == ("unauthenticated", wanted, "team/writer")


def test_a_bound_token_works_with_its_certificate_and_no_other(world: World) -> None:
    thumbprint = base64.urlsafe_b64encode(bytes.fromhex(world.partner_cert[2])).decode().rstrip("=")
    token = world.issuer.token(cnf={"x5t#S256": thumbprint})
    with world.bearer(token, world.partner_cert) as client:
        task_of(send(client, world))
    with world.bearer(token, world.other_cert) as client:
        assert why(send(client, world).json()) == "token_not_bound"


def test_a_missing_scope_is_forbidden_and_named(world: World) -> None:
    with world.bearer(world.issuer.token(scope="something.else")) as client:
        response = send(client, world)
    assert response.status_code == 403
    assert 'error="insufficient_scope", scope="agent.call"' in response.headers["www-authenticate"]


def test_a_certificate_of_another_authority_is_no_certificate(world: World) -> None:
    with world.client(world.forged_cert) as client, pytest.raises(httpx.HTTPError):
        send(client, world)


def test_a_certificate_that_no_rule_names_is_forbidden(world: World) -> None:
    with world.client(world.other_cert) as client:
        assert send(client, world).status_code == 403


@pytest.mark.parametrize("wrong", ["expired", "unknown", "changed", "two"])
def test_api_keys_that_are_none(world: World, wrong: str) -> None:
    key = {
        "expired": world.old_key,
        "unknown": world.key.replace("team00key1", "team00key9"),
        "changed": world.key[:-1] + ("a" if world.key[-1] != "a" else "b"),
        "two": world.key,
    }[wrong]
    headers = [("X-API-Key", key), *VERSION.items()] + ([("X-API-Key", key)] if wrong == "two" else [])
    with world.client() as client:
        response = client.post(world.stand.url, json=rpc("SendMessage", message("echo")), headers=headers)
    assert response.status_code == 401
    assert why(response.json()) == "api_key_invalid"


def test_another_callers_task_looks_like_none(world: World) -> None:
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        task_id = task_of(send(alice, world, "ask"))
        context = alice.get(f"{world.stand.url}/tasks/{task_id}").json()["contextId"]
    with world.bearer(world.issuer.token(sub="mallory")) as mallory:

        def ask(method: str, params: dict[str, Any]) -> dict[str, Any]:
            answer = mallory.post(world.stand.url, json=rpc(method, params)).json()
            found: dict[str, Any] = answer["error"]
            return found

        for task in (task_id, "nobody"):
            errors = [
                ask("GetTask", {"id": task}),
                ask("CancelTask", {"id": task}),
                ask("SubscribeToTask", {"id": task}),
                ask("SendMessage", message("x", taskId=task)),
                ask("SendMessage", message("x", taskId=task, contextId=context)),
                ask("SendMessage", message("x", referenceTaskIds=[task])),
                ask("ListTaskPushNotificationConfigs", {"taskId": task}),
                ask("GetTaskPushNotificationConfig", {"taskId": task, "id": "c"}),
                ask("DeleteTaskPushNotificationConfig", {"taskId": task, "id": "c"}),
                ask("CreateTaskPushNotificationConfig", {"taskId": task, "url": "https://hook.example/x"}),
            ]
            assert {error["code"] for error in errors} == {-32001}, errors
            assert len({json.dumps(error) for error in errors}) == 1
        listed = mallory.get(f"{world.stand.url}/tasks").json()
        assert task_id not in [task["id"] for task in listed["tasks"]]


def test_another_callers_context_is_not_entered(world: World) -> None:
    """It is accepted like any new name, and is another conversation at the agent."""
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        first = send(alice, world, "ask").json()["result"]["task"]
    with world.bearer(world.issuer.token(sub="mallory")) as mallory:
        theirs = send(mallory, world, "echo", contextId=first["contextId"]).json()["result"]["task"]
        assert theirs["contextId"] == first["contextId"]
        listed = mallory.get(f"{world.stand.url}/tasks", params={"contextId": first["contextId"]}).json()
        assert [task["id"] for task in listed["tasks"]] == [theirs["id"]]
    inner = httpx.post(
        f"http://127.0.0.1:{world.stand.inside_ports['agent']}/",
        json=rpc("GetTask", {"id": theirs["id"]}),
        headers=VERSION,
    )
    assert inner.json()["result"]["contextId"] != first["contextId"]


def test_a_page_token_is_for_whoever_got_it(world: World) -> None:
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        for _ in range(2):
            send(alice, world)
        token = alice.get(f"{world.stand.url}/tasks", params={"pageSize": 1}).json()["nextPageToken"]
        assert token
    with world.bearer(world.issuer.token(sub="mallory")) as mallory:
        answer = mallory.get(f"{world.stand.url}/tasks", params={"pageToken": token})
    assert (answer.status_code, reason(answer.json())) == (400, "INVALID_PARAMS")


def test_a_repeated_message_is_not_done_twice(world: World) -> None:
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        same = rpc("SendMessage", message("echo once"))
        ids = {alice.post(world.stand.url, json=same).json()["result"]["task"]["id"] for _ in range(3)}
    with world.bearer(world.issuer.token(sub="bob")) as bob:
        other = bob.post(world.stand.url, json=same).json()["result"]["task"]["id"]
    assert len(ids) == 1
    assert other not in ids


def test_a_duplicate_key_is_no_request(world: World) -> None:
    raw = b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"mine","id":"yours"}}'
    with world.bearer(world.issuer.token()) as client:
        answer = client.post(world.stand.url, content=raw, headers={"content-type": "application/json"})
    assert (answer.json()["error"]["code"], why(answer.json())) == (-32700, "duplicate_key")


@pytest.mark.parametrize(
    "url",
    [
        "http://hook.example/x",
        "https://127.0.0.1/x",
        "https://localhost/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://[64:ff9b::a00:1]/x",
        "https://100.64.0.1/x",
        "https://0/x",
        "https://user:pw@hook.example/x",
        "https://hook.example:22/x",
        "https://metadata.google.internal/x",
        "ftp://hook.example/x",
        "https://hook.example\r\nX-Injected: 1/x",
    ],
)
def test_push_targets_inside_are_refused(world: World, url: str) -> None:
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        task_id = task_of(send(alice, world, "ask"))
        registered = alice.post(
            world.stand.url, json=rpc("CreateTaskPushNotificationConfig", {"taskId": task_id, "url": url})
        )
        config = {"taskPushNotificationConfig": {"url": url}}
        inline = alice.post(
            world.stand.url, json=rpc("SendMessage", {**message("echo"), "configuration": config})
        )
    for answer in (registered, inline):
        assert answer.json()["error"]["code"] == -32602
        assert why(answer.json()) in ("target_not_allowed", "target_url_invalid")


def test_secrets_with_line_breaks_are_refused(world: World) -> None:
    with world.bearer(world.issuer.token(sub="alice")) as alice:
        task_id = task_of(send(alice, world, "ask"))
        params = {"taskId": task_id, "url": "https://hook.example/x", "token": "a\r\nX-Injected: 1"}
        answer = alice.post(world.stand.url, json=rpc("CreateTaskPushNotificationConfig", params))
    assert answer.json()["error"]["code"] == -32602


def test_skills_are_asked_for_by_those_who_may(world: World) -> None:
    def ask(token: str, skill: str) -> dict[str, Any]:
        with world.bearer(token) as client:
            found: dict[str, Any] = send(client, world, "echo", metadata={"skillId": skill}).json()
            return found

    assert "result" in ask(world.issuer.token(), "echo")
    assert reason(ask(world.issuer.token(), "transfer")) == "PERMISSION_DENIED"
    assert "result" in ask(world.issuer.token(scope="agent.call agent.pay"), "transfer")
    assert reason(ask(world.issuer.token(scope="agent.call agent.pay"), "hidden")) == "UNSUPPORTED_OPERATION"


def test_card_says_how_to_come_in_and_hides_what_is_not_shown(world: World) -> None:
    with world.client() as client:
        card = client.get(f"{world.stand.url}/.well-known/agent-card.json").json()
    assert set(card["securitySchemes"]) == {"oauth2", "mtls", "api_key"}
    assert [list(item["schemes"]) for item in card["securityRequirements"]] == [
        ["oauth2"],
        ["mtls"],
        ["api_key"],
    ]
    assert [skill["id"] for skill in card["skills"]] == ["echo", "transfer"]
    assert len(card["signatures"]) == 1, "both forms of this card agree"


def test_extended_card_shows_restricted_skills_to_those_who_may(world: World) -> None:
    def skills(token: str) -> list[str]:
        with world.bearer(token) as client:
            card = client.get(f"{world.stand.url}/extendedAgentCard").json()
            return [skill["id"] for skill in card["skills"]]

    assert skills(world.issuer.token()) == ["echo"]
    assert skills(world.issuer.token(scope="agent.call agent.pay")) == ["echo", "transfer"]


async def test_grpc_without_a_credential_is_unauthenticated(world: World) -> None:
    credentials = grpc.ssl_channel_credentials(world.public.root_pem)
    async with grpc.aio.secure_channel(world.stand.grpc_target, credentials) as channel:
        stub = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        for tenant, token, wanted in (
            ("team/writer", "", grpc.StatusCode.UNAUTHENTICATED),
            ("team/writer", unsigned(world), grpc.StatusCode.UNAUTHENTICATED),
            ("team/other", world.issuer.token(), grpc.StatusCode.NOT_FOUND),
            ("team/writer", world.issuer.token(), grpc.StatusCode.NOT_FOUND),
        ):
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.GetTask(GetTaskRequest(id="x", tenant=tenant), metadata=metadata, timeout=10)
            assert failure.value.code() is wanted


async def test_no_secret_is_in_the_log_or_the_output(world: World) -> None:
    await asyncio.sleep(0)
    everything = json.dumps(list(world.stand.audit())) + world.stand.gateway_log()
    assert world.key not in everything
    assert "X-Injected" not in everything
    assert ".eyJ" not in everything, "no token is written down"


def test_unexposed_agents_do_not_exist(world: World) -> None:
    with world.bearer(world.issuer.token()) as client:
        for path in (
            "/agents/team/other",
            "/agents/other/writer",
            "/agents/team",
            "/agents/TEAM/writer",
            "/",
        ):
            answer = client.post(world.stand.root + path, json=rpc("GetTask", {"id": "x"}))
            assert (answer.status_code, reason(answer.json())) == (404, "AGENT_NOT_FOUND")
