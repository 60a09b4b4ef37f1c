"""A router for isolation tests: answers on the door it inherited with its sandbox's name."""

import http.server
import os
import socket
import socketserver


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = os.environ["STANDS_FOR"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        socketserver.BaseServer.__init__(self, ("127.0.0.1", 8443), Handler)
        self.socket = socket.socket(fileno=int(os.environ["KARS_ROUTER_DOOR_FD"]))


print(f"router of {os.environ['STANDS_FOR']} as {os.getuid()}", flush=True)
Server().serve_forever()
