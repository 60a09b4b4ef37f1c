"""What A2A 1.0.1 says about the wire of the two HTTP bindings, byte by byte where it matters."""

import json
from typing import Any

import httpx
import pytest
from kars_a2a_gateway.errors import Kind
from kars_a2a_gateway_testkit.stand import Stand
from kars_a2a_gateway_testkit.wire import VERSION, message, reason, rpc


def post(stand: Stand, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        stand.url, content=content, headers={**VERSION, "content-type": "application/json", **headers}
    )


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"a","id":"b"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"GetTask","params":{"id":"a"},"id":2}', -32700),
        (b"[" * 5000 + b"]" * 5000, -32700),
        ([rpc("GetTask", {"id": "a"})], -32600),
        ("text", -32600),
        ({"id": 1, "method": "GetTask", "params": {"id": "a"}}, -32600),
        ({"jsonrpc": "1.0", "id": 1, "method": "GetTask", "params": {"id": "a"}}, -32600),
        ({"jsonrpc": "2.0", "id": True, "method": "GetTask", "params": {"id": "a"}}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "params": {}}, -32600),
        (rpc("message/send", {}), -32601),
        (rpc("GetTask", ["a"]), -32602),
        (rpc("GetTask", {}), -32602),
        (rpc("GetTask", {"id": 7}), -32602),
        (rpc("GetTask", {"id": "x" * 300}), -32602),
        (rpc("GetTask", {"id": "a\u0000b"}), -32602),
        (rpc("GetTask", {"id": "a", "historyLength": 2**40}), -32602),
        (rpc("ListTasks", {"statusTimestampAfter": "yesterday"}), -32602),
        (rpc("ListTasks", {"contextId": "a\nb"}), -32602),
        (rpc("SendMessage", message("echo", messageId="a\u0000b")), -32602),
        (rpc("SendMessage", message("echo", role=100)), -32602),
        (rpc("ListTasks", {"status": 100}), -32602),
        (rpc("SendMessage", message("echo", referenceTaskIds=["a\u0000b"])), -32602),
        (rpc("SendMessage", {"message": {"messageId": "m", "role": "ROLE_USER", "parts": []}}), -32602),
        (rpc("SendMessage", {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{}]}}), -32602),
        (rpc("GetTask", {"id": "nobody"}), -32001),
        (rpc("ListTasks", {"status": "NO_SUCH_STATE"}), -32602),
        (rpc("GetTask", {"id": "nobody", "tenant": "other/agent"}), -32602),
    ],
)
def test_jsonrpc_errors_have_their_codes_and_status_200(stand: Stand, body: Any, code: int) -> None:
    response = post(stand, body)

    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    answer = response.json()
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["code"] == code
    assert reason(answer) in Kind.__members__


@pytest.mark.parametrize("request_id", [1, "text", 0, None])
def test_jsonrpc_id_comes_back(stand: Stand, request_id: Any) -> None:
    assert post(stand, rpc("GetTask", {"id": "nobody"}, request_id)).json()["id"] == request_id
    result = post(stand, rpc("SendMessage", message("echo"), request_id)).json()
    assert result["id"] == request_id
    assert result["result"]["task"]["status"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("1.0", True),
        ("1.0.1", True),
        ("", False),
        ("0.3", False),
        ("1.1", False),
        ("1", False),
        ("2.0", False),
        ("99.0", False),
        ("nonsense", False),
    ],
)
def test_version_is_negotiated_by_header_and_query(stand: Stand, version: str, *, supported: bool) -> None:
    by_header = httpx.post(
        stand.url, json=rpc("GetTask", {"id": "nobody"}), headers={"A2A-Version": version} if version else {}
    )
    by_query = httpx.get(f"{stand.url}/tasks/nobody", params={"A2A-Version": version} if version else {})

    assert by_header.json()["error"]["code"] == (-32001 if supported else -32009)
    assert reason(by_query.json()) == ("TASK_NOT_FOUND" if supported else "VERSION_NOT_SUPPORTED")
    assert by_query.status_code == (404 if supported else 400)


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "wanted"),
    [
        ("GET", "/tasks/nobody", None, 404, "TASK_NOT_FOUND"),
        ("POST", "/tasks/nobody:cancel", {}, 404, "TASK_NOT_FOUND"),
        ("GET", "/tasks/nobody:subscribe", None, 404, "TASK_NOT_FOUND"),
        ("GET", "/tasks/nobody/pushNotificationConfigs", None, 404, "TASK_NOT_FOUND"),
        ("DELETE", "/tasks/nobody/pushNotificationConfigs/x", None, 404, "TASK_NOT_FOUND"),
        ("GET", "/tasks?pageSize=0", None, 400, "INVALID_PARAMS"),
        ("GET", "/tasks?pageSize=many", None, 400, "INVALID_PARAMS"),
        ("GET", "/tasks?pageSize=1&pageSize=2", None, 400, "INVALID_PARAMS"),
        ("GET", "/tasks?includeArtifacts=perhaps", None, 400, "INVALID_PARAMS"),
        ("GET", "/tasks?status=NO_SUCH_STATE", None, 400, "INVALID_PARAMS"),
        ("POST", "/message:send", {"message": {}}, 400, "INVALID_PARAMS"),
        ("GET", "/nothing", None, 404, "METHOD_NOT_FOUND"),
        ("PUT", "/tasks", None, 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_rest_errors_have_status_and_reason(
    stand: Stand, verb: str, path: str, body: Any, status: int, wanted: str
) -> None:
    response = httpx.request(verb, stand.url + path, json=body, headers=VERSION)

    assert response.status_code == status
    error = response.json()
    assert (error["error"]["code"], reason(error)) == (status, wanted)


def test_rest_mirrors_the_media_type_of_the_request(stand: Stand) -> None:
    for media_type in ("application/a2a+json", "application/json"):
        sent = httpx.post(
            f"{stand.url}/message:send",
            content=json.dumps(message("echo")),
            headers={**VERSION, "content-type": media_type},
        )
        refused = httpx.post(
            f"{stand.url}/message:send", content="{", headers={**VERSION, "content-type": media_type}
        )
        assert (sent.status_code, refused.status_code) == (200, 400)
        assert sent.headers["content-type"] == refused.headers["content-type"] == media_type
    assert httpx.get(f"{stand.url}/tasks", headers=VERSION).headers["content-type"] == "application/a2a+json"


def test_other_media_types_are_no_requests(stand: Stand) -> None:
    """A browser's form can send text/plain across origins without asking."""
    raw = json.dumps(rpc("SendMessage", message("echo"))).encode()
    by_rpc = post(stand, raw, **{"content-type": "text/plain"})
    by_rest = httpx.post(
        f"{stand.url}/message:send",
        content=json.dumps(message("echo")),
        headers={**VERSION, "content-type": "text/plain"},
    )

    assert by_rpc.json()["error"]["code"] == -32005
    assert (by_rest.status_code, reason(by_rest.json())) == (400, "CONTENT_TYPE_NOT_SUPPORTED")


def test_an_unnamed_origin_is_refused(stand: Stand) -> None:
    response = post(stand, rpc("GetTask", {"id": "x"}), Origin="https://page.example")
    assert response.status_code == 403
    assert reason(response.json()) == "PERMISSION_DENIED"


def test_rest_with_the_tenant_in_the_path(stand: Stand) -> None:
    assert httpx.get(f"{stand.url}/team/writer/tasks", headers=VERSION).status_code == 200


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_the_ends_of_time_are_times(stand: Stand, moment: str) -> None:
    answer = httpx.get(f"{stand.url}/tasks", params={"statusTimestampAfter": moment}, headers=VERSION)
    assert answer.status_code == 200
    assert (answer.json()["totalSize"] == 0) == moment.startswith("9999")


def test_list_has_its_members_even_when_empty(stand: Stand) -> None:
    answer = httpx.get(f"{stand.url}/tasks?contextId=none", headers=VERSION).json()
    assert answer == {"tasks": [], "nextPageToken": "", "pageSize": 50, "totalSize": 0}


def test_card_has_cache_headers_and_answers_304(stand: Stand) -> None:
    url = f"{stand.url}/.well-known/agent-card.json"
    first = httpx.get(url)
    again = httpx.get(url, headers={"If-None-Match": first.headers["etag"]})
    other = httpx.get(url, headers={"If-None-Match": '"other"'})

    assert first.headers["cache-control"] == "public, max-age=60"
    assert (again.status_code, again.content, other.status_code) == (304, b"", 200)
    assert again.headers["etag"] == first.headers["etag"]
    assert httpx.get(f"{stand.root}/.well-known/agent-card.json").json()["name"] == "Sample agent"


def test_extensions_that_the_card_has_are_activated_and_named(stand: Stand) -> None:
    known, unknown = "https://example.org/extensions/tone/v1", "https://example.org/unknown"
    response = post(stand, rpc("SendMessage", message("echo")), **{"A2A-Extensions": f"{known}, {unknown}"})

    assert response.headers["a2a-extensions"] == known


def test_stream_errors_before_the_first_event_are_plain_answers(stand: Stand) -> None:
    by_rpc = post(stand, rpc("SubscribeToTask", {"id": "nobody"}))
    by_rest = httpx.get(f"{stand.url}/tasks/nobody:subscribe", headers=VERSION)

    assert by_rpc.headers["content-type"] == "application/json"
    assert by_rpc.json()["error"]["code"] == -32001
    assert (by_rest.status_code, reason(by_rest.json())) == (404, "TASK_NOT_FOUND")


def test_jsonrpc_stream_carries_the_id_in_every_event(stand: Stand) -> None:
    response = post(stand, rpc("SendStreamingMessage", message("stream 2"), "req-7"))

    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert {event["id"] for event in events} == {"req-7"}
    assert "task" in events[0]["result"]
    assert events[-1]["result"]["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /agents/team/writer/tasks HTTP/1.1\r\n\r\n",
        b"GET /agents/team/writer/tasks HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /agents/a/b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\n" + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_no_clean_http_is_closed(stand: Stand, raw: bytes) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", stand.ports["http"]), timeout=5) as connection:
        connection.sendall(raw)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_a_large_body_is_refused_without_being_read(stand: Stand) -> None:
    declared = post(stand, b" " * (5 * 1024 * 1024))
    assert declared.status_code == 413
    assert reason(declared.json()) == "PAYLOAD_TOO_LARGE"


def test_every_error_of_the_official_table_has_the_same_codes_here() -> None:
    from a2a.utils import errors as official

    for cls, mapping in official.A2A_ERROR_MAPPING.items():
        name = mapping.reason
        ours = Kind[name].value
        assert (ours.http, ours.grpc.name) == (mapping.http_code, mapping.grpc_status), name
        assert ours.jsonrpc == official.JSON_RPC_ERROR_CODE_MAP[cls], name
