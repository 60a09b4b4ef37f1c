"""What crosses the control socket and the disk, there and back, and what must not."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_controller.platforms.base import (
    ContainerState,
    ContainerStatus,
    ControlState,
    IsolationControl,
    PodPhase,
    PodStatus,
    ReadOnlyMount,
    ResourceLimits,
    RouterFile,
    SandboxKey,
)
from kars_controller.platforms.local import channel, spec, status_codec

from services.controller.tests.platforms.helpers import plan

SECRET = b"sk-never-in-the-spec"


def test_spec_survives_and_holds_no_secret() -> None:
    mount = ReadOnlyMount(source=Path("/a"), target="/b")
    asked = plan(
        agent_code=(mount,),
        agent_workspace_seed=Path("/seed"),
        agent_limits=ResourceLimits(pids=7),
        router_files=(RouterFile(path="secrets/key", content=SECRET),),
    )
    kept = spec.from_plan(asked, ("python",), (mount,))
    text = json.dumps(spec.encode(kept))
    assert SECRET.decode() not in text
    assert spec.decode(json.loads(text)) == kept


def test_router_digest_follows_files_that_restart_it() -> None:
    def digest(content: bytes, *, restarts: bool) -> str:
        file = RouterFile(path="f", content=content, restarts_router=restarts)
        return spec.from_plan(plan(router_files=(file,)), (), ()).router_digest

    assert digest(b"1", restarts=True) != digest(b"2", restarts=True)
    assert digest(b"1", restarts=False) == digest(b"2", restarts=False)


def test_router_file_does_not_print_its_content() -> None:
    assert "never" not in repr(RouterFile(path="f", content=SECRET))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x"])
def test_router_files_stay_in_the_state_directory(path: str) -> None:
    with pytest.raises(ValueError, match="state directory"):
        RouterFile(path=path, content=b"")


def test_status_survives() -> None:
    container = ContainerStatus(
        name="agent", state=ContainerState.RUNNING, started_at=datetime.now(UTC), exit_code=3
    )
    status = PodStatus(
        key=SandboxKey("a", "b"),
        uid="u",
        plan_digest="d",
        phase=PodPhase.RUNNING,
        agent=container,
        router=container,
        isolation=(IsolationControl(name="cpu", state=ControlState.DEGRADED, detail="x"),),
    )
    assert status_codec.decode(json.loads(json.dumps(status_codec.encode(status)))) == status
    assert [control.name for control in status.degraded] == ["cpu"]


messages = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.none(), max_size=4)


@given(st.lists(messages, max_size=8), st.integers(1, 50))
def test_messages_survive_any_fragmentation(sent: list[dict[str, Any]], size: int) -> None:
    stream = b"".join(channel.encode(message) for message in sent)
    lines = channel.Lines()
    received = [m for at in range(0, len(stream), size) for m in lines.feed(stream[at : at + size])]
    assert received == sent


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_understood_but_never_crashes(data: bytes) -> None:
    try:
        for message in channel.Lines().feed(data + b"\n"):
            assert isinstance(message, dict)
    except channel.ChannelError:
        pass


def test_endless_line_is_refused() -> None:
    with pytest.raises(channel.ChannelError):
        list(channel.Lines().feed(b"x" * (channel.MAX_LINE + 1)))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(channel.ChannelError):
        list(channel.Lines().feed(b"[" * 100_000 + b"\n"))
