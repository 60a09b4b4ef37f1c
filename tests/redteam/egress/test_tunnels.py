"""What is inside CONNECT is TLS for the host that was asked for, and it ends when the permission ends."""

import contextlib
import socket
import ssl
import time

from kars_egress.policy.entries import Entry
from kars_egress.policy.sandboxes import Approval
from kars_egress_testkit.running import Scene, wait
from kars_egress_testkit.service import SANDBOX, read_answer
from kars_egress_testkit.world import PUBLIC


def test_tls_that_asks_for_another_host_than_connect_is_cut(stage: Scene) -> None:
    before = stage.names.asked_for("hidden.test")
    assert stage.agent.https("api.allowed.test", server_name="hidden.test").status == 0
    assert stage.denied(host="api.allowed.test", reason="server_name_differs")["sandbox"] == "team/writer"
    assert stage.names.asked_for("hidden.test") == before, "a refused server name was resolved"


def test_a_refused_server_name_is_not_resolved_when_captured(stage: Scene) -> None:
    """A name server of the attacker's would read what labels carry."""
    leak = "mfwgc3dpoi.hidden.test"
    assert stage.agent.captured_https(leak).status == 0
    assert stage.denied(host=leak, reason="not_in_allowlist")
    assert stage.agent.captured_http(leak).status == 403
    assert stage.agent.http(leak).status == 403
    assert stage.names.asked_for("hidden.test") == 0


def test_bytes_that_are_not_tls_do_not_pass_a_tunnel(stage: Scene) -> None:
    for payload in (b"GET / HTTP/1.1\r\nhost: api.allowed.test\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00" * 64):
        before = len(stage.origins.requests)
        answer, connection = stage.agent.tunnel("api.allowed.test:443")
        with contextlib.closing(connection):
            assert answer.status == 200
            connection.sendall(payload)
            assert _closed(connection)
        assert len(stage.origins.requests) == before
    assert stage.denied(host="api.allowed.test", reason="not_tls")


def test_tls_without_a_server_name_is_cut(stage: Scene) -> None:
    answer, connection = stage.agent.tunnel("api.allowed.test:443")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.closing(connection):
        assert answer.status == 200
        with contextlib.suppress(OSError), context.wrap_socket(connection) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_answer(secure).status == 0
    assert stage.agent.captured_https("").status == 0


def test_only_named_ports_are_reached(stage: Scene) -> None:
    for port in (22, 25, 80, 8443, 9):
        answer = stage.agent.https("api.allowed.test", port)
        assert (answer.status, answer.reason) == (403, "not_in_allowlist"), port
    for port in (443, 8080, 8443):
        assert stage.agent.http(f"api.allowed.test:{port}").status == 403, port
    stage.allow(Entry.build("api.allowed.test", port=8443))
    assert stage.agent.https("api.allowed.test", 8443).status == 200
    assert stage.agent.https("api.allowed.test", 443).status == 403


def test_an_open_tunnel_is_closed_when_its_approval_is_revoked(stage: Scene) -> None:
    stage.change(lambda: stage.egress.app.enforcement.grant(SANDBOX, _approval(60)))
    with _open(stage, "pending.test") as secure:
        assert _alive(secure, "pending.test")
        stage.change(lambda: stage.egress.app.enforcement.revoke(SANDBOX, "for-a-test"))
        assert stage.agent.https("pending.test").status == 403
        wait(lambda: not _alive(secure, "pending.test"), "the open tunnel is closed")


def test_an_open_tunnel_is_closed_when_its_approval_ends(stage: Scene) -> None:
    stage.change(lambda: stage.egress.app.enforcement.grant(SANDBOX, _approval(2)))
    with _open(stage, "pending.test") as secure:
        assert _alive(secure, "pending.test")
        wait(lambda: not _alive(secure, "pending.test"), "the open tunnel is closed")
    assert stage.agent.https("pending.test").status == 403


def test_an_open_tunnel_is_closed_when_its_host_leaves_the_allowlist(stage: Scene) -> None:
    stage.allow(Entry.build("other.test"), Entry.build("api.allowed.test"))
    with _open(stage, "other.test") as secure:
        assert _alive(secure, "other.test")
        stage.allow(Entry.build("api.allowed.test"))
        wait(lambda: not _alive(secure, "other.test"), "the open tunnel is closed")


def test_approved_then_expired(stage: Scene) -> None:
    assert stage.agent.http("pending.test").reason == "not_in_allowlist"
    entries = (Entry.build("pending.test", scheme="http"),)
    end = time.time() + 1.5
    stage.change(
        lambda: stage.egress.app.enforcement.grant(
            SANDBOX, Approval(id="short", entries=entries, expires_s=end, reason="a test", granted_by="olga")
        )
    )
    assert stage.agent.http("pending.test").json()["address"] == PUBLIC
    wait(lambda: stage.agent.http("pending.test").status == 403, "the approval ends")
    assert time.time() >= end - 0.05


def _approval(seconds: float) -> Approval:
    return Approval(
        id="for-a-test",
        entries=(Entry.build("pending.test"),),
        expires_s=time.time() + seconds,
        reason="a test",
        granted_by="olga",
    )


def _open(stage: Scene, host: str) -> ssl.SSLSocket:
    answer, connection = stage.agent.tunnel(f"{host}:443")
    assert answer.status == 200
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection, server_hostname=host)


def _alive(secure: ssl.SSLSocket, host: str) -> bool:
    try:
        secure.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        return read_answer(secure).status == 200
    except OSError:
        return False


def _closed(connection: socket.socket) -> bool:
    connection.settimeout(12)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
