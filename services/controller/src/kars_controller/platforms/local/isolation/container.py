"""Starting one contained process: a fork that leaves the host step by step and executes if all held.

Three processes: *shim* (leaves the namespaces, forks, ends), *init* (PID 1: builds the root, reaps,
keeps accounts) and *payload* (drops everything, executes). The caller must be a subreaper: init becomes
its child when shim ends, so that it can wait for it, and the kernel kills init, and with it the whole
pid namespace, when the caller dies.

Fail closed: any exception before execve is written to the report pipe and ends the process. The report
pipe closes silently when execve succeeds.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from kars_controller.platforms.local.isolation import init, landlock, namespaces, privileges, rootfs, watchdog
from kars_controller.platforms.local.isolation.errors import IsolationError
from kars_controller.platforms.local.isolation.seccomp import installing

FIRST_INHERITED_FD = 3
GO = b"go"
MAX_MESSAGE = 4096


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Everything about one contained process. Built by the caller, not changed afterwards."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    directory: str
    uid: int
    own_user_namespace: bool
    root: rootfs.Root
    syscall_filter: bytes
    """Compiled."""
    landlock_rules: landlock.Rules | None = None
    rlimits: Mapping[int, int] = field(default_factory=dict)
    cpus: int | None = None
    """Bind to so many processors, where no cgroup limits CPU time."""
    watch: watchdog.Limits = field(default_factory=watchdog.Limits)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Namespaces to join; without one the process stays in the host's network."""

    net_fd: int
    user_fd: int | None


@dataclass(kw_only=True)
class Started:
    """What the caller holds of a process that is being started."""

    shim_pid: int
    channel: socket.socket
    """Carries init's pid, then the end of the payload. Closing it ends the container."""
    report: int
    """Reads as empty when execve succeeded, else as one JSON object with `reason` and `message`."""
    output: int
    """The payload's standard output and error."""


def start(
    spec: Spec,
    *,
    network: Network | None,
    inherited: tuple[int, ...] = (),
    admit: Callable[[int], None],
) -> Started:
    """Fork a contained process; returns at once, with the container still being built.

    Args:
        spec: what to run.
        network: namespaces to join.
        inherited: descriptors that the payload gets as 3, 4, ...
        admit: called with the new pid before it does anything (joins it to its cgroup); if it raises,
            nothing runs.

    Raises:
        OSError: cannot fork, or admit failed.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report_read, report_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    output_read, output_write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(output_read, False)
    os.fchown(output_write, spec.uid if not spec.own_user_namespace else -1, -1)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _shim(_Child(spec, network, inherited, theirs, report_write, output_write))
    theirs.close()
    os.close(report_write)
    os.close(output_write)
    started = Started(shim_pid=pid, channel=ours, report=report_read, output=output_read)
    try:
        admit(pid)
        ours.send(GO)
    except OSError:
        abandon(started)
        raise
    ours.settimeout(0)
    return started


def abandon(started: Started) -> None:
    """Kill a shim that was never let go, and close everything."""
    os.kill(started.shim_pid, signal.SIGKILL)
    os.waitpid(started.shim_pid, 0)
    started.channel.close()
    os.close(started.report)
    os.close(started.output)


@dataclass
class _Child:
    spec: Spec
    network: Network | None
    inherited: tuple[int, ...]
    channel: socket.socket
    report: int
    output: int


def _guarded(child: _Child, step: Callable[[_Child], None]) -> NoReturn:
    """Run a step that must end in execve or exit; report whatever else happens."""
    try:
        step(child)
    except BaseException as error:  # noqa: BLE001  # the boundary: nothing may return into the supervisor's code
        reason = error.reason if isinstance(error, IsolationError) else "isolation_failed"
        text = json.dumps({"reason": reason, "message": f"{type(error).__name__}: {error}"[:1000]})
        os.write(child.report, text.encode())
    os._exit(125)


def _shim(child: _Child) -> NoReturn:
    _guarded(child, _leave_host)


def _leave_host(child: _Child) -> None:
    spec, network = child.spec, child.network
    privileges.die_with_parent(signal.SIGKILL)
    _reset_signals()
    if child.channel.recv(len(GO)) != GO:
        raise IsolationError("supervisor_gone", "the supervisor did not let the container start")
    if network is not None:
        if network.user_fd is not None:
            namespaces.join(network.user_fd, namespaces.NEWUSER)
        namespaces.join(network.net_fd, namespaces.NEWNET)
    elif spec.own_user_namespace:
        namespaces.enter_user_namespace(spec.uid)
    namespaces.unshare(
        namespaces.NEWNS | namespaces.NEWIPC | namespaces.NEWUTS | namespaces.NEWPID | namespaces.NEWCGROUP
    )
    namespaces.set_hostname(spec.name)
    pid = os.fork()
    if pid == 0:
        _guarded(child, _become_init)
    child.channel.send(json.dumps({"init": pid}).encode())
    os._exit(0)


def _become_init(child: _Child) -> None:
    spec = child.spec
    rootfs.build(spec.root)
    if child.channel.recv(len(GO)) != GO:  # sent once the supervisor is our parent
        raise IsolationError("supervisor_gone", "the supervisor did not adopt the container")
    payload = os.fork()
    if payload == 0:
        child.channel.close()
        _guarded(child, _execute)
    os.close(child.report)
    os.close(child.output)
    for descriptor in child.inherited:
        os.close(descriptor)
    privileges.drop(spec.uid, own_user_namespace=spec.own_user_namespace)
    privileges.hide_memory()
    privileges.die_with_parent(signal.SIGKILL)
    installing.install(spec.syscall_filter)
    init.run(payload, child.channel, spec.watch)


def _execute(child: _Child) -> None:
    spec = child.spec
    os.setsid()
    os.umask(0o077)
    if spec.cpus is not None:
        available = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, available[: spec.cpus])
    privileges.limit({**spec.rlimits, resource.RLIMIT_CORE: 0})
    _arrange_descriptors(child)
    privileges.drop(spec.uid, own_user_namespace=spec.own_user_namespace)
    os.chdir(spec.directory)
    if spec.landlock_rules is not None:
        landlock.restrict(spec.landlock_rules)
    installing.install(spec.syscall_filter)
    try:
        os.execvpe(spec.argv[0], list(spec.argv), dict(spec.env))  # noqa: S606  # what all the rest is for
    except OSError as error:
        raise IsolationError("exec_failed", f"cannot execute {spec.argv[0]}: {error.strerror}") from error


def _arrange_descriptors(child: _Child) -> None:
    """Leave 0 to 2, the inherited ones from 3 on, and the report pipe; close all else."""
    null = os.open("/dev/null", os.O_RDONLY)
    sources = [null, child.output, child.output, *child.inherited]
    # Move everything out of the way first: a source may sit where another is to go.
    high = [os.dup2(source, 1000 + index, inheritable=False) for index, source in enumerate(sources)]
    report = os.dup2(child.report, 1000 + len(sources), inheritable=False)
    for target, source in enumerate(high):
        os.dup2(source, target, inheritable=True)
    os.closerange(len(high), 1000)
    for source in high:
        os.close(source)
    os.closerange(report + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    child.report = report


def _reset_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    sys.stdin = None  # the supervisor's object is not ours to flush
