"""The HTTP client to providers, against a real socket."""

import asyncio
import threading

import pytest
from kars_router.providers.upstream import AnswerTooLargeError, ReqwestUpstream, UpstreamError
from kars_router_testkit import FakeProvider, Reply


def client(read_timeout_s: float = 2) -> ReqwestUpstream:
    return ReqwestUpstream(connect_timeout_s=2, read_timeout_s=read_timeout_s, total_timeout_s=5)


async def post(upstream: ReqwestUpstream, url: str) -> None:
    response = await upstream.post(url, [("content-type", "application/json")], None, b"{}")
    await response.close()


async def test_a_refused_connection_was_surely_not_received() -> None:
    with pytest.raises(UpstreamError) as raised:
        await post(client(), "http://127.0.0.1:9/v1")
    assert not raised.value.maybe_received


async def test_a_connection_that_breaks_under_the_request_may_have_been_received(
    provider: FakeProvider,
) -> None:
    provider.reply(Reply(reset=True))
    with pytest.raises(UpstreamError) as raised:
        await post(client(), provider.base_url)
    assert raised.value.maybe_received
    assert len(provider.received) == 1


async def test_silence_is_a_timeout_that_may_have_been_received(provider: FakeProvider) -> None:
    gate = threading.Event()
    provider.reply(Reply(parts=[b"a", b"b"], gate=gate))
    response = await client(read_timeout_s=0.2).post(provider.base_url, [], None, b"{}")
    with pytest.raises(UpstreamError) as raised:
        await response.read(100)
    gate.set()
    assert raised.value.maybe_received
    assert raised.value.timed_out


async def test_redirects_are_not_followed(provider: FakeProvider) -> None:
    provider.reply(Reply(status=307, headers=[("location", f"{provider.base_url}/elsewhere")]))
    response = await client().post(provider.base_url, [], None, b"{}")
    assert response.status == 307
    await response.close()
    assert len(provider.received) == 1


async def test_a_machine_without_root_certificates_can_still_call(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    await post(client(), provider.base_url)
    assert len(provider.received) == 1


async def test_proxy_settings_of_the_environment_are_ignored(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    await post(client(), provider.base_url)
    assert len(provider.received) == 1


@pytest.mark.parametrize("parts", [[b"x" * 101], [b"x" * 60, b"x" * 60]], ids=["announced", "chunked"])
async def test_an_answer_over_the_limit_is_refused(provider: FakeProvider, parts: list[bytes]) -> None:
    provider.reply(Reply(parts=parts))
    response = await client().post(provider.base_url, [], None, b"{}")
    with pytest.raises(AnswerTooLargeError):
        await response.read(100)
    await response.close()


async def test_the_first_chunk_is_here_before_the_last_is_written(provider: FakeProvider) -> None:
    gate = threading.Event()
    provider.reply(Reply(parts=[b"first", b"last"], gate=gate, content_type="text/event-stream"))
    response = await client().post(provider.base_url, [], None, b"{}")
    chunks = response.chunks()
    async with asyncio.timeout(2):
        assert await anext(chunks) == b"first"
    gate.set()
    assert [chunk async for chunk in chunks] == [b"last"]
    await response.close()
