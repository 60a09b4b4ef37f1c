"""The HTTP client to providers, against a real socket."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from kars_common.spiffe import SpiffeId
from kars_common.testing import MemoryAuthority
from kars_router.providers.pool import PooledUpstream
from kars_router.providers.upstream import AnswerTooLargeError, UpstreamError
from kars_router_testkit import FakeProvider, Reply


@pytest.fixture
async def client() -> AsyncIterator[Callable[..., PooledUpstream]]:
    async with contextlib.AsyncExitStack() as stack:

        def make(
            *,
            connect_timeout_s: float = 2,
            read_timeout_s: float = 2,
            total_timeout_s: float = 5,
            ca_pem: bytes | None = None,
        ) -> PooledUpstream:
            upstream = PooledUpstream(
                connect_timeout_s=connect_timeout_s,
                read_timeout_s=read_timeout_s,
                total_timeout_s=total_timeout_s,
                ca_pem=ca_pem,
            )
            stack.push_async_callback(upstream.close)
            return upstream

        yield make


Client = Callable[..., PooledUpstream]


async def post(upstream: PooledUpstream, url: str) -> None:
    response = await upstream.post(url, [("content-type", "application/json")], None, b"{}")
    await response.close()


async def test_a_refused_connection_was_surely_not_received(client: Client) -> None:
    with pytest.raises(UpstreamError) as raised:
        await post(client(), "http://127.0.0.1:9/v1")
    assert not raised.value.maybe_received


async def test_a_connection_that_breaks_under_the_request_may_have_been_received(
    client: Client,
    provider: FakeProvider,
) -> None:
    provider.reply(Reply(reset=True))
    with pytest.raises(UpstreamError) as raised:
        await post(client(), provider.base_url)
    assert raised.value.maybe_received
    assert len(provider.received) == 1


async def test_silence_is_a_timeout_that_may_have_been_received(
    client: Client, provider: FakeProvider
) -> None:
    gate = threading.Event()
    provider.reply(Reply(parts=[b"a", b"b"], gate=gate))
    response = await client(read_timeout_s=0.2).post(provider.base_url, [], None, b"{}")
    with pytest.raises(UpstreamError) as raised:
        await response.read(100)
    gate.set()
    assert raised.value.maybe_received
    assert raised.value.timed_out


async def test_redirects_are_not_followed(client: Client, provider: FakeProvider) -> None:
    provider.reply(Reply(status=307, headers=[("location", f"{provider.base_url}/elsewhere")]))
    response = await client().post(provider.base_url, [], None, b"{}")
    assert response.status == 307
    await response.close()
    assert len(provider.received) == 1


async def test_a_machine_without_root_certificates_can_still_call(
    client: Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    await post(client(), provider.base_url)
    assert len(provider.received) == 1


async def test_proxy_settings_of_the_environment_are_ignored(
    client: Client, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await post(client(), provider.base_url)
    assert len(provider.received) == 1


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x" * 60, b"x" * 60]], ids=["announced", "chunked"])
async def test_an_answer_over_the_limit_is_refused(
    client: Client, provider: FakeProvider, parts: list[bytes]
) -> None:
    provider.reply(Reply(parts=parts))
    response = await client().post(provider.base_url, [], None, b"{}")
    with pytest.raises(AnswerTooLargeError):
        await response.read(100)
    await response.close()


async def test_the_first_chunk_is_here_before_the_last_is_written(
    client: Client, provider: FakeProvider
) -> None:
    gate = threading.Event()
    provider.reply(Reply(parts=[b"first", b"last"], gate=gate, content_type="text/event-stream"))
    response = await client().post(provider.base_url, [], None, b"{}")
    chunks = response.chunks()
    async with asyncio.timeout(2):
        assert await anext(chunks) == b"first"
    gate.set()
    assert [chunk async for chunk in chunks] == [b"last"]
    await response.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A peer that each test scripts; knows how many connections came."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(asyncio.create_task(self._run(reader, writer)))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Server, int]]:
    server = Server(serve)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    async with listening:
        yield server, listening.sockets[0].getsockname()[1]
        await server.stop()


async def one_request(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n{}")


async def whole(upstream: PooledUpstream, url: str) -> bytes:
    response = await upstream.post(url, [], None, b"{}")
    body = await response.read(1000)
    await response.close()
    return body


async def test_a_connection_is_used_again_and_one_that_was_closed_is_not(client: Client) -> None:
    closing = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await one_request(reader)
            writer.write(OK)
        await closing.wait()

    async with serving(serve) as (server, port):
        upstream = client()
        for _ in range(2):
            assert await whole(upstream, f"http://127.0.0.1:{port}/") == b"ok"
        assert server.connections == 1
        closing.set()
        async with asyncio.timeout(5):
            while upstream.idle:
                await asyncio.sleep(0.01)
        assert await whole(upstream, f"http://127.0.0.1:{port}/") == b"ok"
        assert server.connections == 2


async def test_dribbling_does_not_outlast_the_total_time(client: Client) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(serve) as (_, port):
        response = await client(read_timeout_s=0.2, total_timeout_s=0.5).post(
            f"http://127.0.0.1:{port}/", [], None, b"{}"
        )
        with pytest.raises(UpstreamError) as raised:
            async with asyncio.timeout(5):
                await response.read(1000)
        assert raised.value.timed_out
        await response.close()


async def test_an_abandoned_answer_closes_its_connection(client: Client) -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await reader.read()
        gone.set()

    async with serving(serve) as (_, port):
        response = await client().post(f"http://127.0.0.1:{port}/", [], None, b"{}")
        await response.close()
        async with asyncio.timeout(5):
            await gone.wait()


async def test_a_cancelled_request_leaves_no_connection_behind(client: Client) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one_request(reader)
        asked.set()
        await reader.read()
        gone.set()

    async with serving(serve) as (_, port):
        upstream = client()
        task = asyncio.create_task(whole(upstream, f"http://127.0.0.1:{port}/"))
        async with asyncio.timeout(5):
            await asked.wait()
            task.cancel()
            await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.idle == 0


async def test_an_address_that_does_not_answer_does_not_hide_the_next(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one_request(reader)
        writer.write(OK)

    async with serving(serve) as (_, port):
        loop = asyncio.get_running_loop()
        stream = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")

        async def resolve(*_: object, **__: object) -> list[object]:
            return [(*stream, ("127.0.0.1", 9)), (*stream, ("127.0.0.1", port))]

        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        assert await whole(client(), f"http://provider.test:{port}/") == b"ok"


@pytest.fixture
def authority() -> MemoryAuthority:
    return MemoryAuthority()


def server_context(authority: MemoryAuthority, folder: Path, name: str) -> ssl.SSLContext:
    svid = authority.issue(SpiffeId.service("kars.local", "provider"), dns_names=(name,))
    path = folder / "provider.pem"
    path.write_bytes(svid.private_key_pem + svid.certificate_chain_pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "reason"),
    [("localhost", True, ""), ("localhost", False, "unknown root"), ("elsewhere.test", True, "other name")],
)
async def test_tls_is_verified_against_the_roots_and_the_name(
    client: Client, authority: MemoryAuthority, tmp_path: Path, name: str, trusted: bool, reason: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await one_request(reader)
        writer.write(OK)

    ca_pem = authority.trust_bundle_pem if trusted else MemoryAuthority().trust_bundle_pem
    async with serving(serve, server_context(authority, tmp_path, name)) as (_, port):
        upstream = client(ca_pem=ca_pem)
        if not reason:
            assert await whole(upstream, f"https://localhost:{port}/") == b"ok"
            return
        with pytest.raises(UpstreamError) as raised:
            await whole(upstream, f"https://localhost:{port}/")
        assert not raised.value.maybe_received, "a peer that was not verified was told nothing"


async def test_a_peer_that_never_shakes_hands_was_told_nothing(client: Client) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with serving(serve) as (_, port):
        with pytest.raises(UpstreamError) as raised:
            await whole(client(connect_timeout_s=0.2), f"https://127.0.0.1:{port}/")
        assert raised.value.timed_out
        assert not raised.value.maybe_received


async def test_a_peer_that_hangs_up_at_once_is_an_error_and_leaves_nothing_to_wait_for(
    client: Client,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with serving(serve) as (_, port):
        upstream = client()
        for _ in range(20):
            with pytest.raises(UpstreamError):
                await whole(upstream, f"http://127.0.0.1:{port}/")
        async with asyncio.timeout(5):
            await upstream.close()
