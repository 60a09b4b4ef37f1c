"""Attacks on a live supervisor's control socket, and the fault switches that let a demo fail."""

import asyncio
import os
import stat
from pathlib import Path

import pytest
from kars_controller.platforms.base import ControlState
from kars_controller.platforms.local import channel, client, layout
from kars_controller.platforms.local.platform import LocalPlatform

from services.controller.tests.platforms.helpers import KEY, ask, listening, plan, reach, running

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
    ("fault", "control", "probe", "harm"),
    [
        ("no-network-namespace", "network", "print(len(__import__('socket').if_nameindex()) > 1)", "True"),
        ("no-seccomp", "seccomp", "print('Seccomp:\\t0' in open('/proc/self/status').read())", "True"),
    ],
)
async def test_switched_off_control_is_announced_and_the_attack_succeeds(
    platform: LocalPlatform, monkeypatch: pytest.MonkeyPatch, fault: str, control: str, probe: str, harm: str
) -> None:
    monkeypatch.setenv("KARS_SANDBOX_FAULTS", fault)
    await platform.apply(plan(probe))
    status = await reach(platform, lambda status: status.agent.last_reason == "Completed")
    (announced,) = [entry for entry in status.degraded if entry.name == control]
    assert announced.state is ControlState.ABSENT
    assert "KARS_SANDBOX_FAULTS" in announced.detail
    text = b"".join([part async for part in platform.logs(KEY, "agent")])
    assert text.decode().strip() == harm


async def test_host_report_says_what_this_machine_gives(platform: LocalPlatform) -> None:
    report = await platform.host_report()
    assert report.tier in {"full", "degraded"}
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
