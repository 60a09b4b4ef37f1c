"""Where the gateway dials, and where it never does, whatever a name resolves to."""

# ruff: noqa: PT017  # property tests: an error with its reason, or a result; both are right

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_a2a_gateway.outgoing.client import GuardedClient
from kars_a2a_gateway.outgoing.guard import Guard
from kars_common.errors import InvalidInputError, KarsError, PermissionDeniedError, UnavailableError

STRICT = Guard()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1",
        "::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:8.8.8.8", "64:ff9b::a00:1", "64:ff9b::808:808",
        "2002:a00:1::", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(PermissionDeniedError):
        STRICT.check_address(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses_pass(address: str) -> None:
    STRICT.check_address(address)


@given(st.ip_addresses())
def test_no_private_address_ever_passes(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    try:
        STRICT.check_address(str(address))
    except PermissionDeniedError:
        return
    assert address.is_global
    assert not address.is_multicast
    for inside in (address.is_loopback, address.is_private, address.is_link_local):
        assert not inside


@given(st.text(max_size=200))
def test_any_text_is_a_url_that_passes_or_a_reason(text: str) -> None:
    try:
        STRICT.check_url(text)
    except KarsError as error:
        assert error.reason in ("target_url_invalid", "target_not_allowed")
    else:
        assert text.lower().startswith("https://")


def test_hosts_may_be_listed() -> None:
    hosts = ("hooks.partner.example", "*.other.example")
    STRICT.check_url("https://hooks.partner.example/x", hosts)
    STRICT.check_url("https://a.other.example:8443/x", hosts)
    for url in (
        "https://partner.example/x",
        "https://other.example/x",
        "https://hooks.partner.example.evil.com/",
    ):
        with pytest.raises(PermissionDeniedError):
            STRICT.check_url(url, hosts)


def test_the_loopback_switch_opens_loopback_and_nothing_else() -> None:
    guard = Guard(allow_loopback=True)
    guard.check_url("http://127.0.0.1:8080/hook")
    guard.check_address("127.0.0.1")
    for url in ("http://10.0.0.1/x", "http://hook.example/x", "https://192.168.1.1/x"):
        with pytest.raises(PermissionDeniedError):
            guard.check_url(url)
    with pytest.raises(PermissionDeniedError):
        guard.check_address("10.0.0.1")


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    client = GuardedClient(STRICT)
    yield client
    await client.close()


async def fetch(client: GuardedClient, url: str) -> Any:
    return await client.request("POST", url, headers=[], content=b"{}", timeout_s=3)


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let each look-up give the next answer; returns the names that were asked for."""
    asked: list[str] = []
    queue = list(answers)

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        addresses = queue.pop(0) if len(queue) > 1 else queue[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_that_points_inside_is_not_dialled(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["127.0.0.1"])
    with pytest.raises(PermissionDeniedError):
        await fetch(client, "https://hook.example/x")


async def test_a_name_that_points_outside_and_inside_is_not_dialled(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(PermissionDeniedError):
        await fetch(client, "https://hook.example/x")


async def test_rebinding_between_check_and_dial_is_judged_at_the_dial(
    client: GuardedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is public when it is registered and private when it is dialled: one look-up decides both."""
    asked = resolving(monkeypatch, ["127.0.0.1"])
    STRICT.check_url("https://rebinding.example/x")
    with pytest.raises(PermissionDeniedError):
        await fetch(client, "https://rebinding.example/x")
    assert asked == ["rebinding.example"], "no second look-up could give another answer"


async def test_proxy_variables_are_not_read(client: GuardedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    asked = resolving(monkeypatch, ["127.0.0.1"])
    with pytest.raises(PermissionDeniedError):
        await fetch(client, "https://hook.example/x")
    assert asked == ["hook.example"]


async def test_headers_cannot_be_split(client: GuardedClient) -> None:
    guard = GuardedClient(Guard(allow_loopback=True))
    try:
        with pytest.raises((InvalidInputError, UnavailableError)):
            await guard.request(
                "POST", "http://127.0.0.1:9/x", headers=[("x", "a\r\nb: c")], content=b"", timeout_s=2
            )
    finally:
        await guard.close()
