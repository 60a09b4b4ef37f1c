"""Streams that are left, and connections that dawdle, give back what they held."""

import socket
import time
import uuid

import grpc
import httpx
from a2a.types import Message, Part, Role, SendMessageRequest, a2a_pb2_grpc
from kars_a2a_gateway_testkit.stand import Stand, wait_until
from kars_a2a_gateway_testkit.wire import VERSION, message, rpc


def open_streams(stand: Stand) -> int:
    metrics = httpx.get(f"http://127.0.0.1:{stand.ports['health']}/metrics").text
    [line] = [line for line in metrics.splitlines() if line.startswith("kars_a2a_open_streams ")]
    return int(float(line.split()[1]))


def test_a_client_that_hangs_up_frees_its_stream_and_not_its_task(stand: Stand) -> None:
    wait_until(lambda: open_streams(stand) == 0, "other streams to end")
    request = rpc("SendStreamingMessage", message("slow 3"))
    streams = [httpx.stream("POST", stand.url, json=request, headers=VERSION) for _ in range(3)]
    answers = [stream.__enter__() for stream in streams]
    lines = answers[0].iter_lines()  # held: an iterator that is dropped closes its stream
    first = next(lines)
    assert open_streams(stand) == 3

    for stream in streams:
        stream.__exit__(None, None, None)

    wait_until(lambda: open_streams(stand) == 0, "the streams to be given back", 5)
    task_id = first.split('"id":"')[1].split('"')[0]

    def state() -> str:
        answer = httpx.post(stand.url, json=rpc("GetTask", {"id": task_id}), headers=VERSION).json()
        found: str = answer["result"]["status"]["state"]
        return found

    wait_until(lambda: state() == "TASK_STATE_COMPLETED", "the task to end without anybody", 15)


def test_a_grpc_client_that_cancels_frees_its_stream(stand: Stand) -> None:
    wait_until(lambda: open_streams(stand) == 0, "other streams to end")
    request = SendMessageRequest(
        tenant="team/writer",
        message=Message(message_id=str(uuid.uuid4()), role=Role.ROLE_USER, parts=[Part(text="slow 3")]),
    )
    with grpc.insecure_channel(stand.grpc_target) as channel:
        call = a2a_pb2_grpc.A2AServiceStub(channel).SendStreamingMessage(request)  # type: ignore[no-untyped-call]
        next(call)
        assert open_streams(stand) == 1
        call.cancel()
        wait_until(lambda: open_streams(stand) == 0, "the stream to be given back", 5)


def test_a_client_that_dawdles_with_its_request_is_closed(stand: Stand) -> None:
    """Half a request is dropped after the time that a whole one may take (3 s at this stand)."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", stand.ports["http"]), timeout=25) as connection:
        connection.sendall(b"POST /agents/team/writer HTTP/1.1\r\nHost: a\r\nContent-Le")
        assert connection.recv(100) == b""
    assert time.monotonic() - started > 1
