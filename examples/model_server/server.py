"""The HTTP side: one thread a connection, bearer key, chat completions and the list of models.

Every request leaves one line in the log file, so that a test or the demo can say what reached the provider.
"""

import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol

from examples.model_server import completions
from examples.model_server.completions import Answer, Request

_MAX_BODY_BYTES = 8 * 1024 * 1024


class Model(Protocol):
    """What answers."""

    label: str

    def answer(self, request: Request) -> Answer:
        """Return what the model says next."""
        ...


class ModelServer(ThreadingHTTPServer):
    """Serves one model on the loop-back."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, model: Model, *, key: str, log: Path | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model = model
        self.key = key
        self._log = log
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The base address to configure as a provider."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def record(self, **fields: object) -> None:
        """Append one line to the log."""
        if self._log is None:
            return
        line = json.dumps({"time": round(time.time(), 3), **fields})
        with self._lock, self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
        """Say nothing; `record` does."""

    def do_GET(self) -> None:
        """List models."""
        if not self._authorized():
            return
        if self.path.rstrip("/") == "/v1/models":
            models = [{"id": "example", "object": "model", "created": 0, "owned_by": "examples"}]
            self._send(200, {"object": "list", "data": models})
        else:
            self._fail(404, "not_found", "no such address")

    def do_POST(self) -> None:
        """Answer a chat completion."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES))
        if not self._authorized():
            return
        if self.path != "/v1/chat/completions":
            self._fail(404, "not_found", "no such address")
            return
        try:
            request = Request.parse(body)
        except completions.BadRequestError as exc:
            self._fail(400, "invalid_request", str(exc))
            return
        answer = self.server.model.answer(request)
        calls = [call.name for call in answer.calls]
        self.server.record(
            model=request.model, stream=request.stream, tools=request.tool_names, calls=calls, status=200
        )
        if request.stream:
            self._stream(request, answer)
        else:
            self._send(200, completions.whole(request, answer))

    def _authorized(self) -> bool:
        given = self.headers.get("Authorization") or ""
        if hmac.compare_digest(given.encode(), f"Bearer {self.server.key}".encode()):
            return True
        self.server.record(path=self.path, status=401)
        self._fail(401, "invalid_api_key", "the key is wrong")
        return False

    def _stream(self, request: Request, answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in completions.events(request, answer):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def _fail(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": {"message": message, "type": code, "code": code, "param": None}})

    def _send(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
