"""Plans with a router that only answers readiness, and ways to wait for what becomes of them."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kars_controller.platforms.base import AgentPlan, PodPlan, PodStatus, RouterFile, RouterPlan, SandboxKey
from kars_controller.platforms.local.isolation import cgroups
from kars_controller.platforms.local.platform import LocalPlatform

PYTHON = "/usr/bin/python3"
KEY = SandboxKey("default", "demo")
CHAT_PORT = 18789
DEADLINE_S = 10.0

ROUTER = """
import http.server, os, signal, socket, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os.kill(os.getpid(), signal.SIGKILL)
        status = int(os.environ.get("READY", "200"))
        self.send_response(status); self.send_header("Content-Length", "6"); self.end_headers()
        self.wfile.write(b"router")
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        socketserver.BaseServer.__init__(self, ("127.0.0.1", 8443), Handler)
        self.socket = socket.socket(fileno=int(os.environ["KARS_ROUTER_DOOR_FD"]))
print("router up", flush=True)
Server().serve_forever()
"""

SERVE = """
import http.server, os, pathlib, sys, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = urllib.request.urlopen("http://127.0.0.1:8443" + self.path, timeout=8).read()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 18789), Handler)
before = sorted(entry.name for entry in pathlib.Path("/sandbox").iterdir())
pathlib.Path("/sandbox/trace").touch()
print("agent up", before, flush=True)
server.serve_forever()
"""


def plan(script: str = SERVE, **changes: Any) -> PodPlan:
    """A pod that runs a script; keywords change the agent (agent_*), the router (router_*) or the pod."""
    agent = {name[6:]: value for name, value in changes.items() if name.startswith("agent_")}
    router = {name[7:]: value for name, value in changes.items() if name.startswith("router_")}
    pod = {name: value for name, value in changes.items() if not name.startswith(("agent_", "router_"))}
    defaults: dict[str, Any] = {"key": KEY, "uid": "u1", "digest": "d1", "termination_grace_s": 2.0}
    return PodPlan(
        **(defaults | pod),
        agent=AgentPlan(**({"argv": (PYTHON, "-c", script), "listen_ports": (CHAT_PORT,)} | agent)),
        router=RouterPlan(**({"argv": (PYTHON, "-c", ROUTER)} | router)),
    )


def token(content: bytes) -> RouterFile:
    """A file that only a first start reads."""
    return RouterFile(path="join-token", content=content, restarts_router=False)


async def reach(platform: LocalPlatform, reached: Callable[[PodStatus], bool]) -> PodStatus:
    """The first observation for which reached holds."""
    status = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            async for key in platform.changes():
                status = await platform.observe(key)
                if status is not None and reached(status):
                    return status
    except TimeoutError:
        pass
    raise AssertionError(f"not reached in {DEADLINE_S} s: {status}")


def running(status: PodStatus) -> bool:
    return status.phase == "Running"


async def ask(platform: LocalPlatform, path: str = "/") -> bytes:
    """What the agent's own server answers, dialled from outside."""
    loop = asyncio.get_running_loop()
    with await platform.dial(KEY, CHAT_PORT) as connection:
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        async with asyncio.timeout(DEADLINE_S):
            while data := await loop.sock_recv(connection, 4096):
                answer += data
    return answer.partition(b"\r\n\r\n")[2]


async def listening(platform: LocalPlatform) -> None:
    """Wait until the agent said that it is up."""
    async with asyncio.timeout(DEADLINE_S):
        async for text in platform.logs(KEY, "agent", follow=True):
            if b"agent up" in text:
                return


def abandoned_groups() -> set[Path]:
    """The cgroups of supervisors that live no more."""
    return {
        group
        for group in cgroups.MOUNT.rglob(f"{cgroups.NAME_PREFIX}*-*")
        if not Path("/proc", group.name.rpartition("-")[2]).exists()
    }


def processes_of(home: Path) -> list[int]:
    """The living processes whose command lines name a state directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(home).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
