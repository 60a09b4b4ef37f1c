"""A webhook of a caller."""

import http.server
import json
import threading
from typing import Any


class Hook:
    """A webhook; it can refuse for a while, and keeps what it accepted."""

    def __init__(self) -> None:
        """Listen on a free port of loopback."""
        self.accepted: list[tuple[dict[str, str], bytes]] = []
        self.refuse = 0
        self.status = 500
        self.location = ""
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                body = self.rfile.read(int(self.headers["content-length"]))
                if hook.refuse > 0:
                    hook.refuse -= 1
                    self.send_response(hook.status)
                    if hook.location:
                        self.send_header("location", hook.location)
                else:
                    hook.accepted.append(({k.lower(): v for k, v in self.headers.items()}, body))
                    self.send_response(204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:  # noqa: ANN401
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def states(self) -> list[str]:
        """Return the state of each push, or `artifact`."""
        found = []
        for _, body in self.accepted:
            event = json.loads(body)
            status = event.get("statusUpdate", event.get("task", {})).get("status")
            found.append(status["state"] if status else "artifact")
        return found
