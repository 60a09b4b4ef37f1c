"""Attacks on a live supervisor's control socket, and hosts that lack what it asks for."""

import asyncio
import os
import stat
from pathlib import Path

import pytest
from kars_controller.platforms.base import ControlState, SandboxKey
from kars_controller.platforms.local import channel, client, layout
from kars_controller.platforms.local.platform import LocalPlatform

from services.controller.tests.platforms.helpers import (
    DEADLINE_S,
    KEY,
    PYTHON,
    ROUTER,
    ask,
    listening,
    plan,
    reach,
    running,
)

FAULTS = Path(__file__).parents[4] / "tests" / "faults"

JUNK = (
    b"\x00\xff\n",
    b"[]\n",
    b"{}\n",
    b'{"op":"nothing"}\n',
    b"x" * 200_000,
    b'{"op":"apply","spec":{"agent":1}}\n',
)

ASK_AS_SOMEBODY_ELSE = """
import os, socket, sys
os.chdir(sys.argv[1])
os.setgid(12345)
os.setuid(12345)
connection = socket.socket(socket.AF_UNIX)
connection.connect("control.sock")
connection.sendall(b'{"op":"status"}\\n')
print(len(connection.recv(100)))
"""


async def test_junk_ends_a_connection_and_nothing_else(platform: LocalPlatform, home: Path) -> None:
    await platform.apply(plan())
    before = await reach(platform, running)
    await listening(platform)
    control = layout.PodDirectory.of(home / "pods", KEY).control
    assert stat.S_IMODE(control.stat().st_mode) == 0o600
    for junk in JUNK:
        await send_raw(control, junk)
    for port in (0, -1, 70_000, "8443", None, True, 1.5):
        answer, descriptors = await client.request(control, {"op": "dial", "port": port})
        assert (answer, descriptors) == ({"error": "not a port"}, [])
    answer, _ = await client.request(control, {"op": "apply", "spec": "x"})
    assert "not a spec" in answer["error"]
    after = await platform.observe(KEY)
    assert after is not None
    assert (after.agent, after.plan_digest) == (before.agent, before.plan_digest)
    assert await ask(platform) == b"router"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to become another user")
async def test_another_user_is_turned_away_even_with_the_path_open(
    platform: LocalPlatform, home: Path
) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    control = layout.PodDirectory.of(home / "pods", KEY).control
    for path in (home, *control.relative_to(home).parents[:-1]):
        (home / path).chmod(0o755)
    control.chmod(0o666)
    child = await asyncio.create_subprocess_exec(
        "/usr/bin/python3",
        "-c",
        ASK_AS_SOMEBODY_ELSE,
        str(control.parent),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await child.communicate()
    assert out == b"0\n" or b"ConnectionResetError" in error or b"BrokenPipeError" in error


@pytest.mark.parametrize(
    ("fault", "probe"),
    [
        ("netns", "print(len(__import__('socket').if_nameindex()) > 1)"),
        ("seccomp", "print('Seccomp:\\t0' in open('/proc/self/status').read())"),
    ],
)
async def test_attack_succeeds_where_its_control_is_taken_away(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, fault: str, probe: str
) -> None:
    key = SandboxKey("default", "probe")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS / fault))
    try:
        await platform.apply(plan(probe, key=key))
        async with asyncio.timeout(DEADLINE_S):
            async for text in platform.logs(key, "agent", follow=True):
                assert text == b"True\n"
                break
    finally:
        await platform.delete(key)


@pytest.mark.parametrize(
    ("fault", "controls", "reason"),
    [
        ("landlock", {"landlock"}, "the kernel offers none"),
        ("cgroup", {"memory", "pids", "cpu"}, "no cgroup"),
        ("quota", {"workspace"}, "mkfs.ext4 (package e2fsprogs) is missing"),
    ],
)
async def test_control_that_the_host_lacks_is_announced_and_the_pod_runs(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, fault: str, controls: set[str], reason: str
) -> None:
    if os.geteuid() != 0:
        reason = ""  # an ordinary user may lack it for another reason before
    monkeypatch.setenv("PYTHONPATH", str(FAULTS / fault))
    await platform.apply(plan())
    status = await reach(platform, running)
    report = await platform.host_report()
    assert report.tier == "degraded"
    for said in (status.isolation, report.controls):
        announced = [control for control in said if control.name in controls]
        assert {control.name for control in announced} == controls
        assert all(control.state is not ControlState.ENFORCED for control in announced)
        assert all(reason in control.detail and control.remedy for control in announced)


async def test_import_path_of_the_supervisor_reaches_neither_router_nor_agent(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tell = "import os, sys; print('PYTHONPATH' in os.environ, %r in sys.path, flush=True)" % str(tmp_path)  # noqa: UP031
    router = (PYTHON, "-c", f"{tell}\n{ROUTER}")
    await platform.apply(plan(tell, router_argv=router))
    await reach(platform, lambda status: status.agent.last_reason == "Completed")
    for container in layout.CONTAINERS:
        text = b"".join([part async for part in platform.logs(KEY, container)])
        assert text.splitlines()[0] == b"False False", container


async def test_host_report_says_what_this_machine_gives(platform: LocalPlatform) -> None:
    report = await platform.host_report()
    assert report.tier in {"full", "degraded"}
    assert (report.kernel, report.root) == (os.uname().release, os.geteuid() == 0)
    names = {control.name for control in report.controls}
    assert {
        "namespaces",
        "network-door",
        "mount-tree",
        "seccomp",
        "landlock",
        "memory",
        "pids",
        "cpu",
        "workspace",
    } <= names
    assert all(control.remedy for control in report.controls if control.state is not ControlState.ENFORCED)


async def send_raw(path: Path, data: bytes) -> None:
    """Send bytes and read until the other end has answered or closed."""
    with channel.address(path) as short:
        reader, writer = await asyncio.open_unix_connection(short)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
