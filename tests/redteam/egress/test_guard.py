"""The guard's rules, loaded for real: a pod with an agent, a proxy and others, and a world around it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kars_egress.guard import Guard, render_iptables, render_nftables
from kars_egress_testkit import world
from kars_egress_testkit.world import Namespace
from pyroute2 import IPRoute

AGENT, PROXY, STRANGER = 1000, 1001, 1002
PUBLIC, PUBLIC_6 = "203.0.113.10", "2001:db8::10"
RESOLVER = "10.200.0.53"
SYSTEM_PYTHON = "/usr/bin/python3"
"""Every user can run it; the one of the checkout perhaps not."""
GUARD = Guard(agent_uid=AGENT, proxy_uid=PROXY, resolver=RESOLVER)

PROBE = Path(__file__).with_name("guard_probe.py")


class Pod:
    """A namespace that is joined to a world by a cable."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.inside = Namespace("pod")
        stack.callback(self.inside.close)
        self.outside = Namespace("outside")
        stack.callback(self.outside.close)
        self._connect()
        self._stack = stack
        for address in (PUBLIC, "169.254.169.254", "10.200.0.1", RESOLVER, PUBLIC_6, "fd00::5"):
            for port in (53, 80, 443, 9):
                self._echo(self.outside, address, port)
        for port in (3128, 8480, 8443, 9901, 15000):
            self._echo(self.inside, "127.0.0.1", port)

    def load(self, how: str) -> None:
        """Load the rules."""
        if how == "nft":
            self._run(["nft", "-f", "-"], render_nftables(GUARD))
            return
        four, six = render_iptables(GUARD)
        flavour = how.removeprefix("iptables-")
        self._run([f"iptables-{flavour}-restore"], four)
        self._run([f"ip6tables-{flavour}-restore"], six)

    def probe(self, uid: int, *probes: tuple[str, str, int]) -> list[str]:
        """Try to reach things as a user."""
        command = [SYSTEM_PYTHON, "-I", "-c", PROBE.read_text(), str(uid), json.dumps(probes)]
        done = self.inside.run(
            lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        )
        answers: list[str] = json.loads(done.stdout)
        return answers

    def _run(self, command: list[str], text: str) -> None:
        done = self.inside.run(
            lambda: subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=20, check=False
            )
        )
        if done.returncode != 0 and "legacy" in command[0] and "Table does not exist" in done.stderr:
            pytest.skip(f"this kernel has no {command[0]}: {done.stderr.strip()[:200]}")
        assert done.returncode == 0, done.stderr

    def _connect(self) -> None:
        def make() -> None:
            with IPRoute() as route:
                route.link(
                    "add",
                    ifname="pod0",
                    kind="veth",
                    peer={"ifname": "out0", "net_ns_fd": str(self.outside.path)},
                )
                index = route.link_lookup(ifname="pod0")[0]
                route.link("set", index=index, state="up")
                route.addr("add", index=index, address="10.200.0.2", prefixlen=24)
                route.addr(
                    "add", index=index, address="2001:db8:1::2", prefixlen=64, family=socket.AF_INET6, flags=2
                )

        def answer() -> None:
            with IPRoute() as route:
                index = route.link_lookup(ifname="out0")[0]
                route.link("set", index=index, state="up")
                route.addr("add", index=index, address="10.200.0.1", prefixlen=24)
                route.addr(
                    "add", index=index, address="2001:db8:1::1", prefixlen=64, family=socket.AF_INET6, flags=2
                )

        def routes() -> None:
            with IPRoute() as route:
                route.route("add", dst="0.0.0.0/0", gateway="10.200.0.1")
                route.route("add", dst="::/0", gateway="2001:db8:1::1", family=socket.AF_INET6)
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2000000")

        self.inside.run(make)
        self.outside.run(answer)
        self.inside.run(routes)
        self.outside.address(PUBLIC, "169.254.169.254", RESOLVER, PUBLIC_6, "fd00::5")

    def _echo(self, namespace: Namespace, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        label = str(port).encode()

        def listen() -> tuple[socket.socket, socket.socket]:
            stream, datagram = (
                socket.socket(family, socket.SOCK_STREAM),
                socket.socket(family, socket.SOCK_DGRAM),
            )
            for made in (stream, datagram):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((address, port))
            stream.listen(64)
            return stream, datagram

        stream, datagram = namespace.run(listen)
        self._stack.callback(stream.close)
        self._stack.callback(datagram.close)

        def serve_stream() -> None:
            while True:
                try:
                    connection, _ = stream.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(2)
                    connection.recv(10)
                    connection.sendall(label)

        def serve_datagram() -> None:
            while True:
                try:
                    _, peer = datagram.recvfrom(100)
                    datagram.sendto(label, peer)
                except OSError:
                    return

        threading.Thread(target=serve_stream, daemon=True, name="echo").start()
        threading.Thread(target=serve_datagram, daemon=True, name="echo").start()


@pytest.fixture
def pod() -> Iterator[Pod]:
    world.needs_root()
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        pytest.skip(f"{SYSTEM_PYTHON} is missing: the probes run on it, as other users")
    with contextlib.ExitStack() as stack:
        yield Pod(stack)


@pytest.fixture(params=["nft", "iptables-nft", "iptables-legacy"])
def guarded(request: pytest.FixtureRequest, pod: Pod) -> Pod:
    tool = {"nft": "nft"}.get(request.param, f"{request.param}-restore")
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing: Debian packages nftables and iptables")
    pod.load(request.param)
    return pod


OUT = [
    *[("tcp", address, port) for address in (PUBLIC, PUBLIC_6) for port in (53, 9)],
    *[("udp", address, port) for address in (PUBLIC, PUBLIC_6, RESOLVER) for port in (53, 443, 9)],
    ("tcp", PUBLIC_6, 80), ("tcp", PUBLIC_6, 443), ("tcp", RESOLVER, 53), ("tcp", "fd00::5", 443),
    ("icmp", PUBLIC, 0), ("ipv6-icmp", PUBLIC_6, 0),
    ("tcp", "127.0.0.1", 9901), ("tcp", "127.0.0.1", 15000),
]  # fmt: skip


def test_without_rules_the_probes_get_out(pod: Pod) -> None:
    """The control: a probe that never worked proves nothing."""
    assert "refused" not in pod.probe(AGENT, *[probe for probe in OUT if probe[0] in {"tcp", "udp"}])


def test_the_agent_reaches_the_doors_and_nothing_else(guarded: Pod) -> None:
    assert guarded.probe(AGENT, *OUT) == ["refused"] * len(OUT)
    doors = [("tcp", "127.0.0.1", port) for port in (3128, 8480, 8443)]
    assert guarded.probe(AGENT, *doors) == ["3128", "8480", "8443"]


def test_what_the_agent_sends_to_the_web_is_captured(guarded: Pod) -> None:
    web = [("tcp", address, port) for address in (PUBLIC, "169.254.169.254", "8.8.8.8") for port in (80, 443)]
    assert guarded.probe(AGENT, *web) == ["8480", "8443"] * 3


def test_any_other_user_reaches_nothing(guarded: Pod) -> None:
    everything = [*OUT, ("tcp", PUBLIC, 80), ("tcp", PUBLIC, 443), ("tcp", "127.0.0.1", 3128)]
    assert guarded.probe(STRANGER, *everything) == ["refused"] * len(everything)


def test_the_proxy_reaches_public_addresses_and_its_resolver_only(guarded: Pod) -> None:
    allowed = [("tcp", PUBLIC, 80), ("tcp", PUBLIC, 443), ("tcp", PUBLIC_6, 443), ("udp", RESOLVER, 53)]
    assert guarded.probe(PROXY, *allowed) == ["80", "443", "443", "53"]
    refused = [
        ("tcp", "169.254.169.254", 80), ("tcp", "10.200.0.1", 80), ("tcp", RESOLVER, 80), ("tcp", PUBLIC, 9),
        ("tcp", "fd00::5", 443), ("udp", PUBLIC, 53), ("udp", PUBLIC, 443),
    ]  # fmt: skip
    assert guarded.probe(PROXY, *refused) == ["refused"] * len(refused)


def test_nobody_comes_in(guarded: Pod) -> None:
    def connect() -> str:
        try:
            with socket.create_connection(("10.200.0.2", 3128), timeout=0.7):
                return "open"
        except OSError:
            return "closed"

    assert os.geteuid() == 0
    assert guarded.outside.run(connect) == "closed"
