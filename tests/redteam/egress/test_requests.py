"""Requests that mean one thing to one reader and another to the next: refused, or sent where they may go."""

import contextlib

import pytest
from kars_egress.policy.entries import Entry
from kars_egress_testkit.running import Scene
from kars_egress_testkit.service import read_answer
from kars_egress_testkit.world import PUBLIC, PUBLIC_2, PUBLIC_6

H = "host: api.allowed.test\r\n"

SMUGGLED = {
    "other host in the header": b"GET http://hidden.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: api.allowed.test\r\nhost: hidden.test\r\n\r\n",
    "host list": b"GET / HTTP/1.1\r\nhost: api.allowed.test, hidden.test\r\n\r\n",
    "connect host differs": b"CONNECT hidden.test:443 HTTP/1.1\r\nhost: api.allowed.test:443\r\n\r\n",
    "https in absolute form": b"GET https://api.allowed.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n",
    "ftp in absolute form": b"GET ftp://api.allowed.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n",
    "user information": b"GET http://a@hidden.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n",
    "null in host": b"GET / HTTP/1.1\r\nhost: hidden.test\x00.wild.test\r\n\r\n",
    "space in host": b"GET / HTTP/1.1\r\nhost: hidden.test .wild.test\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "http/1.0 without host": b"GET / HTTP/1.0\r\n\r\n",
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "length and chunks": (
        b"POST http://api.allowed.test/ HTTP/1.1\r\nhost: api.allowed.test\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET http://hidden.test/ HTTP/1.1\r\nhost: hidden.test\r\n\r\n"
    ),
    "two lengths": (
        b"POST / HTTP/1.1\r\nhost: api.allowed.test\r\ncontent-length: 0\r\ncontent-length: 44\r\n\r\n"
        b"GET / HTTP/1.1\r\nhost: hidden.test\r\n\r\n"
    ),
    "obsolete folding": b"GET / HTTP/1.1\r\nhost: api.allowed.test\r\n hidden.test\r\n\r\n",
    "identity forged": b"GET / HTTP/1.1\r\nhost: hidden.test\r\nx-kars-egress-host: api.allowed.test\r\n\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nhost: hidden.test\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nhost: hidden.test\r\n\r\n",
    "fragment": b"GET http://hidden.test#.wild.test/ HTTP/1.1\r\nhost: hidden.test\r\n\r\n",
    "backslash": b"GET http://hidden.test\\.wild.test/ HTTP/1.1\r\nhost: hidden.test\r\n\r\n",
    "method with space": b"GET  http://hidden.test/ HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_forged_request_reaches_nothing_that_is_not_allowed(stage: Scene, name: str) -> None:
    before = len(stage.origins.requests)
    queries = stage.names.asked_for("hidden.test")
    answer = stage.agent.exchange(SMUGGLED[name])
    assert answer.status != 200, name
    arrived = stage.origins.requests[before:]
    assert not arrived, arrived
    assert stage.names.asked_for("hidden.test") == queries


def test_register_53_each_request_of_a_connection_is_decided(stage: Scene) -> None:
    with contextlib.closing(stage.agent.connect()) as connection:
        for host, status in (("api.allowed.test", 200), ("hidden.test", 403), ("api.allowed.test", 200)):
            connection.sendall(f"GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            assert read_answer(connection).status == status


def test_a_pipelined_request_is_decided_too(stage: Scene) -> None:
    before = len(stage.origins.requests)
    first = f"GET http://api.allowed.test/ HTTP/1.1\r\n{H}\r\n"
    second = "GET http://hidden.test/ HTTP/1.1\r\nhost: hidden.test\r\n\r\n"
    stage.agent.exchange((first + second).encode())
    stage.denied(host="hidden.test", method="GET")
    assert all(
        request["headers"]["host"] == "api.allowed.test" for request in stage.origins.requests[before:]
    )


def test_requests_that_are_divided_by_bare_line_feeds_are_decided_one_by_one(stage: Scene) -> None:
    before = len(stage.origins.requests)
    stage.agent.exchange(b"GET / HTTP/1.1\nhost: api.allowed.test\n\nGET /lf HTTP/1.1\nhost: hidden.test\n\n")
    stage.denied(host="hidden.test", method="GET")
    assert all(
        request["headers"]["host"] == "api.allowed.test" for request in stage.origins.requests[before:]
    )


def test_what_a_metadata_service_wants_to_see_is_taken_off(stage: Scene) -> None:
    extra = (
        "metadata: true\r\nmetadata-flavor: Google\r\nx-aws-ec2-metadata-token: t\r\n"
        "proxy-authorization: Basic eA==\r\nkept: yes\r\n"
        "x-forwarded-for: 10.0.0.1\r\nx-forwarded-client-cert: URI=spiffe://kars.local/ns/a/sandbox/b\r\n"
    )
    answer = stage.agent.get("http://api.allowed.test/", "api.allowed.test", extra=extra)
    assert set(answer.json()["headers"]) == {"host", "kept"}


def test_a_host_is_one_host_in_any_case_and_with_a_dot(stage: Scene) -> None:
    for host in ("API.Allowed.TEST", "api.allowed.test."):
        assert stage.agent.http(host).json()["address"] == PUBLIC
        assert stage.agent.https(host, server_name="api.allowed.test").status == 200


@pytest.mark.parametrize(
    "host", ["evil-in.wild.test", "EVIL-in.Wild.Test", "evil-in.wild.test.", "a.evil-in.wild.test"]
)
def test_the_blocklist_holds_in_any_spelling_and_below_a_wildcard(stage: Scene, host: str) -> None:
    before = stage.names.asked_for("evil-in.wild.test")
    for answer in (stage.agent.http(host), stage.agent.https(host)):
        assert (answer.status, answer.reason) == (403, "blocklist")
    assert stage.names.asked_for("evil-in.wild.test") == before
    assert stage.denied(reason="blocklist", host=host.lower().rstrip("."))


def test_a_listed_host_is_blocked_even_when_somebody_named_it(stage: Scene) -> None:
    stage.allow(Entry.build("evil.test"), Entry.build("evil.test", scheme="http"), Entry.build("*.evil.test"))
    assert stage.agent.http("evil.test").reason == "blocklist"
    assert stage.agent.https("evil.test").reason == "blocklist"
    assert stage.agent.https("sub.evil.test").reason == "blocklist"
    assert stage.denied(host="evil.test", reason="blocklist", method="CONNECT")
    assert stage.names.asked_for("evil.test") == 0


def test_a_denial_says_what_to_do(stage: Scene) -> None:
    body = stage.agent.http("hidden.test").json()
    assert body["error"] == "egress_denied"
    assert body["reason"] == "not_in_allowlist"
    ask = "ask an operator: kars egress -n <namespace> <sandbox> approve"
    assert body["next_step"] == f"{ask} hidden.test --scheme http --reason '<why>'"
    assert stage.agent.https("hidden.test").json()["next_step"] == f"{ask} hidden.test:443 --reason '<why>'"


def test_methods_and_paths_are_kept_where_requests_are_seen(stage: Scene) -> None:
    stage.allow(Entry.build("api.allowed.test", scheme="http", methods=("GET",), paths=("/v1/read",)))
    agent = stage.agent
    base = "http://api.allowed.test"
    assert agent.get(f"{base}/v1/read", "api.allowed.test").status == 200
    assert agent.get(f"{base}/v1/read/deep?x=1", "api.allowed.test").status == 200
    for path in (
        "/v1/readme",
        "/v1/read/../write",
        "/v1",
        "/",
        "/v1/read/%2e%2e/write",
        "/v1/read%2f..%2fwrite",
        "//v1/read",
    ):
        answer = agent.get(f"{base}{path}", "api.allowed.test")
        assert answer.status in {400, 403} or "/v1/read" in answer.json()["line"], path
    assert agent.get(f"{base}/v1/read", "api.allowed.test", method="DELETE").status == 403
    assert agent.https("api.allowed.test").status == 403
    assert stage.origins.reached <= {PUBLIC, PUBLIC_2, PUBLIC_6}
