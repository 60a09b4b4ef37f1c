"""A SPIFFE Workload API as an identity source, against a server that speaks its wire format."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from kars_common.errors import InvalidInputError, UnavailableError
from kars_common.identity import SpireSvidSource, Svid
from kars_common.identity.spire import split_der
from kars_common.spiffe import SpiffeId
from kars_common.tasks import Backoff
from kars_common.testing import MemoryAuthority


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def der(pem: bytes) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.DER) for c in x509.load_pem_x509_certificates(pem))


def response(*svids: Svid, key: bytes | None = None) -> bytes:
    """Encode an X509SVIDResponse by hand: the tests do not trust our own descriptor."""
    encoded = b""
    for svid in svids:
        private = serialization.load_pem_private_key(svid.private_key_pem, None).private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        encoded += field(
            1,
            field(1, str(svid.spiffe_id).encode())
            + field(2, der(svid.certificate_chain_pem))
            + field(3, private if key is None else key)
            + field(4, der(svid.trust_bundle_pem))
            + field(5, b"internal"),
        )
    return encoded + field(3, field(1, b"spiffe://other") + field(2, b"bundle"))


class Agent:
    """Pushes what the test puts in; refuses calls without the security header."""

    def __init__(self) -> None:
        self.pushes: asyncio.Queue[bytes | grpc.StatusCode] = asyncio.Queue()
        self.calls = 0

    async def called(self, times: int) -> None:
        async with asyncio.timeout(5):
            while self.calls < times:
                await asyncio.sleep(0.005)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method != "/SpiffeWorkloadAPI/FetchX509SVID":
            return None
        return grpc.unary_stream_rpc_method_handler(self.fetch)

    async def fetch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self.calls += 1
        if ("workload.spiffe.io", "true") not in [(k, v) for k, v in context.invocation_metadata()]:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        while True:
            push = await self.pushes.get()
            if isinstance(push, grpc.StatusCode):
                await context.abort(push, "no")
            else:
                yield push


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[Agent, Path]]:
    agent = Agent()
    server = grpc.aio.server()
    handler: Any = type("Handler", (grpc.GenericRpcHandler,), {"service": lambda _, d: agent.service(d)})()
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{tmp_path}/agent.sock")
    await server.start()
    yield agent, tmp_path / "agent.sock"
    await server.stop(0)


@contextlib.asynccontextmanager
async def running(source: SpireSvidSource) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(source.run())
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def source_of(socket: Path, spiffe_id: SpiffeId | None = None) -> SpireSvidSource:
    return SpireSvidSource(socket, spiffe_id=spiffe_id, backoff=Backoff(first_s=0.01, most_s=0.02))


async def test_pushed_identities_become_current_one_after_the_other(agent: tuple[Agent, Path]) -> None:
    authority = MemoryAuthority()
    first, second = authority.service("relay"), authority.service("relay")
    source = source_of(agent[1])
    async with running(source):
        agent[0].pushes.put_nowait(response(first))
        assert await asyncio.wait_for(source.wait_changed(None), 5) == first
        agent[0].pushes.put_nowait(response(second))
        assert await asyncio.wait_for(source.wait_changed(first), 5) == second


async def test_identity_that_was_asked_for_is_chosen(agent: tuple[Agent, Path]) -> None:
    authority = MemoryAuthority()
    relay, egress = authority.service("relay"), authority.service("egress")
    source = source_of(agent[1], egress.spiffe_id)
    async with running(source):
        agent[0].pushes.put_nowait(response(relay, egress))
        assert await asyncio.wait_for(source.wait_changed(None), 5) == egress


async def test_broken_stream_is_opened_again_and_the_identity_stays(agent: tuple[Agent, Path]) -> None:
    authority = MemoryAuthority()
    first, second = authority.service("relay"), authority.service("relay")
    source = source_of(agent[1])
    async with running(source):
        agent[0].pushes.put_nowait(response(first))
        await asyncio.wait_for(source.wait_changed(None), 5)
        attacks: list[bytes | grpc.StatusCode] = [
            grpc.StatusCode.UNAVAILABLE,
            b"\xff\xff not protobuf",
            response(first, key=b"nonsense"),
        ]
        for calls, push in enumerate(attacks, start=2):
            agent[0].pushes.put_nowait(push)
            await agent[0].called(calls)
        assert source.current() == first
        agent[0].pushes.put_nowait(response(second))
        assert await asyncio.wait_for(source.wait_changed(first), 5) == second


async def test_identity_is_given_up_when_the_agent_takes_it_back(agent: tuple[Agent, Path]) -> None:
    source = source_of(agent[1])
    async with running(source):
        agent[0].pushes.put_nowait(response(MemoryAuthority().service("relay")))
        await asyncio.wait_for(source.wait_changed(None), 5)
        agent[0].pushes.put_nowait(grpc.StatusCode.PERMISSION_DENIED)
        async with asyncio.timeout(5):
            while source._holder.held is not None:
                await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError):
            source.current()


async def test_wrong_request_is_not_repeated(agent: tuple[Agent, Path]) -> None:
    source = source_of(agent[1])
    agent[0].pushes.put_nowait(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(InvalidInputError):
        await asyncio.wait_for(source.run(), 5)
    assert agent[0].calls == 1


@given(st.binary(max_size=200))
def test_split_der_gives_back_every_byte_or_refuses(data: bytes) -> None:
    try:
        parts = list(split_der(data))
    except ValueError:
        return
    assert b"".join(parts) == data


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=5))
def test_split_der_finds_what_was_joined(bodies: list[bytes]) -> None:
    sequences = [
        b"\x30" + (bytes([len(b)]) if len(b) < 0x80 else b"\x82" + len(b).to_bytes(2, "big")) + b
        for b in bodies
    ]
    assert list(split_der(b"".join(sequences))) == sequences
