"""Malformed requests over raw sockets: refused in the wire's form, none near the provider."""

import contextlib
import socket
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import orjson
import pytest
from kars_router_testkit import FakeProvider, RouterProcess


def _load_corpus() -> ModuleType:
    spec = spec_from_file_location("kars_redteam_malformed", Path(__file__).with_name("malformed.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES: list[tuple[str, bytes]] = _load_corpus().cases()


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def router(provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    directory = tmp_path_factory.mktemp("router")
    options = {"providers": [("main", provider.base_url)], "env": {"REQUEST_TIMEOUT_S": "5"}}
    with RouterProcess(directory=directory, **options) as running:  # type: ignore[arg-type]  # as above
        yield running


def exchange(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes and read one response."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        # Refused before everything was sent: the answer is already on its way.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        reader = connection.makefile("rb")
        status = int(reader.readline().split(b" ")[1])
        headers = {}
        while (line := reader.readline().rstrip(b"\r\n")) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = b"" if data.startswith(b"HEAD ") else reader.read(int(headers["content-length"]))
        return status, headers, body


def test_the_corpus_holds_at_least_200_different_requests() -> None:
    assert len({data for _, data in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize("data", [data for _, data in CASES], ids=[name for name, _ in CASES])
def test_is_refused_with_a_reason_and_reaches_nobody(
    router: RouterProcess, provider: FakeProvider, data: bytes
) -> None:
    provider.received.clear()
    status, headers, body = exchange(router.port, data)
    assert 400 <= status < 500
    assert headers["content-type"] == "application/json"
    if not data.startswith(b"HEAD "):
        error = orjson.loads(body)["error"]
        assert set(error) == {"message", "type", "code", "param"}
        assert error["type"]
        assert error["code"].replace("_", "").isalnum()
        assert error["message"]
    assert not provider.received


def test_afterwards_the_router_serves_as_before_and_no_task_was_harmed(
    router: RouterProcess, provider: FakeProvider
) -> None:
    for _, data in CASES[::10]:
        exchange(router.port, data)
    provider.received.clear()
    answer = router.chat()
    assert answer.status == 200
    assert len(provider.received) == 1
    output = router.log_file.read_text()
    for trouble in ("Traceback", "a request failed", "a gate raised", "Exception in ASGI"):
        assert trouble not in output
    assert router.process is not None
    assert router.process.poll() is None


def test_a_slow_sender_is_cut_off_and_others_are_served(router: RouterProcess) -> None:
    with socket.create_connection(("127.0.0.1", router.port), timeout=40) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        assert router.request("GET", "/healthz").status == 200
        answer = slow.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in answer


def test_a_second_request_behind_the_first_is_judged_on_its_own(
    router: RouterProcess, provider: FakeProvider
) -> None:
    provider.received.clear()
    body = orjson.dumps({"model": "gpt-evil", "messages": [{"role": "user", "content": "x"}]})
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    evil = head + b"content-length: %d\r\n\r\n" % len(body) + body
    first = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", router.port), timeout=10) as connection:
        connection.sendall(first + evil + first.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
        answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 ") == 2
    assert answers.count(b"HTTP/1.1 403 ") == 1
    assert not provider.received
