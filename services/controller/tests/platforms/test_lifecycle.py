"""Real pods over their whole life, driven as the reconciler drives them."""

import asyncio
import dataclasses
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from kars_common.errors import InvalidInputError, NotFoundError, UnavailableError
from kars_controller.platforms.base import (
    ContainerState,
    PodPhase,
    PodStatus,
    ReadOnlyMount,
    ResourceLimits,
    RouterFile,
    SandboxKey,
)
from kars_controller.platforms.local import layout
from kars_controller.platforms.local.platform import LocalPlatform

from services.controller.tests.platforms.helpers import (
    KEY,
    ask,
    listening,
    plan,
    processes_of,
    reach,
    running,
    token,
)


async def test_agent_starts_when_the_router_is_ready_and_can_be_dialled(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    status = await reach(platform, running)
    assert status.router.ready
    assert status.plan_digest == "d1"
    await listening(platform)
    assert await ask(platform) == b"router"
    with pytest.raises(UnavailableError) as refused:
        await platform.dial(KEY, 4242)
    assert refused.value.reason == "port_closed"


async def test_agent_waits_for_a_router_that_is_not_ready(platform: LocalPlatform) -> None:
    await platform.apply(plan(router_env={"READY": "503"}))
    status = await reach(
        platform, lambda status: status.router.reason == "RouterNotReady" and bool(status.router.message)
    )
    assert status.agent.state is ContainerState.WAITING
    assert status.agent.reason == "RouterNotReady"
    assert status.phase is PodPhase.PENDING
    await platform.apply(plan(digest="d2"))
    assert (await reach(platform, running)).plan_digest == "d2"


async def test_crashed_agent_is_started_again_with_back_off(platform: LocalPlatform) -> None:
    await platform.apply(plan("import sys; print('tried', flush=True); sys.exit(3)"))
    waiting = await reach(platform, lambda status: status.agent.reason == "CrashLoopBackOff")
    assert (waiting.agent.last_reason, waiting.agent.exit_code) == ("Error", 3)
    again = await reach(platform, lambda status: status.agent.restart_count >= 2)
    assert "starting again in 2 s" in again.agent.message
    assert b"".join([text async for text in platform.logs(KEY, "agent")]) == b"tried\n" * 2


async def test_completed_agent_is_left_alone(platform: LocalPlatform) -> None:
    await platform.apply(plan("print('done', flush=True)"))
    status = await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED)
    assert (status.agent.reason, status.agent.exit_code, status.agent.restart_count) == ("Completed", 0, 0)
    assert status.router.ready


async def test_completed_agent_is_started_again_if_the_plan_says_so(platform: LocalPlatform) -> None:
    await platform.apply(plan("pass", agent_restart_completed=True))
    status = await reach(platform, lambda status: status.agent.restart_count >= 1)
    assert status.agent.last_reason == "Completed"


async def test_router_crash_leaves_the_agent_running_and_the_door_open(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    before = await reach(platform, running)
    await listening(platform)
    await ask(platform, "/crash")
    down = await reach(platform, lambda status: status.router.reason == "CrashLoopBackOff")
    assert down.router.exit_code == 128 + signal.SIGKILL
    assert await ask(platform) == b"router"  # waited in the backlog for the next incarnation
    after = await reach(platform, running)
    assert after.agent.started_at == before.agent.started_at
    assert after.agent.restart_count == 0


async def test_suspend_keeps_the_workspace_and_resume_uses_it(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    await listening(platform)
    await platform.apply(plan(digest="d2", suspended=True))
    status = await reach(
        platform, lambda status: status.phase is PodPhase.SUSPENDED and status.router.reason == "Suspended"
    )
    assert status.agent.state is ContainerState.WAITING
    await platform.apply(plan(digest="d3"))
    await reach(platform, lambda status: running(status) and status.plan_digest == "d3")
    async with asyncio.timeout(5):
        async for text in platform.logs(KEY, "agent", follow=True):
            if b"'trace'" in text:
                break


async def test_changed_agent_restarts_the_agent_alone(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    before = await reach(platform, running)
    await platform.apply(plan(digest="d2", agent_env={"NEW": "1"}))
    after = await reach(
        platform, lambda status: running(status) and status.agent.started_at != before.agent.started_at
    )
    assert after.router.started_at == before.router.started_at


async def test_new_join_token_restarts_nothing_but_new_keys_do(
    platform: LocalPlatform,
) -> None:
    keys = RouterFile(path="policy/keys.json", content=b"[]")
    await platform.apply(plan(router_files=(token(b"one"), keys)))
    before = await reach(platform, running)
    await platform.apply(plan(digest="d2", router_files=(token(b"two"), keys)))
    same = await reach(platform, lambda status: status.plan_digest == "d2")
    assert same.router.started_at == before.router.started_at
    newer = dataclasses.replace(keys, content=b"[1]")
    await platform.apply(plan(digest="d3", router_files=(token(b"two"), newer)))
    after = await reach(
        platform, lambda status: running(status) and status.router.started_at != before.router.started_at
    )
    assert after.agent.started_at == before.agent.started_at


async def test_many_changes_at_once_end_in_the_last(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    for number in range(6):
        await platform.apply(
            plan(
                digest=f"n{number}",
                agent_env={"N": str(number)},
                router_env={"N": str(number // 2)},
                suspended=number % 3 == 1,
            )
        )
    last = plan(
        "import os; print('N is', os.environ['N'], flush=True)", digest="last", agent_env={"N": "last"}
    )
    await platform.apply(last)
    status = await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED)
    assert status.plan_digest == "last"
    assert b"".join([text async for text in platform.logs(KEY, "agent", tail=1)]) == b"N is last\n"


async def test_workspace_grows_with_the_plan_and_keeps_its_files(platform: LocalPlatform) -> None:
    script = "import os; print(os.listdir('/sandbox'), flush=True); open('/sandbox/kept','w')"
    for digest, mib in (("d1", 16), ("d2", 48)):
        limits = ResourceLimits(workspace_bytes=mib << 20)
        await platform.apply(plan(script, digest=digest, agent_limits=limits))
        await reach(platform, completed(digest))
    assert b"".join([text async for text in platform.logs(KEY, "agent", tail=1)]) == b"['kept']\n"


async def test_new_resource_under_an_old_name_gets_an_empty_workspace(platform: LocalPlatform) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    await listening(platform)
    await platform.apply(plan(uid="u2"))
    await reach(platform, lambda status: running(status) and status.uid == "u2")
    text = b"".join([part async for part in platform.logs(KEY, "agent")])
    assert b"trace" not in text


async def test_restarted_controller_finds_the_pod_again(platform: LocalPlatform, home: Path) -> None:
    await platform.apply(plan())
    before = await reach(platform, running)
    await platform.close()
    successor = LocalPlatform(home)
    after = await successor.observe(KEY)
    assert after is not None
    assert after.agent.started_at == before.agent.started_at
    await successor.apply(plan())  # the same plan: nothing happens
    again = await successor.observe(KEY)
    assert again is not None
    assert again.agent.started_at == before.agent.started_at
    await successor.delete(KEY)
    await successor.close()


async def test_killed_supervisor_takes_its_containers_along_and_the_workspace_stays(
    platform: LocalPlatform, home: Path
) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    await listening(platform)
    family = processes_of(home)
    (supervisor,) = [pid for pid in family if os.getsid(pid) == pid]
    assert len(family) >= 4  # supervisor, holder, two inits
    ends = [os.pidfd_open(pid) for pid in family]
    os.kill(supervisor, signal.SIGKILL)
    for end in ends:
        await _readable(end)
        os.close(end)
    assert processes_of(home) == []
    groups = json.loads(layout.PodDirectory.of(home / "pods", KEY).groups.read_bytes())
    async with asyncio.timeout(5):
        while await platform.observe(KEY) is not None:
            await asyncio.sleep(0.01)
    await platform.apply(plan())
    await reach(platform, running)
    assert not any(Path(group).exists() for group in groups)
    async with asyncio.timeout(5):
        async for text in platform.logs(KEY, "agent", follow=True):
            if b"'trace'" in text:
                break


@pytest.mark.parametrize("state", ["deleted", "lost"])
async def test_cgroups_of_a_killed_supervisor_are_collected(
    platform: LocalPlatform, home: Path, state: str
) -> None:
    """By the deletion of its pod; or, if nobody knows the pod any more, by the next pod on this machine."""
    await platform.apply(plan())
    await reach(platform, running)
    groups = [Path(path) for path in json.loads(_pod(home).groups.read_bytes())]
    if not groups:
        pytest.skip("this user gets no cgroup")
    assert all(group.is_dir() for group in groups)
    (supervisor,) = [pid for pid in processes_of(home) if os.getsid(pid) == pid]
    end = os.pidfd_open(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    await _readable(end)
    os.close(end)
    if state == "lost":
        _pod(home).groups.unlink()
        assert all(group.is_dir() for group in groups)
        while processes_of(home):
            await asyncio.sleep(0.01)
    await platform.delete(KEY)
    if state == "lost":
        await platform.apply(plan())
        await reach(platform, running)
    assert not any(group.exists() for group in groups)


async def test_agent_that_ignores_sigterm_is_killed_after_its_grace(platform: LocalPlatform) -> None:
    script = "import signal; signal.signal(15, signal.SIG_IGN); print('agent up', flush=True); signal.pause()"
    await platform.apply(plan(script, termination_grace_s=0.3))
    await reach(platform, running)
    await listening(platform)
    await platform.apply(plan(script, digest="d2", suspended=True, termination_grace_s=0.3))
    status = await reach(platform, lambda status: status.agent.last_reason != "")
    assert status.agent.exit_code == 128 + signal.SIGKILL


async def test_delete_is_idempotent_and_leaves_nothing(platform: LocalPlatform, home: Path) -> None:
    script = "import os; os.mkdir('/sandbox/shut'); open('/sandbox/shut/f','w'); os.chmod('/sandbox/shut', 0)"
    await platform.apply(plan(script))
    await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED)
    await platform.delete(KEY)
    await platform.delete(KEY)
    assert await platform.observe(KEY) is None
    assert list((home / "pods").rglob("*")) == []
    with pytest.raises(NotFoundError):
        await platform.dial(KEY, 18789)


async def test_missing_command_is_named_and_nothing_runs(platform: LocalPlatform) -> None:
    await platform.apply(plan(agent_argv=("/nowhere/agent",)))
    status = await reach(platform, lambda status: status.agent.last_reason == "StartError")
    assert "/nowhere/agent" in status.agent.message
    assert status.agent.started_at is None


async def test_link_planted_in_the_workspace_cannot_redirect_a_mount(
    platform: LocalPlatform, home: Path, tmp_path: Path
) -> None:
    await platform.apply(plan("import os; os.symlink('/etc', '/sandbox/tools')"))
    await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED)
    (tmp_path / "passwd").write_text("mine", encoding="ascii")
    tools = ReadOnlyMount(source=tmp_path, target="/sandbox/tools")
    await platform.apply(plan("print('ran', flush=True)", digest="d2", agent_code=(tools,)))
    status = await reach(platform, lambda status: status.agent.last_reason == "IsolationFailed")
    assert "mount_target_refused" in status.agent.message
    assert status.phase is PodPhase.FAILED
    assert "ran" not in layout.PodDirectory.of(home / "pods", KEY).log("agent").read_text(encoding="utf-8")


async def test_seed_is_copied_once_and_without_links(platform: LocalPlatform, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a", encoding="ascii")
    (tmp_path / "escape").symlink_to("/etc/passwd")
    script = "import os; print(sorted(os.listdir('/sandbox')), flush=True); os.unlink('/sandbox/notes/a.txt')"
    await platform.apply(plan(script, agent_workspace_seed=tmp_path))
    await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED)
    assert b"".join([text async for text in platform.logs(KEY, "agent", tail=1)]) == b"['notes']\n"
    await platform.apply(
        plan("import os; print(os.listdir('/sandbox/notes'))", digest="d2", agent_workspace_seed=tmp_path)
    )
    await reach(platform, lambda status: status.phase is PodPhase.SUCCEEDED and status.plan_digest == "d2")
    assert b"".join([text async for text in platform.logs(KEY, "agent", tail=1)]) == b"[]\n"


@pytest.mark.parametrize("where", ["home", "parent", "inside"])
async def test_kars_own_state_cannot_be_mounted(platform: LocalPlatform, home: Path, where: str) -> None:
    (home / "secrets").mkdir()
    source = {"home": home, "parent": home.parent, "inside": home / "secrets"}[where]
    leak = ReadOnlyMount(source=source, target="/opt/leak")
    with pytest.raises(InvalidInputError) as refused:
        await platform.apply(plan(agent_code=(leak,)))
    assert refused.value.reason == "mount_refused"


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 64, "-a", "a."])
async def test_names_that_are_no_labels_are_refused(platform: LocalPlatform, name: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        await platform.apply(plan(key=SandboxKey("default", name)))
    assert refused.value.reason == "name_invalid"
    with pytest.raises(InvalidInputError):
        await platform.delete(SandboxKey(name, "demo"))


async def test_logs_of_unknown_containers_are_not_found(platform: LocalPlatform) -> None:
    with pytest.raises(NotFoundError):
        _ = [text async for text in platform.logs(KEY, "../router/secrets")]
    with pytest.raises(NotFoundError):
        _ = [text async for text in platform.logs(KEY, "agent")]


def completed(digest: str) -> Callable[[PodStatus], bool]:
    return lambda status: status.phase is PodPhase.SUCCEEDED and status.plan_digest == digest


def _pod(home: Path) -> layout.PodDirectory:
    return layout.PodDirectory.of(home / "pods", KEY)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        async with asyncio.timeout(5):
            await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def test_a_pod_that_could_not_be_prepared_is_tried_again(platform: LocalPlatform, home: Path) -> None:
    directory = layout.PodDirectory.of(home / "pods", KEY)
    directory.groups.mkdir(parents=True)  # where the supervisor writes a file
    await platform.apply(plan())
    failed = await reach(platform, lambda status: status.phase is PodPhase.FAILED)
    assert failed.agent.reason == "IsolationFailed"

    directory.groups.rmdir()

    await reach(platform, running)


async def test_a_pod_whose_word_was_lost_still_takes_plans_and_ends(
    platform: LocalPlatform, home: Path
) -> None:
    await platform.apply(plan())
    await reach(platform, running)
    for digest in ("d2", "d3"):
        await platform._watches[KEY].close()  # as when the supervisor drops a watcher that does not read
        assert await platform.observe(KEY) is None
        await platform.apply(plan(digest=digest))
        await reach(platform, functools.partial(_runs, digest))
    await platform._watches[KEY].close()
    await platform.delete(KEY)
    assert not processes_of(home), "nothing goes on without its directory"


def _runs(digest: str, status: PodStatus) -> bool:
    return running(status) and status.plan_digest == digest
