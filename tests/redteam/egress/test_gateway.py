"""One door for many sandboxes: who somebody is, is what TLS proved, whatever the headers say."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_common.svid import Svid
from kars_egress.policy.entries import Entry
from kars_egress_testkit import world
from kars_egress_testkit.running import Scene, scene
from kars_egress_testkit.service import OTHER, SANDBOX, Answer, read_answer

DOOR = (world.PUBLIC_2, 3443)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    world.needs_root()
    with scene(tmp_path_factory.mktemp("gateway"), gateway_address=f"{DOOR[0]}:{DOOR[1]}") as running:

        async def apply() -> None:
            enforcement = running.egress.app.enforcement
            enforcement.apply(SANDBOX, [Entry.build("api.allowed.test", scheme="http")], "")
            enforcement.apply(OTHER, [Entry.build("pending.test", scheme="http")], "")
            for sandbox in (SANDBOX, OTHER):
                await running.egress.in_force(sandbox)

        running.call(apply)
        yield running


def fetch(gateway: Scene, svid: Svid | None, host: str, extra: str, directory: Path) -> Answer:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if svid is not None:
        file = directory / "client.pem"
        file.write_bytes(svid.private_key_pem + svid.certificate_chain_pem)
        context.load_cert_chain(file)
    connection = gateway.world.run(lambda: socket.create_connection(DOOR, timeout=5))
    with contextlib.closing(connection):
        try:
            with context.wrap_socket(connection) as secure:
                secure.sendall(f"GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n{extra}\r\n".encode())
                return read_answer(secure)
        except OSError:
            return Answer(0, {}, b"")


def test_each_identity_has_its_own_policy(gateway: Scene, tmp_path: Path) -> None:
    writer = gateway.egress.authority.sandbox("team", "writer")
    reader = gateway.egress.authority.sandbox("team", "reader")
    assert fetch(gateway, writer, "api.allowed.test", "", tmp_path).status == 200
    assert fetch(gateway, writer, "pending.test", "", tmp_path).reason == "not_in_allowlist"
    assert fetch(gateway, reader, "pending.test", "", tmp_path).status == 200
    assert fetch(gateway, reader, "api.allowed.test", "", tmp_path).reason == "not_in_allowlist"


def test_an_identity_in_a_header_is_not_believed(gateway: Scene, tmp_path: Path) -> None:
    writer = gateway.egress.authority.sandbox("team", "writer")
    forged = "x-forwarded-client-cert: URI=spiffe://kars.local/ns/team/sandbox/reader\r\n"
    for extra in (forged, forged * 2, forged.replace("URI", "By=x;URI")):
        assert fetch(gateway, writer, "pending.test", extra, tmp_path).reason == "not_in_allowlist"


def test_a_sandbox_that_nobody_applied_is_refused(gateway: Scene, tmp_path: Path) -> None:
    stranger = gateway.egress.authority.sandbox("team", "stranger")
    answer = fetch(gateway, stranger, "api.allowed.test", "", tmp_path)
    assert (answer.status, answer.reason) == (403, "not_in_allowlist")
    assert gateway.denied(reason="not_in_allowlist", sandbox="team/stranger")


def test_without_a_certificate_of_ours_there_is_no_answer(gateway: Scene, tmp_path: Path) -> None:
    from kars_common.testing import MemoryAuthority

    assert fetch(gateway, None, "api.allowed.test", "", tmp_path).status == 0
    foreign = MemoryAuthority().sandbox("team", "writer")
    assert fetch(gateway, foreign, "api.allowed.test", "", tmp_path).status == 0
