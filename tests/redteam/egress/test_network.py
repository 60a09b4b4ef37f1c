"""From inside a sandbox there is no other way: no route, no name server, no datagram, no ICMP, no IPv6."""

import contextlib
import errno
import os
import resource
import socket

import dns.message
import dns.query
import pytest
from kars_egress.names.answering import ADDRESS
from kars_egress_testkit.running import Scene, wait
from kars_egress_testkit.world import PUBLIC, PUBLIC_6, RESOLVER

GONE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EADDRNOTAVAIL}


@pytest.mark.parametrize("port", [80, 443, 53, 22, 8080, 9])
@pytest.mark.parametrize("address", [PUBLIC, RESOLVER[0], "10.9.0.5", "169.254.169.254", "8.8.8.8"])
def test_no_tcp_leaves_but_through_the_doors(stage: Scene, address: str, port: int) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is compared
        stage.agent.connect(address, port, timeout_s=1).close()
    assert refused.value.errno in GONE


@pytest.mark.parametrize("address", [PUBLIC_6, "fd00::5", "2606:4700:4700::1111", "::ffff:203.0.113.10"])
def test_register_48_no_ipv6_leaves(stage: Scene, address: str) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is compared
        stage.agent.connect(address, 443, timeout_s=1).close()
    assert refused.value.errno in GONE


@pytest.mark.parametrize("port", [443, 53, 123, 9])
def test_no_datagram_leaves(stage: Scene, port: int) -> None:
    """QUIC, DNS, NTP, or anything else that is UDP."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.connect((PUBLIC, port))
            datagram.send(b"x")

    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is compared
        stage.agent.namespace.run(send)
    assert refused.value.errno in GONE


def test_no_quic_to_the_synthetic_address(stage: Scene) -> None:
    def send() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(2)
            datagram.connect((ADDRESS, 443))
            datagram.send(b"\xc0" + b"\x00" * 1199)
            return datagram.recv(1500)

    with pytest.raises(ConnectionRefusedError):
        stage.agent.namespace.run(send)


def test_no_icmp_leaves(stage: Scene) -> None:
    def ping() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (PUBLIC, 0))

    with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is compared
        stage.agent.namespace.run(ping)
    assert refused.value.errno in GONE


def test_every_name_is_answered_inside_and_nobody_is_asked(stage: Scene) -> None:
    name = "mfwgc3dpoi.exfiltrate.test"
    before = len(stage.names.asked)

    def ask(kind: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        return stage.agent.namespace.run(lambda: dns.query.udp(query, "127.0.0.1", timeout=3))

    assert [record.to_text() for record in ask("A").answer[0]] == [ADDRESS]
    for kind in ("AAAA", "HTTPS", "TXT", "MX", "ANY"):
        assert ask(kind).answer == []
    assert len(stage.names.asked) == before


def test_the_proxys_own_interfaces_are_not_inside(stage: Scene) -> None:
    """Neither its admin interface nor the control plane listens where an agent is."""

    def listening() -> set[int]:
        with open("/proc/thread-self/net/tcp", encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A"}

    assert stage.agent.namespace.run(listening) == {3128, 80, 443}


def test_any_synthetic_address_leads_to_the_same_decision(stage: Scene) -> None:
    for address in ("198.18.0.1", "198.18.77.3", "198.19.255.254"):
        assert stage.agent.captured_https("api.allowed.test", address).status == 200
        assert stage.agent.captured_https("hidden.test", address).status == 0
        assert stage.agent.captured_http("api.allowed.test", address).status == 200
        assert stage.agent.captured_http("hidden.test", address).reason == "not_in_allowlist"


def test_the_three_ways_reach_the_same_decision(stage: Scene) -> None:
    ways = (stage.agent.https, stage.agent.captured_https)
    assert [way("api.allowed.test").status for way in ways] == [200, 200]
    assert [way("evil-in.wild.test").status for way in ways] == [403, 0]
    assert stage.denied(host="evil-in.wild.test", reason="blocklist", method="CONNECT")


def test_a_head_or_a_client_hello_that_never_ends_gives_its_slot_back(stage: Scene) -> None:
    """Slow loris, at the door, inside a tunnel, and where TLS is captured."""
    answer, tunnel = stage.agent.tunnel("api.allowed.test:443")
    assert answer.status == 200
    half_hello = b"\x16\x03\x01\x02\x00\x01"
    with (
        contextlib.closing(tunnel),
        contextlib.closing(stage.agent.connect()) as door,
        contextlib.closing(stage.agent.connect(ADDRESS, 443)) as captured,
    ):
        door.sendall(b"GET http://api.allowed.test/ HTTP/1.1\r\nhost: api.all")
        for connection in (tunnel, captured):
            connection.sendall(half_hello)
        for connection in (door, tunnel, captured):
            connection.settimeout(10)
        assert door.recv(100).startswith(b"HTTP/1.1 408")
        for connection in (tunnel, captured):
            with contextlib.suppress(ConnectionError):
                assert connection.recv(10) == b""


def test_many_connections_of_one_sandbox_leave_room_for_another(stage: Scene) -> None:
    """1,500 here; `make chaos-egress` opens 10,000."""
    count = int(os.environ.get("KARS_TEST_EGRESS_CONNECTIONS", "1500"))
    with contextlib.ExitStack() as opened:
        flood(stage, opened, count)
        assert stage.other_agent_is_served()
    wait(lambda: stage.agent.http("api.allowed.test").status == 200, "the first is served again")


def flood(stage: Scene, opened: contextlib.ExitStack, count: int) -> None:
    """Open many connections that send half a head."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, count + 1000), hard), hard))

    def open_all() -> list[socket.socket]:
        made = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", 3128), timeout=5)
            with contextlib.suppress(OSError):
                connection.sendall(b"GET / HTTP/1.1\r\n")
            made.append(connection)
        return made

    connections = stage.agent.namespace.run(open_all)
    for connection in connections:
        opened.callback(connection.close)
